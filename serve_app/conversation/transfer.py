"""Bringing a whole conversation in, in one piece, from wherever it was exported."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import update

from serve_app.conversation.checks import check_items, check_json
from serve_app.conversation.fence import new_log
from serve_app.conversation.items import Point, insert_items
from serve_app.storage.database import Database
from serve_app.storage.schema import logs
from serve_app.types import Json, now_s
from serve_app.types.conversation import Conversation

_ITEMS_AT_ONCE = 500

TimedItem = tuple[int, Json]
"""When an item was made, and the item."""


def import_conversation(
    database: Database,
    conversation_id: str,
    metadata: dict[str, str],
    expires_after_s: int | None,
    given: Iterable[TimedItem],
) -> Conversation:
    """A new conversation with these items, in order. All or nothing: what `given` raises undoes it.

    Other writes to a SQLite database wait meanwhile, a second for some 20,000 items.
    """
    check_json(metadata, "metadata")
    now, head = now_s(), 0
    with database.write() as connection:
        log = new_log(connection, conversation_id, now, metadata, None, expires_after_s)
        for some in _batches(given):
            times, bodies = zip(*some, strict=True)
            check_items(bodies, "items")
            insert_items(connection, Point(log.id, head + 1), log.fence.epoch, f"import:{head}", bodies, times)
            head += len(bodies)
        connection.execute(update(logs).where(logs.c.id == log.id).values(head=head))
    return Conversation(conversation_id, now, metadata, now, expires_after_s)


def _batches(given: Iterable[TimedItem]) -> Iterator[Sequence[TimedItem]]:
    remaining = iter(given)
    while some := list(islice(remaining, _ITEMS_AT_ONCE)):
        yield some
