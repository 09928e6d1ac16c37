"""The search of the vector stores: `IndexReader`, of which there may be many, beside one `IndexWriter`."""

import asyncio
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.query import MatchQuery

from serve_app.errors import InvalidRequest
from serve_app.knowledge.rank import rank
from serve_app.knowledge.table import RESULT_COLUMNS, Where, checked, open_session, present, session_size
from serve_app.types import FloatVector, Json
from serve_app.types.knowledge import Passage, SearchQuery
from serve_app.vitals import CacheName, CacheSize

_MAX_CANDIDATES = 4096
"""A search looks no deeper for results that are not near-identical."""
_PROBES = 60
"""Of 120 partitions, as a million rows have, these hold 99.5 % of the nearest 10 sentences; 40 hold 98.6 %."""
_MIN_REFINED = 40
"""Candidates of the index that are compared exactly: of a million passages the nearest 10 were always among them."""
_MAX_COMPARED_ROWS = 20_000
"""That a filter lets through: so few are compared one by one, because the index may hold none of them nearby."""
_MAX_SEARCH_CHARACTERS = 4000
_MAX_OPEN_TABLES = 256


class IndexReader:
    """Searches stores that another process may be writing. For one event loop."""

    name: ClassVar[CacheName] = "index"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session = open_session()
        self._database: Any = None
        self._tables: OrderedDict[tuple[str, int | None], Any] = OrderedDict()

    async def ready(self) -> None:
        """Returns if the folder can be read; raises otherwise."""
        await (await self._connect()).list_tables(limit=1)

    def size(self) -> CacheSize:
        return session_size(self._session)

    async def release(self) -> bool:
        """Searches that are under way keep what they have opened, to their end."""
        self._session, self._database = open_session(), None
        self._tables.clear()
        return True

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        """At most `max_results` passages, best first; () if the store has none.

        Scores are in [0, 1]: with both weights, the weighted reciprocal ranks (1 is first in both halves); with the
        vectors alone, the cosine, negative ones as 0; with the text alone, BM25 as s / (s + 10). Raises
        `InvalidRequest` for a filter on a key that no file of the store has had, and for a version that is gone.
        """
        table = await self._open(query)
        if table is None:
            return ()
        try:
            return await _search(table, query)
        except RuntimeError:
            # The table was dropped, and perhaps made anew, since it was opened.
            self._tables.pop((query.store_id + query.table_suffix, query.table_version), None)
            table = await self._open(query)
            return () if table is None else await _search(table, query)

    async def _open(self, query: SearchQuery) -> Any | None:
        """The store's table, newest or as it was; None if there is none (or was none then)."""
        key = (query.store_id + query.table_suffix, query.table_version)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        if query.table_version == 0:
            return None
        database = await self._connect()
        try:
            table = await database.open_table(checked(query.store_id + query.table_suffix))
            if query.table_version is not None:
                await table.checkout(query.table_version)
        except ValueError as error:
            if "no longer exists" in str(error):
                raise InvalidRequest(
                    f"The vector store {query.store_id!r} no longer keeps that version",
                    param="as_of",
                    code="version_gone",
                ) from None
            if "was not found" in str(error):
                return None
            raise
        self._tables[key] = table
        if len(self._tables) > _MAX_OPEN_TABLES:
            self._tables.popitem(last=False)
        return table

    # LanceDB's connections and tables are not typed here.
    async def _connect(self) -> Any:
        if self._database is None:
            self._database = await lancedb.connect_async(
                self._folder, read_consistency_interval=timedelta(0), session=self._session
            )
        return self._database


# --- searching ----------------------------------------------------------------------------------


async def _search(table: Any, query: SearchQuery) -> tuple[Passage, ...]:
    schema = await table.schema()
    where = None if query.filter is None else Where(schema).of(query.filter)
    depth = max(50, 5 * query.max_results) if query.ranking.is_hybrid else query.max_results
    while True:
        halves = await asyncio.gather(
            _nearest(table, schema, query, where, depth), _matching(table, schema, query, where, depth)
        )
        ranked = rank([passage for half in halves for passage in half], query.ranking)
        relevant = [passage for passage in ranked if passage.score >= query.ranking.score_threshold]
        there_is_more = len(relevant) == len(ranked) and any(len(half) == depth for half in halves)
        if len(relevant) >= query.max_results or not there_is_more or depth >= _MAX_CANDIDATES:
            return tuple(relevant[: query.max_results])
        # Near-identical passages took the places of others.
        depth *= 4


async def _nearest(
    table: Any, schema: pa.Schema, query: SearchQuery, where: str | None, limit: int
) -> Sequence[Passage]:
    if query.ranking.embedding_weight == 0:
        return ()
    assert query.vector is not None, "a search by vectors needs the vector of its text"
    search = table.query().nearest_to(query.vector).distance_type("cosine")
    if where is not None and await table.count_rows(where) <= _MAX_COMPARED_ROWS:
        search = search.bypass_vector_index()
    else:
        search = search.nprobes(_PROBES).refine_factor(max(2, math.ceil(_MIN_REFINED / limit)))
        if where is not None:
            # As many more as it takes to fill the limit. Without a filter that costs 5 ms, and is never needed.
            search = search.maximum_nprobes(0)
    return await _passages_of(search, schema, query, where, "_distance", limit)


async def _matching(
    table: Any, schema: pa.Schema, query: SearchQuery, where: str | None, limit: int
) -> Sequence[Passage]:
    if query.ranking.text_weight == 0:
        return ()
    # A MatchQuery takes its text as words: nothing in it is syntax.
    search = table.query().nearest_to_text(MatchQuery(query.text[:_MAX_SEARCH_CHARACTERS], "text"))
    return await _passages_of(search, schema, query, where, "_score", limit)


async def _passages_of(
    search: Any, schema: pa.Schema, query: SearchQuery, where: str | None, score_column: str, limit: int
) -> list[Passage]:
    columns = [*present(RESULT_COLUMNS, schema), score_column]
    if query.with_vectors:
        columns.append("vector")
    if where is not None:
        search = search.where(where)
    found = await search.limit(limit).select(columns).to_arrow()
    vectors: Sequence[FloatVector | None] = [None] * len(found)
    if query.with_vectors:
        # Row by row they would become lists of Python numbers first.
        vectors = list(np.stack(found["vector"].to_numpy())) if len(found) else ()
        found = found.drop_columns("vector")
    return [_passage(query.store_id, row, vector) for row, vector in zip(found.to_pylist(), vectors, strict=True)]


def _passage(store_id: str, row: Json, vector: FloatVector | None) -> Passage:
    return Passage(
        passage_id=row["passage_id"],
        store_id=store_id,
        file_id=row["file_id"],
        filename=row["filename"],
        key=row.get("key") or row["file_id"],
        version=row.get("version") or 1,
        text=row["text"],
        score=0.0,
        start=row["start"],
        attributes=json.loads(row["attributes"]),
        pages=None if row.get("page") is None else (row["page"], row["last_page"]),
        heading=tuple(row.get("heading") or ()),
        cosine=1.0 - row["_distance"] if "_distance" in row else None,
        bm25=row.get("_score"),
        vector=vector,
    )
