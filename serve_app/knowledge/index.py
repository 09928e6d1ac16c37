"""The passages of every vector store in LanceDB, which only this file imports: one `IndexWriter`, many `IndexReader`s.

A store is a table of its own, named by its id, and there is none before its first passage. Each key of the files'
attributes is a typed column, so that LanceDB searches only what a filter lets through.
"""

import asyncio
import json
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, Bitmap, BTree, IvfRq
from lancedb.query import MatchQuery

from serve_app.errors import InternalError, InvalidRequest
from serve_app.knowledge import maintenance
from serve_app.knowledge.split import Piece
from serve_app.types import (
    AttributeChange,
    AttributeValue,
    Comparison,
    Compound,
    Filter,
    FloatMatrix,
    Json,
    Optimization,
    Passage,
    Ranking,
    SearchQuery,
)

logger = logging.getLogger(__name__)

_RRF_K = 60
"""Cormack, Clarke and Buettcher 2009."""
_BM25_HALF = 10.0
_MIN_INDEXED_ROWS = 5_000
"""Below, every row is compared: 2,000 take 6 ms either way, 10,000 take 16 ms, and through the index 6."""
_PROBES = 60
"""Of 120 partitions, as a million rows have, these hold 99.5 % of the nearest 10 sentences; 40 hold 98.6 %."""
_MIN_REFINED = 40
"""Candidates of the index that are compared exactly: of a million passages the nearest 10 were always among them."""
_MAX_COMPARED_ROWS = 20_000
"""That a filter lets through: so few are compared one by one, because the index may hold none of them nearby."""
_MAX_INDEXED_ATTRIBUTES = 32
"""Of a store: each index takes maintenance some 20 ms. A filter on another attribute reads its whole column."""
_MAX_SEARCH_CHARACTERS = 4000
_MAX_OPEN_TABLES = 256
_STORE_ID = re.compile(r"vs_[0-9a-f]+")
_RESULT_COLUMNS = ["passage_id", "file_id", "filename", "text", "start", "attributes"]

_ARROW_TYPES = {"s": pa.string(), "n": pa.float64(), "b": pa.bool_()}


@dataclass(frozen=True, slots=True)
class FilePassages:
    """All passages of one file, for one store."""

    file_id: str
    filename: str
    attributes: Mapping[str, AttributeValue]
    pieces: Sequence[Piece]
    vectors: FloatMatrix
    """[len(pieces), dimensions]"""
    fence: int = 0
    """Of the claim that writes them, so that one who lost its claim can take back its own rows and no others'."""


