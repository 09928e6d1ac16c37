"""`CachedGenerator`: what may come from it is what the model would have said, and nothing else comes from it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import Overloaded, Unavailable
from serve_app.generation.cache import CachedGenerator, outcome
from serve_app.generation.stream import parse_chunks
from serve_app.lfu_cache import LfuCache
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest
from tests.fakes import USAGE, FakeGenerator, RecordedMetrics

BESIDE = ("user", "store", "metadata", "safety_identifier", "prompt_cache_key", "request_id", "priority")


class Cached:
    """A fake model behind a cache, and what is asked of it."""

    def __init__(self, max_entries: int = 100) -> None:
        self.model = FakeGenerator()
        self.metrics = RecordedMetrics()
        self.kept = LfuCache(max_entries, 10**6)
        self.generator = CachedGenerator(self.model, self.kept, self.metrics)
        self._numbers = iter(range(1_000_000))

    def request(self, **fields: Any) -> GenerationRequest:
        payload: Json = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **fields}
        return GenerationRequest(payload, f"req_{next(self._numbers)}", cache="use")

    async def complete(self, request: GenerationRequest | None = None) -> tuple[str, Json]:
        """What the cache had to do with it, and the completion."""
        completion = await self.generator.complete(request or self.request())
        return outcome.get(), completion

    async def stream(self, request: GenerationRequest | None = None) -> tuple[str, str]:
        """What the cache had to do with it, and the events."""
        events = [event async for event in self.generator.stream(request or self.request())]
        return outcome.get(), "".join(events)

    async def begin(self, request: GenerationRequest | None = None) -> AsyncGenerator[str, None]:
        """A stream of which the first event has come."""
        stream = self.generator.stream(request or self.request())
        assert isinstance(stream, AsyncGenerator)
        await anext(stream)
        return stream


@pytest.fixture
def cached() -> Cached:
    return Cached()


def text_of(events: str) -> str:
    return "".join(c["delta"].get("content", "") for chunk in parse_chunks(events) for c in chunk["choices"])


def ids(events: str) -> set[str]:
    return {chunk["id"] for chunk in parse_chunks(events)}


# --- hits ---------------------------------------------------------------------------------------


async def test_a_hit_is_the_first_answer_with_the_id_of_its_own_request(cached: Cached) -> None:
    first = await cached.complete()
    second = await cached.complete()

    assert (first[0], second[0], len(cached.model.requests)) == ("miss", "hit", 1)
    assert (first[1]["id"], second[1]["id"]) == ("chatcmpl-req_0", "chatcmpl-req_1")
    assert first[1]["created"] == 1
    assert second[1]["created"] > 1
    same = {"id": "", "created": 0}
    assert first[1] | same == second[1] | same


async def test_a_streamed_hit_has_the_events_of_the_first_stream(cached: Cached) -> None:
    first = await cached.stream()
    second = await cached.stream()

    assert (first[0], second[0], len(cached.model.requests)) == ("miss", "hit", 1)
    assert (ids(first[1]), ids(second[1])) == ({"chatcmpl-req_0"}, {"chatcmpl-req_1"})
    as_first = [{**chunk, "id": "chatcmpl-req_0", "created": 1} for chunk in parse_chunks(second[1])]
    assert as_first == list(parse_chunks(first[1]))
    assert second[1].endswith("data: [DONE]\n\n")


async def test_an_answer_may_quote_its_own_id(cached: Cached) -> None:
    quoted = '{"id":"chatcmpl-req_0","created":1,"text":"\\n"}'
    cached.model.deltas = [quoted]

    texts = [text_of((await cached.stream())[1]) for _ in range(2)]

    assert texts == [quoted, quoted]


async def test_streams_and_completions_are_kept_apart(cached: Cached) -> None:
    assert [(await cached.complete())[0], (await cached.stream())[0]] == ["miss", "miss"]
    assert [(await cached.complete())[0], (await cached.stream())[0]] == ["hit", "hit"]


_JSON = st.recursive(
    st.sampled_from([None, True, 1, 1.0, 0, "1", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
_PAYLOADS = st.dictionaries(st.sampled_from(["messages", "stop", "x", "seed", "user", "stream", "store"]), _JSON)


class Echo:
    """A model whose answer is all that it was asked, but for what must not change an answer."""

    async def complete(self, request: GenerationRequest) -> Json:
        asked = {name: value for name, value in request.payload.items() if name not in (*BESIDE, "stream")}
        message = {"content": repr(sorted(asked.items(), key=lambda item: item[0]))}
        return {"id": "", "created": 1, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        completion = await self.complete(request)
        choice = completion["choices"][0]
        chunk = {**completion, "choices": [{"index": 0, "delta": choice["message"], "finish_reason": "stop"}]}
        yield f"data: {orjson.dumps(chunk).decode()}\n\ndata: [DONE]\n\n"


@settings(max_examples=100, deadline=None)
@given(st.lists(_PAYLOADS, min_size=1, max_size=15))
def test_no_two_different_payloads_share_an_entry(payloads: list[Json]) -> None:
    async def ask_all() -> None:
        echo = Echo()
        generator = CachedGenerator(echo, LfuCache(20, 10**6))
        for number, payload in enumerate(payloads):
            request = GenerationRequest({**payload, "temperature": 0}, f"req_{number}", cache="use")
            answer, expected = await generator.complete(request), await echo.complete(request)
            assert answer["choices"] == expected["choices"]
            (events,) = [event async for event in generator.stream(request)]
            assert text_of(events) == expected["choices"][0]["message"]["content"]

    asyncio.run(ask_all())


@pytest.mark.parametrize("name", BESIDE)
async def test_what_changes_no_answer_makes_no_other_entry(cached: Cached, name: str) -> None:
    await cached.complete()

    assert (await cached.complete(cached.request(**{name: "x"})))[0] == "hit"


# --- what does not come from the cache ----------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"payload": {"temperature": 0.1}}, {"payload": {"seed": None}}, {"payload": {}}, {"cache": "off"}]
)
async def test_what_is_not_determined_or_not_allowed_is_asked_anew(cached: Cached, change: Json) -> None:
    for _ in range(2):
        assert (await cached.complete(replace(cached.request(), **change)))[0] == "off"
        assert (await cached.stream(replace(cached.request(), **change)))[0] == "off"

    assert len(cached.model.requests) == 4
    assert len(cached.kept) == 0


async def test_a_seed_determines_an_answer(cached: Cached) -> None:
    outcomes = [(await cached.complete(cached.request(temperature=1.5, seed=seed)))[0] for seed in (0, 0, 1)]

    assert outcomes == ["miss", "hit", "miss"]


async def test_a_refresh_is_computed_and_kept(cached: Cached) -> None:
    await cached.complete()
    cached.model.deltas = ["New"]

    refreshed = await cached.complete(replace(cached.request(), cache="refresh"))
    after = await cached.complete()

    assert (refreshed[0], after[0]) == ("miss", "hit")
    assert after[1]["choices"][0]["message"]["content"] == "New"


@pytest.mark.parametrize("reason", ["tool_calls", "abort", "error", None])
async def test_an_answer_with_another_end_is_not_kept(cached: Cached, reason: str | None) -> None:
    cached.model.finish_reason = reason

    for _ in range(2):
        assert (await cached.complete())[0] == "miss"
        assert (await cached.stream())[0] == "miss"


async def test_a_stream_without_its_last_event_is_not_kept(cached: Cached) -> None:
    class Cut(FakeGenerator):
        async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
            async with aclosing(super().stream(request)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event.removesuffix("data: [DONE]\n\n")

    generator = CachedGenerator(Cut(), cached.kept)
    for _ in range(2):
        assert [event async for event in generator.stream(cached.request())]
        assert outcome.get() == "miss"


# --- in flight ----------------------------------------------------------------------------------


async def test_a_hundred_at_once_are_one_generation(cached: Cached) -> None:
    streamed = await asyncio.gather(*(asyncio.create_task(cached.stream()) for _ in range(100)))
    completed = await asyncio.gather(*(asyncio.create_task(cached.complete()) for _ in range(100)))

    assert len(cached.model.requests) == 2
    assert [became for became, _ in streamed] == [became for became, _ in completed] == ["miss", *["shared"] * 99]
    assert {text_of(events) for _, events in streamed} == {"Hello there."}
    assert [ids(events) for _, events in streamed] == [{f"chatcmpl-req_{number}"} for number in range(100)]
    assert [completion["id"] for _, completion in completed] == [f"chatcmpl-req_{number}" for number in range(100, 200)]
    assert cached.metrics.totals == {
        ("rayconteur_response_cache_requests", "miss"): 2,
        ("rayconteur_response_cache_requests", "shared"): 198,
        ("rayconteur_response_cache_saved_tokens",): 198 * USAGE["completion_tokens"],  # type: ignore[operator]
    }


async def test_the_first_reader_may_leave(cached: Cached) -> None:
    held = cached.model.hold()
    leader, other = await cached.begin(), await cached.begin()

    await leader.aclose()

    assert not cached.model.closed.is_set()
    held.set()
    rest = "".join([event async for event in other])
    assert (text_of(rest), rest.endswith("data: [DONE]\n\n")) == ("Hello there.", True)
    assert (await cached.stream())[0] == "hit"


async def test_the_first_reader_may_be_cancelled(cached: Cached) -> None:
    cached.model.hold().set()
    cached.model.stalls = True
    leader = asyncio.create_task(cached.stream())
    other = await cached.begin()

    leader.cancel()
    await asyncio.wait([leader])

    assert leader.cancelled()
    assert not cached.model.closed.is_set()
    await other.aclose()
    assert cached.model.closed.is_set()


async def test_when_the_last_one_who_waits_for_a_completion_leaves_the_model_is_stopped(cached: Cached) -> None:
    cached.model.stalls = True
    waiting = [asyncio.create_task(cached.complete()) for _ in range(3)]
    await asyncio.to_thread(cached.model.stalled.wait)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)

    cached.model.stalls = False
    assert (await cached.complete())[0] == "miss"
    assert len(cached.model.requests) == 2


async def test_a_model_that_writes_what_is_no_answer_leaves_nobody_waiting(cached: Cached) -> None:
    class Odd(FakeGenerator):
        async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
            yield 'data: {"no": "answer"}\n\ndata: [DONE]\n\n'

    generator = CachedGenerator(Odd(), cached.kept)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)

    assert len([event async for event in generator.stream(cached.request())]) == 1
    assert len(cached.kept) == 0


async def test_when_the_last_reader_leaves_the_model_is_stopped_and_nothing_is_kept(cached: Cached) -> None:
    cached.model.stalls = True
    readers = [await cached.begin() for _ in range(3)]
    for reader in readers:
        await reader.aclose()

    assert cached.model.closed.is_set()
    cached.model.stalls = False
    assert (await cached.stream())[0] == "miss"
    assert len(cached.model.requests) == 2


async def test_who_comes_late_reads_from_the_beginning(cached: Cached) -> None:
    held = cached.model.hold()
    first = await cached.begin()
    await anext(first)

    late = asyncio.create_task(cached.stream())
    held.set()

    assert (await late)[0] == "shared"
    assert text_of((await late)[1]) == "Hello there."
    await first.aclose()


async def test_a_refusal_reaches_every_reader_before_its_first_event(cached: Cached) -> None:
    cached.model.refusal = Overloaded("no room", retry_after_s=3)

    answers = await asyncio.gather(*(cached.stream() for _ in range(5)), return_exceptions=True)

    assert answers == [cached.model.refusal] * 5
    assert len(cached.model.requests) == 1
    cached.model.refusal = None
    assert (await cached.stream())[0] == "miss"


async def test_a_loss_in_mid_answer_reaches_every_reader_after_what_was_written(cached: Cached) -> None:
    cached.model.deaths = [2]

    async def read() -> list[str]:
        texts: list[str] = []
        try:
            async for event in cached.generator.stream(cached.request()):
                texts.append(text_of(event))
        except Unavailable:
            texts.append("lost")
        return texts

    assert await asyncio.gather(*(read() for _ in range(3))) == [["", "Hello", " there", "lost"]] * 3
    assert len(cached.model.requests) == 1
    assert (await cached.stream())[0] == "miss"


async def test_no_request_waits_for_one_that_stands_behind_it(cached: Cached) -> None:
    held = cached.model.hold()
    flex = await cached.begin(replace(cached.request(), priority=10))

    urgent = await cached.begin(replace(cached.request(), priority=-10))
    became = outcome.get()
    usual = await cached.begin(cached.request())

    assert (became, outcome.get()) == ("miss", "shared")
    assert [request.priority for request in cached.model.requests] == [10, -10]
    held.set()
    for stream in (flex, urgent, usual):
        assert [event async for event in stream]


async def test_savings_are_counted(cached: Cached) -> None:
    await cached.complete()
    await cached.complete()

    assert cached.metrics.totals[("rayconteur_response_cache_saved_tokens",)] == USAGE["completion_tokens"]


async def test_without_usage_the_pieces_of_a_stream_are_counted(cached: Cached) -> None:
    class Silent(FakeGenerator):
        async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
            for event in self.events(usage={}, request_id=request.request_id):
                yield event

    generator = CachedGenerator(Silent(), cached.kept, cached.metrics)
    for _ in range(2):
        assert [event async for event in generator.stream(cached.request())]

    assert cached.metrics.totals[("rayconteur_response_cache_saved_tokens",)] == 3
