"""What is kept of each message for the insights, on both databases."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier

import pytest
from sqlalchemy import func, select, update

from serve_app.conversation.facts import MAX_MESSAGES, KeptFacts, read_kept_facts
from serve_app.conversation.fence import new_log
from serve_app.conversation.items import Point
from serve_app.conversation.log import ConversationLog
from serve_app.errors import NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import logs, message_facts
from serve_app.types import Json, new_id
from serve_app.types.conversation import (
    AppendItems,
    ConversationFilter,
    ForkConversation,
    LoggedMessage,
    RecentMessages,
    SaveFacts,
    WithdrawTurn,
)
from tests.conversation.insights.facts import says
from tests.conversation.messages import ask, message

ENCODER, VERSION = "encoder-a", 1


def start(log: ConversationLog, *items: Json, **metadata: str) -> str:
    return log.create_conversation(new_id("conv"), metadata, items).id


def recent(log: ConversationLog, conversation_id: str) -> RecentMessages:
    return log.read_messages(conversation_id, ENCODER, VERSION)


def save(
    log: ConversationLog, messages: tuple[LoggedMessage, ...], encoder: str = ENCODER, version: int = VERSION
) -> None:
    """The same facts for all."""
    with_facts = (replace(each, body=None, facts=says(terms=("ferry",), words=3)) for each in messages)
    log.save_facts(SaveFacts(messages[0].log_id, encoder, version, tuple(with_facts)))


def keep(log: ConversationLog, conversation_id: str) -> None:
    save(log, recent(log, conversation_id).messages)


def at_once(*works: Callable[[], None]) -> None:
    """Raises what any of them raises."""
    barrier = Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        barrier.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        list(pool.map(run, works))


def count_facts(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(message_facts)) or 0


def kept(database: Database, **wanted: object) -> KeptFacts:
    with database.read() as connection:
        return read_kept_facts(connection, ConversationFilter(**wanted), ENCODER, VERSION)  # type: ignore[arg-type]


def test_messages_come_with_their_text_until_they_have_facts(log: ConversationLog) -> None:
    conversation_id = start(log, message("Hi"), message("Hello", "assistant"))

    before = recent(log, conversation_id)
    keep(log, conversation_id)
    after = recent(log, conversation_id)

    assert [each.body and each.body["content"] for each in before.messages] == ["Hi", "Hello"]
    assert [each.body for each in after.messages] == [None, None]
    assert [each.facts for each in after.messages] == [says(terms=("ferry",), words=3)] * 2
    assert [each.item_id for each in after.messages] == [each.item_id for each in before.messages]


def test_only_what_users_and_assistants_said_counts(log: ConversationLog) -> None:
    search: Json = {
        "id": new_id("fs"),
        "type": "file_search_call",
        "status": "completed",
        "queries": [],
        "results": None,
    }
    conversation_id = start(log, message("Rhyme.", "system"), search, message("Hi"))

    assert [each.seq for each in recent(log, conversation_id).messages] == [3]


def test_facts_of_another_encoder_or_version_count_as_missing_and_are_replaced(log: ConversationLog) -> None:
    conversation_id = start(log, message("Hi"))
    keep(log, conversation_id)

    for encoder, version in (("encoder-b", VERSION), (ENCODER, VERSION + 1)):
        (again,) = log.read_messages(conversation_id, encoder, version).messages
        assert (again.facts, again.body and again.body["content"]) == (None, "Hi")
        save(log, (again,), encoder, version)
        assert log.read_messages(conversation_id, encoder, version).messages[0].facts is not None
    assert recent(log, conversation_id).messages[0].facts is None


def test_saving_twice_changes_nothing(log: ConversationLog, database: Database) -> None:
    conversation_id = start(log, message("Hi"), message("Hello", "assistant"))
    messages = recent(log, conversation_id).messages

    save(log, messages)
    save(log, messages)

    assert count_facts(database) == 2


def test_a_deleted_item_takes_its_facts_with_it(log: ConversationLog, database: Database) -> None:
    conversation_id = start(log, message("Hi"), message("Hello", "assistant"))
    keep(log, conversation_id)
    first, second = recent(log, conversation_id).messages

    log.delete_item(conversation_id, first.item_id)

    assert recent(log, conversation_id).messages == (second,)
    assert count_facts(database) == 1


def test_a_question_that_is_taken_back_takes_its_facts_with_it(log: ConversationLog, database: Database) -> None:
    question = message("Hi")
    conversation_id = start(log, question)
    keep(log, conversation_id)

    log.withdraw_turn(WithdrawTurn(conversation_id, new_id("resp"), (question["id"],)))

    assert count_facts(database) == 0


def test_facts_of_what_was_deleted_meanwhile_are_not_kept(log: ConversationLog, database: Database) -> None:
    conversation_id, other_id = start(log, message("Hi"), message("Ho")), start(log, message("Hi"))
    messages = recent(log, conversation_id).messages + recent(log, other_id).messages

    log.delete_item(conversation_id, messages[0].item_id)
    log.delete_conversation(other_id)
    save(log, messages)

    assert count_facts(database) == 1


def test_saving_and_deleting_at_once_do_not_wait_for_each_other(log: ConversationLog, database: Database) -> None:
    for _ in range(30):
        conversation_id = start(log, *(message(str(number)) for number in range(20)))
        messages = recent(log, conversation_id).messages

        at_once(partial(save, log, messages), partial(log.delete_conversation, conversation_id))

    assert count_facts(database) == 0


def test_saving_and_taking_back_at_once_do_not_wait_for_each_other(log: ConversationLog, database: Database) -> None:
    for _ in range(30):
        questions = [message(str(number)) for number in range(20)]
        conversation_id = start(log, *questions)
        withdrawal = WithdrawTurn(conversation_id, new_id("resp"), tuple(each["id"] for each in questions))

        at_once(partial(save, log, recent(log, conversation_id).messages), partial(log.withdraw_turn, withdrawal))

    assert count_facts(database) == 0


def test_a_deleted_conversation_takes_its_facts_with_it(log: ConversationLog, database: Database) -> None:
    conversation_id = start(log, message("Hi"))
    keep(log, conversation_id)

    log.delete_conversation(conversation_id)

    assert count_facts(database) == 0


def test_a_fork_has_the_facts_of_its_past_and_keeps_them_there(log: ConversationLog, database: Database) -> None:
    parent_id, fork_id = start(log, message("Hi"), message("Hello", "assistant"), message("Later")), new_id("conv")
    with database.write() as connection:
        new_log(connection, fork_id, 1_000, {}, Point(parent_id, 2))
    log.append_items(AppendItems(fork_id, (message("Elsewhere"),), "k"))

    keep(log, fork_id)

    assert [(each.log_id, each.seq) for each in recent(log, fork_id).messages] == [
        (parent_id, 1),
        (parent_id, 2),
        (fork_id, 3),  # goes on counting
    ]
    assert [each.facts is None for each in recent(log, parent_id).messages] == [False, False, True]
    assert count_facts(database) == 3


def test_of_a_very_long_conversation_only_the_newest_messages_are_read(log: ConversationLog) -> None:
    conversation_id = start(log, *(message(str(number)) for number in range(MAX_MESSAGES + 1)))

    read = recent(log, conversation_id)

    assert (len(read.messages), read.is_truncated) == (MAX_MESSAGES, True)
    assert read.messages[0].seq == 2


def test_a_conversation_that_is_not_there_is_not_found(log: ConversationLog) -> None:
    response_id = ask(log, "Hi", "Hello")

    for unknown in (new_id("conv"), response_id, "x" * 1_000):
        with pytest.raises(NotFound):
            recent(log, unknown)


def test_the_overview_reads_what_is_kept_and_says_what_is_not(log: ConversationLog, database: Database) -> None:
    known, _unknown = start(log, message("Hi"), message("Hello", "assistant")), start(log, message("Hi"))
    ask(log, "Hi", "Hello")  # not in a conversation
    keep(log, known)

    found = kept(database)

    assert (found.conversations, found.looked_at, found.is_truncated) == (2, 2, False)
    assert [[each.log_id for each in messages] for messages in found.messages] == [[known, known]]


def test_the_overview_is_narrowed_by_time_and_metadata(log: ConversationLog, database: Database) -> None:
    made = {start(log, message("Hi"), team=team, place="Brest") for team in ("red", "blue")}
    with database.write() as connection:
        for created_at, conversation_id in zip((100, 200), sorted(made), strict=True):
            connection.execute(update(logs).where(logs.c.id == conversation_id).values(created_at=created_at))

    assert kept(database, metadata={"team": "red", "place": "Brest"}).conversations == 1
    assert kept(database, metadata={"team": "red", "place": "Paris"}).conversations == 0
    assert kept(database, metadata={"a.b": "x"}).conversations == 0
    assert kept(database, created_after=100).conversations == 1
    assert kept(database, created_before=200).conversations == 1
    assert kept(database, created_after=100, created_before=200).conversations == 0


def test_the_overview_ends_with_the_conversation_that_would_be_too_much(
    log: ConversationLog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        keep(log, start(log, message("Hi"), message("Hello", "assistant")))
    monkeypatch.setattr("serve_app.conversation.facts.MAX_OVERVIEW_MESSAGES", 5)

    found = kept(database)

    assert (found.conversations, found.looked_at, len(found.messages), found.is_truncated) == (3, 2, 2, True)


def test_what_a_fork_keeps_of_a_deleted_conversation_keeps_its_facts(log: ConversationLog, database: Database) -> None:
    first = message("Hi")
    parent_id = start(log, first, message("Later"))
    fork_id = log.fork_conversation(ForkConversation(parent_id, new_id("conv"), first["id"], {})).id
    keep(log, parent_id)

    log.delete_conversation(parent_id)

    assert [each.facts is None for each in recent(log, fork_id).messages] == [False]
    assert count_facts(database) == 1
