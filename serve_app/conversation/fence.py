"""The fence of a log: what makes it impossible for a process that no longer owns a log to write to it.

A process takes a log over by raising its epoch, and remembers the epoch and the head (the newest seq) it got. Each of
its appends moves the head on, in the transaction of the append, only where both are still what it remembers. Whoever
has written or taken over in between has changed one of them: then nothing matches, the transaction is undone, and the
process takes the log over anew. So however long a process was stalled, and however many believe they own a log, items
never interleave, overwrite each other or get lost.

There is no lease. A lease would keep a second process from trying, and so save work; safety does not need it, and
comes from the fence alone.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cachetools import TTLCache
from sqlalchemy import Connection, bindparam, insert, select, update

from serve_app.conversation.checks import is_id
from serve_app.conversation.items import Point, insert_items
from serve_app.errors import NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import logs
from serve_app.types import Json, now_s

T = TypeVar("T")

IDLE_S = 3600
"""A log that this process has not written to for so long leaves its memory."""

# Statements of every append are built once: building costs as much as SQLite takes to run them.
_MOVE_HEAD = (
    update(logs)
    .where(
        logs.c.id == bindparam("log_id"),
        logs.c.epoch == bindparam("known_epoch"),
        logs.c.head == bindparam("known_head"),
    )
    .values(head=logs.c.head + bindparam("count"), last_active_at=bindparam("now"))
)


class Fenced(Exception):
    """Somebody else has written to the log, or taken it over or deleted it, since we owned it."""


@dataclass(frozen=True, slots=True)
class Fence:
    """What its owner knows of a log, and what must still hold when it writes."""

    epoch: int
    head: int
    is_conversation: bool


@dataclass(slots=True)
class OwnedLog:
    """A log in a write transaction. Its `fence` is worth remembering only once that is committed."""

    connection: Connection
    id: str
    fence: Fence

    def append(self, key: str, items: Sequence[Json]) -> int:
        """Add items to the end, under idempotency keys made from `key`. Returns the seq of the first of them.

        Raises `Fenced` if the log is no longer ours, and `InvalidRequest` if it already has one of the items' ids.
        """
        first_seq = self.fence.head + 1
        self.fence = _move_head(self.connection, self.id, self.fence, len(items))
        insert_items(self.connection, Point(self.id, first_seq), self.fence.epoch, key, items)
        return first_seq


def new_log(
    connection: Connection,
    log_id: str,
    created_at: int,
    conversation_metadata: dict[str, str] | None,
    past: Point | None,
    expires_after_s: int | None = None,
) -> OwnedLog:
    """A new empty log, owned by us: a conversation if it has metadata, even empty. It goes on from `past`."""
    is_conversation = conversation_metadata is not None
    head = past.seq if past else 0
    connection.execute(
        insert(logs).values(
            id=log_id,
            is_conversation=is_conversation,
            metadata=conversation_metadata or {},
            created_at=created_at,
            epoch=1,
            head=head,
            parent_id=past and past.log_id,
            parent_seq=past and past.seq,
            last_active_at=created_at,
            expires_after_s=expires_after_s,
        )
    )
    return OwnedLog(connection, log_id, Fence(epoch=1, head=head, is_conversation=is_conversation))


def take_over(connection: Connection, log_id: str) -> Fence | None:
    """Make us the owner, and everybody else fenced. Until the end of the transaction nobody can fence us.

    None if there is no such log.
    """
    row = connection.execute(
        update(logs)
        .where(logs.c.id == log_id)
        .values(epoch=logs.c.epoch + 1)
        .returning(logs.c.epoch, logs.c.head, logs.c.is_conversation)
    ).one_or_none()
    return None if row is None else Fence(row.epoch, row.head, row.is_conversation)


def keep_log(connection: Connection, log_id: str) -> bool:
    """Whether the log is there; if so, nobody can delete it before the end of the transaction."""
    query = select(logs.c.id).where(logs.c.id == log_id).with_for_update(read=True, key_share=True)
    return connection.scalar(query) is not None


def _move_head(connection: Connection, log_id: str, fence: Fence, count: int) -> Fence:
    known = {"log_id": log_id, "known_epoch": fence.epoch, "known_head": fence.head}
    moved = connection.execute(_MOVE_HEAD, {**known, "count": count, "now": now_s()})
    if moved.rowcount == 0:
        raise Fenced
    return Fence(fence.epoch, fence.head + count, fence.is_conversation)


class Fences:
    """The fences of the logs that this process used last. One that is lost, or out of date, costs one more UPDATE."""

    def __init__(self, database: Database, max_cached: int) -> None:
        self._database = database
        self._by_log: TTLCache[str, Fence] = TTLCache(max_cached, IDLE_S)
        self._lock = threading.Lock()
        self.rejected = 0

    def get(self, log_id: str) -> Fence | None:
        with self._lock:
            return self._by_log.get(log_id)

    def keep(self, log: OwnedLog) -> None:
        with self._lock:
            self._by_log[log.id] = log.fence

    def own(self, log_id: str, write: Callable[[OwnedLog], T], missing: NotFound) -> T:
        """Run `write` in one transaction that owns the log, and once more, from its start, if it was fenced.

        The second time the log is taken over in that same transaction, so nobody can fence it again: they wait.
        Raises `missing` if there is no such log.
        """
        if not is_id(log_id):
            raise missing
        try:
            return self._write(log_id, write, missing, self.get)
        except Fenced:
            with self._lock:
                self.rejected += 1
            return self._write(log_id, write, missing, _no_fence)

    def _write(
        self, log_id: str, write: Callable[[OwnedLog], T], missing: NotFound, known: Callable[[str], Fence | None]
    ) -> T:
        with self._database.write() as connection:
            fence = known(log_id) or take_over(connection, log_id)
            if fence is None:
                raise missing
            log = OwnedLog(connection, log_id, fence)
            result = write(log)
        self.keep(log)
        return result


def _no_fence(_log_id: str) -> None:
    return None
