"""Conversations are listed, expire when they are idle, and leave memory."""

import pytest
from cachetools import TTLCache
from sqlalchemy import update

from serve_app.conversation.conversations import EXPIRED_AT_ONCE
from serve_app.conversation.fence import Fence, Fences, OwnedLog
from serve_app.conversation.log import ConversationLog
from serve_app.errors import InvalidRequest, NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import logs
from serve_app.types import PageQuery, new_id, now_s
from serve_app.types.conversation import AppendItems, ForkConversation
from tests.conversation.messages import all_items, ask, count_items, message, question, texts

DAY_S = 86_400


def make(log: ConversationLog, expires_after_s: int | None = None, **metadata: str) -> str:
    return log.create_conversation(new_id("conv"), metadata, (message("hello"),), expires_after_s).id


def leave_idle(database: Database, log_id: str, seconds: int) -> None:
    with database.write() as connection:
        connection.execute(update(logs).where(logs.c.id == log_id).values(last_active_at=now_s() - seconds))


def is_there(log: ConversationLog, conversation_id: str) -> bool:
    try:
        log.get_conversation(conversation_id)
    except NotFound:
        return False
    return True


# --- listing ------------------------------------------------------------------------------------


def test_conversations_are_listed_newest_first(log: ConversationLog, database: Database) -> None:
    made = [make(log, topic=topic) for topic in ("rivers", "lakes", "rivers")]
    with database.write() as connection:
        for time, conversation_id in enumerate(made):
            connection.execute(update(logs).where(logs.c.id == conversation_id).values(created_at=time))
    ask(log, "q", "a")
    listed = log.list_conversations(PageQuery(limit=2), {})
    assert ([each["id"] for each in listed.data], listed.has_more) == ([made[2], made[1]], True)
    assert listed.data[0] == log.get_conversation(made[2]).to_json()
    rest = log.list_conversations(PageQuery(after=made[1]), {})
    assert ([each["id"] for each in rest.data], rest.has_more) == ([made[0]], False)
    of_rivers = log.list_conversations(PageQuery(order="asc"), {"topic": "rivers"})
    assert [each["id"] for each in of_rivers.data] == [made[0], made[2]]
    with pytest.raises(InvalidRequest):
        log.list_conversations(PageQuery(after="conv_unknown"), {})


def test_a_listed_fork_says_where_it_left(log: ConversationLog) -> None:
    root = make(log)
    branch = log.fork_conversation(ForkConversation(root, new_id("conv")))
    listed = {each["id"]: each["forked_from"] for each in log.list_conversations(PageQuery(), {}).data}
    assert branch.forked_from is not None
    assert listed == {root: None, branch.id: branch.forked_from.to_json()}


# --- expiry -------------------------------------------------------------------------------------


def test_an_idle_conversation_expires_after_its_own_time(log: ConversationLog, database: Database) -> None:
    idle, used, forever = make(log, DAY_S), make(log, DAY_S), make(log)
    leave_idle(database, idle, DAY_S)
    leave_idle(database, used, DAY_S - 60)
    leave_idle(database, forever, 1000 * DAY_S)
    assert log.delete_expired(None) is False
    assert [is_there(log, each) for each in (idle, used, forever)] == [False, True, True]
    assert count_items(database) == 2


def test_the_default_is_for_those_that_say_nothing(log: ConversationLog, database: Database) -> None:
    short, plain, long = make(log, DAY_S), make(log), make(log, 30 * DAY_S)
    for each in (short, plain, long):
        leave_idle(database, each, 10 * DAY_S)
    log.delete_expired(20.0 * DAY_S)
    assert [is_there(log, each) for each in (short, plain, long)] == [False, True, True]
    log.delete_expired(10.0 * DAY_S)
    assert [is_there(log, each) for each in (plain, long)] == [False, True]


def test_responses_outside_conversations_follow_the_default(log: ConversationLog, database: Database) -> None:
    first = ask(log, "q1", "a1")
    second = ask(log, "q2", "a2", previous_response_id=first)
    alone = ask(log, "q", "a")
    for each in (first, alone):
        leave_idle(database, each, DAY_S)
    log.delete_expired(None)
    assert log.get_response(alone)["status"] == "completed"
    log.delete_expired(float(DAY_S))
    for gone in (first, alone):
        with pytest.raises(NotFound):
            log.get_response(gone)
    assert texts(log.open_turn(question("q", previous_response_id=second, store=False)).history) == [
        "q1", "a1", "q2", "a2"
    ]  # fmt: skip
    leave_idle(database, second, DAY_S)
    log.delete_expired(float(DAY_S))
    assert count_items(database) == 0


def test_what_a_fork_needs_does_not_expire_with_its_parent(log: ConversationLog, database: Database) -> None:
    root = make(log, DAY_S)
    branch = log.fork_conversation(ForkConversation(root, new_id("conv"))).id
    leave_idle(database, root, DAY_S)
    log.delete_expired(None)
    assert not is_there(log, root)
    assert texts(all_items(log, branch)) == ["hello"]


@pytest.mark.parametrize("use", ["append", "turn", "update"])
def test_a_conversation_that_is_used_lives_on(log: ConversationLog, database: Database, use: str) -> None:
    conversation_id = make(log, DAY_S)
    leave_idle(database, conversation_id, 2 * DAY_S)
    if use == "append":
        log.append_items(AppendItems(conversation_id, (message("more"),), "key"))
    elif use == "turn":
        log.open_turn(question("q", conversation_id=conversation_id))
    else:
        log.update_conversation(conversation_id, {"metadata": {"a": "b"}})
    assert now_s() - log.get_conversation(conversation_id).last_active_at < DAY_S
    log.delete_expired(None)
    assert is_there(log, conversation_id)


def test_an_expiry_is_changed_and_taken_away(log: ConversationLog, database: Database) -> None:
    conversation_id = make(log, DAY_S, topic="rivers")
    assert log.update_conversation(conversation_id, {"expires_after_s": 60}).expires_after_s == 60
    assert log.update_conversation(conversation_id, {"metadata": {}}).expires_after_s == 60
    cleared = log.update_conversation(conversation_id, {"expires_after_s": None})
    assert (cleared.expires_after_s, cleared.metadata) == (None, {})
    leave_idle(database, conversation_id, 1000 * DAY_S)
    log.delete_expired(None)
    assert is_there(log, conversation_id)


def test_of_many_that_expired_each_call_deletes_some(log: ConversationLog, database: Database) -> None:
    for _ in range(EXPIRED_AT_ONCE + 1):
        leave_idle(database, make(log, DAY_S), DAY_S)
    assert [log.delete_expired(None), log.delete_expired(None)] == [True, False]
    assert count_items(database) == 0


# --- memory -------------------------------------------------------------------------------------


def test_an_idle_conversation_leaves_memory(database: Database) -> None:
    fences, now = Fences(database, max_cached=10), 0.0
    fences._by_log = TTLCache(10, fences._by_log.ttl, timer=lambda: now)
    with database.read() as connection:
        fences.keep(OwnedLog(connection, "conv_1", Fence(epoch=1, head=0, is_conversation=True)))
    now = fences._by_log.ttl - 1
    assert fences.get("conv_1") is not None
    now += 2
    assert fences.get("conv_1") is None
