"""`GET /v1/conversations/{id}/context`: what the model will be shown of a conversation at its next turn."""

from fastapi import APIRouter

from serve_app.api.checks import require_model
from serve_app.api.context import InContext
from serve_app.generation.prompt import build_messages, text_of
from serve_app.generation.settings import DEFAULT_MAX_TOKENS
from serve_app.memory import fit, max_read_items, shown_text, token_limit
from serve_app.types import Json
from serve_app.types.conversation import Summary

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])


@router.get("/{conversation_id}/context")
async def get_context(conversation_id: str, context: InContext, model: str | None = None) -> Json:
    """Without the instructions, the question and the sources, which come with the request, as `model` does."""
    model_id = require_model(context, model)
    config, parts = context.config.of(model_id), context.parts.of(model_id)
    await parts.sessions.get_conversation(conversation_id)  # a response's own log is none
    window = await parts.sessions.read_window(conversation_id, max_read_items(config))
    window = fit(window, token_limit(config, (), DEFAULT_MAX_TOKENS, parts), config, parts)
    messages = build_messages(None, window, ())
    items = [item for item in window.items if item.body.get("type") == "message"]
    return {
        "object": "conversation.context",
        "conversation_id": conversation_id,
        "messages": messages,
        "tokens": sum(parts.count_tokens(text_of(each["content"])) for each in messages),
        "summary": _summary_to_json(window.summary) if window.summary else None,
        "window": {
            "item_ids": [item.body["id"] for item in items],
            "tokens": sum(parts.count_tokens(shown_text(item)) for item in items),
            "max_items": config.sessions.max_history_items,
            "max_tokens": config.sessions.max_history_tokens,
        },
    }


def _summary_to_json(summary: Summary) -> Json:
    return {
        "text": summary.text,
        "tokens": summary.tokens,
        "model": summary.model,
        "created_at": summary.created_at,
        # All from the beginning up to and with this item.
        "last_item_id": summary.last_item_id,
    }
