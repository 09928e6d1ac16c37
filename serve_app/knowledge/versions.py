"""`Versions`: what a store answered and when, and the changes of a store that are not ingestion.

Each commit that changes what can be found is a version of the store: a row of `store_versions`, and a tag that keeps
LanceDB's table as it was. A version is kept while it is among the newest, young enough, or pinned. Nobody may be told
of a change before its version is recorded: gateways keep what they have found until the newest version is another one.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection, RowMapping, bindparam, delete, func, insert, or_, select, update

from serve_app.config import RetentionConfig
from serve_app.knowledge.history import current_table, expired, is_found, newest_version, next_version, version_row
from serve_app.knowledge.index import IndexedFile, IndexWriter
from serve_app.knowledge.table import parts_of
from serve_app.knowledge.table_files import VersionGone
from serve_app.storage.database import Database
from serve_app.storage.schema import files, reembeddings, store_versions, vector_store_files, vector_stores
from serve_app.types import Json, now_s
from serve_app.types.knowledge import AttributeChange, Optimization, StoreFileRef, StoreVersionRef

logger = logging.getLogger(__name__)

_file = vector_store_files.c

_MAX_PARAMETERS = 1000
"""Of a query: both databases refuse some tens of thousands."""

_BySuffix = dict[str, set[int]]
"""Versions of a store, by the suffix of the table that they are in."""


class Versions:
    """Changes stores, and records what becomes of them. For the one process that writes the index."""

    def __init__(self, database: Database, index: IndexWriter, retention: RetentionConfig) -> None:
        self._database = database
        self._index = index
        self._retention = retention
        self._unneeded: dict[str, set[str]] = {}
        """By store, tables that were not needed when its retention was enforced last."""

    @contextmanager
    def changing(self, store_id: str) -> Iterator[Connection]:
        """The transaction that records a change of the store's table, begun before the table is touched.

        Nobody else changes the table meanwhile, not even a process that was replaced and does not know it yet.
        """
        with self._index.lock, self._database.write() as connection:
            hold(connection, store_id)
            yield connection

    def remove_file(self, ref: StoreFileRef) -> None:
        """After the return no search of the newest version finds the file."""
        with self.changing(ref.store_id) as connection:
            table = _table_name(connection, ref.store_id)
            for other in self._index.tables_of(ref.store_id) - {table}:
                # Or a move back to its encoder could take it for the same file that is added again some day.
                self._index.remove_file(other, ref.file_id)
            is_removed = self._index.remove_file(table, ref.file_id)
            version = next_version(connection, ref.store_id)
            lost = connection.execute(
                update(vector_store_files)
                .where(_file.store_id == ref.store_id, _file.file_id == ref.file_id, is_found(), _file.passages > 0)
                .values(until_version=version)
            )
            # One try may have removed the passages and failed before this: then it is for the next to record it.
            if is_removed or lost.rowcount:
                self.record(connection, ref.store_id, version)

    def remove_leftovers(self, ref: StoreFileRef, *, before_fence: int) -> None:
        """Remove what claims of a file before this one have written."""
        with self.changing(ref.store_id) as connection:
            table = _table_name(connection, ref.store_id)
            if self._index.remove_file(table, ref.file_id, before_fence=before_fence):
                self._record_now(connection, ref.store_id)

    def optimize(self, store_id: str) -> Optimization:
        done = self._index.optimize(self.table(store_id))
        if done.duplicates_removed:
            with self.changing(store_id) as connection:
                self._record_now(connection, store_id)
        return done

    def update_attributes(self, ref: StoreFileRef) -> None:
        """Make the table say of a file what the database says: of two changes the later may come here first."""
        query = select(_file.attributes).where(_file.store_id == ref.store_id, _file.file_id == ref.file_id)
        with self.changing(ref.store_id) as connection:
            attributes = connection.execute(query).scalar()
            if attributes is None:  # it was removed meanwhile
                return
            change = AttributeChange(ref.store_id, ref.file_id, attributes)
            if self._index.update_attributes(_table_name(connection, ref.store_id), change):
                self._record_now(connection, ref.store_id)

    def roll_back(self, ref: StoreVersionRef) -> int:
        """Make the store what it was at a version that is kept: that is a new version, which is returned.

        That includes its encoder. What is being ingested is cancelled, a move to another encoder called off. Files that
        have been deleted since do not come back. Raises `NotFound` if the version is not kept.
        """
        with self.changing(ref.store_id) as connection:
            wanted = version_row(connection, ref.store_id, ref.version)
            table = ref.store_id + wanted["table_suffix"]
            self._index.restore(table, wanted["table_version"])
            restored = {each.file_id: each for each in self._index.files(table)}
            uploaded = _uploaded(connection, restored)
            for file_id in restored.keys() - uploaded:
                self._index.remove_file(table, file_id)
            set_table(connection, ref.store_id, wanted["encoder"], wanted["table_suffix"])
            version = next_version(connection, ref.store_id)
            _set_found(connection, ref.store_id, version, {id_: restored[id_] for id_ in restored.keys() & uploaded})
            self.record(connection, ref.store_id, version)
        return version

    def undo_unrecorded(self) -> None:
        """Take back what was committed and not recorded by a process that was killed, or by a machine without power:
        nobody was told of it.

        It is done again, unless it was cancelled meanwhile. To be called before anything else is changed. A store whose
        table cannot be read is left as it is.
        """
        tables = self._index.tables()
        for store_id in self.store_ids():
            with left_alone_if_damaged(store_id), self.changing(store_id) as connection:
                for name in tables.get(store_id, ()):
                    self._drop_torn(connection, name)
                self._undo_unrecorded(connection, store_id)

    def _drop_torn(self, connection: Connection, name: str) -> None:
        store_id, suffix = parts_of(name)
        of_table = (store_versions.c.store_id == store_id, store_versions.c.table_suffix == suffix)
        recorded = connection.execute(select(func.max(store_versions.c.table_version)).where(*of_table)).scalar() or 0
        if not recorded and name == _table_name(connection, store_id):
            found = select(_file.file_id).where(_file.store_id == store_id, is_found(), _file.passages > 0).limit(1)
            if connection.execute(found).first() is not None:
                # From before there were versions: what was told of it is not known.
                return
        if not self._index.drop_torn(name, recorded) and not recorded:
            logger.warning("table %s: nothing of it is whole, and nothing was recorded: it is made anew", name)
            self._index.drop_table(name)

    def _undo_unrecorded(self, connection: Connection, store_id: str) -> None:
        newest = newest_version(connection, store_id)
        if newest is None:
            return
        table = store_id + newest["table_suffix"]
        if not self._index.has_changed_since(table, newest["table_version"]):
            return
        recorded = select(_file.file_id).where(_file.store_id == store_id, is_found(), _file.passages > 0)
        if {each.file_id for each in self._index.files(table)} != set(connection.execute(recorded).scalars()):
            logger.warning("store %s: a commit that was not recorded is taken back", store_id)
            self._index.restore(table, newest["table_version"])
        # What was found meanwhile is not what the version says.
        self._record_now(connection, store_id)

    def store_ids(self) -> Sequence[str]:
        with self._database.read() as connection:
            return connection.execute(select(vector_stores.c.id)).scalars().all()

    def table(self, store_id: str) -> str:
        """The name of the table that searches of the store read now."""
        with self._database.read() as connection:
            return _table_name(connection, store_id)

    def _record_now(self, connection: Connection, store_id: str) -> None:
        self.record(connection, store_id, next_version(connection, store_id))

    def record(self, connection: Connection, store_id: str, version: int) -> None:
        """The table as it is now, as a version of its store; those that are not to be kept any more go.

        For whoever has just committed, in the transaction of `changing`.
        """
        current = current_table(connection, store_id)
        assert current is not None, "the caller has just changed its rows"
        table_version, passages = self._index.tag(store_id + current.suffix, version)
        found = select(func.count()).where(_file.store_id == store_id, is_found())
        row = {
            "store_id": store_id,
            "version": version,
            "table_version": table_version,
            "table_suffix": current.suffix,
            "encoder": current.encoder,
            "created_at": time.time(),
            "files": connection.execute(found).scalar_one(),
            "passages": passages,
            "pinned": False,
        }
        connection.execute(insert(store_versions).values(row))
        _, gone = self._expire(connection, store_id)
        for suffix, versions in gone.items():
            self._index.let_go(store_id + suffix, versions)

    def enforce_retention(self, store_id: str, tables: set[str]) -> None:
        """Let go of what is not to be kept any more. To be called every few minutes for every store.

        `tables` are those that the store has in the index. Left as they are if they cannot be read.
        """
        unneeded_before = self._unneeded.pop(store_id, set())
        with left_alone_if_damaged(store_id), self._index.lock:
            with self._database.write() as connection:
                kept, _ = self._expire(connection, store_id)
                needed = _needed_tables(connection, store_id)
                if unneeded := tables - needed:
                    self._unneeded[store_id] = unneeded
                # One that was not needed the last time either: no search can still be reading it.
                for name in unneeded & unneeded_before:
                    self._index.drop_table(name)
            for name in tables & needed:
                self._index.keep_only(name, kept.get(parts_of(name)[1], ()))

    def _expire(self, connection: Connection, store_id: str) -> tuple[_BySuffix, _BySuffix]:
        """Returns the versions that are kept, and those that no longer are, by the suffixes of their tables."""
        query = select(vector_stores.c.retention).where(vector_stores.c.id == store_id)
        own = connection.execute(query).scalar()
        retention = self._retention.model_copy(update=own or {})
        of_store = select(store_versions).where(store_versions.c.store_id == store_id)
        # Locked, or PostgreSQL could pin one that is just being let go.
        query = of_store.order_by(store_versions.c.version.desc()).with_for_update()
        rows = connection.execute(query).mappings().all()
        gone = expired(rows, retention, time.time())
        if gone:
            connection.execute(
                delete(store_versions).where(store_versions.c.store_id == store_id, store_versions.c.version.in_(gone))
            )
        return (
            _by_suffix(row for row in rows if row["version"] not in gone),
            _by_suffix(row for row in rows if row["version"] in gone),
        )


def hold(connection: Connection, store_id: str) -> None:
    """Until the end of the transaction no other that holds the store runs. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        # Not by the store's row: searches touch that.
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(store_id))))


