"""What the insights know of each message, kept beside it: a row of facts for each, and none for what was deleted.

Here is only the SQL. What the facts are, and what is made of them, is in `insights/`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Select,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    not_,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.sql import ColumnElement

from serve_app.conversation.fence import keep_log
from serve_app.conversation.items import Point
from serve_app.storage.schema import items, logs, message_facts
from serve_app.types import Json
from serve_app.types.conversation import ConversationFilter, LoggedMessage, MessageFacts, SaveFacts

MAX_MESSAGES = 2_000
"""Of one conversation: its newest. Older ones no longer say what it is about now."""

MAX_SEQ = 2**31 - 1

MAX_CONVERSATIONS = 1_000
"""Of an overview: the newest."""

MAX_OVERVIEW_MESSAGES = 10_000
"""Of an overview: a second's work for one core."""

_CONVERSATIONS_AT_ONCE = 100


def read_messages(
    connection: Connection, end: Point | None, encoder: str, version: int, max_messages: int
) -> list[LoggedMessage]:
    """The newest messages up to and with `end`, oldest first, reaching back through the parents of its log.

    One query for each log that is needed.
    """
    newest_first: list[LoggedMessage] = []
    while end is not None and len(newest_first) < max_messages:
        is_current = and_(message_facts.c.encoder == encoder, message_facts.c.version == version)
        has_facts = and_(message_facts.c.seq.is_not(null()), is_current)
        # SQLAlchemy does not know the columns of so wide a query as types.
        query: Select[Any] = (
            select(
                items.c.log_id,
                items.c.seq,
                items.c.item_id,
                items.c.created_at,
                case((has_facts, message_facts.c.body)).label("facts"),
                case((has_facts, message_facts.c.vector)).label("vector"),
                case((not_(has_facts), items.c.body)).label("body"),
            )
            .select_from(items)
            .outerjoin(
                message_facts, and_(message_facts.c.log_id == items.c.log_id, message_facts.c.seq == items.c.seq)
            )
            .where(items.c.log_id == end.log_id, items.c.seq <= end.seq, items.c.body.is_not(null()))
            .where(or_(has_facts, _is_message()))
            .order_by(items.c.seq.desc())
            .limit(max_messages - len(newest_first))
        )
        newest_first += [_logged(row) for row in connection.execute(query)]
        end = _parent_of(connection, end.log_id)
    return newest_first[::-1]


def save_facts(connection: Connection, facts: SaveFacts) -> None:
    """Twice changes nothing, nor if two do it at once. What was deleted meanwhile is left out."""
    # Nobody waits in a circle: logs are locked first and in one order, and an item that somebody is changing is left
    # out, as its facts can be computed again.
    kept_logs = {log_id for log_id in sorted({each.log_id for each in facts.messages}) if keep_log(connection, log_id)}
    places = [(each.log_id, each.seq) for each in facts.messages if each.log_id in kept_logs]
    place = tuple_(items.c.log_id, items.c.seq)
    there = connection.execute(
        select(items.c.log_id, items.c.seq)
        .where(place.in_(places), items.c.body.is_not(null()))
        .with_for_update(skip_locked=True)
    )
    kept = {(row.log_id, row.seq) for row in there}
    rows = [
        {
            "log_id": message.log_id,
            "seq": message.seq,
            "encoder": facts.encoder,
            "version": facts.version,
            "vector": message.facts.vector,
            "body": _to_json(message.facts),
        }
        for message in facts.messages
        if message.facts is not None and (message.log_id, message.seq) in kept
    ]
    if rows:
        connection.execute(delete(message_facts).where(tuple_(message_facts.c.log_id, message_facts.c.seq).in_(kept)))
        connection.execute(insert(message_facts), rows)


