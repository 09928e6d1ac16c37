"""`/v1/conversations` and their items."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic import Field

from serve_app.api.context import InContext
from serve_app.api.items import InputItem, build_items
from serve_app.api.wire import Metadata, PageParameters, Wire
from serve_app.types import AppendItems, Json, Page, new_id

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

MAX_ITEMS = 20
"""Items that one call may add."""


class CreateConversation(Wire):
    metadata: Metadata | None = None
    items: Annotated[list[InputItem], Field(max_length=MAX_ITEMS)] | None = None


class UpdateConversation(Wire):
    metadata: Metadata


class CreateItems(Wire):
    items: Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]


@router.post("")
async def create_conversation(context: InContext, body: CreateConversation | None = None) -> Json:
    body = body or CreateConversation()
    items = build_items(body.items or (), "items")
    # Made here, so that it is one conversation even if a replica that dies is asked to make it, and then another.
    conversation_id = new_id("conv")
    conversation = await context.parts.sessions.create_conversation(conversation_id, body.metadata or {}, items)
    return conversation.to_json()


@router.get("/{conversation_id}")
async def get_conversation(conversation_id: str, context: InContext) -> Json:
    conversation = await context.parts.sessions.get_conversation(conversation_id)
    return conversation.to_json()


@router.post("/{conversation_id}")
async def update_conversation(conversation_id: str, body: UpdateConversation, context: InContext) -> Json:
    conversation = await context.parts.sessions.update_conversation(conversation_id, body.metadata)
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
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
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