def _table_name(connection: Connection, store_id: str) -> str:
    current = current_table(connection, store_id)
    return store_id + (current.suffix if current else "")


def _uploaded(connection: Connection, file_ids: Iterable[str]) -> set[str]:
    """Those of them that still are."""
    alive = or_(files.c.expires_at.is_(None), files.c.expires_at > now_s())
    ids, found = list(file_ids), set[str]()
    for start in range(0, len(ids), _MAX_PARAMETERS):
        few = files.c.id.in_(ids[start : start + _MAX_PARAMETERS])
        found.update(connection.execute(select(files.c.id).where(alive, few)).scalars())
    return found


@contextmanager
def left_alone_if_damaged(store_id: str) -> Iterator[None]:
    """One damaged table must not keep the indexer from the others."""
    try:
        yield
    # What LanceDB raises; of the database's errors none is one of these.
    except (ValueError, OSError, RuntimeError, VersionGone):
        logger.exception("store %s: its table cannot be read or written", store_id)


def set_table(connection: Connection, store_id: str, encoder: str, suffix: str) -> None:
    """From here on the store is searched, and filled, in this table. A move to another encoder is called off."""
    connection.execute(
        update(vector_stores).where(vector_stores.c.id == store_id).values(encoder=encoder, table_suffix=suffix)
    )
    connection.execute(delete(reembeddings).where(reembeddings.c.store_id == store_id))


