"""Forks and expiry of conversations. Seqs go on through a past: a branch's first has the one after its fork point."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("logs") as logs:
        logs.add_column(sa.Column("last_active_at", sa.BigInteger))
        logs.add_column(sa.Column("expires_after_s", sa.BigInteger))
    _number_branches()
    # Nothing has said so far when a log was used: it counts from today.
    op.execute(sa.update(_logs).values(last_active_at=int(time.time())))
    with op.batch_alter_table("logs") as logs:
        logs.alter_column("last_active_at", existing_type=sa.BigInteger, nullable=False)
        logs.create_index("logs_by_creation", ["created_at", "id"])
    with op.batch_alter_table("items") as items:
        items.create_index("items_by_time", ["created_at"])


_logs = sa.table(
    "logs",
    *(sa.column(name) for name in ("id", "head", "parent_id", "parent_seq", "last_active_at")),
)
_items = sa.table("items", sa.column("log_id"), sa.column("seq"))
_responses = sa.table("responses", sa.column("log_id"), sa.column("first_seq"), sa.column("last_seq"))


def _number_branches() -> None:
    """So far each log counted from 1. How many items come before it, its ancestors say."""
    connection = op.get_bind()
    branches = connection.execute(sa.select(_logs).where(_logs.c.parent_id.is_not(None))).mappings().all()
    parents = {row["id"]: row for row in branches}
    here = set(connection.scalars(sa.select(_logs.c.id)))
    offsets: dict[str, int] = {}
    for row in branches:
        # From the log up to one whose offset is known, and down again: a chain may be longer than Python's stack.
        chain = [row]
        while (parent := parents.get(chain[-1]["parent_id"])) is not None and parent["id"] not in offsets:
            chain.append(parent)
        for each in reversed(chain):
            parent_id, parent_seq = each["parent_id"], each["parent_seq"]
            offsets[each["id"]] = offsets.get(parent_id, 0) + parent_seq if parent_id in here else 0
    for row in branches:
        _move(connection, row, offsets)


def _move(connection: sa.Connection, row: sa.RowMapping, offsets: dict[str, int]) -> None:
    log_id, parent_id, offset = row["id"], row["parent_id"], offsets[row["id"]]
    values = {"head": row["head"] + offset, "parent_id": None, "parent_seq": None}
    if offset:
        values |= {"parent_id": parent_id, "parent_seq": row["parent_seq"] + offsets.get(parent_id, 0)}
    connection.execute(sa.update(_logs).where(_logs.c.id == log_id).values(values))
    # In two steps, as a seq must never be there twice.
    of_log = _items.c.log_id == log_id
    connection.execute(sa.update(_items).where(of_log).values(seq=-_items.c.seq - offset))
    connection.execute(sa.update(_items).where(of_log).values(seq=-_items.c.seq))
    moved = {"first_seq": _responses.c.first_seq + offset, "last_seq": _responses.c.last_seq + offset}
    connection.execute(sa.update(_responses).where(_responses.c.log_id == log_id).values(moved))
