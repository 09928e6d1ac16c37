"""`restore`: what a snapshot holds and the system does not, back into the system.

First everything is copied beside the system and checked. Then one transaction of the database moves it into place,
where nobody looks for it yet, and makes it visible.
"""

import gzip
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import orjson
from sqlalchemy import JSON, Connection, MetaData, Table, bindparam, create_engine, insert, select

from serve_app.backup.jobs import Wanted, require_possible
from serve_app.backup.repository import Item, Manifest, Repository, StoredStore
from serve_app.backup.snapshot import COPIES_AT_ONCE, Progress, System, export_rows, rows_of
from serve_app.errors import Conflict, InternalError
from serve_app.knowledge.table import parts_of
from serve_app.knowledge.table_files import prepare_restored
from serve_app.storage import migrations
from serve_app.storage.database import Database, open_database
from serve_app.storage.files import sync_path
from serve_app.storage.schema import file_batches, files, logs, metadata, responses, vector_stores
from serve_app.types import Json, new_id, now_s

_ROWS_AT_ONCE = 500

Tables = Mapping[str, Path]
"""The rows of each table, as JSON Lines in a gzip file, by the table's name."""


class Claim(Protocol):
    """The right to restore, which another may have taken over from one who was stalled."""

    def progress(self, done: int, total: int) -> None: ...

    def keep(self, connection: Connection) -> None:
        """Raises `Conflict` if it is lost; else nobody can take it over before the end of this transaction."""
        ...

    def complete(self, connection: Connection, result: Json) -> None: ...


def restore(system: System, repository: Repository, wanted: Wanted, claim: Claim, work: Path) -> None:
    """`work` is an empty folder for it alone, on the disk of the system if it can be: there a move costs nothing.

    Raises like `require_possible`, `InvalidRequest` with the code `backup_damaged`, or `InternalError` if not all of it
    has come; nothing has changed then.
    """
    manifest = repository.manifest(wanted.backup_id)
    require_possible(system.database, manifest, wanted)
    contents = {item.path: item for item in repository.items(manifest)}
    tables = _in_this_schema(_fetch_tables(repository, contents, wanted, work), manifest.schema, work)
    plan = _plan(system.database, manifest, tables, wanted)
    targets = _targets(plan, contents, work)
    _fetch(repository, targets, claim.progress)
    _require_whole(plan, system, targets, work)
    for store in plan.stores:
        _prepare(store, tables, work)
    # What the database will name must be on the disk before it.
    os.sync()
    with system.database.write() as connection:
        claim.keep(connection)
        _require_unchanged(connection, plan)
        with _in_place(system, plan, work):
            claim.complete(connection, _insert(connection, plan, tables))


# --- what to restore ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Store:
    stored: StoredStore
    id: str
    """The one it gets here."""
    name: str | None
    """A new one."""
    suffixes: Set[str]
    """Of the names of its tables: one for each encoder that has made a version of it."""

    def tables(self, work: Path) -> list[Path]:
        return [work / f"{self.id}{suffix}.lance" for suffix in sorted(self.suffixes)]


@dataclass(frozen=True, slots=True)
class _Plan:
    stores: Sequence[_Store]
    new_files: frozenset[str]
    shared_files: frozenset[str]
    """That are here already, with the same content."""
    with_conversations: bool

    def moves(self, system: System, work: Path) -> list[tuple[Path, Path]]:
        """Each table and each file: where it is for now, and where it belongs."""
        tables = [(table, system.table(table.stem)) for store in self.stores for table in store.tables(work)]
        return tables + [(work / "files" / file_id, system.file(file_id)) for file_id in sorted(self.new_files)]

    def ids(self) -> dict[str, str]:
        """The new id of each store, by the old one."""
        return {store.stored.id: store.id for store in self.stores}


def _plan(database: Database, manifest: Manifest, tables: Tables, wanted: Wanted) -> _Plan:
    with database.read() as connection:
        here = set(connection.execute(select(vector_stores.c.id)).scalars())
        digests = {row.id: row.sha256 for row in connection.execute(select(files.c.id, files.c.sha256))}
    suffixes = _suffixes(manifest, tables)
    if wanted.store_id is None:
        stores = [_Store(each, each.id, None, suffixes[each.id]) for each in manifest.stores if each.id not in here]
    else:
        store_id = wanted.new_store_id or wanted.store_id
        (stored,) = (each for each in manifest.stores if each.id == wanted.store_id)
        stores = [_Store(stored, store_id, wanted.name, suffixes[stored.id])]
    is_all = manifest.is_everything and wanted.store_id is None
    chosen = {store.stored.id for store in stores}
    theirs = {row["file_id"] for row in _rows(tables, "vector_store_files") if row["store_id"] in chosen}
    uploads = {row["id"]: row["sha256"] for row in _rows(tables, "files") if is_all or row["id"] in theirs}
    for file_id in uploads.keys() & digests.keys():
        if uploads[file_id] != digests[file_id]:
            raise Conflict(f"There is a file {file_id!r} with other content than in the backup: delete it first")
    return _Plan(
        stores=stores,
        new_files=frozenset(uploads.keys() - digests.keys()),
        shared_files=frozenset(uploads.keys() & digests.keys()),
        with_conversations=is_all,
    )


