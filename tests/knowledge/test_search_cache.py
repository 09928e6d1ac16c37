"""`CachedRetriever`: once anybody has been told of a change, nobody is answered from before it."""

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from serve_app.config import RetentionConfig
from serve_app.errors import RayconteurError, Unavailable
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.history import AsOf
from serve_app.knowledge.search_cache import CachedRetriever
from serve_app.knowledge.versions import Versions
from serve_app.lfu_cache import LfuCache
from serve_app.storage.database import open_database
from serve_app.types import AttributeValue, FloatVector
from serve_app.types.knowledge import (
    Comparison,
    Passage,
    Ranking,
    SearchQuery,
    StoreFileRef,
    StoreVersionRef,
)
from tests.fakes import FakeRetriever, Hold, RecordedMetrics, build_passage
from tests.knowledge.test_ingest import ENCODER, STORE
from tests.knowledge.test_reembed import NARROW, Moving

QUERY = SearchQuery("vs_1", "rivers", np.array([1, 0], dtype=np.float32), content="1")
RHINE = build_passage(1, "The Rhine flows through Basel.", topic="rivers")


class Cached:
    def __init__(self) -> None:
        self.inner = FakeRetriever([RHINE])
        self.metrics = RecordedMetrics()
        self.retriever = CachedRetriever(self.inner, LfuCache(100, 10**6), self.metrics)


async def test_the_same_search_of_the_same_content_is_made_once() -> None:
    cached = Cached()

    found = [await cached.retriever.search(QUERY) for _ in range(3)]

    assert found == [(RHINE,)] * 3
    assert len(cached.inner.queries) == 1
    assert cached.metrics.totals == {
        ("rayconteur_search_cache_requests", "miss"): 1,
        ("rayconteur_search_cache_requests", "hit"): 2,
    }


async def test_whatever_a_search_says_makes_it_another() -> None:
    cached = Cached()
    others = [
        QUERY,
        replace(QUERY, store_id="vs_2"),
        replace(QUERY, text="Rivers"),
        replace(QUERY, vector=np.array([0, 1], dtype=np.float32)),
        replace(QUERY, vector=None),
        replace(QUERY, max_results=9),
        replace(QUERY, filter=Comparison("eq", "topic", "1")),
        replace(QUERY, filter=Comparison("eq", "topic", 1.0)),
        replace(QUERY, filter=Comparison("eq", "topic", True)),
        replace(QUERY, ranking=Ranking(text_weight=0.5)),
        replace(QUERY, table_version=3),
        replace(QUERY, with_vectors=True),
        replace(QUERY, table_suffix="_1"),
        replace(QUERY, content="2"),
    ]

    for query in [*others, *others]:
        await cached.retriever.search(query)

    assert cached.inner.queries == others


async def test_what_nobody_knows_the_content_of_is_searched_anew() -> None:
    cached = Cached()

    for _ in range(2):
        await cached.retriever.search(replace(QUERY, content=None))

    assert len(cached.inner.queries) == 2


async def test_searches_at_once_are_one_and_a_failure_is_not_kept() -> None:
    class Held(FakeRetriever):
        hold = Hold()

        async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
            await self.hold.wait()
            return await super().search(query)

    inner = Held([RHINE])
    inner.failure = Unavailable("gone")
    retriever = CachedRetriever(inner, LfuCache(100, 10**6))
    searches = [asyncio.create_task(retriever.search(QUERY)) for _ in range(3)]
    await inner.hold.reached.wait()
    searches[0].cancel()
    inner.hold.release.set()

    failed = await asyncio.gather(*searches, return_exceptions=True)

    assert [type(error) for error in failed] == [asyncio.CancelledError, Unavailable, Unavailable]
    assert len(inner.queries) == 1
    inner.failure = None
    assert await retriever.search(QUERY) == (RHINE,)


# --- never stale --------------------------------------------------------------------------------


class Watched(Versions):
    """Somebody searches between the two commits of each change, and the second one fails if it is told to."""

    watch: Callable[[], None]
    fails = False

    def record(self, connection: Connection, store_id: str, version: int) -> None:
        self.watch()
        if self.fails:
            raise Unavailable("the database is gone")
        super().record(connection, store_id, version)
        self.watch()