class IndexWriter:
    """The one writer of a folder of stores. May be called from several threads, of one process."""

    def __init__(self, folder: Path, dimensions: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._database = lancedb.connect(folder, read_consistency_interval=timedelta(0), session=_session())
        self._dimensions = dimensions
        self._lock = Lock()  # two that add columns or make the table at once would refuse each other
        self._merging = Lock()  # and so would two that compact it
        self._rota = maintenance.Rota()
        for path in folder.glob("vs_*.lance"):
            self._rota.changed(path.stem, 0)

    def add(self, store_id: str, files: Sequence[FilePassages]) -> None:
        """Add files' passages in one commit: searches see all of them, at once. Makes the table if there is none."""
        if not any(file.pieces for file in files):
            return
        with self._lock:
            table = self._open(store_id)
            if table is None:  # and not `or`: a table without rows is false
                table = self._create(store_id)
            _add_missing_columns(table, [file.attributes for file in files])
            table.add(_rows(files, table.schema))
        self._rota.changed(store_id, sum(len(file.pieces) for file in files))

    def remove_file(
        self, store_id: str, file_id: str, *, fence: int | None = None, before_fence: int | None = None
    ) -> None:
        """Remove a file's passages: all, those of one claim, or those of claims before one."""
        where = f"file_id = {_literal(file_id)}"
        if fence is not None:
            where += f" AND fence = {fence:d}"
        if before_fence is not None:
            where += f" AND fence < {before_fence:d}"
        with self._lock:
            table = self._open(store_id)
            if table is not None and table.count_rows(where):
                table.delete(where)
                self._rota.changed(store_id, 0)

    def update_attributes(self, change: AttributeChange) -> None:
        """Replace all attributes of a file. One that has no passages is left for the ingestion to write."""
        where = f"file_id = {_literal(change.file_id)}"
        with self._lock:
            table = self._open(change.store_id)
            if table is None or not table.count_rows(where):
                return
            _add_missing_columns(table, [change.attributes])
            columns = _attribute_columns(table.schema)
            updated = table.update(where=where, values=dict.fromkeys(columns) | _column_values(change.attributes))
            self._rota.changed(change.store_id, updated.rows_updated)

    def drop(self, store_id: str) -> None:
        with self._lock:
            if self._open(store_id) is not None:
                self._database.drop_table(store_id)

    def maintain_next(self) -> bool:
        """Do for some store what can wait least, and return whether there was anything.

        To be called again and again by one thread: about once a second, and at once after True.
        """
        began = time.monotonic()
        duty = self._rota.take(began)
        if duty is None:
            return False
        try:
            if duty.is_cleanup:
                self.clean_up(duty.store_id)
            else:
                self.maintain(duty.store_id)
        # One damaged table must not keep all others from being looked after.
        except Exception:
            logger.exception("store %s could not be looked after", duty.store_id)
        self._rota.done(duty, began, time.monotonic())
        return True

    def maintain(self, store_id: str) -> None:
        """Index and merge what is due. Milliseconds if nothing is, and at times minutes in a large store."""
        with self._merging, self._unless_dropped(store_id) as table:
            if table is not None:
                maintenance.maintain(table, _indices(table))

    def clean_up(self, store_id: str) -> None:
        """Remove from the disk what no search can need any more."""
        with self._merging, self._unless_dropped(store_id) as table:
            if table is not None:
                maintenance.clean_up(table, self._table_folder(store_id))

    def optimize(self, store_id: str) -> Optimization:
        """Do all of that now, remove what a claim that was lost has left, and say what it did."""
        with self._merging, self._unless_dropped(store_id) as table:
            if table is not None:
                return maintenance.optimize(
                    table,
                    self._table_folder(store_id),
                    _indices(table),
                    lambda: self._remove_superseded(store_id, table),
                )
        return Optimization()

    def _remove_superseded(self, store_id: str, table: Any) -> int:
        rows = table.count_rows()
        for file_id, last_fence in maintenance.superseded(table):
            self.remove_file(store_id, file_id, before_fence=last_fence)
        return int(rows - table.count_rows())

    @contextmanager
    def _unless_dropped(self, store_id: str) -> Iterator[Any | None]:
        """The store's table, for work that takes seconds and is not done under the lock."""
        try:
            yield self._open(store_id)
        except RuntimeError:
            # Of a store that is dropped meanwhile there is nothing left to do.
            if self._open(store_id) is not None:
                raise

    def _table_folder(self, store_id: str) -> Path:
        return self._folder / f"{_checked(store_id)}.lance"

    def version(self, store_id: str) -> int | None:
        """How many commits the store has had; None if it has no table."""
        table = self._open(store_id)
        return None if table is None else int(table.version)

    # LanceDB's tables are not typed here.
    def _open(self, store_id: str) -> Any | None:
        try:
            table = self._database.open_table(_checked(store_id))
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise
        return table

    def _create(self, store_id: str) -> Any:
        schema = pa.schema(
            [
                pa.field("passage_id", pa.string(), nullable=False),
                pa.field("file_id", pa.string(), nullable=False),
                pa.field("filename", pa.string(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), self._dimensions), nullable=False),
                pa.field("start", pa.int64(), nullable=False),
                pa.field("fence", pa.int64(), nullable=False),
                pa.field("attributes", pa.string(), nullable=False),
            ]
        )
        # In files of the newer format 2.2, to read one value of a column that has the same everywhere takes 4 ms.
        options = {"new_table_data_storage_version": "2.1"}
        table = self._database.create_table(store_id, schema=schema, storage_options=options)
        for column, config in _indices(table).items():
            table.create_index(column, config=config)
        return table


