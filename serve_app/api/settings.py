"""`/v1/models/{id}/settings`: what holds where a request says nothing, changed while the service runs."""

import asyncio
import logging
from typing import Annotated, NoReturn

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool

from serve_app.api.checks import require_model
from serve_app.api.context import Context, InContext
from serve_app.api.errors import invalid_request
from serve_app.api.wire import Wire
from serve_app.errors import RayconteurError
from serve_app.generation.settings_log import Revision
from serve_app.types import Json

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/models", tags=["models"])

REFRESH_EVERY_S = 0.5
_IN_FORCE_EVERYWHERE_S = 2 * REFRESH_EVERY_S


class Rollback(Wire):
    revision: int = Field(ge=1)


@router.get("/{model_id:path}/settings")
async def get_settings(model_id: str, context: InContext) -> Json:
    """The settings in force, and the profiles that a request may name."""
    model_id = require_model(context, model_id)
    profiles = {
        name: [rule.model_dump(mode="json", exclude_none=True) for rule in profile]
        for name, profile in context.settings.profiles.items()
    }
    return {**context.settings.of(model_id).to_json(), "profiles": profiles}


# The body is any object: what it may hold is `Settings`, which is checked with what is in force.
@router.patch("/{model_id:path}/settings")
async def change_settings(model_id: str, body: dict[str, object], request: Request, context: InContext) -> Json:
    """Change what the body names; null takes a setting back. Once this has answered, every gateway knows."""
    model_id = require_model(context, model_id)
    if isinstance(profile := body.get("profile"), str):
        context.settings.require_profile(profile)
    try:
        revision = await run_in_threadpool(context.settings.log.change, model_id, body, request.state.caller)
    except ValidationError as error:
        raise invalid_request([{**each, "loc": ("body", *each["loc"])} for each in error.errors()], body) from None
    return await _spread(revision, context)


@router.get("/{model_id:path}/settings/history")
async def list_revisions(
    model_id: str,
    context: InContext,
    before: Annotated[int | None, Query(ge=1)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Json:
    """Newest first; `before` is a revision."""
    model_id = require_model(context, model_id)
    found = await run_in_threadpool(context.settings.log.history, model_id, before, limit + 1)
    return {
        "object": "list",
        "data": [revision.to_json() for revision in found[:limit]],
        "has_more": len(found) > limit,
    }


@router.post("/{model_id:path}/settings/rollback")
async def roll_back_settings(model_id: str, body: Rollback, request: Request, context: InContext) -> Json:
    """Make the settings what they were at a revision: that is a new one."""
    model_id = require_model(context, model_id)
    work = context.settings.log.roll_back
    return await _spread(await run_in_threadpool(work, model_id, body.revision, request.state.caller), context)


async def refresh_settings(context: Context) -> NoReturn:
    """See what another gateway has changed, for as long as this one lives."""
    while True:
        await asyncio.sleep(REFRESH_EVERY_S)
        try:
            await run_in_threadpool(context.settings.refresh)
        except RayconteurError as error:
            log.warning("the settings may be out of date: %s", error)


async def _spread(revision: Revision, context: Context) -> Json:
    await run_in_threadpool(context.settings.refresh)
    await asyncio.sleep(_IN_FORCE_EVERYWHERE_S)
    return revision.to_json()
