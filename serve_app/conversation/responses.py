"""The stored responses: where each stands in its log, and how it ended."""

from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, exists, func, insert, select, update

from serve_app.conversation.checks import is_id, not_found
from serve_app.conversation.jobs import insert_job
from serve_app.conversation.runners import RUNNER_TIMEOUT_S
from serve_app.storage.clock import database_time
from serve_app.storage.schema import items, logs, response_jobs, responses, runners
from serve_app.types import Json, now_s
from serve_app.types.conversation import OpenTurn, RecordedResponse

IN_PROGRESS = "in_progress"
INTERRUPTED = {"reason": "interrupted"}

# SQLAlchemy does not know the columns of a table's row as types.
ResponseRow = Row[Any]
"""A response, with how it stands with whoever answers it: `runner_silent_s` and `job_fence`, each None without one."""

# Built once: each turn asks for it.
_SELECT = (
    select(
        responses,
        (database_time() - runners.c.heartbeat_at).label("runner_silent_s"),
        response_jobs.c.fence.label("job_fence"),
    )
    .outerjoin(runners, runners.c.id == responses.c.runner_id)
    .outerjoin(response_jobs, response_jobs.c.response_id == responses.c.id)
)
_FIND = _SELECT.where(responses.c.id == bindparam("response"))
_FIND_BY_KEY = _SELECT.where(responses.c.idempotency_key == bindparam("key"))


def find_response(connection: Connection, response_id: str) -> ResponseRow | None:
    if not is_id(response_id):
        return None
    return connection.execute(_FIND, {"response": response_id}).one_or_none()


def require_response(connection: Connection, response_id: str) -> ResponseRow:
    """Raises `NotFound`."""
    row = find_response(connection, response_id)
    if row is None:
        raise not_found("Response", response_id)
    return row


def find_asked(connection: Connection, turn: OpenTurn) -> ResponseRow | None:
    """The response to the same question, if it was opened before: under its idempotency key or its own id."""
    row = find_response(connection, turn.response["id"])
    if row is None and turn.idempotency_key is not None:
        row = connection.execute(_FIND_BY_KEY, {"key": turn.idempotency_key}).one_or_none()
    return row


def insert_response(connection: Connection, turn: OpenTurn, log_id: str, first_seq: int) -> None:
    connection.execute(
        insert(responses).values(
            id=turn.response["id"],
            log_id=log_id,
            first_seq=first_seq,
            input_count=len(turn.input_items),
            last_seq=first_seq + len(turn.input_items) - 1,
            status=IN_PROGRESS,
            body=turn.response,
            idempotency_key=turn.idempotency_key,
            created_at=now_s(),
            runner_id=turn.runner_id,
        )
    )
    if turn.job is not None:
        insert_job(connection, turn.response["id"], turn.job)


def is_running(row: ResponseRow, stale_after_s: float) -> bool:
    """Whether somebody works on it, or will: its process is alive, and it is younger than `stale_after_s`.

    A background response goes on in another process if its own has died.
    """
    if row.status != IN_PROGRESS or row.job_fence is not None:
        return bool(row.status == IN_PROGRESS)
    is_alive = row.runner_id is None or (row.runner_silent_s is not None and row.runner_silent_s < RUNNER_TIMEOUT_S)
    return bool(is_alive and now_s() - row.created_at < stale_after_s)


def as_it_stands(row: ResponseRow) -> RecordedResponse:
    # The row says `in_progress` until it ends; the job alone says whether anybody has begun.
    body = {**row.body, "status": "queued"} if row.job_fence == 0 else dict(row.body)
    return RecordedResponse(body, row.recording, row.status != IN_PROGRESS, row.job_fence is not None)


def as_it_ended(connection: Connection, row: ResponseRow) -> RecordedResponse:
    """A response that nobody works on any more, stored as interrupted if it is still in progress."""
    if row.status == IN_PROGRESS:
        body = _interrupted(row.body)
        if finish_response(connection, body):
            return RecordedResponse(body, None, has_ended=True, has_job=False)
        row = require_response(connection, row.id)  # it has ended since the row was read
    return as_it_stands(row)


def finish_response(
    connection: Connection, response: Json, last_seq: int | None = None, recording: Json | None = None
) -> bool:
    """Store how a response ended, and where in its log unless that is after its input. False if it had ended before."""
    values = {"status": response["status"], "body": response, "recording": recording}
    if last_seq is not None:
        values["last_seq"] = last_seq
    finished = connection.execute(
        update(responses).where(responses.c.id == response["id"], responses.c.status == IN_PROGRESS).values(values)
    )
    return finished.rowcount == 1


def _interrupted(response: Json) -> Json:
    """The response as it ends if nobody finishes it."""
    return {**response, "status": "incomplete", "incomplete_details": INTERRUPTED}


def delete_response(connection: Connection, response_id: str) -> None:
    connection.execute(delete(responses).where(responses.c.id == response_id))


def drop_unused_logs(connection: Connection, log_id: str) -> None:
    """Delete a log that is no conversation, if no response and no other log needs it, and then likewise its parents.

    Of a log that others need, the items that they do not share are deleted.
    """
    unused: str | None = log_id
    while unused is not None:
        log = connection.execute(
            select(logs.c.is_conversation, logs.c.parent_id, logs.c.head).where(logs.c.id == unused).with_for_update()
        ).one_or_none()
        if log is None or log.is_conversation or _has_response(connection, unused):
            return
        shared_seq = find_shared_seq(connection, unused)
        if shared_seq is not None:
            if shared_seq < log.head:
                connection.execute(delete(items).where(items.c.log_id == unused, items.c.seq > shared_seq))
                connection.execute(update(logs).where(logs.c.id == unused).values(head=shared_seq))
            return
        connection.execute(delete(logs).where(logs.c.id == unused))
        unused = log.parent_id


def find_shared_seq(connection: Connection, log_id: str) -> int | None:
    """The last item of the log that another has in its past; None if there is none."""
    seq: int | None = connection.scalar(select(func.max(logs.c.parent_seq)).where(logs.c.parent_id == log_id))
    return seq


def _has_response(connection: Connection, log_id: str) -> bool:
    return bool(connection.scalar(select(exists().where(responses.c.log_id == log_id))))
