"""The passages of every vector store in LanceDB: `IndexWriter`, of which there is one.

A store is a table of its own, named by its id, and there is none before its first passage. A store that is moved to
another encoder gets a further table for it, whose name has a suffix. Each key of the files' attributes is a typed
column, so that LanceDB searches only what a filter lets through.
"""

import json
import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Lock, RLock
from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.index import FTS, Bitmap, BTree, IvfRq
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_fixed

from serve_app.errors import InternalError
from serve_app.knowledge import maintenance
from serve_app.knowledge.commit import swap
from serve_app.knowledge.documents import NewFile, key_of
from serve_app.knowledge.durable import drop_torn, sync
from serve_app.knowledge.split import Piece
from serve_app.knowledge.table import (
    ARROW_TYPES,
    LATER_FIELDS,
    attribute_columns,
    checked,
    column_of,
    column_values,
    literal,
    open_session,
    parts_of,
    present,
    session_size,
)
from serve_app.knowledge.table_files import VersionGone, list_files
from serve_app.metrics import MAINTENANCE_SECONDS, NO_METRICS, Metrics, timed
from serve_app.types import AttributeValue, FloatMatrix, Json
from serve_app.types.knowledge import AttributeChange, Optimization, TableState
from serve_app.vitals import CacheName, CacheSize

logger = logging.getLogger(__name__)

_MIN_INDEXED_ROWS = 5_000
"""Below, every row is compared: 2,000 take 6 ms either way, 10,000 take 16 ms, and through the index 6."""
_MAX_INDEXED_ATTRIBUTES = 32
"""Of a store: each index takes maintenance some 20 ms. A filter on another attribute reads its whole column."""
_CHANGES = {"Append", "Delete", "Overwrite", "Restore", "Update"}
_TAG = re.compile(r"v([0-9]+)")


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


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """How the passages of a file were written: two that are equal need not be written again."""

    key: str
    version: int
    attributes: dict[str, AttributeValue]
    fence: int


