"""`/v1/conversations` and their items."""

from hashlib import sha256
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field

from serve_app.api.context import InContext
from serve_app.api.items import InputItem, build_items
from serve_app.api.wire import Metadata, PageParameters, Wire
from serve_app.types import Json, Page, new_id
from serve_app.types.conversation import AppendItems, ForkConversation, ItemSearch

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

MAX_ITEMS = 20
"""Items that one call may add."""


class ConversationExpiry(Wire):
    anchor: Literal["last_active_at"]
    seconds: int = Field(ge=60, le=10 * 365 * 86_400)


def seconds_of(expiry: ConversationExpiry | None) -> int | None:
    return None if expiry is None else expiry.seconds


class CreateConversation(Wire):
    metadata: Metadata | None = None
    items: Annotated[list[InputItem], Field(max_length=MAX_ITEMS)] | None = None
    expires_after: ConversationExpiry | None = None


class UpdateConversation(Wire):
    """What is not sent stays; `null` empties a field."""

    metadata: Metadata | None = None
    expires_after: ConversationExpiry | None = None


class CreateItems(Wire):
    items: Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]


class ForkBody(Wire):
    item_id: Annotated[str, Field(max_length=80)] | None = None
    metadata: Metadata | None = None


class SearchBody(Wire):
    query: Annotated[str, Field(min_length=1, max_length=1000)]
    limit: int = Field(20, ge=1, le=100)
    page: Annotated[str, Field(max_length=120)] | None = None


class SearchAllBody(SearchBody):
    metadata: Metadata | None = None
    created_after: Annotated[int, Field(ge=0, lt=2**40)] | None = None
    created_before: Annotated[int, Field(ge=0, lt=2**40)] | None = None


IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
OtherId = Annotated[str, Query(alias="with", max_length=80)]


@router.get("")
async def list_conversations(page: Annotated[PageParameters, Query()], request: Request, context: InContext) -> Json:
    """Newest first. `metadata[key]=value`, which may be there more than once, leaves out those that have it not."""
    listed = await context.parts.sessions.list_conversations(page.to_query(), _metadata_in(request))
    return listed.to_json()


def _metadata_in(request: Request) -> dict[str, str]:
    given = request.query_params.multi_items()
    return {name[9:-1]: value for name, value in given if name.startswith("metadata[") and name.endswith("]")}


@router.post("")
async def create_conversation(context: InContext, body: CreateConversation | None = None) -> Json:
    body = body or CreateConversation()
    items = build_items(body.items or (), "items")
    # Made here, so that it is one conversation even if a replica that dies is asked to make it, and then another.
    conversation_id = new_id("conv")
    conversation = await context.parts.sessions.create_conversation(
        conversation_id, body.metadata or {}, items, seconds_of(body.expires_after)
    )
    return conversation.to_json()


# Before the routes of one conversation: `search` is no conversation's id.
@router.post("/search")
async def search_conversations(body: SearchAllBody, context: InContext) -> Json:
    """Messages that hold every word of `query`, newest first, of all conversations with this metadata."""
    search = ItemSearch(
        query=body.query,
        metadata=body.metadata or {},
        created_after=body.created_after,
        created_before=body.created_before,
        limit=body.limit,
        page=body.page,
    )
    found = await context.parts.sessions.search_items(search)
    return found.to_json()


@router.get("/{conversation_id}")
async def get_conversation(conversation_id: str, context: InContext) -> Json:
    conversation = await context.parts.sessions.get_conversation(conversation_id)
    return conversation.to_json()


@router.post("/{conversation_id}")
async def update_conversation(conversation_id: str, body: UpdateConversation, context: InContext) -> Json:
    changes: Json = {}
    if "metadata" in body.model_fields_set:
        changes["metadata"] = body.metadata or {}
    if "expires_after" in body.model_fields_set:
        changes["expires_after_s"] = seconds_of(body.expires_after)
    conversation = await context.parts.sessions.update_conversation(conversation_id, changes)
    return conversation.to_json()


@router.delete("/{conversation_id}")
async def delete_conversation(conversation_id: str, context: InContext) -> Json:
    await context.parts.sessions.delete_conversation(conversation_id)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post("/{conversation_id}/items")
async def create_items(
    conversation_id: str,
    body: CreateItems,
    context: InContext,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Answers with the items as stored. The same `Idempotency-Key` again answers the same, and adds nothing."""
    append = AppendItems(conversation_id, build_items(body.items, "items"), idempotency_key or new_id("key"))
    stored = await context.parts.sessions.append_items(append)
    return Page(stored, has_more=False).to_json()


@router.get("/{conversation_id}/items")
async def list_items(conversation_id: str, page: Annotated[PageParameters, Query()], context: InContext) -> Json:
    items = await context.parts.sessions.list_items(conversation_id, page.to_query())
    return items.to_json()


@router.get("/{conversation_id}/items/{item_id}")
async def get_item(conversation_id: str, item_id: str, context: InContext) -> Json:
    return await context.parts.sessions.get_item(conversation_id, item_id)


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(conversation_id: str, item_id: str, context: InContext) -> Json:
    """Answers with the conversation, as OpenAI does."""
    conversation = await context.parts.sessions.delete_item(conversation_id, item_id)
    return conversation.to_json()


@router.post("/{conversation_id}/fork")
async def fork_conversation(
    conversation_id: str,
    context: InContext,
    body: ForkBody | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """A new conversation whose past is this one's, up to and with `item_id`. The same `Idempotency-Key` makes one."""
    body = body or ForkBody()
    fork_id = _fork_id(conversation_id, idempotency_key) if idempotency_key else new_id("conv")
    fork = ForkConversation(conversation_id, fork_id, body.item_id, body.metadata or {})
    forked = await context.parts.sessions.fork_conversation(fork)
    return forked.to_json()


def _fork_id(conversation_id: str, idempotency_key: str) -> str:
    """The same for the same request again, and as hard to guess as the conversation's own."""
    return "conv_" + sha256(f"{conversation_id} {idempotency_key}".encode()).hexdigest()[:48]


@router.get("/{conversation_id}/branches")
async def list_branches(conversation_id: str, context: InContext) -> Json:
    """The tree that it belongs to, as a list: parents before their children."""
    return await context.parts.sessions.list_branches(conversation_id)


@router.get("/{conversation_id}/compare")
async def compare_conversations(conversation_id: str, other_id: OtherId, context: InContext) -> Json:
    return await context.parts.sessions.compare_conversations(conversation_id, other_id)


@router.post("/{conversation_id}/search")
async def search_conversation(conversation_id: str, body: SearchBody, context: InContext) -> Json:
    """Messages that hold every word of `query`, newest first."""
    search = ItemSearch(body.query, conversation_id, limit=body.limit, page=body.page)
    found = await context.parts.sessions.search_items(search)
    return found.to_json()
