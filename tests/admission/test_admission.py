"""The door, in virtual time, so that every test is the same each time."""

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest

from serve_app.admission.admission import BACKGROUND_WAIT_S, Admission, Place
from serve_app.admission.load import Demand, Load
from serve_app.admission.settings import AdmissionSettings, Limits
from serve_app.admission.tiers import TIERS, Tier
from serve_app.errors import Overloaded
from serve_app.types.generation import Capacity
from tests.admission.door import CAPACITY, DEMAND, OPEN, SEQUENCES, build_admission
from tests.admission.virtual_time import run
from tests.fakes import RecordedMetrics


async def fill(admission: Admission, demand: Demand = DEMAND, most: int = 1000) -> list[Place]:
    """Requests of this kind, as many as are let in at once."""
    places: list[Place] = []
    for _ in range(most):
        entering = asyncio.create_task(admission.enter(demand))
        await settle()
        if not entering.done():
            entering.cancel()
            with suppress(asyncio.CancelledError):
                await entering
            break
        if entering.exception():
            break
        places.append(entering.result())
    return places


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# --- room ---------------------------------------------------------------------------------------


def test_as_many_enter_at_once_as_the_engine_can_run() -> None:
    async def test() -> None:
        assert len(await fill(build_admission())) == OPEN

    run(test())


def test_tokens_of_the_cache_bound_what_is_inside_in_whole_blocks() -> None:
    async def test() -> None:
        admission = build_admission(Capacity(1000, tokens=1024, step_tokens=256, block_tokens=128))
        # 45 + 48 tokens take a block of 128.
        assert len(await fill(admission)) == 8

    run(test())


def test_each_answer_of_a_request_takes_a_place() -> None:
    async def test() -> None:
        assert len(await fill(build_admission(), replace(DEMAND, answers=4))) == OPEN // 4

    run(test())


def test_no_more_prompts_are_let_in_than_a_step_reads() -> None:
    async def test() -> None:
        admission = build_admission()
        places = await fill(admission, replace(DEMAND, prompt_tokens=100, is_streamed=True))
        assert len(places) == 2

        places[0].wrote(1)

        assert len(await fill(admission, replace(DEMAND, prompt_tokens=100, is_streamed=True))) == 1

    run(test())


@pytest.mark.parametrize("tier", ["default", "background"])
def test_what_is_larger_than_the_engine_enters_alone(tier: Tier) -> None:
    async def test() -> None:
        admission = build_admission()
        place = await admission.enter(replace(DEMAND, tier=tier, prompt_tokens=100_000, is_streamed=True))
        place.leave()
        assert admission.load == Load()

    run(test())


def test_each_gateway_admits_its_share() -> None:
    async def test() -> None:
        assert len(await fill(build_admission(gateways=4))) == OPEN // 4

    run(test())


def test_each_gateway_has_room_for_the_longest_prompt_beside_others() -> None:
    async def test() -> None:
        capacity = Capacity(100, tokens=4000, step_tokens=256, context_tokens=2000)
        admission = build_admission(capacity, gateways=4)
        await admission.enter(DEMAND)
        await admission.enter(replace(DEMAND, prompt_tokens=1500))

        assert admission.load.tokens > 4000 / 4
        assert len(await fill(admission, replace(DEMAND, prompt_tokens=1500))) == 0
        bounded = build_admission(capacity, gateways=4, limits={"m": Limits(tokens=2000)})
        await fill(bounded)
        assert bounded.load.tokens <= 2000 / 4, "what the operator says is for all of them together"

    run(test())


def test_the_operators_limits_replace_the_engines() -> None:
    async def test() -> None:
        admission = build_admission(limits={"m": Limits(requests=3), "other": Limits(requests=1)})
        assert len(await fill(admission)) == 3
        admission.configure(AdmissionSettings(limits={"m": Limits(requests=5)}))
        assert len(await fill(admission)) == 2

    run(test())


