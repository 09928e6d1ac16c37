"""A model behind its door: what it is asked for, and that a place is left whatever happens."""

import asyncio

import pytest

from serve_app.admission.admission import Admission
from serve_app.admission.load import Demand, Load
from serve_app.admission.settings import AdmissionSettings, Limits
from serve_app.errors import InternalError, Overloaded
from serve_app.generation.admitted import AdmittedGenerator, build_demand, count_prompt
from serve_app.generation.stream import close
from serve_app.types.generation import GenerationRequest
from tests.fakes import FakeGenerator, count_words

REQUEST = GenerationRequest(
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"text": "Name a river."}]},
        ],
        "max_completion_tokens": 40,
        "n": 2,
    },
    "req_1",
    priority=10,
    caller="key a",
    timeout_s=5,
)


@pytest.fixture
def model() -> FakeGenerator:
    return FakeGenerator()


@pytest.fixture
def admission() -> Admission:
    return Admission("m", AdmissionSettings(max_wait_s=0, limits={"m": Limits(requests=2)}))


@pytest.fixture
def generator(model: FakeGenerator, admission: Admission) -> AdmittedGenerator:
    return AdmittedGenerator(model, admission, count_words)


def test_what_a_request_asks_for() -> None:
    assert build_demand(REQUEST, count_words, is_streamed=True) == Demand(
        "req_1", "flex", "key a", prompt_tokens=5 + 16, max_tokens=40, answers=2, is_streamed=True, timeout_s=5
    )


@pytest.mark.parametrize("n", [None, 0, "many"])
def test_what_vllm_will_refuse_counts_as_one_answer(n: object) -> None:
    demand = build_demand(GenerationRequest({"messages": [{}], "n": n}, "req_1"), count_words, is_streamed=False)

    assert (demand.answers, demand.max_tokens) == (1, 512)


def test_a_very_long_text_is_not_tokenised() -> None:
    def count_tokens(text: str) -> int:
        raise AssertionError

    payload = {"messages": [{"content": "x" * 400_000}]}

    assert build_demand(GenerationRequest(payload, "req_1"), count_tokens, is_streamed=False).prompt_tokens == 100_008


def test_many_long_texts_are_not_all_tokenised() -> None:
    counted: list[str] = []

    def count_tokens(text: str) -> int:
        counted.append(text)
        return 1

    messages = [{"content": f"{number}" * 30_000} for number in range(10)]

    assert count_prompt(messages, count_tokens) == 10 * 8 + 2 + 8 * 7_500
    assert counted == ["0" * 30_000, "1" * 30_000]


async def test_an_answer_holds_its_place_until_it_is_whole(
    generator: AdmittedGenerator, model: FakeGenerator, admission: Admission
) -> None:
    events = generator.stream(REQUEST)
    assert admission.load == Load()
    await anext(events)
    assert admission.load.sequences == 2
    with pytest.raises(Overloaded):
        await generator.complete(REQUEST)
    async for _ in events:
        pass

    assert admission.load == Load()
    assert len(model.requests) == 1


async def test_who_goes_away_leaves_its_place_and_the_engine(
    generator: AdmittedGenerator, model: FakeGenerator, admission: Admission
) -> None:
    model.stalls = True
    events = generator.stream(REQUEST)
    await anext(events)
    await close(events)
    completing = asyncio.create_task(generator.complete(REQUEST))
    await asyncio.to_thread(model.stalled.wait)
    assert admission.load.sequences == 2
    completing.cancel()
    await asyncio.wait([completing])

    assert model.closed.is_set()
    assert admission.load == Load()


async def test_a_failure_leaves_the_place_and_teaches_nothing(
    generator: AdmittedGenerator, model: FakeGenerator, admission: Admission
) -> None:
    model.failure = InternalError("broken")
    with pytest.raises(InternalError):
        await generator.complete(REQUEST)
    with pytest.raises(InternalError):
        async for _ in generator.stream(REQUEST):
            pass

    assert admission.load == Load()
