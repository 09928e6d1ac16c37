"""Forks: where a new branch leaves its past, the tree of all branches, two of them compared, one of them deleted."""

from sqlalchemy import Connection, Integer, bindparam, delete, insert, literal_column, select, update

from serve_app.conversation.fence import keep_log
from serve_app.conversation.items import Point, count_items, find_place, read_item, read_items
from serve_app.conversation.past import Past, read_past, seqs_of
from serve_app.conversation.responses import drop_unused_logs, find_shared_seq
from serve_app.storage.schema import items, logs, responses
from serve_app.types import Json, new_id

MAX_BRANCHES = 1000
"""Of a tree that one call shows."""

MAX_COMPARED_IDS = 100
"""Of the items that only one of two branches has."""

_branch = select(logs.c.id, literal_column("0", Integer).label("depth")).where(logs.c.id == bindparam("root"))
_tree = _branch.cte("tree", recursive=True)
_TREE = _tree.union_all(select(logs.c.id, _tree.c.depth + 1).join(_tree, logs.c.parent_id == _tree.c.id))
# Unordered, so that a database need not find all of a tree to show its beginning: both go level by level.
_READ_TREE = select(_TREE).limit(MAX_BRANCHES + 1)


def find_fork_point(connection: Connection, past: Past, item_id: str | None) -> Point | None:
    """The item of the past, or its newest place, kept from deletion until the end of the transaction. None if there is
    no such item. Of an empty past, seq 0.
    """
    if item_id is not None:
        point = find_place(connection, past, item_id)
        if point is None or not keep_log(connection, point.log_id) or read_item(connection, point) is None:
            return None
        return point
    seqs = seqs_of(past)
    if not seqs:
        return Point(past[0].log_id, 0)
    point = next(Point(segment.log_id, seqs[-1]) for segment in past if seqs[-1] in segment.seqs)
    return point if keep_log(connection, point.log_id) and _is_there(connection, point) else None


def _is_there(connection: Connection, point: Point) -> bool:
    query = select(items.c.seq).where(items.c.log_id == point.log_id, items.c.seq == point.seq)
    return connection.scalar(query) is not None


# --- the tree -----------------------------------------------------------------------------------


def read_branches(connection: Connection, past: Past) -> Json:
    """The whole tree that a log belongs to: parents before their children, siblings in the order of their creation."""
    rows = connection.execute(_READ_TREE, {"root": past[0].log_id}).all()
    depths = {row.id: row.depth for row in rows[:MAX_BRANCHES]}
    query = (
        select(logs, items.c.item_id, responses.c.id.label("response_id"))
        .outerjoin(items, (items.c.log_id == logs.c.parent_id) & (items.c.seq == logs.c.parent_seq))
        .outerjoin(responses, responses.c.id == logs.c.id)
        .where(logs.c.id.in_(list(depths)))
    )
    branches = connection.execute(query).all()
    return {
        "object": "list",
        "root": past[0].log_id,
        "data": [
            {
                "id": row.id,
                "object": _kind(row.is_conversation, row.response_id),
                "parent_id": row.parent_id,
                "forked_after": row.item_id,
                "depth": depths[row.id],
                "created_at": row.created_at,
                "metadata": row.metadata,
                "own_items": row.head - (row.parent_seq or 0),
            }
            for row in sorted(branches, key=lambda row: (depths[row.id], row.created_at, row.id))
        ],
        "has_more": len(rows) > MAX_BRANCHES,
    }


def _kind(is_conversation: bool, response_id: str | None) -> str:
    if is_conversation:
        return "conversation"
    return "response" if response_id else "deleted"


# --- comparing ----------------------------------------------------------------------------------


def compare(connection: Connection, one: str, other: str) -> Json:
    """Where two branches part, and what only one of them has: how many items, and the ids of the first."""
    past, other_past = read_past(connection, one), read_past(connection, other)
    common_seq = _last_common_seq(past, other_past)
    common = read_items(connection, past, range(1, common_seq + 1), 1, newest_first=True)
    return {
        "object": "conversation.comparison",
        "last_common_item_id": common[0].body["id"] if common else None,
        "only_here": _only(connection, one, past, common_seq),
        "only_there": _only(connection, other, other_past, common_seq),
    }


def _last_common_seq(past: Past, other: Past) -> int:
    """0 if they share nothing."""
    common = 0
    for one, two in zip(past, other, strict=False):
        if one.log_id != two.log_id:
            break
        common = min(one.seqs.stop, two.seqs.stop) - 1
        if one.seqs.stop != two.seqs.stop:
            break
    return common


def _only(connection: Connection, conversation_id: str, past: Past, common_seq: int) -> Json:
    seqs = range(common_seq + 1, seqs_of(past).stop)
    found = read_items(connection, past, seqs, MAX_COMPARED_IDS)
    count = count_items(connection, past, seqs)
    return {
        "conversation_id": conversation_id,
        "count": count,
        "item_ids": [item.body["id"] for item in found],
        "has_more": count > len(found),
    }


# --- deleting -----------------------------------------------------------------------------------


def drop_conversation(connection: Connection, conversation_id: str) -> bool:
    """Delete a conversation with all that belongs to it. False if there is none.

    What forks share with it moves to a log without a name of its own, which goes with the last of them.
    """
    # In the order in which `close_turn` locks them.
    connection.execute(delete(responses).where(responses.c.log_id == conversation_id))
    # The parent first, as its own deletion does: so that neither waits for the other.
    parent_id = connection.scalar(select(logs.c.parent_id).where(logs.c.id == conversation_id))
    connection.execute(select(logs.c.id).where(logs.c.id == parent_id).with_for_update())
    is_this = (logs.c.id == conversation_id) & logs.c.is_conversation
    log = connection.execute(select(logs).where(is_this).with_for_update()).mappings().one_or_none()
    if log is None:
        return False
    shared_seq = find_shared_seq(connection, conversation_id)
    if shared_seq is not None:
        past_id = new_id("past")
        shared = {"id": past_id, "is_conversation": False, "metadata": {}, "head": shared_seq, "expires_after_s": None}
        connection.execute(insert(logs).values({**log, **shared}))
        is_shared = (items.c.log_id == conversation_id) & (items.c.seq <= shared_seq)
        connection.execute(update(items).where(is_shared).values(log_id=past_id))
        connection.execute(update(logs).where(logs.c.parent_id == conversation_id).values(parent_id=past_id))
    connection.execute(delete(logs).where(logs.c.id == conversation_id))
    if shared_seq is None and log["parent_id"] is not None:
        drop_unused_logs(connection, log["parent_id"])
    return True
