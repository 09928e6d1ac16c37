"""`EventStream` and `while_connected` where a real server cannot be made to stand still."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from fastapi import HTTPException, Request
from starlette.types import Message, Scope

from serve_app.api import sse
from serve_app.api.sse import CLIENT_CLOSED_REQUEST, EventStream, while_connected

SCOPE: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}


class Client:
    """One end of a connection. It takes `patience` messages, and no more until it leaves."""

    def __init__(self, patience: int = 1000) -> None:
        self.messages: list[Message] = []
        self.stuck = asyncio.Event()
        self.left = asyncio.Event()
        self._patience = patience

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) >= self._patience:
            self.stuck.set()
            await asyncio.Event().wait()


async def test_a_comment_keeps_a_silent_stream_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_OPEN_EVERY_S", 0.01)
    client = Client(patience=3)

    async def silent() -> AsyncGenerator[str, None]:
        yield "data: 1\n\n"
        await client.stuck.wait()
        yield "data: 2\n\n"

    sending = asyncio.create_task(EventStream(silent())(SCOPE, client.receive, client.send))
    await client.stuck.wait()
    client.left.set()
    await sending

    assert client.messages[2]["body"] == b": waiting\n\n"


class Source:
    def __init__(self) -> None:
        self.is_closed = False

    async def events(self) -> AsyncGenerator[str, None]:
        try:
            yield "data: 1\n\n"
            yield "data: 2\n\n"
        finally:
            await asyncio.sleep(0)  # what is awaited while closing is not cancelled
            self.is_closed = True


async def test_events_are_sent_as_they_come() -> None:
    client, source = Client(), Source()

    await EventStream(source.events())(SCOPE, client.receive, client.send)

    assert [message.get("body") for message in client.messages] == [None, b"data: 1\n\n", b"data: 2\n\n", b""]
    assert [message.get("more_body") for message in client.messages] == [None, True, True, False]
    assert source.is_closed


async def test_a_client_that_leaves_while_it_is_sent_to_closes_the_source() -> None:
    client, source = Client(patience=2), Source()
    sending = asyncio.create_task(EventStream(source.events())(SCOPE, client.receive, client.send))
    await client.stuck.wait()

    client.left.set()
    await sending

    assert source.is_closed


async def test_a_request_that_is_cancelled_while_it_sends_closes_the_source() -> None:
    client, source = Client(patience=2), Source()
    sending = asyncio.create_task(EventStream(source.events())(SCOPE, client.receive, client.send))
    await client.stuck.wait()

    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending

    assert source.is_closed


async def test_work_returns_or_raises_as_without_a_client() -> None:
    client = Client()

    assert await while_connected(Request(SCOPE, client.receive), asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError):
        await while_connected(Request(SCOPE, client.receive), fail())


async def fail() -> None:
    raise KeyError


async def test_work_is_cancelled_if_the_client_leaves() -> None:
    client = Client()
    client.left.set()

    with pytest.raises(HTTPException) as raised:
        await while_connected(Request(SCOPE, client.receive), asyncio.Event().wait())

    assert raised.value.status_code == CLIENT_CLOSED_REQUEST
