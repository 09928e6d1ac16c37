"""Backups and restores as durable jobs: `BackupJobs` asks for them, and `worker.py` does them in the indexer.

A job is a row of the database. A completed backup is known by its snapshot, wherever it was made; only what is not
completed is known by its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Connection, RowMapping, delete, insert, select

from serve_app.backup.repository import Manifest, Repository, created_at, new_backup_id
from serve_app.config import AppConfig
from serve_app.errors import Conflict, InvalidRequest, NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import backup_jobs, vector_stores
from serve_app.types import Json, Page, PageQuery, new_id, now_s


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be restored: one store, or with None all that is missing."""

    backup_id: str
    store_id: str | None = None
    name: str | None = None
    """Another name, for one store. It then gets `new_store_id` for its id, and stands beside the original."""
    new_store_id: str | None = None


class BackupJobs:
    """What the API asks for. Its methods block, and raise `Unavailable` if the backups cannot be reached."""

    def __init__(self, database: Database, config: AppConfig) -> None:
        self._database = database
        self._config = config

    @cached_property
    def _repository(self) -> Repository:
        return Repository(self._config.backup_url)

    # Backups

    def create_backup(self, store_ids: Sequence[str] | None) -> Json:
        """Of these stores and their files, or of everything. Raises `NotFound` for a store that is not there."""
        with self._database.write() as connection:
            for store_id in store_ids or ():
                query = select(vector_stores.c.id).where(vector_stores.c.id == store_id)
                if connection.execute(query).first() is None:
                    raise NotFound(f"There is no vector store {store_id!r}", param="vector_store_ids")
            backup_id = new_backup_id()
            request = {"vector_store_ids": None if store_ids is None else list(dict.fromkeys(store_ids))}
            return _backup_to_json(_queue(connection, backup_id, "backup", backup_id, request))

    def list_backups(self, page: PageQuery) -> Page:
        with self._database.read() as connection:
            query = select(backup_jobs).where(backup_jobs.c.kind == "backup")
            unfinished = {row["id"]: _backup_to_json(row) for row in connection.execute(query).mappings()}
        completed = {backup_id: self._completed(backup_id) for backup_id in self._repository.ids()}
        return _page(unfinished | completed, page)

    def get_backup(self, backup_id: str) -> Json:
        row = self._row("backup", backup_id)
        if row is not None and row["status"] == "failed":
            return _backup_to_json(row)
        try:
            return self._completed(backup_id)
        except NotFound:
            if row is None:
                raise
            return _backup_to_json(row)

    def delete_backup(self, backup_id: str) -> None:
        """What no other snapshot needs goes soon after. Raises `Conflict` for one that is being made."""
        row = self._row("backup", backup_id)
        if row is not None and row["status"] == "in_progress":
            raise Conflict(f"The backup {backup_id!r} is being made: wait until it is completed or failed")
        if row is None or backup_id in self._repository.ids():
            self._repository.forget(backup_id)
        with self._database.write() as connection:
            connection.execute(delete(backup_jobs).where(backup_jobs.c.id == backup_id))
            _queue(connection, new_id("prune"), "prune", backup_id, {})

    def _completed(self, backup_id: str) -> Json:
        try:
            return self._repository.manifest(backup_id).to_json()
        except InvalidRequest as error:
            damaged = {
                "id": backup_id,
                "status": "failed",
                "created_at": created_at(backup_id),
                "request": {"vector_store_ids": None},
                "result": {},
                "error_code": error.code,
                "error_message": error.message,
            }
            return _backup_to_json(damaged)

    def _row(self, kind: str, job_id: str) -> RowMapping | None:
        query = select(backup_jobs).where(backup_jobs.c.id == job_id, backup_jobs.c.kind == kind)
        with self._database.read() as connection:
            return connection.execute(query).mappings().first()

    # Restores

    def create_restore(self, backup_id: str, store_id: str | None, name: str | None) -> Json:
        """Of one store, under another name if `name` is given; with `store_id` None, of all that is missing here.

        Raises like `require_possible`, `NotFound` if there is no such backup, `InvalidRequest` if it is damaged.
        """
        manifest = self._repository.manifest(backup_id)
        require_possible(self._database, manifest, Wanted(backup_id, store_id, name))
        request = {
            "store_id": store_id,
            "name": name,
            # Chosen now, so that one who takes the job over puts the store into the same place.
            "new_store_id": None if name is None else new_id("vs"),
        }
        with self._database.write() as connection:
            return _restore_to_json(_queue(connection, new_id("restore"), "restore", backup_id, request))

    def get_restore(self, backup_id: str, restore_id: str) -> Json:
        row = self._row("restore", restore_id)
        if row is None or row["backup_id"] != backup_id:
            raise NotFound(f"The backup {backup_id!r} has no restore {restore_id!r}", param="restore_id")
        return _restore_to_json(row)