@dataclass(frozen=True, slots=True)
class KeptFacts:
    """What is known of many conversations."""

    conversations: int
    """That match, all of them."""
    looked_at: int
    """The newest of them."""
    messages: list[list[LoggedMessage]]
    """Of each conversation that has facts, oldest first. What a fork shares with another counts for the other only."""
    is_truncated: bool
    """Not all that match were looked at."""


def read_kept_facts(connection: Connection, wanted: ConversationFilter, encoder: str, version: int) -> KeptFacts:
    """Only what is there: nothing is computed. Newest conversations first, up to `MAX_CONVERSATIONS` and
    `MAX_OVERVIEW_MESSAGES`.
    """
    matches = _matching(wanted)
    count = connection.scalar(select(func.count()).select_from(logs).where(*matches)) or 0
    newest = select(logs.c.id).where(*matches).order_by(logs.c.created_at.desc(), logs.c.id.desc())
    ids = connection.scalars(newest.limit(MAX_CONVERSATIONS)).all()
    found: list[list[LoggedMessage]] = []
    looked_at = total = 0
    for start in range(0, len(ids), _CONVERSATIONS_AT_ONCE):
        batch = ids[start : start + _CONVERSATIONS_AT_ONCE]
        by_log = _read_kept(connection, batch, encoder, version)
        for log_id in batch:
            messages = by_log.get(log_id, [])
            if total + len(messages) > MAX_OVERVIEW_MESSAGES:
                return KeptFacts(count, looked_at, found, is_truncated=True)
            looked_at, total = looked_at + 1, total + len(messages)
            if messages:
                found.append(messages)
    return KeptFacts(count, looked_at, found, is_truncated=looked_at < count)


def _matching(wanted: ConversationFilter) -> list[ColumnElement[bool]]:
    matches: list[ColumnElement[bool]] = [logs.c.is_conversation]
    if wanted.created_after is not None:
        matches.append(logs.c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        matches.append(logs.c.created_at < wanted.created_before)
    return matches + [logs.c.metadata[key].as_string() == value for key, value in wanted.metadata.items()]


def _read_kept(
    connection: Connection, log_ids: Sequence[str], encoder: str, version: int
) -> dict[str, list[LoggedMessage]]:
    rows = connection.execute(
        select(
            items.c.log_id,
            items.c.seq,
            items.c.item_id,
            items.c.created_at,
            message_facts.c.body.label("facts"),
            message_facts.c.vector,
            literal(None).label("body"),
        )
        .join(items, and_(items.c.log_id == message_facts.c.log_id, items.c.seq == message_facts.c.seq))
        .where(message_facts.c.log_id.in_(log_ids))
        .where(message_facts.c.encoder == encoder, message_facts.c.version == version)
        .order_by(message_facts.c.log_id, message_facts.c.seq)
        .limit(MAX_OVERVIEW_MESSAGES + 1)
    )
    by_log: dict[str, list[LoggedMessage]] = {}
    for row in rows:
        by_log.setdefault(row.log_id, []).append(_logged(row))
    return by_log


def _is_message() -> ColumnElement[bool]:
    """What a user or an assistant said."""
    role = items.c.body["role"].as_string()
    return and_(items.c.body["type"].as_string() == "message", role.in_(("user", "assistant")))


def _parent_of(connection: Connection, log_id: str) -> Point | None:
    row = connection.execute(select(logs.c.parent_id, logs.c.parent_seq).where(logs.c.id == log_id)).one_or_none()
    return Point(row.parent_id, row.parent_seq) if row and row.parent_id else None


# As above.
def _logged(row: Row[Any]) -> LoggedMessage:
    facts = None if row.facts is None else _from_json(row.facts, row.vector)
    return LoggedMessage(row.log_id, row.seq, row.item_id, row.created_at, facts, row.body)


def _to_json(facts: MessageFacts) -> Json:
    body = asdict(facts)
    del body["vector"]
    return body


def _from_json(body: Json, vector: bytes) -> MessageFacts:
    terms = tuple(body.pop("terms"))
    return MessageFacts(**body, terms=terms, vector=vector)