def test_without_news_of_the_engine_everybody_enters() -> None:
    async def test() -> None:
        assert len(await fill(Admission("m", AdmissionSettings()))) == 1000

    run(test())


def test_an_answer_counts_for_as_much_as_answers_have_taken() -> None:
    async def test() -> None:
        admission = build_admission(Capacity(1000, tokens=4000, step_tokens=256))
        long = replace(DEMAND, prompt_tokens=0, max_tokens=1000)
        before = await fill(admission, long)
        for place in before:
            place.leave()
        for _ in range(200):
            (place,) = await fill(admission, long, most=1)
            place.wrote(20)
            place.ended()
            place.leave()
        for _ in range(200):  # these had no choice
            (place,) = await fill(admission, replace(long, max_tokens=1), most=1)
            place.wrote(1)
            place.ended()
            place.leave()

        assert (len(before), len(await fill(admission, long))) == (31, 190)

    run(test())


# --- tiers and callers --------------------------------------------------------------------------


def test_priority_finds_a_place_in_an_engine_that_is_full_for_others() -> None:
    async def test() -> None:
        admission = build_admission()
        await fill(admission)
        assert len(await fill(admission, replace(DEMAND, tier="priority"))) == SEQUENCES - OPEN

    run(test())


def test_while_priority_requests_come_others_fill_their_share() -> None:
    async def test() -> None:
        admission = build_admission(beside_priority=0.5)
        (place,) = await fill(admission, replace(DEMAND, tier="priority"), most=1)
        place.leave()
        assert len(await fill(admission)) == OPEN // 2
        await asyncio.sleep(31)
        assert len(await fill(admission)) == OPEN // 2

    run(test())


def test_background_leaves_half_of_the_engine_free() -> None:
    async def test() -> None:
        assert len(await fill(build_admission(), replace(DEMAND, tier="background"))) == OPEN // 2

    run(test())


def test_there_is_room_for_background_until_half_is_taken() -> None:
    async def test() -> None:
        admission = build_admission(limits={"m": Limits(requests=1)})
        assert admission.has_room("background")
        await fill(admission, replace(DEMAND, tier="background"))
        assert not admission.has_room("background")

    run(test())


def test_background_goes_on_slowly_in_an_engine_that_is_full_of_others() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=600)
        others = await fill(admission)
        waiting = [asyncio.create_task(admission.enter(DEMAND)) for _ in range(3)]
        await settle()

        inside = await fill(admission, replace(DEMAND, tier="background"))
        assert len(inside) == OPEN // 8
        assert not admission.has_room("background")

        following = asyncio.create_task(admission.enter(replace(DEMAND, tier="background")))
        others[0].leave()
        await settle()
        assert not following.done(), "it goes behind who waits"
        inside[0].leave()
        await settle()
        assert following.done()
        assert len([each for each in waiting if each.done()]) < len(waiting)
        for each in waiting:
            each.cancel()

    run(test())


def test_better_tiers_go_first() -> None:
    async def test() -> None:
        admission = build_admission(limits={"m": Limits(requests=4)}, max_wait_s=600, beside_priority=0.5)
        inside = await fill(admission, replace(DEMAND, tier="priority"), most=5)
        await asyncio.sleep(0.1)
        for place in inside:
            place.wrote(1)
        order: list[Tier] = []

        async def ask(tier: Tier) -> None:
            place = await admission.enter(replace(DEMAND, tier=tier))
            order.append(tier)
            place.leave()

        (owed,) = await fill(admission, replace(DEMAND, tier="background"))
        background, *others = [asyncio.create_task(ask(tier)) for tier in reversed(TIERS)]
        await settle()
        for place in inside:
            place.leave()
        await asyncio.gather(*others)
        owed.leave()
        await background

        assert order == list(TIERS)

    run(test())


