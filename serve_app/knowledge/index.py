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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.index import FTS, Bitmap, BTree, IvfRq
from lancedb.query import MatchQuery

from serve_app.errors import InternalError, InvalidRequest
from serve_app.knowledge import maintenance
from serve_app.knowledge.commit import swap
from serve_app.knowledge.rank import rank
from serve_app.knowledge.split import Piece
from serve_app.metrics import MAINTENANCE_SECONDS, NO_METRICS, Metrics, timed
from serve_app.types import (
    AttributeChange,
    AttributeValue,
    Comparison,
    Compound,
    Filter,
    FloatMatrix,
    FloatVector,
    Json,
    Optimization,
    Passage,
    SearchQuery,
    TableState,
)

_MAX_CANDIDATES = 4096
"""A search looks no deeper for results that are not near-identical."""
logger = logging.getLogger(__name__)

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
_TAG = re.compile(r"v([0-9]+)")
# Null where a file has none. Tables that were made before them get these columns with their next commit.
_LATER_FIELDS = (
    pa.field("key", pa.string()),
    pa.field("version", pa.int64()),
    pa.field("page", pa.int32()),
    pa.field("last_page", pa.int32()),
    pa.field("heading", pa.list_(pa.string())),
)
_RESULT_COLUMNS = (
    *("passage_id", "file_id", "filename", "text", "start", "attributes"),
    *(field.name for field in _LATER_FIELDS),
)

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
    key: str = ""
    """The document that the file is a version of."""
    version: int = 1
    """Of the document."""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """What a store's table knows of a file."""

    file_id: str
    key: str
    version: int
    attributes: dict[str, AttributeValue]
    passages: int
    size_bytes: int
    """Of its texts and vectors."""


