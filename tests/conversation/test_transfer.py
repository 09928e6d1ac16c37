"""A conversation that is brought in is there as a whole, or not at all."""

from collections.abc import Iterator

import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.conversation.transfer import TimedItem, import_conversation
from serve_app.errors import InvalidRequest
from serve_app.storage.database import Database
from serve_app.types import new_id
from serve_app.types.conversation import AppendItems, ForkConversation, LoggedItem
from tests.conversation.messages import all_items, count_items, message, seqs_of, texts


def test_items_come_in_with_their_times_and_in_order(log: ConversationLog, database: Database) -> None:
    given = [(1_000 + number, message(str(number))) for number in range(1_203)]
    imported = import_conversation(database, new_id("conv"), {"topic": "rivers"}, 60, iter(given))
    assert log.get_conversation(imported.id) == imported
    assert (imported.metadata, imported.expires_after_s) == ({"topic": "rivers"}, 60)
    exported = log.export_items(imported.id, 0, 2_000)
    assert exported == tuple(LoggedItem(seq, time, body) for seq, (time, body) in enumerate(given, start=1))
    log.append_items(AppendItems(imported.id, (message("next"),), "key"))
    assert seqs_of(database, imported.id) == list(range(1, 1_205))


def test_what_fails_halfway_leaves_nothing(log: ConversationLog, database: Database) -> None:
    def given() -> Iterator[TimedItem]:
        for number in range(700):
            yield number, message(str(number))
        raise InvalidRequest("Line 702 is wrong")

    with pytest.raises(InvalidRequest, match="Line 702"):
        import_conversation(database, "conv_1", {}, None, given())
    assert count_items(database) == 0
    log.create_conversation("conv_1", {}, ())


def test_an_empty_conversation_can_be_imported(log: ConversationLog, database: Database) -> None:
    imported = import_conversation(database, new_id("conv"), {}, None, ())
    assert all_items(log, imported.id) == ()


def test_an_export_goes_on_through_the_past_without_what_was_deleted(log: ConversationLog) -> None:
    items = tuple({**message(digit), "id": digit} for digit in "12345")
    root = log.create_conversation(new_id("conv"), {}, items).id
    branch = log.fork_conversation(ForkConversation(root, new_id("conv"), "4")).id
    log.append_items(AppendItems(branch, (message("a"), message("b")), "key"))
    log.delete_item(root, "2")
    seen, after = [], 0
    while some := log.export_items(branch, after, 2):
        seen += [item.body for item in some]
        after = some[-1].seq
    assert texts(seen) == ["1", "3", "4", "a", "b"]
