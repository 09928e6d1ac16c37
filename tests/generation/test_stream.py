"""`generation.stream`: deadlines, closing, and vLLM's events."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.errors import InternalError, InvalidRequest, RayconteurError, Timeout
from serve_app.generation.stream import before, parse_chunks, stream_before


class Source:
    def __init__(self, *items: str, stalls: bool = False) -> None:
        self.is_closed = False
        self._items, self._stalls = items, stalls

    async def stream(self) -> AsyncIterator[str]:
        try:
            for item in self._items:
                yield item
            if self._stalls:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_all_items_come_and_the_source_is_closed() -> None:
    source = Source("a", "b")

    assert [item async for item in stream_before(now() + 60, source.stream())] == ["a", "b"]
    assert source.is_closed


async def test_a_stalled_stream_ends_at_the_deadline() -> None:
    source = Source("a", stalls=True)
    stream = stream_before(now() + 0.05, source.stream())

    assert await anext(stream) == "a"
    with pytest.raises(Timeout):
        await anext(stream)
    assert source.is_closed


async def test_closing_the_stream_closes_the_source() -> None:
    source = Source("a", "b")
    stream = stream_before(now() + 60, source.stream())
    await anext(stream)

    await stream.aclose()

    assert source.is_closed


async def test_work_has_a_deadline() -> None:
    with pytest.raises(Timeout):
        await before(now() + 0.01, asyncio.Event().wait())


def test_one_string_may_hold_several_events() -> None:
    events = 'data: {"choices": []}\n\ndata: {"choices": [1]}\n\ndata: [DONE]\n\n'

    assert list(parse_chunks(events)) == [{"choices": []}, {"choices": [1]}]


@pytest.mark.parametrize(("code", "leaf"), [(400, InvalidRequest), (500, InternalError), (None, InternalError)])
def test_an_error_in_the_stream_is_raised(code: int | None, leaf: type[RayconteurError]) -> None:
    event = '{"error": {"message": "too bad", "code": %s}}' % ("null" if code is None else code)

    with pytest.raises(leaf, match="too bad"):
        list(parse_chunks(f"data: {event}\n\n"))