class IndexWriter:
    """The one writer of a folder of stores. May be called from several threads, of one process.

    Whoever commits and then records a version of the store holds `lock` meanwhile, so that versions are in the order
    of the commits.
    """

    def __init__(self, folder: Path, dimensions: int, metrics: Metrics = NO_METRICS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._database = lancedb.connect(folder, read_consistency_interval=timedelta(0), session=_session())
        self._dimensions = dimensions
        self.lock = RLock()  # two that add columns or make the table at once would refuse each other
        self._metrics = metrics
        self._merging = Lock()  # and so would two that compact it
        self._rota = maintenance.Rota()
        for path in folder.glob("vs_*.lance"):
            self._rota.changed(path.stem, 0)

    def add(self, store_id: str, files: Sequence[FilePassages], *, replacing: Collection[str] = ()) -> None:
        """Add files' passages in one commit, which also removes those of the files `replacing`, and what earlier claims
        have written of the new ones. Searches see all of it, at once. Makes the table if there is none.
        """
        with self.lock:
            table = self._open(store_id)
            if table is None:  # and not `or`: a table without rows is false
                if not any(file.pieces for file in files):
                    return
                table = self._create(store_id)
            _add_missing_columns(table, [file.attributes for file in files])
            rows = _rows(files, table.schema)
            where = _outdated(files, replacing)
            if where and table.count_rows(where):
                swap(table, where, rows)
            elif rows.num_rows:
                table.add(rows)
        self._rota.changed(store_id, rows.num_rows)

    def remove_file(
        self, store_id: str, file_id: str, *, fence: int | None = None, before_fence: int | None = None
    ) -> bool:
        """Remove a file's passages: all, those of one claim, or those of claims before one. True if there were any."""
        where = f"file_id = {_literal(file_id)}"
        if fence is not None:
            where += f" AND fence = {fence:d}"
        if before_fence is not None:
            where += f" AND fence < {before_fence:d}"
        with self.lock:
            table = self._open(store_id)
            if table is None or not table.count_rows(where):
                return False
            table.delete(where)
        self._rota.changed(store_id, 0)
        return True

    def update_attributes(self, change: AttributeChange) -> bool:
        """Replace all attributes of a file. False for one that has no passages: the ingestion will write them."""
        where = f"file_id = {_literal(change.file_id)}"
        with self.lock:
            table = self._open(change.store_id)
            if table is None or not table.count_rows(where):
                return False
            _add_missing_columns(table, [change.attributes])
            columns = _attribute_columns(table.schema)
            updated = table.update(where=where, values=dict.fromkeys(columns) | _column_values(change.attributes))
        self._rota.changed(change.store_id, updated.rows_updated)
        return True

    def drop(self, store_id: str) -> None:
        with self.lock:
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
                with timed(self._metrics, MAINTENANCE_SECONDS, trigger="automatic"):
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
                with timed(self._metrics, MAINTENANCE_SECONDS, trigger="requested"):
                    return maintenance.optimize(
                        table,
                        self._table_folder(store_id),
                        _indices(table),
                        lambda: self._remove_superseded(store_id, table),
                    )
        return Optimization()

    def describe(self, store_id: str) -> TableState:
        """What the store holds; all zero if it has no table."""
        with self._unless_dropped(store_id) as table:
            if table is not None:
                return maintenance.describe(table, self._table_folder(store_id))
        return TableState()

    def unindexed_rows(self, store_id: str) -> dict[str, int]:
        """By the columns that have an index: the rows that it does not hold yet."""
        with self._unless_dropped(store_id) as table:
            if table is not None:
                return {column: state.unindexed_rows for column, state in maintenance.index_states(table).items()}
        return {}

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

    # Versions

    def version(self, store_id: str) -> int | None:
        """How many commits the store's table has had; None if there is no table."""
        table = self._open(store_id)
        return None if table is None else int(table.version)

    def tag(self, store_id: str, version: int) -> tuple[int, int]:
        """Keep the table as it is now for `version` of the store. Returns the table's own version, and its rows."""
        table = self._open(store_id)
        if table is None:
            return 0, 0
        tag, table_version = f"v{version}", int(table.version)
        # A crash may have left the tag behind, before the version was recorded.
        (table.tags.update if tag in table.tags.list() else table.tags.create)(tag, table_version)
        return table_version, int(table.count_rows())

    def let_go(self, store_id: str, versions: Collection[int]) -> None:
        """The table as it was at these versions need not be kept: the next maintenance frees what only they needed."""
        with self._unless_dropped(store_id) as table:
            if table is not None and versions:
                for tag in {f"v{version}" for version in versions} & table.tags.list().keys():
                    table.tags.delete(tag)
                self._rota.changed(store_id, 0)

    def keep_only(self, store_id: str, versions: Collection[int]) -> None:
        """Let go of all others, those included that a crash has left."""
        table = self._open(store_id)
        tags = {} if table is None else table.tags.list()
        numbers = filter(None, map(_TAG.fullmatch, tags))
        self.let_go(store_id, {int(number[1]) for number in numbers} - set(versions))

    def restore(self, store_id: str, table_version: int) -> None:
        """Make the table's newest state what it was at `table_version`; 0 is before its first passage."""
        with self.lock:
            table = self._open(store_id)
            if table is not None and table_version:
                table.restore(table_version)
            elif table is not None:
                table.delete("true")

    def files(self, store_id: str) -> list[IndexedFile]:
        """All files of the store that have passages."""
        table = self._open(store_id)
        if table is None:
            return []
        columns = _present(("file_id", "key", "version", "attributes"), table.schema)
        rows = table.search().select([*columns, "text"]).to_arrow()
        rows = rows.append_column("size", pc.binary_length(rows["text"])).drop_columns("text")
        totals = pa.TableGroupBy(rows, columns).aggregate([("size", "sum"), ("size", "count")])
        return [_indexed_file(row, 4 * self._dimensions) for row in totals.to_pylist()]

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
                *_LATER_FIELDS,
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
        self._tables: OrderedDict[tuple[str, int | None], Any] = OrderedDict()

    async def ready(self) -> None:
        """Returns if the folder can be read; raises otherwise."""
        await (await self._connect()).list_tables(limit=1)

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
            self._tables.pop((query.store_id, query.table_version), None)
            table = await self._open(query)
            return () if table is None else await _search(table, query)

    async def _open(self, query: SearchQuery) -> Any | None:
        """The store's table, newest or as it was; None if there is none (or was none then)."""
        key = (query.store_id, query.table_version)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        if query.table_version == 0:
            return None
        database = await self._connect()
        try:
            table = await database.open_table(_checked(query.store_id))
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
                self._folder, read_consistency_interval=timedelta(0), session=_session()
            )
        return self._database


