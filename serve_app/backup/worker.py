"""`BackupWorker`: makes and restores backups, in the indexer, one job at a time.

A job is claimed under a fence and held by a lease. A killed indexer's job is taken over and begun again; a backup then
finds most of its contents copied.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, select, update

from serve_app.backup.jobs import Wanted
from serve_app.backup.repository import Repository
from serve_app.backup.restore import restore
from serve_app.backup.snapshot import System, take_snapshot
from serve_app.config import AppConfig
from serve_app.errors import Conflict, InternalError, RayconteurError
from serve_app.storage.database import Database
from serve_app.storage.lease import kept_alive
from serve_app.storage.schema import backup_jobs
from serve_app.types import Json

logger = logging.getLogger(__name__)

LEASE_S = 60.0
"""A job whose indexer has not been heard of for this long is taken over."""
MAX_ATTEMPTS = 3
_REPORT_EVERY_S = 1.0


class BackupWorker:
    """Does the jobs, for one thread of the indexer."""

    def __init__(self, database: Database, config: AppConfig, lease_s: float = LEASE_S) -> None:
        self._database = database
        self._system = System(database, config)
        self._url = config.backup_url
        self._lease_s = lease_s

    def take_over(self) -> None:
        """Wait for no lease of the process before this one. If that is still alive, the fence stops it."""
        with self._database.write() as connection:
            connection.execute(update(backup_jobs).where(backup_jobs.c.status == "in_progress").values(lease_until=0.0))

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
        for folder in claim.leftovers:
            shutil.rmtree(folder, ignore_errors=True)
        repository = Repository(self._url)
        if claim.kind == "backup":
            self._back_up(claim, repository)
        elif claim.kind == "restore":
            with self._work_of(claim) as work:
                restore(self._system, repository, Wanted(claim.backup_id, **claim.request), claim, work)
        else:
            logger.info("%d bytes of backups were freed", repository.prune())
            claim.end()
        logger.info("%s took %.1f s", claim.job_id, time.monotonic() - started)

    def _back_up(self, claim: "_Claim", repository: Repository) -> None:
        # One who was killed after the last step has nothing left to do.
        if claim.job_id not in repository.ids():
            store_ids = claim.request["vector_store_ids"]
            with self._work_of(claim) as work:
                take_snapshot(self._system, repository, claim.job_id, store_ids, claim.progress, work)
        claim.end()

    @contextmanager
    def _work_of(self, claim: "_Claim") -> Iterator[Path]:
        """An empty folder that no other has, as one who has lost the job may not know it yet."""
        folder = self._system.work_folder(f"{claim.job_id}-{claim.fence}")
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _claim(self) -> "_Claim | None":
        """The oldest job, if nobody works on any: two would be in each other's way."""
        now = time.time()
        in_progress = select(backup_jobs).where(backup_jobs.c.status == "in_progress")
        with self._database.write() as connection:
            query = in_progress.order_by(backup_jobs.c.created_at, backup_jobs.c.id).with_for_update()
            rows = connection.execute(query).mappings().all()
            if not rows or any(row["lease_until"] >= now for row in rows):
                return None
            # Nobody else can claim one meanwhile, so they are all of jobs that were ended or lost.
            claim = _Claim(self._database, rows[0], self._lease_s, self._system.work_folders())
            connection.execute(
                update(backup_jobs)
                .where(backup_jobs.c.id == claim.job_id)
                .values(fence=claim.fence, lease_until=now + self._lease_s)
            )
        return claim


class _Claim:
    """A job that this worker holds, until another takes it over because nothing was heard of it."""

    def __init__(self, database: Database, row: RowMapping, lease_s: float, leftovers: Sequence[Path]) -> None:
        self.job_id: str = row["id"]
        self.kind: str = row["kind"]
        self.backup_id: str = row["backup_id"]
        self.request: Json = row["request"]
        self.fence: int = row["fence"] + 1
        self.leftovers = leftovers
        """The folders of those who held a job before."""
        self._database = database
        self._lease_s = lease_s
        self._reported = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lease in the background: one large content may take longer than it."""
        with kept_alive(lambda: self._change(lease_until=time.time() + self._lease_s), self._lease_s):
            yield

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