def _needed_tables(connection: Connection, store_id: str) -> set[str]:
    """The one that is searched, those with a version that is kept, and the one that is being filled."""
    suffixes: set[str] = set()
    # The lock keeps a move from asking for one that is just being dropped.
    current = select(vector_stores.c.table_suffix).where(vector_stores.c.id == store_id).with_for_update()
    suffixes.update(connection.execute(current).scalars())
    for table in (store_versions, reembeddings):
        suffixes.update(connection.execute(select(table.c.table_suffix).where(table.c.store_id == store_id)).scalars())
    return {store_id + suffix for suffix in suffixes}


def _by_suffix(rows: Iterable[RowMapping]) -> _BySuffix:
    versions: _BySuffix = {}
    for row in rows:
        versions.setdefault(row["table_suffix"], set()).add(row["version"])
    return versions


def _set_found(connection: Connection, store_id: str, version: int, found: Mapping[str, IndexedFile]) -> None:
    """Make the rows of a store's files say that exactly these are found, from `version` on where they were not."""
    of_store = _file.store_id == store_id
    connection.execute(
        update(vector_store_files)
        .where(of_store, _file.status == "in_progress")
        .values(status="cancelled", fence=_file.fence + 1, lease_until=0.0)
    )
    rows = connection.execute(select(vector_store_files).where(of_store)).mappings().all()
    lost = [
        row["file_id"]
        for row in rows
        if row["status"] == "completed"
        and row["until_version"] is None
        and (row["same_as"] or row["file_id"]) not in found
    ]
    update_each(connection, store_id, [{"file": file_id, "until_version": version} for file_id in lost])

    back = [_found_again(row, found[row["file_id"]], version) for row in rows if row["file_id"] in found]
    update_each(connection, store_id, back)
    removed = found.keys() - {row["file_id"] for row in rows}
    if removed:
        query = select(vector_stores.c.chunking_strategy).where(vector_stores.c.id == store_id)
        strategy = connection.execute(query).scalar_one()
        connection.execute(
            insert(vector_store_files),
            [_row(store_id, found[file_id], strategy, version) for file_id in sorted(removed)],
        )