class IndexReader:
    """Searches stores that another process may be writing. For one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._database: Any = None
        self._tables: OrderedDict[str, Any] = OrderedDict()

    async def ready(self) -> None:
        """Returns if the folder can be read; raises otherwise."""
        await (await self._connect()).list_tables(limit=1)

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        """At most `max_results` passages, best first; () if the store has none.

        Scores are in [0, 1]: with both weights, the weighted reciprocal ranks (1 is first in both halves); with the
        vectors alone, the cosine, negative ones as 0; with the text alone, BM25 as s / (s + 10). Raises
        `InvalidRequest` for a filter on a key that no file of the store has had.
        """
        table = await self._open(query.store_id)
        if table is None:
            return ()
        try:
            return await _search(table, query)
        except RuntimeError:
            # The table was dropped, and perhaps made anew, since it was opened.
            self._tables.pop(query.store_id, None)
            table = await self._open(query.store_id)
            return () if table is None else await _search(table, query)

    async def _open(self, store_id: str) -> Any | None:
        if store_id in self._tables:
            self._tables.move_to_end(store_id)
            return self._tables[store_id]
        database = await self._connect()
        try:
            table = await database.open_table(_checked(store_id))
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise
        self._tables[store_id] = table
        if len(self._tables) > _MAX_OPEN_TABLES:
            self._tables.popitem(last=False)
        return table

    # LanceDB's connections and tables are not typed here.
    async def _connect(self) -> Any:
        if self._database is None:
            self._database = await lancedb.connect_async(
                self._folder, read_consistency_interval=timedelta(0), session=_session()
            )
        return self._database


# --- searching ----------------------------------------------------------------------------------


async def _search(table: Any, query: SearchQuery) -> tuple[Passage, ...]:
    where = None if query.filter is None else _Where(await table.schema()).of(query.filter)
    vector_weight, text_weight = query.ranking.embedding_weight, query.ranking.text_weight
    if text_weight == 0:
        found = _scored(await _nearest(table, query, where, query.max_results), _cosine_score)
    elif vector_weight == 0:
        found = _scored(await _matching(table, query, where, query.max_results), _bm25_score)
    else:
        depth = max(50, 5 * query.max_results)
        nearest, matching = await asyncio.gather(
            _nearest(table, query, where, depth), _matching(table, query, where, depth)
        )
        found = _fuse(nearest, matching, query.ranking)
    return tuple(
        _passage(query.store_id, row, score)
        for row, score in found[: query.max_results]
        if score >= query.ranking.score_threshold
    )


async def _nearest(table: Any, query: SearchQuery, where: str | None, limit: int) -> list[Json]:
    assert query.vector is not None, "a search by vectors needs the vector of its text"
    search = table.query().nearest_to(query.vector).distance_type("cosine")
    if where is not None and await table.count_rows(where) <= _MAX_COMPARED_ROWS:
        search = search.bypass_vector_index()
    else:
        search = search.nprobes(_PROBES).refine_factor(max(2, math.ceil(_MIN_REFINED / limit)))
        if where is not None:
            # As many more as it takes to fill the limit. Without a filter that costs 5 ms, and is never needed.
            search = search.maximum_nprobes(0)
    return await _rows_of(search, where, "_distance", limit)


async def _matching(table: Any, query: SearchQuery, where: str | None, limit: int) -> list[Json]:
    # A MatchQuery takes its text as words: nothing in it is syntax.
    search = table.query().nearest_to_text(MatchQuery(query.text[:_MAX_SEARCH_CHARACTERS], "text"))
    return await _rows_of(search, where, "_score", limit)


async def _rows_of(search: Any, where: str | None, score_column: str, limit: int) -> list[Json]:
    if where is not None:
        search = search.where(where)
    rows: list[Json] = (await search.limit(limit).select([*_RESULT_COLUMNS, score_column]).to_arrow()).to_pylist()
    return rows


def _cosine_score(row: Json) -> float:
    return min(max(1.0 - float(row["_distance"]), 0.0), 1.0)


def _bm25_score(row: Json) -> float:
    return float(row["_score"]) / (float(row["_score"]) + _BM25_HALF)


def _scored(rows: list[Json], score: Any) -> list[tuple[Json, float]]:
    return [(row, score(row)) for row in rows]


def _fuse(nearest: list[Json], matching: list[Json], ranking: Ranking) -> list[tuple[Json, float]]:
    """Weighted reciprocal rank fusion. Of equals, the nearer one is first."""
    best = (ranking.embedding_weight + ranking.text_weight) / (_RRF_K + 1)
    rows: dict[str, Json] = {}
    scores: dict[str, float] = {}
    for half, weight in ((nearest, ranking.embedding_weight), (matching, ranking.text_weight)):
        for rank, row in enumerate(half, start=1):
            rows.setdefault(row["passage_id"], row)
            scores[row["passage_id"]] = scores.get(row["passage_id"], 0.0) + weight / (_RRF_K + rank) / best
    ordered = sorted(rows, key=lambda passage_id: -scores[passage_id])
    return [(rows[passage_id], min(scores[passage_id], 1.0)) for passage_id in ordered]


def _passage(store_id: str, row: Json, score: float) -> Passage:
    return Passage(
        passage_id=row["passage_id"],
        store_id=store_id,
        file_id=row["file_id"],
        filename=row["filename"],
        text=row["text"],
        score=score,
        start=row["start"],
        attributes=json.loads(row["attributes"]),
    )


# --- attributes and filters ----------------------------------------------------------------------

# `n_79656172` holds the numbers that files give the key "year": the hexadecimal digits keep users' words out of SQL.


def _column(key: str, value: AttributeValue) -> str:
    kind = "b" if isinstance(value, bool) else "s" if isinstance(value, str) else "n"
    return f"{kind}_{key.encode().hex()}"


def _attribute_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name[:2] in ("s_", "n_", "b_")]


def _column_values(attributes: Mapping[str, AttributeValue]) -> Json:
    columns: Json = {_column(key, value): value for key, value in attributes.items()}
    return columns | {"attributes": json.dumps(dict(attributes), ensure_ascii=False)}


def _add_missing_columns(table: Any, attributes: Iterable[Mapping[str, AttributeValue]]) -> None:
    wanted = {_column(key, value) for each in attributes for key, value in each.items()}
    missing = sorted(wanted - set(table.schema.names))
    if missing:
        table.add_columns(pa.schema([pa.field(name, _ARROW_TYPES[name[0]]) for name in missing]))


class _Where:
    """Filters as SQL over the columns of one store. Each part is true or false for every row, never null."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = set(_attribute_columns(schema))
        self._keys = {bytes.fromhex(name[2:]).decode() for name in self._columns}

    def of(self, filter_: Filter) -> str:
        if isinstance(filter_, Compound):
            return "(" + f" {filter_.type.upper()} ".join(self.of(each) for each in filter_.filters) + ")"
        self._require_known(filter_.key)
        values = filter_.value if isinstance(filter_.value, tuple) else (filter_.value,)
        match filter_.type:
            case "eq" | "in":
                return self._is_one_of(filter_.key, values)
            case "ne" | "nin":
                return f"(NOT {self._is_one_of(filter_.key, values)})"
            case _:
                return self._compared(filter_, values[0])

    def _is_one_of(self, key: str, values: tuple[AttributeValue, ...]) -> str:
        equal = [
            f"({column} IS NOT NULL AND {column} = {_literal(value)})"
            for value in values
            if (column := _column(key, value)) in self._columns
        ]
        return "(" + " OR ".join(equal) + ")" if equal else "false"

    def _compared(self, comparison: Comparison, value: AttributeValue) -> str:
        column = _column(comparison.key, value)
        operator = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}[comparison.type]
        if column not in self._columns:
            return "false"
        return f"({column} IS NOT NULL AND {column} {operator} {_literal(value)})"

    def _require_known(self, key: str) -> None:
        if key not in self._keys:
            known = ", ".join(repr(each) for each in sorted(self._keys)) or "none"
            raise InvalidRequest(
                f"No file in this vector store has the attribute {key!r}; the attributes there are: {known}",
                param="filters",
                code="unknown_attribute",
            )


