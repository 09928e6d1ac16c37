"""Streams to a client, and work for a client, that end when it goes away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TypeVar

import anyio
from fastapi import HTTPException, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.generation.stream import close

T = TypeVar("T")

KEEP_OPEN_EVERY_S = 15.0
"""Proxies close a connection on which nothing has come for a minute, often less."""

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that did not wait; only logs see it."""


class EventStream(Response):
    """Server-sent events as they come. Closes the iterator at the end, and as soon as the client goes away.

    An item is one or more whole events. While none comes for long, a comment keeps the connection open.

    Starlette's `StreamingResponse` notices a client's leaving only when it next sends, if the server speaks ASGI 2.4,
    and then leaves the iterator to the garbage collector.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str | bytes], headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        self._events = events
        self._is_silent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with anyio.CancelScope() as sending:
                watcher = asyncio.create_task(_on_disconnect(receive, sending))
                try:
                    await self._send_all(send)
                finally:
                    watcher.cancel()
        finally:
            await close(self._events)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        keeper = asyncio.create_task(self._keep_open(send))
        try:
            async for event in self._events:
                body = event if isinstance(event, bytes) else event.encode()
                self._is_silent = False
                await send({"type": "http.response.body", "body": body, "more_body": True})
        finally:
            keeper.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_open(self, send: Send) -> None:
        while True:
            self._is_silent = True
            await asyncio.sleep(KEEP_OPEN_EVERY_S)
            if self._is_silent:
                await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """What the work returns; it is cancelled if the client goes away. The request's body must have been read."""
    with anyio.CancelScope() as working:
        watcher = asyncio.create_task(_on_disconnect(request.receive, working))
        try:
            return await work
        finally:
            watcher.cancel()
    raise HTTPException(CLIENT_CLOSED_REQUEST, "The client closed the connection")


async def _on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
