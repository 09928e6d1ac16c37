"""The stored responses: where each stands in its log, and how it ended."""

from typing import Any

from sqlalchemy import Connection, Row, delete, exists, func, insert, select, update

from serve_app.conversation.checks import is_id
from serve_app.storage.schema import items, logs, responses
from serve_app.types import Json, OpenTurn, now_s

IN_PROGRESS = "in_progress"
INTERRUPTED = {"reason": "interrupted"}

# SQLAlchemy does not know the columns of a table's row as types.
ResponseRow = Row[Any]


def find_response(connection: Connection, response_id: str) -> ResponseRow | None:
    if not is_id(response_id):
        return None
    return connection.execute(select(responses).where(responses.c.id == response_id)).one_or_none()


def find_asked(connection: Connection, turn: OpenTurn) -> ResponseRow | None:
    """The response to the same question, if it was opened before: under its idempotency key or its own id."""
    row = find_response(connection, turn.response["id"])
    if row is None and turn.idempotency_key is not None:
        query = select(responses).where(responses.c.idempotency_key == turn.idempotency_key)
        row = connection.execute(query).one_or_none()
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
        )
    )


def is_running(row: ResponseRow, stale_after_s: float) -> bool:
    """Whether somebody may still be working on it. After `stale_after_s` its process is taken for dead."""
    return bool(row.status == IN_PROGRESS and now_s() - row.created_at < stale_after_s)


def finish_response(connection: Connection, response: Json, last_seq: int | None = None) -> bool:
    """Store how a response ended, and where in its log unless that is after its input. False if it had ended before."""
    values = {"status": response["status"], "body": response}
    if last_seq is not None:
        values["last_seq"] = last_seq
    finished = connection.execute(
        update(responses).where(responses.c.id == response["id"], responses.c.status == IN_PROGRESS).values(values)
    )
    return finished.rowcount == 1


def interrupted(response: Json) -> Json:
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
