"""The items of a log: how they are written, paged and deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, literal, null, select, update
from sqlalchemy.exc import IntegrityError

from serve_app.conversation.checks import is_id
from serve_app.conversation.past import Past, seqs_of
from serve_app.errors import InvalidRequest
from serve_app.storage.schema import items, logs, message_facts
from serve_app.types import Json, Page, PageQuery, now_s
from serve_app.types.conversation import LoggedItem

_LOGS_AT_ONCE = 500
"""PostgreSQL and SQLite take only so many values in one statement."""

# Statements of every turn are built once: building costs as much as SQLite takes to run them.
_INSERT = insert(items)
_FIND_KEY = select(items.c.seq).where(items.c.log_id == bindparam("log"), items.c.idempotency_key == bindparam("key"))
_is_there = and_(
    items.c.log_id == bindparam("log"),
    items.c.seq >= bindparam("first"),
    items.c.seq < bindparam("end"),
    items.c.body.is_not(null()),
)
_SOME = select(items.c.seq, items.c.created_at, items.c.body).where(_is_there).limit(bindparam("max_items"))
_READ, _READ_NEWEST_FIRST = _SOME.order_by(items.c.seq), _SOME.order_by(items.c.seq.desc())
_COUNT = select(func.count()).where(_is_there)


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a log: the item with this seq, or the beginning if it is 0."""

    log_id: str
    seq: int


def insert_items(
    connection: Connection,
    first: Point,
    epoch: int,
    key: str,
    bodies: Sequence[Json],
    times: Sequence[int] | None = None,
) -> None:
    """Write items at and after `first`. Raises `InvalidRequest` if the log already has one of their ids.

    `times` says when each was made, if that is not now.
    """
    if not bodies:
        return
    now = now_s()
    rows = [
        {
            "log_id": first.log_id,
            "seq": first.seq + index,
            "item_id": body["id"],
            "idempotency_key": f"{key}:{index}",
            "epoch": epoch,
            "body": body,
            "created_at": times[index] if times else now,
        }
        for index, body in enumerate(bodies)
    ]
    try:
        connection.execute(_INSERT, rows)
    except IntegrityError as error:
        ids = ", ".join(repr(body["id"]) for body in bodies)
        raise InvalidRequest(f"Items need new ids, but one of these is already there: {ids}.", param="items") from error


def find_appended(connection: Connection, log_id: str, key: str) -> int | None:
    """The seq of the first item that was appended under `key`, if that has been done."""
    seq: int | None = connection.scalar(_FIND_KEY, {"log": log_id, "key": f"{key}:0"})
    return seq


def read_appended(connection: Connection, first: Point, key: str, count: int) -> tuple[Json, ...]:
    """Of the `count` items from `first` on those that were appended under `key` and not deleted since."""
    rows = connection.execute(
        select(items.c.body, items.c.idempotency_key)
        .where(items.c.log_id == first.log_id, items.c.seq >= first.seq, items.c.body.is_not(null()))
        .order_by(items.c.seq)
        .limit(count)
    )
    return tuple(row.body for row in rows if row.idempotency_key.startswith(f"{key}:"))


def read_page(connection: Connection, past: Past, page: PageQuery) -> Page:
    """One page of the items of a past; deleted ones are left out.

    With `before` alone, the page is the one that ends just before that item. Raises `InvalidRequest` for a cursor that
    never was an item of it.
    """
    seqs = seqs_of(past)
    ascends = page.order == "asc"
    if page.after is not None:
        cursor = _find_seq(connection, past, page.after, "after")
        seqs = range(cursor + 1, seqs.stop) if ascends else range(seqs.start, cursor)
    if page.before is not None:
        cursor = _find_seq(connection, past, page.before, "before")
        seqs = range(seqs.start, cursor) if ascends else range(cursor + 1, seqs.stop)
    is_backwards = page.before is not None and page.after is None
    found = read_items(connection, past, seqs, page.limit + 1, newest_first=ascends == is_backwards)
    bodies = [item.body for item in found[: page.limit]]
    return Page(tuple(reversed(bodies) if is_backwards else bodies), has_more=len(found) > page.limit)


