"""One encoder for the texts of many requests: dynamic batching, bounded by time.

While a batch is encoded the next one collects, so nobody waits for a batch to fill. It is as large as the encoder does
in `BATCH_S`, by its pace of late, and takes one text of each request in turn: beside a request of thousands of texts a
question waits for the batch before its own, and no longer.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from serve_app.knowledge.encode import TextEncoder
from serve_app.types import FloatMatrix

BATCH_S = 0.1

MAX_BATCH_TEXTS = 256

_FIRST_GUESS_S = 1e-4
"""For a character, before there has been a batch: that of one CPU."""
_NEWEST_WEIGHS = 0.2
_CHARACTERS_PER_TOKEN = 5
"""A text longer than the model's window costs no more than one that fills it."""


@dataclass(eq=False, slots=True)
class _Request:
    texts: Sequence[str]
    vectors: FloatMatrix
    encoded: asyncio.Future[None]
    begun: int = 0
    done: int = 0


class BatchingEncoder:
    """For one event loop. The encoder runs in `thread`, which others may share."""

    def __init__(self, encoder: TextEncoder, thread: Executor) -> None:
        self.encoder = encoder
        self._thread = thread
        self._requests: deque[_Request] = deque()
        self._seconds_per_character = _FIRST_GUESS_S
        self._working: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> FloatMatrix:
        """As `TextEncoder.encode`. Cancelled, what is left of them is not encoded."""
        vectors = np.empty((len(texts), self.encoder.dimensions), dtype=np.float32)
        if texts:
            request = _Request(texts, vectors, asyncio.get_running_loop().create_future())
            self._requests.append(request)
            if self._working is None or self._working.done():
                self._working = asyncio.create_task(self._work())
            await request.encoded
        return vectors

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            texts = [request.texts[index] for request, index in batch]
            began = loop.time()
            encoding = loop.run_in_executor(self._thread, self.encoder.encode, texts)
            await asyncio.wait([encoding])
            if error := encoding.exception():
                for request, _ in batch:
                    if not request.encoded.done():
                        request.encoded.set_exception(error)
                continue
            pace = (loop.time() - began) / sum(map(self._cost, texts))
            self._seconds_per_character += _NEWEST_WEIGHS * (pace - self._seconds_per_character)
            for (request, index), vector in zip(batch, encoding.result(), strict=True):
                request.vectors[index] = vector
                request.done += 1
                if request.done == len(request.texts) and not request.encoded.done():
                    request.encoded.set_result(None)

    def _next_batch(self) -> list[tuple[_Request, int]]:
        batch: list[tuple[_Request, int]] = []
        seconds = 0.0
        while self._requests and seconds < BATCH_S and len(batch) < MAX_BATCH_TEXTS:
            request = self._requests.popleft()
            if request.encoded.done():  # cancelled, or failed
                continue
            batch.append((request, request.begun))
            seconds += self._cost(request.texts[request.begun]) * self._seconds_per_character
            request.begun += 1
            if request.begun < len(request.texts):
                self._requests.append(request)
        return batch

    def _cost(self, text: str) -> int:
        """In characters, at least one."""
        return max(1, min(len(text), _CHARACTERS_PER_TOKEN * self.encoder.max_tokens))