def _found_again(row: RowMapping, file: IndexedFile, version: int) -> Json:
    """What becomes of a file's row. It may have been added again since, as another document, and have failed."""
    return {
        "file": file.file_id,
        "key": file.key,
        "version": file.version,
        "since_version": row["since_version"] or version,
        "until_version": None,
        "same_as": None,
        "status": "completed",
        "completed_at": row["completed_at"] or time.time(),
        "error_code": None,
        "error_message": None,
        "attributes": file.attributes,
        **sizes_of(file),
    }


def sizes_of(file: IndexedFile) -> Json:
    """As the columns of a file in a store."""
    return {"usage_bytes": file.size_bytes, "passages": file.passages}


def update_each(connection: Connection, store_id: str, changes: Sequence[Json]) -> None:
    """Change rows of a store's files: each names its `file` and has the same columns."""
    if changes:
        one = update(vector_store_files).where(_file.store_id == store_id, _file.file_id == bindparam("file"))
        connection.execute(one, changes)


def _row(store_id: str, file: IndexedFile, chunking_strategy: Json, version: int) -> Json:
    return {
        "store_id": store_id,
        "file_id": file.file_id,
        "key": file.key,
        "version": file.version,
        "since_version": version,
        "status": "completed",
        "attributes": file.attributes,
        "chunking_strategy": chunking_strategy,
        **sizes_of(file),
        "created_at": now_s(),
        "completed_at": time.time(),
        "fence": 0,
        "lease_until": 0.0,
        "attempts": 0,
    }
