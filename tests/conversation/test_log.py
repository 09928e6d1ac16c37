"""Conversations and their items, as callers of the log see them."""

import inspect
from collections.abc import Callable

import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.errors import InvalidRequest, NotFound
from serve_app.parts import Sessions
from serve_app.storage.database import Database
from serve_app.types import PageQuery, new_id
from serve_app.types.conversation import AppendItems
from tests.conversation.messages import all_items, ask, count_items, message, question, seqs_of, texts


def test_the_log_has_the_methods_of_the_sessions_part() -> None:
    methods = {name: method for name, method in vars(Sessions).items() if inspect.iscoroutinefunction(method)}
    assert methods
    for name, method in methods.items():
        assert inspect.signature(getattr(ConversationLog, name)) == inspect.signature(method)


# --- conversations ------------------------------------------------------------------------------


def test_a_conversation_keeps_its_metadata_and_items(log: ConversationLog) -> None:
    first, second = message("first"), message("second")
    created = log.create_conversation(new_id("conv"), {"topic": "käse 🧀"}, (first, second))
    assert log.get_conversation(created.id) == created
    assert created.metadata == {"topic": "käse 🧀"}
    assert all_items(log, created.id) == (first, second)
    assert log.get_item(created.id, second["id"]) == second


def test_a_conversation_that_is_made_twice_is_made_once(log: ConversationLog) -> None:
    first = message("first")
    created = log.create_conversation("conv_0a", {"a": "1"}, (first,))
    again = log.create_conversation("conv_0a", {"a": "2"}, (message("second"),))
    assert again == created
    assert all_items(log, "conv_0a") == (first,)


def test_new_metadata_replaces_the_old(log: ConversationLog) -> None:
    created = log.create_conversation(new_id("conv"), {"a": "1", "b": "2"}, ())
    updated = log.update_conversation(created.id, {"metadata": {"b": "3"}})
    assert updated.metadata == {"b": "3"}
    assert log.get_conversation(created.id) == updated


def test_deleting_a_conversation_deletes_all_that_is_in_it(log: ConversationLog, database: Database) -> None:
    doomed = log.create_conversation(new_id("conv"), {}, (message("1"),))
    kept = log.create_conversation(new_id("conv"), {}, (message("2"),))
    response_id = ask(log, "q", "a", conversation_id=doomed.id)
    log.delete_conversation(doomed.id)
    with pytest.raises(NotFound):
        log.get_conversation(doomed.id)
    with pytest.raises(NotFound):
        log.get_response(response_id)
    with pytest.raises(NotFound):
        log.append_items(AppendItems(doomed.id, (message("late"),), "key"))
    assert count_items(database) == 1
    assert texts(all_items(log, kept.id)) == ["2"]


@pytest.mark.parametrize("unknown", ["conv_unknown", "", "conv\0", "conv_\ud800", "c" * 1000])
def test_an_unknown_conversation_is_named(log: ConversationLog, unknown: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: log.get_conversation(unknown),
        lambda: log.update_conversation(unknown, {"metadata": {}}),
        lambda: log.delete_conversation(unknown),
        lambda: log.append_items(AppendItems(unknown, (message("a"),), "key")),
        lambda: log.list_items(unknown, PageQuery()),
        lambda: log.get_item(unknown, "msg"),
        lambda: log.delete_item(unknown, "msg"),
    ]
    for call in calls:
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.message == f"Conversation with id {unknown!r} not found."


def test_the_log_of_a_response_is_no_conversation(log: ConversationLog) -> None:
    response_id = ask(log, "q", "a")
    calls: list[Callable[[], object]] = [
        lambda: log.get_conversation(response_id),
        lambda: log.delete_conversation(response_id),
        lambda: log.append_items(AppendItems(response_id, (message("a"),), "key")),
        lambda: log.list_items(response_id, PageQuery()),
        lambda: log.open_turn(question("q", conversation_id=response_id)),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()


# --- appending ----------------------------------------------------------------------------------


def test_items_are_numbered_without_gaps(log: ConversationLog, database: Database) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, (message("1"),))
    log.append_items(AppendItems(conversation.id, (), "nothing"))
    log.append_items(AppendItems(conversation.id, tuple(message(str(n)) for n in range(2, 302)), "many"))
    log.append_items(AppendItems(conversation.id, (message("302"),), "one"))
    assert texts(all_items(log, conversation.id)) == [str(n) for n in range(1, 303)]
    assert seqs_of(database, conversation.id) == list(range(1, 303))


