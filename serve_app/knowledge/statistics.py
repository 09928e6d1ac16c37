"""What became of a store's searches: counted in each gateway, added to the database now and then, read out of it."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.counts import Times, bucket_of, times_of
from serve_app.errors import RayconteurError
from serve_app.knowledge.history import is_found
from serve_app.metrics import NO_METRICS, SEARCH_FAILURES, SEARCH_SECONDS, Metrics, Tally
from serve_app.parts import Retriever
from serve_app.storage.database import Database, Dialect
from serve_app.storage.schema import search_tallies, store_versions, vector_store_files, vector_stores
from serve_app.types.knowledge import Passage, Ranking, SearchQuery

# The same function twice, of two types that have no common one.
_INSERT: dict[Dialect, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    documents: int
    """Files that a search finds now; of those with the same content, one."""
    versions: int
    searches: Times
    """Of those that were answered."""
    failed_searches: int
    query_cache_hits: int
    query_cache_misses: int


class CountedRetriever:
    """A retriever whose searches are timed and counted. For one event loop."""

    def __init__(self, retriever: Retriever, tallies: Counter[Tally], metrics: Metrics = NO_METRICS) -> None:
        self._retriever = retriever
        self._tallies = tallies
        self._metrics = metrics

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        began = time.perf_counter()
        try:
            passages = await self._retriever.search(query)
        except RayconteurError as error:
            self._metrics.add(SEARCH_FAILURES, error=type(error).__name__)
            self._tallies[Tally(query.store_id, "failed_search")] += 1
            raise
        elapsed_s = time.perf_counter() - began
        self._metrics.observe(SEARCH_SECONDS, elapsed_s, mode=_mode(query.ranking))
        self._tallies[Tally(query.store_id, "search", bucket_of(elapsed_s))] += 1
        return passages


def add_tallies(database: Database, tallies: Counter[Tally]) -> None:
    """Add these to what the database holds. Those of stores that are gone are dropped."""
    with database.write() as connection:
        # The lock keeps PostgreSQL from deleting one before the rows that point to it are there; SQLite has one writer.
        query = select(vector_stores.c.id).where(vector_stores.c.id.in_({tally.store_id for tally in tallies}))
        stores = set(connection.execute(query.with_for_update(read=True, key_share=True)).scalars())
        # In one order, or two gateways could wait for each other.
        rows = sorted(
            (tally.store_id, tally.kind, tally.bucket, count)
            for tally, count in tallies.items()
            if tally.store_id in stores and count
        )
        if rows:
            statement = _INSERT[database.dialect](search_tallies)
            statement = statement.on_conflict_do_update(
                index_elements=list(search_tallies.primary_key),
                set_={"total": search_tallies.c.total + statement.excluded.total},
            )
            names = search_tallies.c.keys()
            connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


def load_statistics(database: Database, store_id: str) -> StoreStatistics:
    """All zero for a store that is not there."""
    found = select(func.count()).where(vector_store_files.c.store_id == store_id, is_found())
    with database.read() as connection:
        documents = connection.execute(found).scalar_one()
        versions = connection.execute(
            select(func.count()).select_from(store_versions).where(store_versions.c.store_id == store_id)
        ).scalar_one()
        query = select(search_tallies).where(search_tallies.c.store_id == store_id)
        rows = connection.execute(query).all()
    totals = Counter({row.kind: row.total for row in rows if row.kind != "search"})
    return StoreStatistics(
        documents=documents,
        versions=versions,
        searches=times_of({row.bucket: row.total for row in rows if row.kind == "search"}),
        failed_searches=totals["failed_search"],
        query_cache_hits=totals["query_cache_hit"],
        query_cache_misses=totals["query_cache_miss"],
    )


def _mode(ranking: Ranking) -> str:
    if ranking.text_weight == 0:
        return "vector"
    return "text" if ranking.embedding_weight == 0 else "hybrid"
