"""The model's answer as it comes: vLLM's server-sent events, under a deadline, and closed whatever happens."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from typing import TypeVar

import anyio
import orjson

from serve_app.errors import InternalError, InvalidRequest, Overloaded, RayconteurError, Timeout, Unavailable
from serve_app.types import Json

T = TypeVar("T")

CLOSE_TIMEOUT_S = 5.0
"""Longest wait for a stream that is being closed."""

_DONE = "[DONE]"
_BY_STATUS: dict[int, type[RayconteurError]] = {
    leaf.status: leaf for leaf in (InvalidRequest, Overloaded, Unavailable, Timeout)
}


async def before(deadline: float, work: Awaitable[T]) -> T:
    """What the work returns. Raises `Timeout` if it is not done by `deadline`, in the event loop's time."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise Timeout(
            "the request was not done within the time that one may take: try again, or ask for less"
        ) from None


async def stream_before(deadline: float, stream: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """The stream's items. Raises `Timeout` at the deadline. Closing this closes the stream, which stops the engine."""
    try:
        while (item := await before(deadline, anext(stream, None))) is not None:
            yield item
    finally:
        await close(stream)


async def close(stream: AsyncIterator[object]) -> None:
    """Close an async generator, even if the task that read it is being cancelled."""
    if isinstance(stream, AsyncGenerator):
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await stream.aclose()


def parse_chunks(events: str) -> Iterator[Json]:
    """The chat completion chunks in a string of whole events. Raises the error that vLLM sent in place of one."""
    for event in events.split("\n\n"):
        data = event.removeprefix("data: ").strip()
        if not data or data == _DONE:
            continue
        chunk: Json = orjson.loads(data)
        if "error" in chunk:
            error = chunk["error"]
            leaf = _BY_STATUS.get(error.get("code"), InternalError)
            raise leaf(error.get("message") or "the model failed while it was answering")
        yield chunk