class IndexWriter:
    """The one writer of a folder of stores. May be called from several threads, of one process.

    Each `name` is a table's. Whoever commits and then records a version of the store holds `lock` meanwhile, so that
    versions are in the order of the commits.
    """

    name: ClassVar[CacheName] = "index"

    def __init__(self, folder: Path, metrics: Metrics = NO_METRICS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._connect()
        self.lock = RLock()  # two that add columns or make the table at once would refuse each other
        self._metrics = metrics
        self._merging = Lock()  # and so would two that compact it
        self._rota = maintenance.Rota()
        self._synced: dict[str, set[Path]] = {}
        """By table, files that are on the disk: LanceDB writes each once."""
        for path in folder.glob("vs_*.lance"):
            self._rota.changed(path.stem, 0)

    def _connect(self) -> None:
        self._session = open_session()
        self._database = lancedb.connect(self._folder, read_consistency_interval=timedelta(0), session=self._session)

    def size(self) -> CacheSize:
        return session_size(self._session)

    async def release(self) -> bool:
        """Work that is under way keeps what it has opened, to its end."""
        self._connect()
        return True

    def add(self, name: str, files: Sequence[FilePassages], *, replacing: Collection[str] = ()) -> None:
        """Add files' passages in one commit, which also removes those of the files `replacing`, and what earlier claims
        have written of the new ones. Searches see all of it, at once. Makes the table if there is none.
        """
        with self.lock:
            table = self._open(name)
            if table is None:  # and not `or`: a table without rows is false
                if not any(file.pieces for file in files):
                    return
                table = self._create(name, files[0].vectors.shape[1])
            _add_missing_columns(table, [file.attributes for file in files])
            rows = _rows(files, table.schema)
            where = _outdated(files, replacing)
            if where and table.count_rows(where):
                swap(table, where, rows)
            elif rows.num_rows:
                table.add(rows)
        self._rota.changed(name, rows.num_rows)

    def remove_file(
        self, name: str, file_id: str, *, fence: int | None = None, before_fence: int | None = None
    ) -> bool:
        """Remove a file's passages: all, those of one claim, or those of claims before one. True if there were any."""
        where = f"file_id = {literal(file_id)}"
        if fence is not None:
            where += f" AND fence = {fence:d}"
        if before_fence is not None:
            where += f" AND fence < {before_fence:d}"
        with self.lock:
            table = self._open(name)
            if table is None or not table.count_rows(where):
                return False
            table.delete(where)
        self._rota.changed(name, 0)
        return True

    def update_attributes(self, name: str, change: AttributeChange) -> bool:
        """Replace all attributes of a file. False for one that has no passages: the ingestion will write them."""
        where = f"file_id = {literal(change.file_id)}"
        with self.lock:
            table = self._open(name)
            if table is None or not table.count_rows(where):
                return False
            _add_missing_columns(table, [change.attributes])
            columns = attribute_columns(table.schema)
            updated = table.update(where=where, values=dict.fromkeys(columns) | column_values(change.attributes))
        self._rota.changed(name, updated.rows_updated)
        return True

    def tables(self) -> dict[str, set[str]]:
        """The names of all tables there are, by store."""
        tables: dict[str, set[str]] = {}
        for path in self._folder.glob("vs_*.lance"):
            tables.setdefault(parts_of(path.stem)[0], set()).add(path.stem)
        return tables

    def tables_of(self, store_id: str) -> set[str]:
        patterns = (f"{checked(store_id)}.lance", f"{store_id}_*.lance")
        return {path.stem for pattern in patterns for path in self._folder.glob(pattern)}

    def drop(self, store_id: str) -> None:
        for name in self.tables_of(store_id):
            self.drop_table(name)

    def drop_table(self, name: str) -> None:
        """Also one that is damaged: it is not opened first."""
        with self.lock:
            self._remove_table(checked(name))
            self._synced.pop(name, None)

    # Maintenance is not done under the lock, and may write a file while the folder is being emptied.
    @retry(
        retry=retry_if_exception_message(match=r"(?s).*Directory not empty"),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(5),
        reraise=True,
    )
    def _remove_table(self, name: str) -> None:
        self._database.drop_table(name, ignore_missing=True)

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

    def maintain(self, name: str) -> None:
        """Index and merge what is due. Milliseconds if nothing is, and at times minutes in a large store."""
        with self._merging, self._unless_dropped(name) as table:
            if table is not None:
                with timed(self._metrics, MAINTENANCE_SECONDS, trigger="automatic"):
                    maintenance.maintain(table, _indices(table))
                self._sync(name, int(table.version))

    def clean_up(self, name: str) -> None:
        """Remove from the disk what no search can need any more."""
        with self._merging, self._unless_dropped(name) as table:
            if table is not None:
                maintenance.clean_up(table, self._table_folder(name))

    def optimize(self, name: str) -> Optimization:
        """Do all of that now, remove what a claim that was lost has left, and say what it did."""
        with self._merging, self._unless_dropped(name) as table:
            if table is not None:
                with timed(self._metrics, MAINTENANCE_SECONDS, trigger="requested"):
                    done = maintenance.optimize(
                        table,
                        self._table_folder(name),
                        _indices(table),
                        lambda: self._remove_superseded(name, table),
                    )
                self._sync(name, int(table.version))
                return done
        return Optimization()

    def describe(self, name: str) -> TableState:
        """What the store holds; all zero if it has no table."""
        with self._unless_dropped(name) as table:
            if table is not None:
                return maintenance.describe(table, self._table_folder(name))
        return TableState()

    def unindexed_rows(self, name: str) -> dict[str, int]:
        """By the columns that have an index: the rows that it does not hold yet."""
        with self._unless_dropped(name) as table:
            if table is not None:
                return {column: state.unindexed_rows for column, state in maintenance.index_states(table).items()}
        return {}

    def _remove_superseded(self, name: str, table: Any) -> int:
        rows = table.count_rows()
        for file_id, last_fence in maintenance.superseded(table):
            self.remove_file(name, file_id, before_fence=last_fence)
        return int(rows - table.count_rows())

    @contextmanager
    def _unless_dropped(self, name: str) -> Iterator[Any | None]:
        """The store's table, for work that takes seconds and is not done under the lock."""
        try:
            yield self._open(name)
        except (RuntimeError, VersionGone):
            # Of a store that is dropped meanwhile there is nothing left to do.
            if self._open(name) is not None:
                raise

    def _sync(self, name: str, table_version: int, *tags: str) -> None:
        """Wait until the disk has all of which this version of the table consists, and these tags."""
        folder = self._table_folder(name)
        files = set(list_files(folder, [table_version]))
        new = files - self._synced.get(name, set())
        sync(folder, new.union(Path("_refs", "tags", f"{tag}.json") for tag in tags))
        self._synced[name] = files

    def _table_folder(self, name: str) -> Path:
        return self._folder / f"{checked(name)}.lance"

    # Versions

    def version(self, name: str) -> int | None:
        """How many commits the store's table has had; None if there is no table."""
        table = self._open(name)
        return None if table is None else int(table.version)

    def has_changed_since(self, name: str, table_version: int) -> bool:
        """Whether passages came or went in any commit after that one; those of maintenance do not count."""
        table = self._open(name)
        if table is None:
            return False
        dataset = table.to_lance()
        for version in range(dataset.version, table_version, -1):
            # What has been cleaned up (OSError) was not the last that a killed process did. And pylance 13.0 cannot
            # show a compaction that moved the rows of an index (TypeError): no passage came or went in it.
            with suppress(OSError, TypeError):
                if type(dataset.read_transaction(version).operation).__name__ in _CHANGES:
                    return True
        return False

    def tag(self, name: str, version: int) -> tuple[int, int]:
        """Keep the table as it is now for `version` of the store. When it returns the disk has it.

        Returns the table's own version, and its rows.
        """
        table = self._open(name)
        if table is None:
            return 0, 0
        tag, table_version = f"v{version}", int(table.version)
        # A crash may have left the tag behind, before the version was recorded.
        (table.tags.update if tag in table.tags.list() else table.tags.create)(tag, table_version)
        self._sync(name, table_version, tag)
        return table_version, int(table.count_rows())

    def let_go(self, name: str, versions: Collection[int]) -> None:
        """The table as it was at these versions need not be kept: the next maintenance frees what only they needed."""
        with self._unless_dropped(name) as table:
            if table is not None and versions:
                for tag in {f"v{version}" for version in versions} & table.tags.list().keys():
                    table.tags.delete(tag)
                self._rota.changed(name, 0)

    def keep_only(self, name: str, versions: Collection[int]) -> None:
        """Let go of all others, those included that a crash has left."""
        table = self._open(name)
        tags = {} if table is None else table.tags.list()
        numbers = filter(None, map(_TAG.fullmatch, tags))
        self.let_go(name, {int(number[1]) for number in numbers} - set(versions))

    def drop_torn(self, name: str, recorded: int) -> bool:
        """Drop what a loss of power has torn of the table after its version `recorded`. False if nothing is whole."""
        with self.lock:
            return drop_torn(self._table_folder(name), recorded)

    def restore(self, name: str, table_version: int) -> None:
        """Make the table's newest state what it was at `table_version`; 0 is before its first passage."""
        with self.lock:
            table = self._open(name)
            if table is not None and table_version:
                table.restore(table_version)
            elif table is not None:
                table.delete("true")

    def files(self, name: str) -> list[IndexedFile]:
        """All files of the store that have passages."""
        table = self._open(name)
        if table is None:
            return []
        columns = present(("file_id", "key", "version", "attributes"), table.schema)
        rows = table.search().select([*columns, "text"]).to_arrow()
        rows = rows.append_column("size", pc.binary_length(rows["text"])).drop_columns("text")
        totals = pa.TableGroupBy(rows, columns).aggregate([("size", "sum"), ("size", "count")])
        vector_bytes = 4 * table.schema.field("vector").type.list_size
        return [_indexed_file(row, vector_bytes) for row in totals.to_pylist()]

    def written_files(self, name: str) -> dict[str, WrittenFile]:
        """By id, how each file of the table was written. Takes 0.1 s for 100,000 passages."""
        table = self._open(name)
        if table is None:
            return {}
        columns = present(("file_id", "key", "version", "attributes", "fence"), table.schema)
        rows = table.search().select(columns).to_arrow()
        written: dict[str, WrittenFile] = {}
        for row in pa.TableGroupBy(rows, columns).aggregate([]).to_pylist():
            key, version = row.get("key") or row["file_id"], row.get("version") or 1
            each = WrittenFile(key, version, json.loads(row["attributes"]), row["fence"])
            # A claim that was lost may have left rows of its own: such a file is like no other.
            written[row["file_id"]] = replace(each, fence=-1) if row["file_id"] in written else each
        return written

    # LanceDB's tables are not typed here.
    def _open(self, name: str) -> Any | None:
        try:
            table = self._database.open_table(checked(name))
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise
        return table

    def _create(self, name: str, dimensions: int) -> Any:
        schema = pa.schema(
            [
                pa.field("passage_id", pa.string(), nullable=False),
                pa.field("file_id", pa.string(), nullable=False),
                pa.field("filename", pa.string(), nullable=False),
                *LATER_FIELDS,
                pa.field("text", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
                pa.field("start", pa.int64(), nullable=False),
                pa.field("fence", pa.int64(), nullable=False),
                pa.field("attributes", pa.string(), nullable=False),
            ]
        )
        # In files of the newer format 2.2, to read one value of a column that has the same everywhere takes 4 ms.
        options = {"new_table_data_storage_version": "2.1"}
        table = self._database.create_table(name, schema=schema, storage_options=options)
        for column, config in _indices(table).items():
            table.create_index(column, config=config)
        return table


# --- tables -------------------------------------------------------------------------------------


def _add_missing_columns(table: Any, attributes: Iterable[Mapping[str, AttributeValue]]) -> None:
    wanted = {column_of(key, value) for each in attributes for key, value in each.items()}
    fields = [*LATER_FIELDS, *(pa.field(name, ARROW_TYPES[name[0]]) for name in sorted(wanted))]
    present = set(table.schema.names)
    missing = [field for field in fields if field.name not in present]
    if missing:
        table.add_columns(pa.schema(missing))


def _outdated(files: Sequence[FilePassages], replacing: Collection[str]) -> str:
    """Where the rows are that a commit of these files must remove; "" if there can be none."""
    where = [f"(file_id = {literal(file.file_id)} AND fence < {file.fence:d})" for file in files if file.fence > 1]
    if replacing:
        where.append(f"file_id IN ({', '.join(map(literal, replacing))})")
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
            **column_values(file.attributes),
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
    attributes = json.loads(row["attributes"])
    return IndexedFile(
        file_id=row["file_id"],
        # Of one without a key the database has made the same.
        key=key_of(NewFile(row["file_id"], attributes, key=row.get("key")), row["file_id"]),
        version=row.get("version") or 1,
        attributes=attributes,
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
        for column in attribute_columns(table.schema)[:_MAX_INDEXED_ATTRIBUTES]:
            indices[column] = Bitmap() if column.startswith("b_") else BTree()
    return indices


def _text_index() -> FTS:
    # ICU finds the words of languages that do not write blanks between them. English endings and stop words are
    # dropped; words of other languages go through the same rules on both sides, and so still meet.
    return FTS(base_tokenizer="icu/split", language="English", stem=True, remove_stop_words=True, ascii_folding=True)
