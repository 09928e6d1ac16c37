"""The items and requests that these tests write, and reading them back."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import Database
from serve_app.storage.schema import items
from serve_app.types import Json, PageQuery, new_id
from serve_app.types.conversation import CloseTurn, OpenTurn


def message(text: str, role: str = "user") -> Json:
    return {"id": new_id("msg"), "type": "message", "role": role, "content": text}


def texts(messages: Sequence[Json]) -> list[str]:
    return [item["content"] for item in messages]


# What OpenTurn takes beside the response and the question, as it is.
def question(text: str, **fields: Any) -> OpenTurn:
    """A turn with one question, under a new response id."""
    response: Json = {"id": new_id("resp"), "status": "in_progress", "output": [], "incomplete_details": None}
    return OpenTurn(response, (message(text),), **fields)


def answer(turn: OpenTurn, text: str, log_id: str | None) -> CloseTurn:
    """The answer to `turn`, with one message."""
    assert log_id is not None
    final = {**turn.response, "status": "completed", "output": [message(text, "assistant")]}
    return CloseTurn(log_id, final, turn.store)


def ask(log: ConversationLog, text: str, answer_text: str, **fields: Any) -> str:
    """A whole turn. Returns the response's id."""
    turn = question(text, **fields)
    opened = log.open_turn(turn)
    log.close_turn(answer(turn, answer_text, opened.log_id))
    response_id: str = turn.response["id"]
    return response_id


def all_items(log: ConversationLog, conversation_id: str) -> tuple[Json, ...]:
    return log.list_items(conversation_id, PageQuery(limit=1_000_000, order="asc")).data


def seqs_of(database: Database, log_id: str) -> list[int]:
    with database.read() as connection:
        return list(connection.scalars(select(items.c.seq).where(items.c.log_id == log_id).order_by(items.c.seq)))


def count_items(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(items)) or 0