# --- searching ----------------------------------------------------------------------------------


async def _search(table: Any, query: SearchQuery) -> tuple[Passage, ...]:
    schema = await table.schema()
    where = None if query.filter is None else _Where(schema).of(query.filter)
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
    columns = [*_present(_RESULT_COLUMNS, schema), score_column]
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


# --- attributes and filters ----------------------------------------------------------------------

# `n_79656172` holds the numbers that files give the key "year": the hexadecimal digits keep users' words out of SQL.


def _column(key: str, value: AttributeValue) -> str:
    kind = "b" if isinstance(value, bool) else "s" if isinstance(value, str) else "n"
    return f"{kind}_{key.encode().hex()}"


def _present(columns: Iterable[str], schema: pa.Schema) -> list[str]:
    names = set(schema.names)
    return [column for column in columns if column in names]


def _attribute_columns(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name[:2] in ("s_", "n_", "b_")]


def _column_values(attributes: Mapping[str, AttributeValue]) -> Json:
    columns: Json = {_column(key, value): value for key, value in attributes.items()}
    return columns | {"attributes": json.dumps(dict(attributes), ensure_ascii=False)}


def _add_missing_columns(table: Any, attributes: Iterable[Mapping[str, AttributeValue]]) -> None:
    wanted = {_column(key, value) for each in attributes for key, value in each.items()}
    fields = [*_LATER_FIELDS, *(pa.field(name, _ARROW_TYPES[name[0]]) for name in sorted(wanted))]
    present = set(table.schema.names)
    missing = [field for field in fields if field.name not in present]
    if missing:
        table.add_columns(pa.schema(missing))


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


def _outdated(files: Sequence[FilePassages], replacing: Collection[str]) -> str:
    """Where the rows are that a commit of these files must remove; "" if there can be none."""
    where = [f"(file_id = {_literal(file.file_id)} AND fence < {file.fence:d})" for file in files if file.fence > 1]
    if replacing:
        where.append(f"file_id IN ({', '.join(map(_literal, replacing))})")
    return " OR ".join(where)


def _rows(files: Sequence[FilePassages], schema: pa.Schema) -> pa.Table:
    rows = [
        {
            "passage_id": f"{file.file_id}-{number}",
            "file_id": file.file_id,
            "filename": file.filename,
            "key": file.key or file.file_id,
            "version": file.version,
            "text": piece.text,
            "start": piece.start,
            "page": piece.pages and piece.pages[0],
            "last_page": piece.pages and piece.pages[1],
            "heading": list(piece.heading) or None,
            "fence": file.fence,
            **_column_values(file.attributes),
        }
        for file in files
        for number, piece in enumerate(file.pieces)
    ]
    if not rows:
        return schema.empty_table()
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


def _indexed_file(row: Json, vector_bytes: int) -> IndexedFile:
    return IndexedFile(
        file_id=row["file_id"],
        key=row.get("key") or row["file_id"],
        version=row.get("version") or 1,
        attributes=json.loads(row["attributes"]),
        passages=row["size_count"],
        size_bytes=row["size_sum"] + row["size_count"] * vector_bytes,
    )


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