def test_a_caller_that_fills_the_engine_leaves_room_for_one_that_was_there() -> None:
    async def test() -> None:
        admission = build_admission()
        quiet, loud = replace(DEMAND, caller="key quiet"), replace(DEMAND, caller="key loud")
        for place in await fill(admission, quiet, most=5):
            place.leave()

        assert len(await fill(admission, loud)) == OPEN - 5
        assert len(await fill(admission, quiet)) == 5

    run(test())


async def read(admission: Admission, demand: Demand, seconds: float) -> Place:
    """A prompt that is read in so many."""
    place = await admission.enter(demand)
    await asyncio.sleep(seconds)
    place.wrote(1)
    return place


def test_of_a_long_prompt_a_part_is_read_beside_others() -> None:
    async def test() -> None:
        admission = build_admission(replace(CAPACITY, chunk_tokens=96, long_prompts=2))
        short = replace(DEMAND, is_streamed=True)
        long = replace(short, prompt_tokens=2000)
        places = [await admission.enter(long) for _ in range(2)]
        waiting = asyncio.create_task(admission.enter(long))
        await settle()
        assert not waiting.done()

        # Who has little to be read passes, and takes nothing that the long one waits for.
        assert len(await fill(admission, short)) == 256 // 45
        assert not waiting.done()
        places[0].wrote(1)
        await settle()
        assert waiting.done()

    run(test())


def test_no_short_prompt_takes_the_place_or_the_cache_that_a_long_one_waits_for() -> None:
    async def test() -> None:
        admission = build_admission(Capacity(5, tokens=2200, step_tokens=256, chunk_tokens=96, long_prompts=2))
        short = replace(DEMAND, is_streamed=True)
        others = await fill(admission, short, most=2)
        waiting = asyncio.create_task(admission.enter(replace(short, prompt_tokens=2100)))
        await settle()
        assert not waiting.done()

        assert not await fill(admission, short)
        for place in others:
            place.leave()
        await settle()
        assert waiting.done()

    run(test())


def test_a_prompt_that_was_read_alone_does_not_make_the_engine_look_slow() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=2)
        streamed = replace(DEMAND, is_streamed=True)
        await read(admission, streamed, seconds=0.1)
        # Five are read in one step, so three steps are enough for those that wait.
        assert len(await fill(admission, streamed)) == 5
        waiting = [asyncio.create_task(admission.enter(streamed)) for _ in range(12)]
        await settle()
        assert not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()

    run(test())


# --- refusals -----------------------------------------------------------------------------------


async def load_engine(admission: Admission, seconds_per_token: float = 0.1) -> list[Place]:
    """Full of streams that began together, with so many seconds from word to word."""
    places = await fill(admission)
    for _ in range(10):
        await asyncio.sleep(seconds_per_token)
        for place in places:
            place.wrote(1)
    return places


def test_who_would_wait_too_long_is_refused_at_once_and_told_for_how_long() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=2)
        await load_engine(admission)
        began = asyncio.get_running_loop().time()

        with pytest.raises(Overloaded) as refused:
            await admission.enter(DEMAND)

        assert asyncio.get_running_loop().time() == began
        # 38 of 48 tokens are missing, a tenth of a second each.
        assert refused.value.retry_after_s == pytest.approx(3.8)

    run(test())


def test_a_long_prompt_may_wait_until_another_is_read() -> None:
    async def ask(max_wait_s: float) -> bool:
        admission = build_admission(replace(CAPACITY, chunk_tokens=96, long_prompts=1), max_wait_s=max_wait_s)
        long = replace(DEMAND, is_streamed=True, prompt_tokens=2000)
        await read(admission, long, seconds=2)
        await admission.enter(long)
        waiting = asyncio.create_task(admission.enter(long))
        await settle()
        is_refused = waiting.done()
        waiting.cancel()
        with suppress(asyncio.CancelledError, Overloaded):
            await waiting
        return is_refused

    assert run(ask(max_wait_s=3.0))
    assert not run(ask(max_wait_s=3.5))