def _literal(value: AttributeValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if not math.isfinite(value):
        raise InvalidRequest(f"A filter compares with finite numbers, not {value!r}", param="filters")
    return repr(float(value))


# --- tables -------------------------------------------------------------------------------------


def _rows(files: Sequence[FilePassages], schema: pa.Schema) -> pa.Table:
    rows = [
        {
            "passage_id": f"{file.file_id}-{number}",
            "file_id": file.file_id,
            "filename": file.filename,
            "text": piece.text,
            "start": piece.start,
            "fence": file.fence,
            **_column_values(file.attributes),
        }
        for file in files
        for number, piece in enumerate(file.pieces)
    ]
    vectors = np.concatenate([file.vectors for file in files])
    dimensions = schema.field("vector").type.list_size
    if vectors.shape != (len(rows), dimensions):
        raise InternalError(f"vectors of shape {vectors.shape} for {len(rows)} passages of {dimensions} dimensions")
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimensions)
        if field.name == "vector"
        else pa.array([row.get(field.name) for row in rows], type=field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


# LanceDB's tables and its indices' configurations are not typed here.
def _indices(table: Any) -> dict[str, Any]:
    """The columns to be indexed, and how."""
    indices: dict[str, Any] = {"text": _text_index(), "file_id": BTree()}
    if table.count_rows() >= _MIN_INDEXED_ROWS:
        # With four bits a dimension, 20 candidates hold more of the nearest 10 than 100 do with one.
        indices["vector"] = IvfRq(distance_type="cosine", num_bits=4)
        for column in _attribute_columns(table.schema)[:_MAX_INDEXED_ATTRIBUTES]:
            indices[column] = Bitmap() if column.startswith("b_") else BTree()
    return indices


def _text_index() -> FTS:
    # ICU finds the words of languages that do not write blanks between them. English endings and stop words are
    # dropped; words of other languages go through the same rules on both sides, and so still meet.
    return FTS(base_tokenizer="icu/split", language="English", stem=True, remove_stop_words=True, ascii_folding=True)


def _session() -> lancedb.Session:
    # By default the caches of one process may grow to 7 GB.
    return lancedb.Session(index_cache_size_bytes=512 * 2**20, metadata_cache_size_bytes=128 * 2**20)


def _checked(store_id: str) -> str:
    if not _STORE_ID.fullmatch(store_id):
        raise InvalidRequest(f"{store_id!r} is no id of a vector store", param="vector_store_id")
    return store_id
