"""`take_snapshot`: a system as it was at one moment, into a repository, while writes go on.

The moment is that of a database transaction, which also says which version each store's table had. What it names is
held by hard links before anything can clean it up; then the copying may take as long as it does. LanceDB and we write
each file once and never change it, so what an earlier snapshot has copied is not even read again.
"""

import gzip
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, RowMapping, Select, Table, select
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from serve_app.backup.repository import Item, Manifest, Repository, StoredStore, describe, write_items
from serve_app.config import AppConfig
from serve_app.errors import InternalError, NotFound
from serve_app.knowledge.table_files import VersionGone, count_rows, current_version, list_files
from serve_app.storage.database import Database
from serve_app.storage.migrations import NEWEST
from serve_app.storage.schema import (
    backup_jobs,
    files,
    message_facts,
    metadata,
    response_jobs,
    response_journal,
    runners,
    store_versions,
    vector_store_files,
    vector_stores,
)
from serve_app.types import now_s

COPIES_AT_ONCE = 4

_WORK = ".backup-work"

Progress = Callable[[int, int], None]
"""Called now and then with the bytes that are done, and all that there are to do."""


@dataclass(frozen=True, slots=True)
class System:
    """What is backed up, and what is restored into."""

    database: Database
    config: AppConfig

    def work_folder(self, job: str) -> Path:
        """For what is under way; nothing in it outlives its job."""
        return self.config.storage.folder / f"{_WORK}-{job}"

    def work_folders(self) -> list[Path]:
        """Those that are there."""
        return list(self.config.storage.folder.glob(f"{_WORK}*"))

    def table(self, name: str) -> Path:
        return self.config.storage.vectors_folder / f"{name}.lance"

    def file(self, file_id: str) -> Path:
        return self.config.storage.files_folder / file_id


def take_snapshot(
    system: System,
    repository: Repository,
    backup_id: str,
    store_ids: Sequence[str] | None,
    progress: Progress,
    work: Path,
) -> Manifest:
    """Back up these stores and their files; everything, with None. What an interrupted one has copied stays copied.

    `work` is an empty folder for it alone, on the disk of the system if it can be: there links cost nothing.
    Raises `NotFound` for a store that is not there, `InternalError` for an upload whose bytes are lost or changed.
    """
    stored = repository.stored()
    try:
        captured = _capture(system, store_ids, _Seen(stored, repository.remembered(stored)), work / "held")
    except FileNotFoundError as error:
        lost = Path(error.filename).name
        raise InternalError(f"The bytes of {lost} are lost: delete it, then make the backup again") from None
    except VersionGone as error:
        raise InternalError(f"A version of a store is lost: {error}") from None
    with ThreadPoolExecutor(COPIES_AT_ONCE, thread_name_prefix="backup") as pool:
        new = list(pool.map(_describe, captured.held))
        missing = {
            item.sha256: (held.link, item)
            for item, held in zip(new, captured.held, strict=True)
            if stored.get(item.sha256) != item.size_bytes
        }
        _put(pool, repository, list(missing.values()), progress)
    items = sorted([*captured.known, *new], key=lambda item: item.path)
    listed = write_items(items, work / "items")
    repository.put(work / "items", listed)
    manifest = Manifest(
        id=backup_id,
        created_at=captured.created_at,
        is_everything=store_ids is None,
        stores=tuple(captured.stores),
        schema=NEWEST,
        settings=system.config.model_dump(mode="json"),
        item_count=len(items),
        file_count=captured.file_count,
        size_bytes=sum(item.size_bytes for item in items),
        copied_bytes=sum(item.size_bytes for _, item in missing.values()),
        items=listed,
    )
    repository.commit(manifest)
    return manifest


# --- the moment ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the repository holds already."""

    sizes: Mapping[str, int]
    """By SHA-256."""
    items: Mapping[str, Item]
    """By path."""

    def find(self, path: str, size_bytes: int, sha256: str | None) -> Item | None:
        # LanceDB's names are unique, but for the numbers of versions: after a restore one can come again.
        is_unique = path.startswith("vectors/") and "/_versions/" not in path
        if is_unique and (item := self.items.get(path)) and item.size_bytes == size_bytes:
            return item
        if sha256 is not None and self.sizes.get(sha256) == size_bytes:
            return Item(path, size_bytes, sha256)
        return None


@dataclass(frozen=True, slots=True)
class _Held:
    """A file that the repository may not hold yet."""

    path: str
    link: Path
    sha256: str | None
    """What it must be, if that is known."""


@dataclass(slots=True)
class _Captured:
    folder: Path
    seen: _Seen
    created_at: int = 0
    file_count: int = 0
    stores: list[StoredStore] = field(default_factory=list)
    known: list[Item] = field(default_factory=list)
    held: list[_Held] = field(default_factory=list)

    def hold(self, path: str, source: Path, sha256: str | None = None) -> None:
        """Raises `FileNotFoundError` if it has just gone."""
        if item := self.seen.find(path, source.stat().st_size, sha256):
            self.known.append(item)
            return
        link = self.folder / str(len(self.held))
        try:
            os.link(source, link)
        except FileNotFoundError:
            raise
        except OSError:
            # Not every file system has hard links, and the folders may be on several.
            shutil.copyfile(source, link)
        self.held.append(_Held(path, link, sha256))


_Versions = list[tuple[str, int]]
"""Of a store, the newest last: the suffix of the table that each is in, and LanceDB's version."""


