"""Traffic that comes when it comes, before the door of an engine in virtual time."""

import asyncio
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.admission.load import Demand, Load
from serve_app.admission.tiers import TIERS, Tier
from serve_app.errors import Overloaded
from serve_app.types.generation import Capacity
from tests.admission.door import CAPACITY, DEMAND, SEQUENCES, build_admission
from tests.admission.engine import Engine
from tests.admission.virtual_time import run


@dataclass(frozen=True)
class Outcome:
    tier: Tier
    caller: str
    prompt_tokens: int
    asked_at: float
    after_s: float
    """Until the first word, or the refusal."""
    is_refused: bool


class Traffic(NamedTuple):
    tier: Tier
    caller: str
    per_second: float
    prompt_tokens: int = DEMAND.prompt_tokens


@cache
def serve(*traffic: Traffic, seconds: float = 25, capacity: Capacity = CAPACITY) -> list[Outcome]:
    """What becomes of open-loop traffic before an engine of about 3.6 answers a second."""
    admission, outcomes = build_admission(capacity), list[Outcome]()

    async def ask(engine: Engine, tier: Tier, caller: str, prompt_tokens: int) -> None:
        now = asyncio.get_running_loop().time
        asked_at, first_word_at = now(), None
        demand = replace(DEMAND, tier=tier, caller=caller, prompt_tokens=prompt_tokens, is_streamed=True)
        try:
            place = await admission.enter(demand)
        except Overloaded:
            outcomes.append(Outcome(tier, caller, prompt_tokens, asked_at, now() - asked_at, True))
            return
        words = engine.ask(demand.prompt_tokens, demand.max_tokens)
        for _ in range(demand.max_tokens):
            await words.get()
            place.wrote(1)
            first_word_at = first_word_at or now()
        place.ended()
        place.leave()
        assert first_word_at
        outcomes.append(Outcome(tier, caller, prompt_tokens, asked_at, first_word_at - asked_at, False))

    async def test() -> None:
        engine, rng = Engine(SEQUENCES, capacity.chunk_tokens), random.Random(1)
        running = asyncio.create_task(engine.run())
        arrivals = sorted(arrival for each in traffic for arrival in arrivals_of(each, seconds, rng))
        async with asyncio.TaskGroup() as group:
            for at, each in arrivals:
                await asyncio.sleep(at - asyncio.get_running_loop().time())
                group.create_task(ask(engine, each.tier, each.caller, each.prompt_tokens))
        running.cancel()
        assert engine.most_running <= SEQUENCES
        assert admission.load == Load()

    run(test())
    return outcomes


def arrivals_of(traffic: Traffic, seconds: float, rng: random.Random) -> Iterable[tuple[float, Traffic]]:
    at = rng.expovariate(traffic.per_second)
    while at < seconds:
        yield at, traffic
        at += rng.expovariate(traffic.per_second)


def p95(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[int(0.95 * (len(ordered) - 1))]


def goodput(outcomes: list[Outcome]) -> int:
    return sum(not each.is_refused and each.after_s <= 2.8 for each in outcomes)


def test_overload_costs_nothing_of_what_is_served() -> None:
    at_capacity, four_times, eight_times = (goodput(serve(Traffic("default", "key a", 3.6 * n))) for n in (1, 4, 8))

    assert at_capacity > 50
    assert four_times >= 0.9 * max(at_capacity, eight_times)
    assert eight_times >= 0.9 * max(at_capacity, four_times)


def test_under_overload_refusals_come_at_once_and_the_first_word_in_time() -> None:
    outcomes = serve(Traffic("default", "key a", 3.6 * 4))

    assert p95(each.after_s for each in outcomes if each.is_refused) == 0
    assert p95(each.after_s for each in outcomes if not each.is_refused) <= 2.8


def test_priority_does_not_feel_an_overload_of_default() -> None:
    alone = serve(Traffic("priority", "key a", 0.5))
    beside = serve(Traffic("priority", "key a", 0.5), Traffic("default", "key a", 3.6 * 4))
    priority = [each for each in beside if each.tier == "priority"]

    assert not any(each.is_refused for each in priority)
    assert p95(each.after_s for each in priority) <= 2 * p95(each.after_s for each in alone)


def test_a_loud_caller_does_not_crowd_out_a_quiet_one() -> None:
    outcomes = serve(Traffic("default", "key loud", 3.6 * 4), Traffic("default", "key quiet", 0.5))
    quiet = [each for each in outcomes if each.caller == "key quiet"]
    loud = [each for each in outcomes if each.caller == "key loud"]

    assert sum(each.is_refused for each in quiet) <= 1  # nobody left it room yet
    assert p95(each.after_s for each in quiet) < 0.5 * p95(each.after_s for each in loud if not each.is_refused)


def test_long_prompts_keep_no_short_ones_out() -> None:
    short, long = Traffic("default", "key a", 1.2), Traffic("default", "key a", 0.1, prompt_tokens=1500)

    def serve_both(capacity: Capacity) -> tuple[list[Outcome], list[Outcome]]:
        outcomes = serve(short, long, seconds=240, capacity=capacity)
        assert len(outcomes) > 300
        kinds = [[each for each in outcomes if each.prompt_tokens == kind.prompt_tokens] for kind in (short, long)]
        return kinds[0], kinds[1]

    short_in_turn, _ = serve_both(CAPACITY)
    short_beside, long_beside = serve_both(replace(CAPACITY, chunk_tokens=96, long_prompts=1))

    assert sum(each.is_refused for each in short_in_turn) > 0.1 * len(short_in_turn)
    assert not any(each.is_refused for each in short_beside)
    assert p95(each.after_s for each in short_beside) < 1
    assert sum(each.is_refused for each in long_beside) < 0.3 * len(long_beside)


@settings(max_examples=30, deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(TIERS),
            st.sampled_from("ab"),
            st.integers(0, 600),  # prompt
            st.integers(1, 100),  # answer
            st.floats(0, 3),  # seconds since the one before
            st.floats(0, 5),  # seconds until it is cancelled
        ),
        max_size=40,
    )
)
def test_whatever_comes_nobody_is_left_hanging_and_nothing_stays_inside(
    asked: list[tuple[Tier, str, int, int, float, float]],
) -> None:
    async def test() -> None:
        admission = build_admission(Capacity(5, tokens=600, step_tokens=200), max_wait_s=2)
        tasks = []

        async def ask(tier: Tier, caller: str, prompt: int, answer: int, patience_s: float) -> None:
            demand = Demand("req", tier, caller, prompt, answer)
            with suppress(TimeoutError, Overloaded):
                async with asyncio.timeout(patience_s):
                    place = await admission.enter(demand)
                    try:
                        assert admission.load.sequences <= 5
                        others = admission.load.tokens - place.load.tokens
                        assert admission.load.tokens <= 600 * 1.25 or others == 0 or tier in ("priority", "background")
                        for _ in range(answer):
                            await asyncio.sleep(0.05)
                            place.wrote(1)
                        place.ended()
                    finally:
                        place.leave()

        for tier, caller, prompt, answer, after_s, patience_s in asked:
            await asyncio.sleep(after_s)
            tasks.append(asyncio.create_task(ask(tier, caller, prompt, answer, patience_s)))
        await asyncio.gather(*tasks)

        assert admission.load == Load()
        assert all(admission.waiting(tier) == 0 for tier in TIERS)
        assert await admission.enter(DEMAND)

    run(test())
