"""`CountedGenerator`: a generator whose answers are timed and counted where the user feels them, in the gateway."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.counts import Count, Counted, Counts, Times, times_of
from serve_app.errors import RayconteurError
from serve_app.generation.stream import close
from serve_app.metrics import (
    BETWEEN_TOKENS_SECONDS,
    FIRST_TOKEN_SECONDS,
    GENERATION_FAILURES,
    GENERATIONS,
    NO_METRICS,
    Metrics,
)
from serve_app.parts import Generator
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest

_CHOICE = '"choices":[{'
"""In every event of a stream but the usage and the end."""


class CountedGenerator:
    """For one event loop. What it adds to a token is about two microseconds: it looks for one word, and parses nothing.

    A client that leaves, and a request whose time is over, close the stream: that is `cancelled`, and no error.
    """

    def __init__(self, generator: Generator, counts: Counts, metrics: Metrics = NO_METRICS) -> None:
        self._generator = generator
        self._counts = counts
        self._metrics = metrics

    async def complete(self, request: GenerationRequest) -> Json:
        with self._counted(_model(request)):
            return await self._generator.complete(request)

    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        model = _model(request)
        # Several answers at once come in turns, so that the time between two events says nothing.
        is_single = (request.payload.get("n") or 1) == 1
        second_at = last_at = 0.0
        events = gaps = 0
        began = time.perf_counter()
        with self._counted(model):
            stream = self._generator.stream(request)
            try:
                async for event in stream:
                    if _CHOICE in event:
                        now = time.perf_counter()
                        events += 1
                        if events == 1:
                            self._counts.add_time(model, "first_token", now - began)
                            self._metrics.observe(FIRST_TOKEN_SECONDS, now - began, model=model)
                        elif events == 2:
                            # The first event names the role only, and the first token comes with it.
                            second_at = now
                        elif is_single:
                            gaps += 1
                            self._counts.add_time(model, "between_tokens", now - last_at)
                        last_at = now
                    yield event
            finally:
                await close(stream)
                if gaps:
                    self._metrics.observe(BETWEEN_TOKENS_SECONDS, (last_at - second_at) / gaps, model=model)

    @contextmanager
    def _counted(self, model: str) -> Iterator[None]:
        self._counts.add(Count(model, "request"))
        self._metrics.add(GENERATIONS, model=model)
        try:
            yield
        except RayconteurError as error:
            self._counts.add(Count(model, "error", type(error).__name__))
            self._metrics.add(GENERATION_FAILURES, model=model, error=type(error).__name__)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._counts.add(Count(model, "cancelled"))
            raise


def _model(request: GenerationRequest) -> str:
    return str(request.payload.get("model") or "")


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    requests: int
    cancelled: int
    errors: dict[str, int]
    """By the names of the leaves of errors.py."""
    first_token: Times
    between_tokens: Times
    queue: Times
    """From the engine's taking a request until it begins with it; of requests that it has finished."""
    output_tokens: int


def models_of(counted: Counted) -> set[str]:
    return {count.model for count in counted.since_start}


def statistics_of(model: str, counts: Counter[Count]) -> ModelStatistics:
    of_kind: dict[str, Counter[int | str]] = {}
    for count, total in counts.items():
        if count.model == model:
            of_kind.setdefault(count.kind, Counter())[count.detail] += total

    def total_of(kind: str) -> int:
        return sum(of_kind.get(kind, {}).values())

    def times(kind: str) -> Times:
        return times_of({int(bucket): total for bucket, total in of_kind.get(kind, {}).items()})

    return ModelStatistics(
        requests=total_of("request"),
        cancelled=total_of("cancelled"),
        errors={str(name): total for name, total in sorted(of_kind.get("error", {}).items())},
        first_token=times("first_token"),
        between_tokens=times("between_tokens"),
        queue=times("queue"),
        output_tokens=total_of("output_token"),
    )