def test_the_same_append_again_changes_nothing(log: ConversationLog, database: Database) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    append = AppendItems(conversation.id, (message("a"), message("b")), "k" * 255)
    stored = log.append_items(append)
    log.append_items(AppendItems(conversation.id, (message("c"),), "other"))
    retry = AppendItems(conversation.id, (message("a, built again"), message("b, built again")), "k" * 255)
    restarted = ConversationLog(database, max_cached=1)
    assert log.append_items(retry) == restarted.append_items(retry) == stored == append.items
    assert texts(all_items(log, conversation.id)) == ["a", "b", "c"]


def test_keys_that_look_like_those_of_items_are_other_keys(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    for key in ("key", "key:0", "key:1", "key:0:0", "append:key"):
        log.append_items(AppendItems(conversation.id, (message(key), message("+")), key))
    assert texts(all_items(log, conversation.id))[::2] == ["key", "key:0", "key:1", "key:0:0", "append:key"]


def test_one_key_may_be_used_in_two_conversations(log: ConversationLog) -> None:
    for text in ("one", "two"):
        conversation = log.create_conversation(new_id("conv"), {}, ())
        log.append_items(AppendItems(conversation.id, (message(text),), "key"))
        assert texts(all_items(log, conversation.id)) == [text]


def test_an_item_id_that_is_there_already_is_refused(log: ConversationLog, database: Database) -> None:
    item = message("a")
    conversation = log.create_conversation(new_id("conv"), {}, (item,))
    with pytest.raises(InvalidRequest, match=item["id"]):
        log.append_items(AppendItems(conversation.id, (message("new"), item), "key"))
    assert all_items(log, conversation.id) == (item,)
    log.append_items(AppendItems(conversation.id, (message("b"),), "key"))
    assert seqs_of(database, conversation.id) == [1, 2]


def test_a_log_outside_the_cache_is_written_to_as_well(database: Database) -> None:
    log = ConversationLog(database, max_cached=1)
    conversations = [log.create_conversation(new_id("conv"), {}, ()) for _ in range(3)]
    for turn in range(3):
        for conversation in conversations:
            log.append_items(AppendItems(conversation.id, (message(str(turn)),), str(turn)))
    for conversation in conversations:
        assert texts(all_items(log, conversation.id)) == ["0", "1", "2"]


# --- what can be stored -------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["a\0b", {"a\0b": 1}, [{"deep": ["\0"]}], float("nan"), [float("-inf")]])
def test_what_one_database_cannot_store_neither_does(log: ConversationLog, content: object) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    with pytest.raises(InvalidRequest):
        log.append_items(AppendItems(conversation.id, ({**message(""), "content": content},), "key"))
    assert all_items(log, conversation.id) == ()


@pytest.mark.parametrize("text", ["\\u0000", "\ud800", "ünïcode 🧀", "\u2028\x01\x7f", "'; DROP TABLE items; --"])
def test_any_other_text_comes_back_as_it_was(log: ConversationLog, text: str) -> None:
    item = message(text)
    conversation = log.create_conversation(new_id("conv"), {"text": text}, (item,))
    assert log.get_item(conversation.id, item["id"]) == item
    assert log.get_conversation(conversation.id).metadata == {"text": text}


@pytest.mark.parametrize("item_id", [None, 7, "", "a\0", "é", "m" * 81])
def test_an_item_needs_a_usable_id(log: ConversationLog, item_id: object) -> None:
    with pytest.raises(InvalidRequest, match="item id"):
        log.create_conversation(new_id("conv"), {}, ({**message("a"), "id": item_id},))


@pytest.mark.parametrize("key", ["", "a\0", "é", "k" * 256])
def test_an_idempotency_key_must_be_usable(log: ConversationLog, key: str) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    with pytest.raises(InvalidRequest, match="idempotency key"):
        log.append_items(AppendItems(conversation.id, (message("a"),), key))
    if key:
        with pytest.raises(InvalidRequest, match="idempotency key"):
            log.open_turn(question("q", idempotency_key=key))


# --- deleting items -----------------------------------------------------------------------------


def test_a_deleted_item_is_gone_and_leaves_no_gap(log: ConversationLog, database: Database) -> None:
    kept, doomed = message("kept"), message("doomed")
    conversation = log.create_conversation(new_id("conv"), {"a": "b"}, (doomed, kept))
    assert log.delete_item(conversation.id, doomed["id"]) == conversation
    with pytest.raises(NotFound, match=doomed["id"]):
        log.get_item(conversation.id, doomed["id"])
    with pytest.raises(NotFound, match=doomed["id"]):
        log.delete_item(conversation.id, doomed["id"])
    assert all_items(log, conversation.id) == (kept,)
    assert log.open_turn(question("q", conversation_id=conversation.id)).history == (kept,)
    assert seqs_of(database, conversation.id) == [1, 2, 3]


@pytest.mark.parametrize("unknown", ["msg_unknown", "msg\0"])
def test_an_unknown_item_is_named(log: ConversationLog, unknown: str) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    for call in (log.get_item, log.delete_item):
        with pytest.raises(NotFound) as caught:
            call(conversation.id, unknown)
        assert caught.value.message == f"Item with id {unknown!r} not found."


def test_an_append_again_does_not_bring_back_what_was_deleted(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    append = AppendItems(conversation.id, (message("a"), message("b")), "key")
    log.append_items(append)
    log.delete_item(conversation.id, append.items[0]["id"])
    assert texts(log.append_items(append)) == ["b"]
    assert texts(all_items(log, conversation.id)) == ["b"]


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "expected", "has_more"),
    [
        (PageQuery(limit=2), "76", True),
        (PageQuery(limit=7), "7654321", False),
        (PageQuery(limit=2, order="asc"), "12", True),
        (PageQuery(limit=2, after="3"), "21", False),
        (PageQuery(limit=2, after="4"), "32", True),
        (PageQuery(limit=2, after="5", order="asc"), "67", False),
        (PageQuery(limit=2, before="3"), "54", True),
        (PageQuery(limit=2, before="3", order="asc"), "12", False),
        (PageQuery(limit=2, before="5", order="asc"), "34", True),
        (PageQuery(limit=5, after="2", before="5", order="asc"), "34", False),
        (PageQuery(limit=5, after="5", before="2"), "43", False),
        (PageQuery(limit=1, after="2", before="5", order="asc"), "3", True),
        (PageQuery(limit=2, after="1"), "", False),
    ],
)
def test_a_page(log: ConversationLog, page: PageQuery, expected: str, has_more: bool) -> None:
    numbered = tuple({**message(digit), "id": digit} for digit in "1234567")
    conversation = log.create_conversation(new_id("conv"), {}, numbered)
    answer = log.list_items(conversation.id, page)
    assert "".join(texts(answer.data)) == expected
    assert answer.has_more is has_more