def _suffixes(manifest: Manifest, tables: Tables) -> Mapping[str, set[str]]:
    """Of the tables of each store."""
    suffixes = {store.id: {store.table_suffix} if store.table_version else set() for store in manifest.stores}
    for row in _rows(tables, "store_versions"):
        # Version 0 is before the table's first passage.
        if row["table_version"]:
            suffixes.setdefault(row["store_id"], set()).add(row["table_suffix"])
    return suffixes


def _require_unchanged(connection: Connection, plan: _Plan) -> None:
    stores = set(connection.execute(select(vector_stores.c.id)).scalars())
    uploads = set(connection.execute(select(files.c.id)).scalars())
    if stores.intersection(plan.ids().values()) or uploads & plan.new_files or plan.shared_files - uploads:
        raise Conflict("Stores or files of the backup came or went while it was being restored: try again")


# --- the copying --------------------------------------------------------------------------------


def _fetch_tables(repository: Repository, contents: Mapping[str, Item], wanted: Wanted, work: Path) -> Tables:
    unwanted = set() if wanted.store_id is None else {"logs", *(table.name for table in _tables_of_logs())}
    tables = {}
    for path, item in contents.items():
        name = Path(path).name.removesuffix(".jsonl.gz")
        if path.startswith("sql/") and name not in unwanted:
            repository.fetch(item, work / path)
            tables[name] = work / path
    return tables


def _targets(plan: _Plan, contents: Mapping[str, Item], work: Path) -> list[tuple[Item, Path]]:
    """The contents that are needed, and where each goes for now."""
    stores = {store.stored.id: store for store in plan.stores}
    targets = []
    for path, item in contents.items():
        kind, owner, *rest = path.split("/")
        store_id, suffix = parts_of(owner) if kind == "vectors" else ("", "")
        if store_id in stores:
            targets.append((item, work.joinpath(f"{stores[store_id].id}{suffix}.lance", *rest)))
        elif kind == "files" and owner in plan.new_files:
            targets.append((item, work / "files" / owner))
    return targets


def _fetch(repository: Repository, targets: Sequence[tuple[Item, Path]], progress: Progress) -> None:
    total = sum(item.size_bytes for item, _ in targets)
    done = 0
    progress(done, total)
    with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="restore") as pool:
        for size_bytes in pool.map(lambda each: _fetch_one(repository, *each), targets):
            done += size_bytes
            progress(done, total)


def _fetch_one(repository: Repository, item: Item, target: Path) -> int:
    repository.fetch(item, target)
    return item.size_bytes


def _require_whole(plan: _Plan, system: System, targets: Sequence[tuple[Item, Path]], work: Path) -> None:
    """Raises `InternalError` if a table, a file or one of the contents is not there."""
    missing = [source.name for source, _ in plan.moves(system, work) if not source.exists()]
    missing += [item.path for item, target in targets if not target.exists()]
    if missing:
        raise InternalError(f"{missing[0]} did not come with the backup: nothing was changed")


def _prepare(store: _Store, tables: Tables, work: Path) -> None:
    versions = [row for row in _rows(tables, "store_versions") if row["store_id"] == store.stored.id]
    for table in store.tables(work):
        _, suffix = parts_of(table.stem)
        theirs = [row for row in versions if row["table_suffix"] == suffix and row["table_version"]]
        tags = {f"v{row['version']}": row["table_version"] for row in theirs}
        newest, rows = store.stored.table_version, store.stored.passages
        if suffix != store.stored.table_suffix:
            newest, rows = max((row["table_version"], row["passages"]) for row in theirs)
        assert newest is not None, "a store that has no table has no files of one"
        prepare_restored(table, newest, rows, tags)


