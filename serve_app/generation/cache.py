"""`CachedGenerator`: an answer that is determined is written once, for all who ask for it meanwhile or later.

What it is kept under is the whole payload that the model would be given: settings are filled in there, and the passages
of a search stand in its messages. So no answer is older than what its request was going to ask.
"""

import asyncio
import contextvars
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import anyio
import orjson

from serve_app.generation.stream import CLOSE_TIMEOUT_S, close, parse_chunks
from serve_app.lfu_cache import LfuCache
from serve_app.metrics import NO_METRICS, RESPONSE_CACHE_REQUESTS, SAVED_TOKENS, Metrics
from serve_app.parts import Generator
from serve_app.types import Json, now_s
from serve_app.types.generation import GenerationRequest

Outcome = Literal["hit", "miss", "shared", "off"]

outcome: contextvars.ContextVar[Outcome] = contextvars.ContextVar("outcome", default="off")
"""Of the answer that was asked for last in this context: it was kept, is new, is written for another one too, or must
not come from here."""

_Kind = Literal["completion", "stream"]

_BESIDE_THE_ANSWER = frozenset(
    ("stream", "request_id", "priority", "store", "metadata", "user", "safety_identifier", "prompt_cache_key")
)
"""What of a payload changes no answer. All else may, also what is unknown here."""

_DONE = "data: [DONE]\n\n"


class CachedGenerator:
    """Serves only requests whose `cache` allows it, and whose answer is determined. For one event loop."""

    def __init__(self, generator: Generator, kept: LfuCache, metrics: Metrics = NO_METRICS) -> None:
        self._generator = generator
        self._kept = kept
        self._metrics = metrics
        self._flights: dict[bytes, _Flight] = {}

    async def complete(self, request: GenerationRequest) -> Json:
        if not _is_served(request):
            outcome.set("off")
            return await self._generator.complete(request)
        async with aclosing(self._read("completion", request, self._complete)) as texts:
            completion: Json = orjson.loads("".join([text async for text in texts]))
        return completion

    def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        if not _is_served(request):
            outcome.set("off")
            return self._generator.stream(request)
        return self._read("stream", request, self._generator.stream)

    async def _complete(self, request: GenerationRequest) -> AsyncGenerator[str, None]:
        yield orjson.dumps(await self._generator.complete(request)).decode()

    async def _read(
        self, kind: _Kind, request: GenerationRequest, write: Callable[[GenerationRequest], AsyncIterator[str]]
    ) -> AsyncGenerator[str, None]:
        """The texts of an answer. They are written if nobody has, or does."""
        key = _key(kind, request.payload)
        answer: _Answer | None = self._kept.find(key) if request.cache == "use" else None
        if answer:
            self._note("hit", saved_tokens=answer.tokens)
            yield answer.text_for(request)
            return
        flight = self._flights.get(key)
        if flight and flight.can_be_joined(request):
            self._note("shared")
        else:
            self._note("miss")
            flight = self._flights[key] = _Flight(request, write(request), partial(self._land, key))
        async with aclosing(flight.read()) as texts:
            async for text in texts:
                yield text if flight.request is request else _renamed(text, flight.id, request)
        if flight.request is not request and flight.answer:
            self._metrics.add(SAVED_TOKENS, flight.answer.tokens)

    def _land(self, key: bytes, flight: "_Flight") -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.answer:
            self._kept.keep(key, flight.answer)

    def _note(self, became: Outcome, saved_tokens: int = 0) -> None:
        outcome.set(became)
        self._metrics.add(RESPONSE_CACHE_REQUESTS, outcome=became)
        self._metrics.add(SAVED_TOKENS, saved_tokens)


