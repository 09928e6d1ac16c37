"""The past of a log: its own items and, before them, those that it shares with the logs it was forked from.

Seqs go on through it: a fork's first own item has the seq after its fork point. So one number is a place in all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Integer, bindparam, literal_column, select

from serve_app.storage.schema import logs


@dataclass(frozen=True, slots=True)
class Segment:
    """The items of one log that belong to a past: those whose seq is in `seqs`."""

    log_id: str
    seqs: range


Past = Sequence[Segment]
"""Oldest first. Empty for a log that is not there."""


# From the log up to its root. Each parent counts only as far as its child was forked from it.
_child = (
    select(
        logs.c.id,
        logs.c.parent_id,
        logs.c.parent_seq,
        logs.c.head.label("last_seq"),
        literal_column("0", Integer).label("distance"),
    )
    .where(logs.c.id == bindparam("log"))
    .cte("lineage", recursive=True)
)
_LINEAGE = _child.union_all(
    select(logs.c.id, logs.c.parent_id, logs.c.parent_seq, _child.c.parent_seq, _child.c.distance + 1).join(
        _child, logs.c.id == _child.c.parent_id
    )
)
_READ_PAST = select(_LINEAGE).order_by(_LINEAGE.c.distance.desc())


def read_past(connection: Connection, log_id: str) -> Past:
    """One query, however long the past is: it reads of no items."""
    rows = connection.execute(_READ_PAST, {"log": log_id})
    return tuple(Segment(row.id, range((row.parent_seq or 0) + 1, row.last_seq + 1)) for row in rows)


def seqs_of(past: Past) -> range:
    return range(past[0].seqs.start, past[-1].seqs.stop) if past else range(0)
