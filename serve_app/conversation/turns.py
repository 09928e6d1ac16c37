"""Turns: a question that is written once, however often it is asked, and its answer after it.

The steps of `ConversationLog.open_turn` and `close_turn`, each in the transaction of its caller. A response that has
been in progress for more than `stale_after_s` seconds is taken as interrupted.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from serve_app.conversation.fence import OwnedLog, keep_log, new_log
from serve_app.conversation.items import Point, find_appended
from serve_app.conversation.jobs import end_job
from serve_app.conversation.memory import add_prompt_texts
from serve_app.conversation.responses import (
    INTERRUPTED,
    ResponseRow,
    as_it_ended,
    as_it_stands,
    find_asked,
    find_response,
    finish_response,
    insert_response,
    is_running,
)
from serve_app.errors import Conflict, NotFound
from serve_app.types import Json, now_s
from serve_app.types.conversation import CloseTurn, OpenTurn, RecordedResponse


@dataclass(frozen=True, slots=True)
class Asked:
    """Where the question of a turn was written."""

    log_id: str
    first_seq: int
    finished: RecordedResponse | None = None


def ask_in(log: OwnedLog, turn: OpenTurn, stale_after_s: float) -> Asked:
    """Write the question into its conversation. `IntegrityError` if another process does the same at this moment."""
    row = find_asked(log.connection, turn)
    if row is not None:
        return asked_before(log.connection, turn, row, stale_after_s)
    key = input_key(turn)
    # Without `store` there is no response to find, but the question may be there.
    first_seq = None if turn.store else find_appended(log.connection, log.id, key)
    if first_seq is None:
        first_seq = log.append(key, turn.input_items)
    if turn.store:
        insert_response(log.connection, turn, log.id, first_seq)
    return Asked(log.id, first_seq)


def asked_before(connection: Connection, turn: OpenTurn, row: ResponseRow, stale_after_s: float) -> Asked:
    """Where it was written then. Raises `Conflict` if another request is still answering it."""
    if not is_running(row, stale_after_s):
        return Asked(row.log_id, row.first_seq, finished=as_it_ended(connection, row))
    if row.job_fence is not None and turn.job is not None:
        return Asked(row.log_id, row.first_seq, finished=as_it_stands(row))
    if row.id != turn.response["id"]:
        raise Conflict(
            f"The request with idempotency key {turn.idempotency_key!r} is still in progress: try again later.",
            code="idempotent_request_in_progress",
            retry_after_s=1,
        )
    return Asked(row.log_id, row.first_seq)


def branch(connection: Connection, turn: OpenTurn, stale_after_s: float) -> OwnedLog:
    """A new log for the response, whose past is that of the previous response."""
    past = find_previous(connection, turn.previous_response_id, stale_after_s)
    if past is not None and not keep_log(connection, past.log_id):
        raise _previous_not_found(turn.previous_response_id)
    return new_log(connection, turn.response["id"], now_s(), None, past)


def find_previous(connection: Connection, previous_response_id: str | None, stale_after_s: float) -> Point | None:
    """The last item of the previous response; of one that was interrupted, of its input."""
    if previous_response_id is None:
        return None
    row = find_response(connection, previous_response_id)
    if row is None:
        raise _previous_not_found(previous_response_id)
    if is_running(row, stale_after_s):
        raise Conflict(
            f"Previous response with id {previous_response_id!r} is still in progress: wait until it has ended.",
            param="previous_response_id",
        )
    return Point(row.log_id, row.last_seq)


def input_key(turn: OpenTurn) -> str:
    return f"input:{turn.idempotency_key or turn.response['id']}"


def answer_in(log: OwnedLog, turn: CloseTurn) -> bool:
    """Write the answer behind its question. False if the response had ended before."""
    response_id, output = turn.response["id"], turn.response["output"]
    key = f"output:{response_id}"
    if turn.store:
        if not finish_response(log.connection, turn.response, log.fence.head + len(output), turn.recording):
            return False
        if turn.job_fence is not None and not end_job(log.connection, response_id, turn.job_fence):
            raise Conflict(f"Response with id {response_id!r} is being answered by another process.")
    elif find_appended(log.connection, log.id, key) is not None:
        return True
    log.append(key, output)
    add_prompt_texts(log.connection, log.id, turn.prompt_texts)
    return True


def check_ended_alike(response: Json, stored: Json) -> None:
    """Raises `Conflict` if it was given up as interrupted before it ended."""
    if stored.get("incomplete_details") == INTERRUPTED != response.get("incomplete_details"):
        raise Conflict(f"Response with id {response['id']!r} took too long, and was given up as interrupted.")


def _previous_not_found(response_id: str | None) -> NotFound:
    return NotFound(
        f"Previous response with id {response_id!r} not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
