"""`CachedRetriever`: what a search of a store has found, for as long as the store holds the same.

What the store holds the database says at each request (`SearchQuery.content`): whoever is told that a change is done
asks under another name from then on. A search that began before may still find, and keep under the old name, what is
new; nobody who comes later asks for that.
"""

import asyncio
import contextvars
import hashlib
from dataclasses import replace

from serve_app.lfu_cache import LfuCache
from serve_app.metrics import NO_METRICS, SEARCH_CACHE_REQUESTS, Metrics
from serve_app.parts import Retriever
from serve_app.types.knowledge import Passage, SearchQuery


class CachedRetriever:
    """For one event loop."""

    def __init__(self, retriever: Retriever, kept: LfuCache, metrics: Metrics = NO_METRICS) -> None:
        self._retriever = retriever
        self._kept = kept
        self._metrics = metrics
        self._pending: dict[bytes, asyncio.Task[tuple[Passage, ...]]] = {}

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        if query.content is None:
            return await self._retriever.search(query)
        key = _key(query)
        found: tuple[Passage, ...] | None = self._kept.find(key)
        if found is not None:
            self._metrics.add(SEARCH_CACHE_REQUESTS, outcome="hit")
            return found
        self._metrics.add(SEARCH_CACHE_REQUESTS, outcome="shared" if key in self._pending else "miss")
        if key not in self._pending:
            # In an empty context Ray Serve takes the call for nobody's: others wait for it, whoever cancels.
            self._pending[key] = asyncio.create_task(self._search(key, query), context=contextvars.Context())
        return await asyncio.shield(self._pending[key])

    async def _search(self, key: bytes, query: SearchQuery) -> tuple[Passage, ...]:
        try:
            found = await self._retriever.search(query)
            self._kept.keep(key, found)
            return found
        finally:
            del self._pending[key]


def _key(query: SearchQuery) -> bytes:
    """All that a query says. Its vector, of which only the beginning would be shown, in full."""
    vector = b"" if query.vector is None else query.vector.tobytes()
    said = repr(replace(query, vector=None)).encode()
    return hashlib.blake2b(b"search\0%d\0%b%b" % (len(said), said, vector), digest_size=32).digest()
