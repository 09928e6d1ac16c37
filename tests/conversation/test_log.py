"""The durable log as its callers see it: conversations, items, turns, branches."""

from pathlib import Path

import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.errors import Conflict, InvalidRequest, NotFound
from serve_app.storage.database import Database
from serve_app.types import AppendItems, CloseTurn, Json, OpenTurn, PageQuery, new_id


@pytest.fixture
def log(database: Database) -> ConversationLog:
    return ConversationLog(database, max_cached=100)


def message(text: str, role: str = "user") -> Json:
    return {"id": new_id("msg"), "type": "message", "role": role, "content": text}


def test_smoke(log: ConversationLog) -> None:
    conv = log.create_conversation({"a": "b"}, (message("one"),))
    log.append_items(AppendItems(conv.id, (message("two"), message("three")), "k"))
    page = log.list_items(conv.id, PageQuery(order="asc"))
    assert [i["content"] for i in page.data] == ["one", "two", "three"]
    r = {"id": new_id("resp"), "status": "in_progress", "output": []}
    opened = log.open_turn(OpenTurn(r, (message("q"),)))
    assert opened.history == ()
    log.close_turn(CloseTurn(opened.log_id, {**r, "status": "completed", "output": [message("a", "assistant")]}))
    r2 = {"id": new_id("resp"), "status": "in_progress", "output": []}
    opened = log.open_turn(OpenTurn(r2, (message("q2"),), previous_response_id=r["id"]))
    assert [i["content"] for i in opened.history] == ["q", "a"]
    log.delete_response(r["id"])
    log.delete_response(r2["id"])