def test_who_would_be_done_too_late_for_its_client_is_refused_at_once() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=10)
        await load_engine(admission)
        # 3.8 s of waiting, 4.8 s for the answer.
        waiting = asyncio.create_task(admission.enter(replace(DEMAND, timeout_s=9.0)))
        with pytest.raises(Overloaded):
            await admission.enter(replace(DEMAND, timeout_s=8.0))
        await settle()

        assert not waiting.done()
        waiting.cancel()

    run(test())


def test_with_room_a_short_timeout_is_the_clients_business() -> None:
    async def test() -> None:
        admission = build_admission()
        assert await admission.enter(replace(DEMAND, timeout_s=0.001))

    run(test())


def test_a_wait_that_has_been_too_long_after_all_ends_as_a_refusal() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=2)
        places = await load_engine(admission, seconds_per_token=0.01)
        # The engine stands still from here on.
        with pytest.raises(Overloaded):
            await admission.enter(DEMAND)
        assert asyncio.get_running_loop().time() == pytest.approx(2.1)
        for place in places:
            place.leave()
        assert admission.load == Load()
        assert admission.waiting("default") == 0

    run(test())


def test_background_waits_longer_than_clients_do() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=2)
        await load_engine(admission)
        await fill(admission, replace(DEMAND, tier="background"))
        began = asyncio.get_running_loop().time()
        with pytest.raises(Overloaded):
            await admission.enter(replace(DEMAND, tier="background"))
        assert asyncio.get_running_loop().time() - began == pytest.approx(BACKGROUND_WAIT_S)

    run(test())


def test_what_is_expected_is_reckoned_with_and_takes_no_place() -> None:
    async def test() -> None:
        admission = build_admission()
        with admission.expect(DEMAND), ExitStack() as others:
            # Nothing is known of the engine's pace, so as many may wait as there is room for.
            for number in range(2, 2 * OPEN + 1):
                others.enter_context(admission.expect(replace(DEMAND, request_id=f"req_{number}")))
            with pytest.raises(Overloaded), admission.expect(replace(DEMAND, request_id="req_more")):
                pass
            assert admission.load == Load()
        place = await admission.enter(DEMAND)
        assert len(await fill(admission)) == OPEN - 1
        assert place.load.sequences == 1

    run(test())


def test_an_id_that_comes_twice_leaves_nothing_expected() -> None:
    async def test() -> None:
        admission = build_admission(max_wait_s=0)
        with admission.expect(DEMAND), admission.expect(DEMAND):
            await admission.enter(DEMAND)
        assert len(await fill(admission)) == OPEN - 1

    run(test())


def test_who_is_cancelled_as_it_is_let_in_gives_its_place_back() -> None:
    async def test() -> None:
        admission = build_admission(limits={"m": Limits(requests=2)})
        inside, _ = await fill(admission, most=2)
        first, second = (asyncio.create_task(admission.enter(DEMAND)) for _ in range(2))
        await settle()
        inside.leave()
        first.cancel()
        place = await second

        assert first.cancelled()
        assert admission.load == place.load * 2

    run(test())


def test_what_happens_is_counted() -> None:
    async def test() -> None:
        metrics = RecordedMetrics()
        admission = Admission("m", AdmissionSettings(max_wait_s=1), metrics)
        admission.set_capacity(CAPACITY, 1)
        places = await fill(admission, most=OPEN)
        for place in places:
            place.wrote(1)
        waiting = asyncio.create_task(admission.enter(DEMAND))
        await asyncio.sleep(0.5)
        assert admission.waiting("default") == 1
        places[0].leave()
        await waiting
        with pytest.raises(Overloaded):
            await admission.enter(replace(DEMAND, max_tokens=1000, tier="flex"))

        assert metrics.totals["rayconteur_admitted", "m", "default"] == OPEN + 1
        assert metrics.observed["rayconteur_admission_wait_seconds", "m", "default"][-1] == 0.5
        assert metrics.totals["rayconteur_refused", "m", "flex", "wait"] == 1

    run(test())
