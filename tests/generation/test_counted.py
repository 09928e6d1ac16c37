import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serve_app.counts import Counts, bucket_of, times_of
from serve_app.errors import RayconteurError, Timeout, Unavailable
from serve_app.generation import counted as module
from serve_app.generation.counted import CountedGenerator, ModelStatistics, models_of, statistics_of
from serve_app.types.generation import GenerationRequest
from tests.fakes import FakeGenerator, RecordedMetrics

MODEL = "smollm2-135m-instruct"


class Counted:
    def __init__(self) -> None:
        self.fake = FakeGenerator()
        self.counts = Counts()
        self.metrics = RecordedMetrics()
        self.generator = CountedGenerator(self.fake, self.counts, self.metrics)

    def request(self, **payload: Any) -> GenerationRequest:
        return GenerationRequest({"model": MODEL, **payload}, "req_1")

    async def read(self, **payload: Any) -> list[str]:
        return [event async for event in self.generator.stream(self.request(**payload))]

    @property
    def statistics(self) -> ModelStatistics:
        return statistics_of(MODEL, self.counts.read().since_start)


@pytest.fixture
def counted() -> Counted:
    return Counted()


async def test_a_stream_comes_through_as_it_is_with_its_times(counted: Counted) -> None:
    events = await counted.read()

    # As the fake writes them: role, three words, then the end, the usage and `[DONE]` in one string.
    assert "".join(events) == "".join(counted.fake.events(request_id="req_1"))
    shown = counted.statistics
    assert (shown.requests, shown.cancelled, shown.errors) == (1, 0, {})
    # The first word comes with the role: between the second, the third and the end are the other three times.
    assert (shown.first_token.count, shown.between_tokens.count) == (1, 3)
    assert len(counted.metrics.observed["rayconteur_first_token_seconds", MODEL]) == 1
    assert len(counted.metrics.observed["rayconteur_between_tokens_seconds", MODEL]) == 1
    assert counted.metrics.totals == {("rayconteur_generations", MODEL): 1}


async def test_times_run_from_the_request_and_from_token_to_token(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The request; the role, and the first word with it; two more words, and the end.
    seconds = iter((0.0, 1.0, 1.0, 1.25, 1.5, 1.75))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))

    await counted.read()

    assert counted.statistics.first_token == times_of({bucket_of(1.0): 1})
    assert counted.statistics.between_tokens == times_of({bucket_of(0.25): 3})
    assert counted.metrics.observed["rayconteur_first_token_seconds", MODEL] == [1.0]
    assert counted.metrics.observed["rayconteur_between_tokens_seconds", MODEL] == [0.25]


async def test_of_several_answers_at_once_only_the_first_token_is_timed(counted: Counted) -> None:
    await counted.read(n=2)

    assert (counted.statistics.first_token.count, counted.statistics.between_tokens.count) == (1, 0)


async def test_a_whole_answer_counts(counted: Counted) -> None:
    completion = await counted.generator.complete(counted.request())

    assert completion["choices"][0]["message"]["content"] == "Hello there."
    assert (counted.statistics.requests, counted.statistics.first_token.count) == (1, 0)


@pytest.mark.parametrize("error", [Unavailable("restarting"), Timeout("too slow")])
async def test_errors_count_by_their_kind(counted: Counted, error: RayconteurError) -> None:
    counted.fake.refusal = error
    for attempt in (counted.read(), counted.generator.complete(counted.request())):
        with pytest.raises(type(error)):
            await attempt
    counted.fake.refusal, counted.fake.failure = None, error
    with pytest.raises(type(error)):
        await counted.read()

    name = type(error).__name__
    assert (counted.statistics.requests, counted.statistics.errors) == (3, {name: 3})
    assert counted.metrics.totals["rayconteur_generation_failures", MODEL, name] == 3


async def test_who_leaves_stops_the_model_and_is_no_error(counted: Counted) -> None:
    counted.fake.stalls = True
    stream = counted.generator.stream(counted.request())
    await anext(stream)

    await cast("Any", stream).aclose()

    assert counted.fake.closed.is_set()
    assert (counted.statistics.cancelled, counted.statistics.errors) == (1, {})


async def test_a_cancelled_wait_is_no_error(counted: Counted) -> None:
    counted.fake.stalls = True
    waiting = asyncio.create_task(counted.generator.complete(counted.request()))
    await asyncio.to_thread(counted.fake.stalled.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert (counted.statistics.cancelled, counted.statistics.errors) == (1, {})


async def test_models_are_counted_apart(counted: Counted) -> None:
    await counted.read()
    await counted.read(model="other")

    seen = counted.counts.read()
    assert models_of(seen) == {MODEL, "other"}
    assert statistics_of("other", seen.since_start).requests == 1