@contextmanager
def _in_place(system: System, plan: _Plan, work: Path) -> Iterator[None]:
    """Move everything to where it will be looked for; back out if the block raises.

    What a commit that fails leaves is rubbish that nobody sees. It may also have succeeded: nothing is removed then.
    """
    moves = plan.moves(system, work)
    try:
        for source, target in moves:
            # What a killed restore has left: the database knows nothing of it.
            _remove(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
        for folder in {target.parent for _, target in moves}:
            sync_path(folder)
        yield
    except BaseException:
        for _, target in moves:
            _remove(target)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- the rows -----------------------------------------------------------------------------------


def _rows(tables: Tables, name: str) -> Iterator[Json]:
    if name in tables:
        with gzip.open(tables[name], "rb") as lines:
            for line in lines:
                yield orjson.loads(line)


def _in_this_schema(tables: Tables, schema: str, work: Path) -> Tables:
    """Rows of an older version go through a database of that time, which is then migrated.

    Raises `InternalError` if the schema is not known here, because it is newer.
    """
    if schema == migrations.NEWEST:
        return tables
    url = f"sqlite:///{work / 'old.db'}"
    engine = create_engine(url)
    migrations.upgrade(engine, schema)
    old = MetaData()
    old.reflect(engine)
    with engine.begin() as connection:
        for table in old.sorted_tables:
            _insert_rows(connection, table, _rows(tables, table.name))
    engine.dispose()
    with closing(open_database(url)) as database, database.read() as connection:
        migrated = {table.name: work / f"{table.name}.jsonl.gz" for table in metadata.sorted_tables}
        for table in metadata.sorted_tables:
            export_rows(connection, rows_of(table, None), migrated[table.name])
    return migrated


def _insert(connection: Connection, plan: _Plan, tables: Tables) -> Json:
    _insert_rows(connection, files, (row for row in _rows(tables, "files") if row["id"] in plan.new_files))
    _insert_stores(connection, plan, tables)
    conversations = _insert_conversations(connection, tables) if plan.with_conversations else 0
    return {
        "vector_stores": [
            {"id": store.id, "name": store.name or store.stored.name, "restored_from": store.stored.id}
            for store in plan.stores
        ],
        "files": len(plan.new_files),
        "conversations": conversations,
    }


def _insert_stores(connection: Connection, plan: _Plan, tables: Tables) -> None:
    ids = plan.ids()
    by_old_id = {store.stored.id: store for store in plan.stores}
    rows = [row for row in _rows(tables, "vector_stores") if row["id"] in ids]
    _insert_rows(connection, vector_stores, (_store_row(row, by_old_id[row["id"]]) for row in rows))
    # Batches have ids of their own, which the original may still have.
    batches = {
        row["id"]: row["id"] if ids[row["store_id"]] == row["store_id"] else new_id("vsfb")
        for row in _rows(tables, "file_batches")
        if row["store_id"] in ids
    }
    for table in metadata.sorted_tables:
        if "store_id" in table.c:
            theirs = (row for row in _rows(tables, table.name) if row["store_id"] in ids)
            _insert_rows(connection, table, (_of_store(table, row, ids, batches) for row in theirs))


def _store_row(row: Json, store: _Store) -> Json:
    # To be restored is to be used: an old backup's store would expire at once.
    return row | {
        "id": store.id,
        "name": store.name or row["name"],
        "last_active_at": now_s(),
    }


def _of_store(table: Table, row: Json, ids: Mapping[str, str], batches: Mapping[str, str]) -> Json:
    row = row | {"store_id": ids[row["store_id"]]}
    if table is file_batches:
        row["id"] = batches[row["id"]]
    if row.get("batch_id"):
        row["batch_id"] = batches.get(row["batch_id"])
    if "lease_until" in row:
        # Whoever worked on it did so elsewhere.
        row["lease_until"] = 0.0
    return row


def _insert_conversations(connection: Connection, tables: Tables) -> int:
    """The logs that are not here, with all that is in them. Returns how many of them are conversations."""
    restored: set[str] = set()
    conversations = 0
    for batch in _batches(_rows(tables, "logs")):
        ids = [row["id"] for row in batch]
        here = set(connection.execute(select(logs.c.id).where(logs.c.id.in_(ids))).scalars())
        # As with stores: an old backup's conversation would expire at once.
        missing = [row | {"last_active_at": now_s()} for row in batch if row["id"] not in here]
        _insert_rows(connection, logs, missing)
        restored.update(row["id"] for row in missing)
        conversations += sum(row["is_conversation"] for row in missing)
    for table in _tables_of_logs():
        for batch in _batches(row for row in _rows(tables, table.name) if row["log_id"] in restored):
            _insert_rows(connection, table, _without_taken_keys(connection, batch) if table is responses else batch)
    return conversations


def _tables_of_logs() -> list[Table]:
    return [table for table in metadata.sorted_tables if "log_id" in table.c]


def _without_taken_keys(connection: Connection, rows: Sequence[Json]) -> list[Json]:
    """A request that was made again since then keeps its key: that answer is the newer one."""
    keys = [row["idempotency_key"] for row in rows if row["idempotency_key"]]
    taken = set(
        connection.execute(select(responses.c.idempotency_key).where(responses.c.idempotency_key.in_(keys))).scalars()
    )
    return [row | {"idempotency_key": None} if row["idempotency_key"] in taken else row for row in rows]


def _insert_rows(connection: Connection, table: Table, rows: Iterable[Json]) -> None:
    # A deleted item's body is null in the database; without this it would become null in JSON, which is there.
    statement = insert(table).values(
        {
            column.name: bindparam(
                f"new_{column.name}", type_=JSON(none_as_null=True) if isinstance(column.type, JSON) else column.type
            )
            for column in table.c
        }
    )
    for batch in _batches(rows):
        connection.execute(statement, [{f"new_{name}": value for name, value in row.items()} for row in batch])


def _batches(rows: Iterable[Json]) -> Iterator[list[Json]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _ROWS_AT_ONCE)):
        yield batch