def read_items(
    connection: Connection, past: Past, seqs: range, max_items: int, newest_first: bool = False
) -> list[LoggedItem]:
    """The first items of a past, or the last, whose seq is in `seqs`, without deleted ones.

    One query for each log that is needed.
    """
    found: list[LoggedItem] = []
    for segment in reversed(past) if newest_first else past:
        first, end = max(segment.seqs.start, seqs.start), min(segment.seqs.stop, seqs.stop)
        if first < end and len(found) < max_items:
            rows = connection.execute(
                _READ_NEWEST_FIRST if newest_first else _READ,
                {"log": segment.log_id, "first": first, "end": end, "max_items": max_items - len(found)},
            )
            found += [LoggedItem(row.seq, row.created_at, row.body) for row in rows]
    return found


def count_items(connection: Connection, past: Past, seqs: range) -> int:
    """How many items of a past, whose seq is in `seqs`, have not been deleted."""
    count = 0
    for segment in past:
        first, end = max(segment.seqs.start, seqs.start), min(segment.seqs.stop, seqs.stop)
        if first < end:
            count += connection.scalar(_COUNT, {"log": segment.log_id, "first": first, "end": end}) or 0
    return count


def _find_seq(connection: Connection, past: Past, item_id: str, param: str) -> int:
    # A deleted item still marks a place, so that a client can delete what it pages through.
    place = find_place(connection, past, item_id)
    if place is None:
        raise InvalidRequest(f"{param!r} names no item of this list: {item_id!r}.", param=param)
    return place.seq


def find_head(connection: Connection, log_id: str) -> Point | None:
    """The newest place of a log; None if there is no such log."""
    seq = connection.scalar(select(logs.c.head).where(logs.c.id == log_id)) if is_id(log_id) else None
    return None if seq is None else Point(log_id, seq)


def find_place(connection: Connection, past: Past, item_id: str) -> Point | None:
    """Where in a past an item is, or was before it was deleted."""
    if not is_id(item_id):
        return None
    seqs = {segment.log_id: segment.seqs for segment in past}
    log_ids = list(seqs)
    for start in range(0, len(log_ids), _LOGS_AT_ONCE):
        some = log_ids[start : start + _LOGS_AT_ONCE]
        query = select(items.c.log_id, items.c.seq).where(items.c.log_id.in_(some), items.c.item_id == item_id)
        for row in connection.execute(query):
            if row.seq in seqs[row.log_id]:
                return Point(row.log_id, row.seq)
    return None


def read_item(connection: Connection, place: Point) -> Json | None:
    """None if it has been deleted."""
    query = select(items.c.body).where(items.c.log_id == place.log_id, items.c.seq == place.seq)
    body: Json | None = connection.scalar(query)
    return body


def withdraw_items(connection: Connection, log_id: str, item_ids: Sequence[str]) -> None:
    """Delete what the items hold, and free their idempotency keys. Their places stay, so that seqs have no gaps."""
    connection.execute(
        update(items)
        .where(items.c.log_id == log_id, items.c.item_id.in_(item_ids))
        .values(body=null(), idempotency_key=literal("withdrawn:") + items.c.item_id)
    )
    _delete_facts(connection, log_id, item_ids)


def erase_item(connection: Connection, place: Point) -> bool:
    """Delete what an item holds; its place stays, so that seqs have no gaps. False if there is nothing to delete."""
    erased = connection.execute(
        update(items)
        .where(items.c.log_id == place.log_id, items.c.seq == place.seq, items.c.body.is_not(null()))
        .values(body=null())
    )
    connection.execute(
        delete(message_facts).where(message_facts.c.log_id == place.log_id, message_facts.c.seq == place.seq)
    )
    return erased.rowcount == 1


def item_text(item: Json) -> str:
    """What a message says; empty for other items."""
    content = item.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)


def _delete_facts(connection: Connection, log_id: str, item_ids: Sequence[str]) -> None:
    seqs = select(items.c.seq).where(items.c.log_id == log_id, items.c.item_id.in_(item_ids))
    connection.execute(delete(message_facts).where(message_facts.c.log_id == log_id, message_facts.c.seq.in_(seqs)))
