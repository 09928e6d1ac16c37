from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.fair_queue import FairQueue
from serve_app.admission.load import Load


@dataclass(frozen=True, eq=False)
class Waiting:
    caller: str
    tokens: int
    long_prompts: int = 0

    @property
    def load(self) -> Load:
        return Load(1, self.tokens, long_prompts=self.long_prompts)


def serve_all(queue: FairQueue[Waiting]) -> list[Waiting]:
    served = []
    while heads := queue.heads():
        queue.serve(heads[0])
        served.append(heads[0])
    return served


def test_callers_take_turns_however_many_requests_one_has() -> None:
    queue = FairQueue[Waiting]()
    for caller in "aaaab":
        queue.add(Waiting(caller, 100))

    assert [each.caller for each in serve_all(queue)][:2] in (["a", "b"], ["b", "a"])


def test_a_weight_is_a_share_of_the_turns() -> None:
    queue = FairQueue[Waiting]()
    queue.weights = {"a": 3.0}
    for _ in range(40):
        queue.add(Waiting("a", 100))
        queue.add(Waiting("b", 100))

    first = [each.caller for each in serve_all(queue)][:40]

    assert first.count("a") == 30


def test_a_caller_is_not_credited_for_the_time_in_which_it_asked_nothing() -> None:
    queue = FairQueue[Waiting]()
    for _ in range(100):
        queue.charge("a", Load(1, 100))
    for caller in "aaabbb":
        queue.add(Waiting(caller, 100))

    first = [each.caller for each in serve_all(queue)][:4]

    assert first.count("a") == 2


def test_a_callers_first_of_either_kind_is_a_head() -> None:
    queue = FairQueue[Waiting]()
    long, other_long = (Waiting("a", 2000, long_prompts=1) for _ in range(2))
    short, other_short = (Waiting("a", 100) for _ in range(2))
    for waiter in (long, other_long, short, other_short):
        queue.add(waiter)

    assert queue.heads() == [long, short]
    queue.serve(short)
    assert queue.heads() == [long, other_short]
    assert serve_all(queue) == [long, other_long, other_short]


def test_who_gives_up_leaves_nothing_behind() -> None:
    queue = FairQueue[Waiting]()
    gone, stays = Waiting("a", 1_000_000), Waiting("a", 100)
    queue.add(gone)
    queue.add(stays)
    queue.remove(gone)

    assert serve_all(queue) == [stays]
    assert queue.load == Load()
    assert len(queue) == 0


def test_only_what_comes_before_a_callers_next_request_is_ahead_of_it() -> None:
    queue = FairQueue[Waiting]()
    for _ in range(50):
        queue.add(Waiting("loud", 100))
    queue.expect("loud", Load(1, 100))

    assert queue.ahead("loud") == Load(51, 5100)
    assert queue.ahead("quiet").tokens == 0


@given(
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), max_size=60),
    weights=st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 10)),
)
def test_nobody_is_more_than_one_request_of_each_behind_its_share(
    asked: list[tuple[str, int]], weights: dict[str, float]
) -> None:
    """Goyal et al., theorem 1: two callers who both wait differ by the largest request of each at most."""
    queue = FairQueue[Waiting]()
    queue.weights = weights
    for caller, tokens in asked:
        queue.add(Waiting(caller, tokens))
    largest = {name: max((tokens for caller, tokens in asked if caller == name), default=0) for name in "abc"}
    work = dict.fromkeys("abc", 0.0)

    while heads := queue.heads():
        waiting = {each.caller for each in heads}
        for one in waiting:
            for other in waiting:
                bound = largest[one] / weights.get(one, 1) + largest[other] / weights.get(other, 1)
                assert work[one] - work[other] <= bound + 1e-6
        queue.serve(heads[0])
        work[heads[0].caller] += heads[0].tokens / weights.get(heads[0].caller, 1)

    assert queue.load == Load()
