"""`/v1/conversations/{id}/insights` of one conversation, and `/v1/insights` over many."""

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Annotated, NoReturn

from fastapi import APIRouter, FastAPI, Query, Request
from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context, InContext
from serve_app.conversation.facts import KeptFacts, read_kept_facts
from serve_app.conversation.insights.conversation import build_insights
from serve_app.conversation.insights.gather import gather_facts
from serve_app.conversation.insights.message import VERSION
from serve_app.conversation.insights.overview import build_overview
from serve_app.errors import InvalidRequest, NotFound, RayconteurError
from serve_app.types import Json
from serve_app.types.conversation import ConversationFilter, RecentMessages

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["insights"])

Seconds = Annotated[int | None, Query(ge=0, lt=2**53)]
"""Unix time."""

# A quotation mark would end the key in SQLite's path to it.
_METADATA_PARAMETER = re.compile(r"metadata\[([^\"\\\]\[]{1,64})\]")
_MAX_METADATA = 16
_KEEP_EVERY_S = 5


@router.get("/conversations/{conversation_id}/insights")
async def get_insights(conversation_id: str, context: InContext) -> Json:
    """The first call after new messages embeds these; the next ones only read."""
    recent = await _gather(conversation_id, context)
    return await run_in_threadpool(build_insights, conversation_id, recent)


@router.get("/insights")
async def get_overview(
    request: Request, context: InContext, created_after: Seconds = None, created_before: Seconds = None
) -> Json:
    """Of conversations made in between, whose metadata hold what `metadata[key]=value` asks for."""
    metadata = _read_metadata(request.query_params.multi_items())
    wanted = ConversationFilter(created_after, created_before, metadata)
    return await run_in_threadpool(_overview, context, wanted)


async def keep_facts(app: FastAPI) -> NoReturn:
    """Every few seconds, for what was said meanwhile: so the overview knows of it, and the next call has less to do."""
    while True:
        await asyncio.sleep(_KEEP_EVERY_S)
        await keep_facts_of_changed(app.state.context)


async def keep_facts_of_changed(context: Context) -> None:
    """Compute the facts of the conversations that were added to through this gateway, one after the other."""
    changed = context.parts.sessions.changed
    for conversation_id in tuple(changed):
        changed.discard(conversation_id)
        try:
            await _gather(conversation_id, context)
        except NotFound:
            continue
        except RayconteurError as error:
            changed.add(conversation_id)
            log.warning("insights will be looked into later: %s", error)
            return


async def _gather(conversation_id: str, context: Context) -> RecentMessages:
    parts = context.parts
    return await gather_facts(conversation_id, context.config.encoder.model_id, parts.sessions, parts.embedder)


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
