"""Backups and restores as durable jobs: `BackupJobs` asks for them, `BackupWorker` does them in the indexer.

A job is a row, claimed under a fence and held by a lease, one at a time. A killed indexer's job is taken over and begun
again; a backup then finds most of its contents copied. A completed backup is known by its snapshot, wherever it was
made; only what is not completed is known by its row.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Event, Thread

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, insert, select, update

from serve_app.backup.repository import Repository, created_at, new_backup_id
from serve_app.backup.restore import Wanted, require_possible, restore
from serve_app.backup.snapshot import System, take_snapshot
from serve_app.config import AppConfig
from serve_app.errors import Conflict, InternalError, InvalidRequest, NotFound, RayconteurError
from serve_app.storage.database import Database
from serve_app.storage.schema import backup_jobs, vector_stores
from serve_app.types import Json, Page, PageQuery, new_id, now_s

logger = logging.getLogger(__name__)

LEASE_S = 60.0
"""A job whose indexer has not been heard of for this long is taken over."""
MAX_ATTEMPTS = 3
_REPORT_EVERY_S = 1.0


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


class BackupWorker:
    """Does the jobs, for one thread of the indexer."""

    def __init__(self, database: Database, config: AppConfig, lease_s: float = LEASE_S) -> None:
        self._database = database
        self._system = System(database, config)
        self._url = config.backup_url
        self._lease_s = lease_s

    def run_once(self) -> bool:
        """Do the oldest job that waits; False if none does. One that cannot be done is marked failed, with a reason."""
        claim = self._claim()
        if claim is None:
            return False
        with claim.held():
            try:
                if claim.fence > MAX_ATTEMPTS:
                    raise InternalError(f"It was cut off {MAX_ATTEMPTS} times")
                self._do(claim)
            except RayconteurError as error:
                logger.warning("%s failed: %s", claim.job_id, error.message)
                claim.fail(error.code or "server_error", error.message)
            # A disk that is full must not end the indexer.
            except Exception as error:
                logger.exception("%s failed", claim.job_id)
                claim.fail("server_error", f"{type(error).__name__}: {error}")
        return True

    def _do(self, claim: "_Claim") -> None:
        started = time.monotonic()
        # What a killed job has left.
        shutil.rmtree(self._system.work_folder, ignore_errors=True)
        repository = Repository(self._url)
        request = claim.request
        if claim.kind == "backup":
            self._back_up(claim, repository)
        elif claim.kind == "restore":
            restore(self._system, repository, Wanted(claim.backup_id, **request), claim)
        else:
            logger.info("%d bytes of backups were freed", repository.prune())
            claim.end()
        logger.info("%s took %.1f s", claim.job_id, time.monotonic() - started)

    def _back_up(self, claim: "_Claim", repository: Repository) -> None:
        # One who was killed after the last step has nothing left to do.
        if claim.job_id not in repository.ids():
            store_ids = claim.request["vector_store_ids"]
            take_snapshot(self._system, repository, claim.job_id, store_ids, claim.progress)
        claim.end()

    def _claim(self) -> "_Claim | None":
        """The oldest job, if nobody works on any: two would be in each other's way."""
        now = time.time()
        in_progress = select(backup_jobs).where(backup_jobs.c.status == "in_progress")
        with self._database.write() as connection:
            query = in_progress.order_by(backup_jobs.c.created_at, backup_jobs.c.id).with_for_update()
            rows = connection.execute(query).mappings().all()
            if not rows or any(row["lease_until"] >= now for row in rows):
                return None
            claim = _Claim(self._database, rows[0], self._lease_s)
            connection.execute(
                update(backup_jobs)
                .where(backup_jobs.c.id == claim.job_id)
                .values(fence=claim.fence, lease_until=now + self._lease_s)
            )
        return claim


class _Claim:
    """A job that this worker holds, until another takes it over because nothing was heard of it."""

    def __init__(self, database: Database, row: RowMapping, lease_s: float) -> None:
        self.job_id: str = row["id"]
        self.kind: str = row["kind"]
        self.backup_id: str = row["backup_id"]
        self.request: Json = row["request"]
        self.fence: int = row["fence"] + 1
        self._database = database
        self._lease_s = lease_s
        self._reported = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lease in the background: one large content may take longer than it."""
        is_done = Event()

        def renew() -> None:
            while not is_done.wait(self._lease_s / 3):
                try:
                    self._change(lease_until=time.time() + self._lease_s)
                except RayconteurError as error:
                    logger.warning("the lease of %s was not renewed: %s", self.job_id, error.message)

        thread = Thread(target=renew, name="backup-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_done.set()
            thread.join()

    def progress(self, done: int, total: int) -> None:
        if time.monotonic() > self._reported + _REPORT_EVERY_S:
            self._reported = time.monotonic()
            self._change(result={"bytes_copied": done, "bytes_to_copy": total})

    def keep(self, connection: Connection) -> None:
        kept = connection.execute(
            update(backup_jobs).where(self._is_mine()).values(lease_until=time.time() + self._lease_s)
        )
        if not kept.rowcount:
            raise Conflict(f"{self.job_id} was taken over by another indexer")

    def complete(self, connection: Connection, result: Json) -> None:
        connection.execute(
            update(backup_jobs).where(self._is_mine()).values(status="completed", result=result, lease_until=0.0)
        )

    def fail(self, code: str, message: str) -> None:
        if self.kind == "prune":
            # Nobody asked for it, and the next deletion asks for it again.
            self.end()
        else:
            self._change(status="failed", error_code=code, error_message=message, lease_until=0.0)

    def end(self) -> None:
        with self._database.write() as connection:
            connection.execute(delete(backup_jobs).where(self._is_mine()))

    def _change(self, **values: object) -> None:
        with self._database.write() as connection:
            connection.execute(update(backup_jobs).where(self._is_mine()).values(**values))

    def _is_mine(self) -> ColumnElement[bool]:
        return (
            (backup_jobs.c.id == self.job_id)
            & (backup_jobs.c.fence == self.fence)
            & (backup_jobs.c.status == "in_progress")
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
