"""Background responses as durable jobs, each with a journal of what has happened in it so far.

Who works on a job has raised its fence, and every write to its journal asks for that fence; so of two that believe to
own a job only one can go on. A lease says when another may try: it is by the database's clock, and is renewed with each
write. What a reader sees is in the journal first, so whoever takes a job over goes on from what all readers have seen.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from serve_app.storage.clock import database_time
from serve_app.storage.database import Database
from serve_app.storage.schema import response_jobs, response_journal, responses
from serve_app.types import Json

LEASE_S = 10.0
"""A job whose worker has not written for this long is taken over."""

_CLAIMABLE = (
    select(response_jobs.c.response_id)
    .where(response_jobs.c.lease_until < database_time())
    .order_by(response_jobs.c.created_at)
    .limit(1)
)
_READ = (
    select(response_jobs.c.fence, response_journal.c.number, response_journal.c.events, response_journal.c.raw_text)
    .outerjoin(
        response_journal,
        and_(
            response_journal.c.response_id == response_jobs.c.response_id,
            response_journal.c.number > bindparam("after"),
        ),
    )
    .where(response_jobs.c.response_id == bindparam("response"))
    .order_by(response_journal.c.number)
)


@dataclass(frozen=True, slots=True)
class ResponseJob:
    """A job that is ours, until somebody else raises its fence."""

    response_id: str
    log_id: str
    fence: int
    attempts: int
    """Claims since something was done, with this one."""
    request: Json


@dataclass(frozen=True, slots=True)
class Batch:
    """One entry of a journal."""

    number: int
    """1, 2, …"""
    events: tuple[Json, ...]
    raw_text: str
    """What the model wrote meanwhile."""


def insert_job(connection: Connection, response_id: str, request: Json) -> None:
    connection.execute(
        insert(response_jobs).values(
            response_id=response_id, request=request, created_at=database_time(), fence=0, lease_until=0.0
        )
    )


def end_job(connection: Connection, response_id: str, fence: int) -> bool:
    """Delete it with its journal. False if it is not ours any more."""
    mine = (response_jobs.c.response_id == response_id) & (response_jobs.c.fence == fence)
    return connection.execute(delete(response_jobs).where(mine)).rowcount == 1


class ResponseJobs:
    """The jobs in the database, for one process. Blocks: call it in threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self) -> ResponseJob | None:
        """The oldest job that nobody works on; it is ours then."""
        with self._database.read() as connection:
            if connection.scalar(_CLAIMABLE) is None:
                return None
        with self._database.write() as connection:
            response_id = connection.scalar(_CLAIMABLE.with_for_update(skip_locked=True))
            return None if response_id is None else _take(connection, response_id)

    def take_over(self, response_id: str) -> ResponseJob | None:
        """This job, whoever works on it. None if there is none: the response has ended."""
        with self._database.write() as connection:
            return _take(connection, response_id)

    def write(self, job: ResponseJob, batch: Batch | None) -> bool:
        """Renew the lease, with an entry for the journal if there is one. False if the job is not ours any more.

        The same batch again changes nothing.
        """
        try:
            with self._database.write() as connection:
                is_mine = _hold(connection, job, LEASE_S, has_progress=batch is not None)
                if is_mine and batch:
                    connection.execute(
                        insert(response_journal).values(
                            response_id=job.response_id,
                            number=batch.number,
                            events=list(batch.events),
                            raw_text=batch.raw_text,
                        )
                    )
                return is_mine
        except IntegrityError:
            # It was committed, and only the answer was lost. The next write will tell whether the job is still ours.
            return True

    def release(self, job: ResponseJob, after_s: float, *, has_failed: bool) -> None:
        """Leave the job to whoever claims it next, once `after_s` have passed. What has not failed was no attempt."""
        with self._database.write() as connection:
            _hold(connection, job, after_s, has_progress=not has_failed)

    def read(self, response_id: str, after: int) -> tuple[Batch, ...] | None:
        """The entries of the journal after this number. None if there is no such job: the response has ended."""
        with self._database.read() as connection:
            rows = connection.execute(_READ, {"response": response_id, "after": after}).all()
        if not rows:
            return None
        return tuple(Batch(row.number, tuple(row.events), row.raw_text) for row in rows if row.number is not None)


def _take(connection: Connection, response_id: str) -> ResponseJob | None:
    row = connection.execute(
        update(response_jobs)
        .where(response_jobs.c.response_id == response_id)
        .values(
            fence=response_jobs.c.fence + 1,
            attempts=response_jobs.c.attempts + 1,
            lease_until=database_time() + LEASE_S,
        )
        .returning(response_jobs.c.fence, response_jobs.c.attempts, response_jobs.c.request)
    ).one_or_none()
    if row is None:
        return None
    log_id = connection.execute(select(responses.c.log_id).where(responses.c.id == response_id)).scalar_one()
    return ResponseJob(response_id, log_id, row.fence, row.attempts, row.request)


def _hold(connection: Connection, job: ResponseJob, lease_s: float, *, has_progress: bool) -> bool:
    """Set its lease. False if it is not ours any more."""
    mine = (response_jobs.c.response_id == job.response_id) & (response_jobs.c.fence == job.fence)
    attempts = 0 if has_progress else response_jobs.c.attempts
    values = {"lease_until": database_time() + lease_s, "attempts": attempts}
    return connection.execute(update(response_jobs).where(mine).values(values)).rowcount == 1