@retry(
    # What is named was cleaned up or deleted before it could be held: the next moment names something else.
    retry=retry_if_exception_type((VersionGone, FileNotFoundError)),
    stop=stop_after_attempt(5),
    reraise=True,
)
def _capture(system: System, store_ids: Sequence[str] | None, seen: _Seen, folder: Path) -> _Captured:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    captured = _Captured(folder, seen)
    # Before the moment, as a store that has no version at the moment has not been changed until then.
    unversioned = _unversioned(system)
    with system.database.read() as connection:
        captured.created_at = now_s()
        _hold_stores(captured, system, _chosen_stores(connection, store_ids), _versions(connection), unversioned)
        _hold_files(captured, system, connection.execute(rows_of(files, store_ids)).mappings())
        for table in metadata.sorted_tables:
            if is_backed_up(table, store_ids):
                export = folder / f"{table.name}.jsonl.gz"
                export_rows(connection, rows_of(table, store_ids), export)
                captured.hold(f"sql/{export.name}", export)
    return captured


def _chosen_stores(connection: Connection, store_ids: Sequence[str] | None) -> Sequence[RowMapping]:
    stores = connection.execute(rows_of(vector_stores, store_ids)).mappings().all()
    for store_id in set(store_ids or ()) - {store["id"] for store in stores}:
        raise NotFound(f"There is no vector store {store_id!r}", param="vector_store_ids")
    return stores


def _versions(connection: Connection) -> dict[str, _Versions]:
    """Those that are kept of each store."""
    versions: dict[str, _Versions] = {}
    for row in connection.execute(select(store_versions).order_by(store_versions.c.version)).mappings():
        versions.setdefault(row["store_id"], []).append((row["table_suffix"], row["table_version"]))
    return versions


def _unversioned(system: System) -> dict[str, _Versions]:
    """The same of the stores that have not been changed since there are versions."""
    with system.database.read() as connection:
        versioned = select(store_versions.c.store_id)
        query = select(vector_stores.c.id).where(vector_stores.c.id.not_in(versioned))
        store_ids = connection.execute(query).scalars().all()
    current = {store_id: current_version(system.table(store_id)) for store_id in store_ids}
    return {store_id: [("", version)] for store_id, version in current.items() if version is not None}


def _hold_stores(
    captured: _Captured,
    system: System,
    stores: Sequence[RowMapping],
    versioned: Mapping[str, _Versions],
    unversioned: Mapping[str, _Versions],
) -> None:
    for store in stores:
        store_id = store["id"]
        versions = versioned.get(store_id) or unversioned.get(store_id) or []
        # Version 0 is before the table's first passage.
        for suffix in {suffix for suffix, version in versions if version}:
            table = system.table(store_id + suffix)
            for path in list_files(table, [version for each, version in versions if each == suffix and version]):
                captured.hold(f"vectors/{store_id}{suffix}/{path}", table / path)
        suffix, newest = versions[-1] if versions else ("", 0)
        rows = count_rows(system.table(store_id + suffix), newest) if newest else 0
        captured.stores.append(StoredStore(store_id, store["name"] or "", newest or None, rows, suffix))


def _hold_files(captured: _Captured, system: System, uploads: Iterable[RowMapping]) -> None:
    for upload in uploads:
        captured.hold(f"files/{upload['id']}", system.file(upload["id"]), upload["sha256"])
        captured.file_count += 1


# --- the rows -----------------------------------------------------------------------------------


def is_backed_up(table: Table, store_ids: Sequence[str] | None) -> bool:
    if store_ids is None:
        # What only the processes of now can go on with is left out, and what is made again when it is asked for.
        return table not in (backup_jobs, runners, response_jobs, response_journal, message_facts)
    return table in (files, vector_stores) or "store_id" in table.c


# The rows differ from table to table.
def rows_of(table: Table, store_ids: Sequence[str] | None) -> Select[Any]:
    """All rows of a table, or those of some stores, always in the same order."""
    query = select(table).order_by(*table.primary_key)
    if store_ids is None:
        return query
    if table is vector_stores:
        return query.where(vector_stores.c.id.in_(store_ids))
    if table is files:
        theirs = select(vector_store_files.c.file_id).where(vector_store_files.c.store_id.in_(store_ids))
        return query.where(files.c.id.in_(theirs))
    return query.where(table.c.store_id.in_(store_ids))


def export_rows(connection: Connection, query: Select[Any], target: Path) -> None:
    """One JSON object a line. The same rows give the same bytes, so that an unchanged table is kept once."""
    rows = connection.execute(query.execution_options(stream_results=True))
    names = [str(name) for name in rows.keys()]  # noqa: SIM118 - a result is no dict
    with target.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for row in rows:
            packed.write(orjson.dumps(dict(zip(names, row, strict=True))) + b"\n")


# --- the copying --------------------------------------------------------------------------------


def _describe(held: _Held) -> Item:
    item = describe(held.path, held.link)
    if held.sha256 is not None and item.sha256 != held.sha256:
        raise InternalError(f"The bytes of {held.path} are not those that were uploaded: delete it and upload it again")
    return item


def _put(
    pool: ThreadPoolExecutor, repository: Repository, missing: Sequence[tuple[Path, Item]], progress: Progress
) -> None:
    total = sum(item.size_bytes for _, item in missing)
    done = 0
    progress(done, total)
    for size_bytes in pool.map(lambda each: _put_one(repository, *each), missing):
        done += size_bytes
        progress(done, total)


def _put_one(repository: Repository, link: Path, item: Item) -> int:
    repository.put(link, item)
    return item.size_bytes
