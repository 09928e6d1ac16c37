"""Conversations as rows: found, listed, and those that have been idle for too long."""

from sqlalchemy import Connection, RowMapping, Select, and_, bindparam, exists, func, select, update

from serve_app.conversation.checks import is_id, not_found
from serve_app.conversation.forks import drop_conversation
from serve_app.conversation.responses import delete_response, drop_unused_logs
from serve_app.conversation.search import has_metadata
from serve_app.storage.paging import select_page
from serve_app.storage.schema import items, logs, responses
from serve_app.types import Json, Page, PageQuery, now_s
from serve_app.types.conversation import Conversation, ForkPoint

EXPIRED_AT_ONCE = 100
"""Conversations, and responses, that one call of `ConversationLog.delete_expired` deletes."""

_parent = logs.alias("parent")
_CONVERSATIONS = (
    select(logs, items.c.item_id.label("fork_item_id"), _parent.c.is_conversation.label("parent_is_conversation"))
    .outerjoin(_parent, _parent.c.id == logs.c.parent_id)
    .outerjoin(items, and_(items.c.log_id == logs.c.parent_id, items.c.seq == logs.c.parent_seq))
)
_FIND = _CONVERSATIONS.where(logs.c.id == bindparam("log"), logs.c.is_conversation)


def find_conversation(connection: Connection, conversation_id: str) -> Conversation | None:
    if not is_id(conversation_id):
        return None
    row = connection.execute(_FIND, {"log": conversation_id}).mappings().one_or_none()
    return None if row is None else _conversation(row)


def require_conversation(connection: Connection, conversation_id: str) -> Conversation:
    """Raises `NotFound`."""
    conversation = find_conversation(connection, conversation_id)
    if conversation is None:
        raise not_found("Conversation", conversation_id)
    return conversation


def read_conversations(connection: Connection, page: PageQuery, metadata: dict[str, str]) -> Page:
    """Those that have all this metadata. Raises `InvalidRequest` for an unknown cursor."""
    has_all = and_(logs.c.is_conversation, *has_metadata(metadata))
    rows, has_more = select_page(connection, _CONVERSATIONS, (logs.c.created_at, logs.c.id), page, only=has_all)
    return Page(tuple(_conversation(row).to_json() for row in rows), has_more)


def change_conversation(connection: Connection, conversation_id: str, changes: Json) -> None:
    values = {**changes, "last_active_at": now_s()}
    connection.execute(update(logs).where(logs.c.id == conversation_id).values(values))


def _conversation(row: RowMapping) -> Conversation:
    forked_from = None
    if row["fork_item_id"] is not None:
        parent_id = row["parent_id"] if row["parent_is_conversation"] else None
        forked_from = ForkPoint(parent_id, row["fork_item_id"])
    return Conversation(
        id=row["id"],
        created_at=row["created_at"],
        metadata=row["metadata"],
        last_active_at=row["last_active_at"],
        expires_after_s=row["expires_after_s"],
        forked_from=forked_from,
    )


# --- expiry -------------------------------------------------------------------------------------


def select_expired(default_after_s: float | None) -> Select[str]:
    """Some of the logs of conversations, and of responses outside of any, that have been idle for too long."""
    idle_s = now_s() - logs.c.last_active_at
    has_expired = func.coalesce(logs.c.expires_after_s, default_after_s) <= idle_s
    has_response = exists().where(responses.c.id == logs.c.id)
    return select(logs.c.id).where(has_expired, logs.c.is_conversation | has_response).limit(EXPIRED_AT_ONCE)


def drop_log(connection: Connection, log_id: str) -> None:
    """Delete a conversation, or the response that the log is named after."""
    if not drop_conversation(connection, log_id):
        delete_response(connection, log_id)
        drop_unused_logs(connection, log_id)