def test_pages_have_no_deleted_items_but_go_on_from_them(log: ConversationLog) -> None:
    items = tuple({**message(digit), "id": digit} for digit in "1234567")
    conversation = log.create_conversation(new_id("conv"), {}, items)
    for digit in "267":
        log.delete_item(conversation.id, digit)
    assert "".join(texts(log.list_items(conversation.id, PageQuery(limit=2)).data)) == "54"
    assert "".join(texts(log.list_items(conversation.id, PageQuery(limit=2, after="2", order="asc")).data)) == "34"
    assert log.list_items(conversation.id, PageQuery(limit=1, after="5", order="asc")).has_more is False


@pytest.mark.parametrize("unknown", ["msg_unknown", "msg\0"])
def test_an_unknown_cursor_is_an_invalid_request(log: ConversationLog, unknown: str) -> None:
    elsewhere = message("elsewhere")
    log.create_conversation(new_id("conv"), {}, (elsewhere,))
    conversation = log.create_conversation(new_id("conv"), {}, (message("a"),))
    for cursor in (unknown, elsewhere["id"]):
        for page in (PageQuery(after=cursor), PageQuery(before=cursor)):
            with pytest.raises(InvalidRequest) as caught:
                log.list_items(conversation.id, page)
            assert caught.value.param == ("after" if page.after else "before")
