"""Stand-ins for the parts that the knowledge routes call, each the least that honours its Protocol."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import cast

import numpy as np

from serve_app.errors import RayconteurError
from serve_app.knowledge.query_cache import CachedEmbedder
from serve_app.knowledge.statistics import CountedRetriever
from serve_app.metrics import Tally
from serve_app.parts import Embedder, Generator, Indexer, Parts, Retriever, Run, Sessions
from serve_app.types import FloatMatrix
from serve_app.types.knowledge import (
    AttributeChange,
    IndexState,
    Optimization,
    Passage,
    SearchQuery,
    StoreFileRef,
    StoreVersionRef,
    TableState,
)

DIMENSIONS = 8


class HashEmbedder:
    """The same text and model, the same unit vector; others, different ones."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        self.calls.append(list(texts))
        seeds = [int.from_bytes(hashlib.sha256(f"{model or ''}{text}".encode()).digest()[:8]) for text in texts]
        rows = np.stack([np.random.default_rng(seed).normal(size=DIMENSIONS) for seed in seeds])
        unit: FloatMatrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit

    async def count_tokens(self, texts: Sequence[str], model: str | None = None) -> int:
        return sum(len(text.split()) for text in texts)


class ScriptedRetriever:
    """Answers each query text with the passages under it in `answers`, or raises the error that is there."""

    def __init__(self) -> None:
        self.answers: dict[str, Sequence[Passage] | RayconteurError] = {}
        self.queries: list[SearchQuery] = []

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        self.queries.append(query)
        answer = self.answers.get(query.text, ())
        if isinstance(answer, RayconteurError):
            raise answer
        return tuple(passage for passage in answer if passage.store_id == query.store_id)[: query.max_results]


class RecordingIndexer:
    """Remembers what it was told; raises `error` instead while that is set."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.error: RayconteurError | None = None

    async def wake(self) -> None:
        self._hear("wake")

    async def update_attributes(self, change: AttributeChange) -> None:
        self._hear(change)

    async def remove_file(self, ref: StoreFileRef) -> None:
        self._hear(ref)

    async def drop_store(self, store_id: str) -> None:
        self._hear(store_id)

    async def roll_back(self, ref: StoreVersionRef) -> int:
        self._hear(ref)
        return ref.version + 1

    async def optimize(self, store_id: str) -> Optimization:
        self._hear(store_id)
        return Optimization(fragments=(7, 1))

    async def describe(self, store_id: str) -> TableState:
        self._hear(store_id)
        return TableState(
            passages=12,
            fragments=3,
            size_bytes=45_000,
            vector=IndexState(unindexed_rows=12),
            text=IndexState("FTS", indexed_rows=10, unindexed_rows=2),
        )

    def _hear(self, message: object) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(message)


def knowledge_parts(
    embedder: Embedder, retriever: Retriever, indexer: Indexer, sessions: Sessions | None = None
) -> Parts:
    """For tests of routes that do not generate."""
    missing = object()
    tallies = Counter[Tally]()
    return Parts(
        embedder=embedder,
        query_embedder=CachedEmbedder(embedder, 100, tallies),
        retriever=CountedRetriever(retriever, tallies),
        indexer=indexer,
        generator=cast(Generator, missing),
        sessions=sessions or Sessions(cast(Run, missing)),
        count_tokens=lambda text: len(text.split()),
        tallies=tallies,
    )