class World:
    """A store with two encoders, and two ways to search it: through the cache, and as it is."""

    def __init__(self, root: Path, encoder: TextEncoder) -> None:
        self.database = open_database(f"sqlite:///{root / 'rayconteur.db'}")
        self.library = Moving(root, self.database, encoder)
        self.library.versions = self.versions = Watched(self.database, self.library.index, RetentionConfig())
        self.versions.watch = lambda: self.search(None)
        # A use of the store is written down once a minute, and SQLite has one writer: not in the midst of a change.
        self.library.catalog.require_stores([STORE])
        self.cached = CachedRetriever(self.library.reader, LfuCache(1000, 10**7))
        self.loop = asyncio.Runner()
        self.files = 0

    def close(self) -> None:
        self.loop.close()
        self.database.close()

    def search(self, as_of: AsOf | None) -> None:
        """Through the cache and past it: they must agree unless a change is under way, which nobody was told of."""
        table = self.library.catalog.require_stores([STORE], as_of)[STORE]
        encoder = self.library.encoders[table.encoder]
        for filter_ in (None, Comparison("ne", "colour", "red")):
            query = SearchQuery(
                STORE,
                "note",
                vector_of(encoder),
                filter=filter_,
                ranking=Ranking(text_weight=0),
                table_version=table.version,
                table_suffix=table.suffix,
                content=table.content,
            )
            try:
                expected = self.loop.run(self.library.reader.search(query))
            except RayconteurError:  # no file has a colour yet
                continue
            found = self.loop.run(self.cached.search(query))
            if self.is_settled:
                assert found == expected

    is_settled = False

    def check(self) -> None:
        self.is_settled = True
        self.search(None)
        for version in self.library.catalog.list_versions(STORE)[:3]:
            self.search(version["version"])
        self.is_settled = False

    # The changes. Each is made as the routes and the indexer make them.

    def add(self, number: int) -> None:
        self.files += 1
        self.library.add_file(
            f"file-{self.files}", f"Note {self.files}.", key=f"key-{number}", version=self.files, created_at=self.files
        )
        self.tried(self.library.ingest)

    def remove(self, number: int) -> None:
        if file_id := self.found(number):
            self.library.catalog.stop_ingestion(STORE, file_id)
            self.tried(lambda: self.versions.remove_file(StoreFileRef(STORE, file_id)))
            self.library.catalog.remove_file(STORE, file_id)

    def colour(self, number: int) -> None:
        if file_id := self.found(number):
            self.files += 1
            attributes: dict[str, AttributeValue] = {"colour": ("red", "blue")[self.files % 2]}
            self.library.catalog.update_attributes(STORE, file_id, attributes)
            self.tried(lambda: self.versions.update_attributes(StoreFileRef(STORE, file_id)))

    def roll_back(self, number: int) -> None:
        kept = self.library.catalog.list_versions(STORE)
        if kept:
            version = kept[min(number, len(kept) - 1)]["version"]
            self.tried(lambda: self.versions.roll_back(StoreVersionRef(STORE, version)))

    def move(self, number: int) -> None:
        self.tried(lambda: self.library.move((ENCODER, NARROW)[number % 2]) if self.is_elsewhere(number) else None)

    def optimize(self, number: int) -> None:
        self.tried(lambda: self.versions.optimize(STORE))

    def tried(self, change: Callable[[], object]) -> None:
        """If it fails, the client asks again, or the indexer is started anew: somebody is told in the end."""
        try:
            change()
        except Unavailable:
            self.versions.fails = False
            change() if change != self.library.ingest else self.restart()

    def restart(self) -> None:
        if self.files % 2:
            # A client has called it off meanwhile: nobody does it again.
            self.library.catalog.stop_ingestion(STORE, f"file-{self.files}")
        self.library.ingestor().take_over()
        self.versions.undo_unrecorded()
        self.library.ingest()

    def found(self, number: int) -> str | None:
        table = self.library.catalog.require_stores([STORE])[STORE]
        files = sorted({each.file_id for each in self.library.index.files(STORE + table.suffix)})
        return files[number % len(files)] if files else None

    def is_elsewhere(self, number: int) -> bool:
        return self.library.catalog.require_stores([STORE])[STORE].encoder != (ENCODER, NARROW)[number % 2]


def vector_of(encoder: TextEncoder) -> FloatVector:
    vector: FloatVector = np.zeros(encoder.dimensions, dtype=np.float32)
    vector[0] = 1
    return vector


CHANGES = st.tuples(
    st.sampled_from([World.add, World.add, World.remove, World.colour, World.roll_back, World.move, World.optimize]),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
"""What, which file or version or encoder, whether the second commit fails, whether anybody looks before the next."""


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(CHANGES, min_size=8, max_size=8))
def test_no_answer_is_from_before_a_change_that_was_acknowledged(
    encoder: TextEncoder, changes: list[tuple[Callable[[World, int], None], int, bool, bool]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(World(Path(folder), encoder)) as world:
        for change, number, fails, is_looked_at in changes:
            world.versions.fails = fails
            change(world, number)
            world.versions.fails = False
            if is_looked_at:
                world.check()
        world.check()
