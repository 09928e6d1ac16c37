"""The items of a log: how they are written, paged and deleted."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, literal, null, select, update
from sqlalchemy.exc import IntegrityError

from serve_app.conversation.checks import is_id
from serve_app.errors import InvalidRequest
from serve_app.storage.schema import items, logs
from serve_app.types import Json, Page, PageQuery, now_s

# Statements of every turn are built once: building costs as much as SQLite takes to run them.
_INSERT = insert(items)
_FIND_KEY = select(items.c.seq).where(items.c.log_id == bindparam("log"), items.c.idempotency_key == bindparam("key"))


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a log: the item with this seq, or the beginning if it is 0."""

    log_id: str
    seq: int


def insert_items(connection: Connection, first: Point, epoch: int, key: str, bodies: Sequence[Json]) -> None:
    """Write items at and after `first`. Raises `InvalidRequest` if the log already has one of their ids."""
    if not bodies:
        return
    created_at = now_s()
    rows = [
        {
            "log_id": first.log_id,
            "seq": first.seq + index,
            "item_id": body["id"],
            "idempotency_key": f"{key}:{index}",
            "epoch": epoch,
            "body": body,
            "created_at": created_at,
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


def read_page(connection: Connection, log_id: str, page: PageQuery, seqs: range | None = None) -> Page:
    """One page of the items of a log, or of those whose seq is in `seqs`; deleted ones are left out.

    With `before` alone, the page is the one that ends just before that item. Raises `InvalidRequest` for a cursor that
    never was an item of the log.
    """
    query = select(items.c.body).where(items.c.log_id == log_id, items.c.body.is_not(null()))
    if seqs is not None:
        query = query.where(items.c.seq >= seqs.start, items.c.seq < seqs.stop)
    ascends = page.order == "asc"
    if page.after is not None:
        cursor = _find_seq(connection, log_id, page.after, "after")
        query = query.where(items.c.seq > cursor if ascends else items.c.seq < cursor)
    if page.before is not None:
        cursor = _find_seq(connection, log_id, page.before, "before")
        query = query.where(items.c.seq < cursor if ascends else items.c.seq > cursor)
    is_backwards = page.before is not None and page.after is None
    query = query.order_by(items.c.seq if ascends != is_backwards else items.c.seq.desc())
    bodies = connection.scalars(query.limit(page.limit + 1)).all()
    kept = bodies[: page.limit]
    return Page(tuple(reversed(kept) if is_backwards else kept), has_more=len(bodies) > page.limit)


def _find_seq(connection: Connection, log_id: str, item_id: str, param: str) -> int:
    # A deleted item still marks a place, so that a client can delete what it pages through.
    query = select(items.c.seq).where(items.c.log_id == log_id, items.c.item_id == item_id)
    seq: int | None = connection.scalar(query) if is_id(item_id) else None
    if seq is None:
        raise InvalidRequest(f"{param!r} names no item of this list: {item_id!r}.", param=param)
    return seq


def find_head(connection: Connection, log_id: str) -> Point | None:
    """The newest place of a log; None if there is no such log."""
    seq = connection.scalar(select(logs.c.head).where(logs.c.id == log_id)) if is_id(log_id) else None
    return None if seq is None else Point(log_id, seq)


def find_item(connection: Connection, log_id: str, item_id: str) -> Json | None:
    if not is_id(item_id):
        return None
    body: Json | None = connection.scalar(
        select(items.c.body).where(items.c.log_id == log_id, items.c.item_id == item_id)
    )
    return body


def withdraw_items(connection: Connection, log_id: str, item_ids: Sequence[str]) -> None:
    """Delete what the items hold, and free their idempotency keys. Their places stay, so that seqs have no gaps."""
    connection.execute(
        update(items)
        .where(items.c.log_id == log_id, items.c.item_id.in_(item_ids))
        .values(body=null(), idempotency_key=literal("withdrawn:") + items.c.item_id)
    )


def erase_item(connection: Connection, log_id: str, item_id: str) -> bool:
    """Delete what an item holds; its place stays, so that seqs have no gaps. False if there is nothing to delete."""
    if not is_id(item_id):
        return False
    erased = connection.execute(
        update(items)
        .where(items.c.log_id == log_id, items.c.item_id == item_id, items.c.body.is_not(null()))
        .values(body=null())
    )
    return erased.rowcount == 1
