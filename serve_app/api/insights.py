"""`/v1/conversations/{id}/insights` of one conversation, and `/v1/insights` over many."""

import re
from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context, InContext
from serve_app.conversation.facts import KeptFacts, read_kept_facts
from serve_app.conversation.insights.conversation import build_insights
from serve_app.conversation.insights.gather import gather_facts
from serve_app.conversation.insights.message import VERSION
from serve_app.conversation.insights.overview import build_overview
from serve_app.errors import InvalidRequest
from serve_app.types import ConversationFilter, Json

router = APIRouter(prefix="/v1", tags=["insights"])

Seconds = Annotated[int | None, Query(ge=0, lt=2**53)]
"""Unix time."""

# A quotation mark would end the key in SQLite's path to it.
_METADATA_PARAMETER = re.compile(r"metadata\[([^\"\\\]\[]{1,64})\]")
_MAX_METADATA = 16


@router.get("/conversations/{conversation_id}/insights")
async def get_insights(conversation_id: str, context: InContext) -> Json:
    """The first call after new messages embeds these; the next ones only read."""
    parts = context.parts
    recent = await gather_facts(conversation_id, context.config.encoder.model_id, parts.sessions, parts.embedder)
    return await run_in_threadpool(build_insights, conversation_id, recent)


@router.get("/insights")
async def get_overview(
    request: Request, context: InContext, created_after: Seconds = None, created_before: Seconds = None
) -> Json:
    """Of conversations made in between, whose metadata hold what `metadata[key]=value` asks for."""
    metadata = _read_metadata(request.query_params.multi_items())
    wanted = ConversationFilter(created_after, created_before, metadata)
    return await run_in_threadpool(_overview, context, wanted)


def _overview(context: Context, wanted: ConversationFilter) -> Json:
    with context.database.read() as connection:
        kept: KeptFacts = read_kept_facts(connection, wanted, context.config.encoder.model_id, VERSION)
    return build_overview(kept)


def _read_metadata(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name, value in parameters:
        if not name.startswith("metadata"):
            continue
        match = _METADATA_PARAMETER.fullmatch(name)
        if match is None or match[1] in metadata:
            raise InvalidRequest(
                f"{name!r} filters nothing: say metadata[key]=value, with each key once and of 1 to 64 characters"
                " without quotation marks, backslashes and brackets",
                param="metadata",
            )
        metadata[match[1]] = value
    if len(metadata) > _MAX_METADATA:
        raise InvalidRequest(f"At most {_MAX_METADATA} metadata keys can be filtered by", param="metadata")
    return metadata