def require_possible(database: Database, manifest: Manifest, wanted: Wanted) -> None:
    """`NotFound` for a store that the backup has not, `Conflict` for one that is there and would be replaced."""
    if wanted.store_id is None:
        if wanted.name is not None:
            raise InvalidRequest("A new name is for one store: say which, as 'vector_store_id'", param="name")
        return
    if wanted.store_id not in {store.id for store in manifest.stores}:
        raise NotFound(f"The backup {manifest.id!r} has no vector store {wanted.store_id!r}", param="vector_store_id")
    if wanted.name is None:
        with database.read() as connection:
            if connection.execute(select(vector_stores.c.id).where(vector_stores.c.id == wanted.store_id)).first():
                raise Conflict(
                    f"The vector store {wanted.store_id!r} is there: give a 'name' to restore it beside that one,"
                    " or delete that one first",
                    param="vector_store_id",
                    code="vector_store_exists",
                )


def _queue(connection: Connection, job_id: str, kind: str, backup_id: str, request: Json) -> Json:
    row: Json = {
        "id": job_id,
        "kind": kind,
        "backup_id": backup_id,
        "status": "in_progress",
        "request": request,
        "result": {},
        "error_code": None,
        "error_message": None,
        "created_at": now_s(),
        "fence": 0,
        "lease_until": 0.0,
    }
    connection.execute(insert(backup_jobs).values(row))
    return row


# --- the objects of the API ---------------------------------------------------------------------


def _backup_to_json(row: RowMapping | Json) -> Json:
    return {
        "id": row["id"],
        "object": "backup",
        "status": row["status"],
        "created_at": row["created_at"],
        "vector_store_ids": row["request"]["vector_store_ids"],
        "vector_stores": [],
        "files": 0,
        "bytes": 0,
        **_progress_to_json(row),
    }


def _restore_to_json(row: RowMapping | Json) -> Json:
    return {
        "id": row["id"],
        "object": "backup.restore",
        "backup_id": row["backup_id"],
        "status": row["status"],
        "created_at": row["created_at"],
        "vector_stores": row["result"].get("vector_stores", []),
        "files": row["result"].get("files", 0),
        "conversations": row["result"].get("conversations", 0),
        **_progress_to_json(row),
    }


def _progress_to_json(row: RowMapping | Json) -> Json:
    return {
        "bytes_copied": row["result"].get("bytes_copied", 0),
        "bytes_to_copy": row["result"].get("bytes_to_copy", 0),
        "error": {"code": row["error_code"], "message": row["error_message"]} if row["error_code"] else None,
    }


def _page(backups: Mapping[str, Json], page: PageQuery) -> Page:
    """As `select_page` does with rows."""
    for param, cursor in (("after", page.after), ("before", page.before)):
        if cursor is not None and cursor not in backups:
            raise InvalidRequest(f"{param!r} is {cursor!r}, which is not in this list", param=param)
    ordered = sorted(backups, key=lambda each: (backups[each]["created_at"], each), reverse=page.order == "desc")
    start = ordered.index(page.after) + 1 if page.after else 0
    end = ordered.index(page.before) if page.before else len(ordered)
    between = ordered[start:end]
    # Only `before` given: the nearest ones are wanted.
    is_backwards = page.before is not None and page.after is None
    kept = between[-page.limit :] if is_backwards else between[: page.limit]
    return Page(tuple(backups[each] for each in kept), len(between) > page.limit)