class _Flight:
    """An answer that is being written. It is its readers' together: when the last one leaves, the model is stopped."""

    def __init__(
        self, request: GenerationRequest, source: AsyncIterator[str], land: Callable[["_Flight"], None]
    ) -> None:
        """`land` is called at the end, before any reader sees it."""
        self.request = request
        self.answer: _Answer | None = None
        """Once it has landed, and if it is whole."""
        self._texts: list[str] = []
        self._land = land
        self._has_landed = False
        self._readers = 0
        self._news = asyncio.Event()
        # In an empty context Ray Serve takes the call for nobody's: one reader's leaving does not cancel it.
        self._task = asyncio.create_task(self._write(source), context=contextvars.Context())
        self._task.add_done_callback(self._end)

    @cached_property
    def id(self) -> str:
        """As the model wrote it. There must be a text."""
        written: str = next(parse_chunks(self._texts[0]))["id"]
        return written

    def can_be_joined(self, request: GenerationRequest) -> bool:
        """Not one that was given up, nor one that stands behind the request in the queue."""
        return self._readers > 0 and request.cache == "use" and self.request.priority <= request.priority

    async def read(self) -> AsyncGenerator[str, None]:
        """The texts from the first on. Raises what the model raised, once they have been read."""
        self._readers += 1
        try:
            position = 0
            while True:
                news = self._news
                while position < len(self._texts):
                    yield self._texts[position]
                    position += 1
                if self._has_landed:
                    break
                await news.wait()
            self._task.result()
        finally:
            self._readers -= 1
            if not self._readers and not self._task.done():
                self._task.cancel()
                with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                    await asyncio.wait([self._task])

    async def _write(self, source: AsyncIterator[str]) -> None:
        try:
            async for text in source:
                self._texts.append(text)
                self._tell()
        finally:
            await close(source)

    def _end(self, task: asyncio.Task[None]) -> None:
        try:
            if not task.cancelled() and not task.exception():
                self.answer = _whole(self._texts)
        finally:
            self._has_landed = True
            self._land(self)
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


@dataclass(frozen=True, slots=True)
class _Answer:
    """A whole one."""

    text: str
    """The completion as JSON, or all events of its stream."""
    id: str
    created: int
    tokens: int

    def text_for(self, request: GenerationRequest) -> str:
        text = _renamed(self.text, self.id, request)
        return text.replace(f'"created":{self.created},', f'"created":{now_s()},')


def is_determined(payload: Json) -> bool:
    """Whether the model says the same when it is asked again."""
    return payload.get("temperature") == 0 or payload.get("seed") is not None


def _is_served(request: GenerationRequest) -> bool:
    return request.cache != "off" and is_determined(request.payload)


def _key(kind: _Kind, payload: Json) -> bytes:
    """The order of a payload's own fields is nobody's intention. Further down, as in a JSON schema, it may be."""
    asked = sorted((name, value) for name, value in payload.items() if name not in _BESIDE_THE_ANSWER)
    return hashlib.blake2b(orjson.dumps([kind, asked]), digest_size=32).digest()


def _renamed(text: str, written_id: str, request: GenerationRequest) -> str:
    """With the id that the model would have given to this request. Within a string the quotes would be escaped."""
    return text.replace(f'{{"id":"{written_id}"', f'{{"id":"chatcmpl-{request.request_id}"')


def _whole(texts: list[str]) -> _Answer | None:
    """What the texts of an answer make up; None if it has no end, or one that is not its own."""
    text = "".join(texts)
    is_stream = text.startswith("data: ")
    if is_stream and not text.endswith(_DONE):
        return None
    chunks = list(parse_chunks(text))
    ends: dict[int, str | None] = {}
    tokens = 0
    for chunk in chunks:
        for choice in chunk["choices"]:
            ends[choice["index"]] = choice.get("finish_reason") or ends.get(choice["index"])
            tokens += is_stream and bool(choice["delta"].get("content"))
        tokens = (chunk.get("usage") or {}).get("completion_tokens") or tokens
    if not ends or not set(ends.values()) <= {"stop", "length"}:
        return None
    return _Answer(text, chunks[0]["id"], chunks[0]["created"], tokens)
