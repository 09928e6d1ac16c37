"""`CachedEmbedder`: the vectors of queries that were asked lately, in a gateway, so that they need no second hop."""

import asyncio
import contextvars
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from cachetools import LRUCache

from serve_app.metrics import NO_METRICS, QUERY_CACHE_HITS, QUERY_CACHE_MISSES, Metrics, Tally
from serve_app.parts import Embedder
from serve_app.types import FloatMatrix, FloatVector
from serve_app.vitals import CacheName, CacheSize


class CachedEmbedder:
    """Keeps the `max_queries` vectors that were used last. For one event loop."""

    name: ClassVar[CacheName] = "query_vectors"

    def __init__(
        self, embedder: Embedder, max_queries: int, tallies: Counter[Tally], metrics: Metrics = NO_METRICS
    ) -> None:
        self._embedder = embedder
        self._vectors: LRUCache[bytes, FloatVector] = LRUCache(max_queries)
        self._pending: dict[bytes, asyncio.Task[dict[str, FloatVector]]] = {}
        self._tallies = tallies
        self._metrics = metrics

    async def embed(self, texts: Sequence[str], store_ids: Sequence[str], model: str) -> FloatMatrix:
        keys = {text: _key(text, model) for text in texts}
        known = {text: vector for text, key in keys.items() if (vector := self._vectors.get(key)) is not None}
        unknown = [text for text in keys if text not in known]
        missed = [text for text in unknown if keys[text] not in self._pending]
        self._count(store_ids, hits=len(texts) - len(missed), misses=len(missed))
        if missed:
            # In an empty context Ray Serve takes the call for nobody's: others wait for it, whoever cancels.
            wanted = {text: keys[text] for text in missed}
            task = asyncio.create_task(self._compute(wanted, model), context=contextvars.Context())
            self._pending |= dict.fromkeys(wanted.values(), task)
        for computed in await asyncio.gather(*(asyncio.shield(self._pending[keys[text]]) for text in unknown)):
            known |= computed
        return np.stack([known[text] for text in texts])

    def size(self) -> CacheSize:
        return CacheSize(len(self._vectors), sum(vector.nbytes for vector in self._vectors.values()))

    async def release(self) -> bool:
        self._vectors.clear()
        return True

    async def _compute(self, keys: dict[str, bytes], model: str) -> dict[str, FloatVector]:
        try:
            matrix = await self._embedder.embed(list(keys), model)
            # Copies, or one vector would keep the whole batch in memory.
            vectors = {text: row.copy() for text, row in zip(keys, matrix, strict=True)}
            self._vectors.update((keys[text], vector) for text, vector in vectors.items())
            return vectors
        finally:
            for key in keys.values():
                del self._pending[key]

    def _count(self, store_ids: Sequence[str], *, hits: int, misses: int) -> None:
        self._metrics.add(QUERY_CACHE_HITS, hits)
        self._metrics.add(QUERY_CACHE_MISSES, misses)
        for store_id in set(store_ids):
            self._tallies[Tally(store_id, "query_cache_hit")] += hits
            self._tallies[Tally(store_id, "query_cache_miss")] += misses


def _key(text: str, model: str) -> bytes:
    # A query may be 32,768 characters long, and thousands are kept.
    return hashlib.blake2b(f"{model}\0{text}".encode(), digest_size=16).digest()
