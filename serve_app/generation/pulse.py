"""`Pulse`: does an engine still move? One that is dead says so; one that hangs says nothing."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

_WAIT_S = 1.0
"""For the answer to a question: a moment, so that one that has come while the whole process stood still is seen."""


class Pulse:
    """`ask` is a question that the engine answers between two of its steps, whether or not it has work."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, None]], hang_timeout_s: float) -> None:
        self._ask = ask
        self._hang_timeout_s = hang_timeout_s
        self._asked: asyncio.Task[None] | None = None
        self._asked_at = 0.0

    async def check(self) -> None:
        """To be called every few seconds. Raises `TimeoutError` if a question has been open for `hang_timeout_s`, and
        what `ask` raises.
        """
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._ask())
            self._asked_at = time.monotonic()
        await asyncio.wait({self._asked}, timeout=_WAIT_S)
        if self._asked.done():
            return self._asked.result()
        silent_s = time.monotonic() - self._asked_at
        if silent_s > self._hang_timeout_s:
            raise TimeoutError(f"the engine has not answered for {silent_s:.0f} s: it hangs")
