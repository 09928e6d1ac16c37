"""`create_app`: the whole HTTP API as a FastAPI app, over parts that are passed in."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.middleware import Middleware
from starlette.concurrency import run_in_threadpool

from serve_app import chat
from serve_app.api import (
    backups,
    chat_completions,
    conversations,
    embeddings,
    files,
    health,
    insights,
    memory,
    models,
    responses,
    settings,
    statistics,
    stats,
    transfer,
    vector_stores,
)
from serve_app.api.capacity import keep_capacities
from serve_app.api.context import Context
from serve_app.api.errors import add_error_handlers
from serve_app.api.heartbeat import keep_beating
from serve_app.api.middleware import ApiKeys, BodyGuard, RequestScope
from serve_app.api.sweep import sweep_expired
from serve_app.background import BackgroundResponses
from serve_app.backup.jobs import BackupJobs
from serve_app.config import API_KEYS_ENV, AppConfig
from serve_app.conversation.runners import beat, leave
from serve_app.errors import RayconteurError
from serve_app.generation.settings_log import SettingsInForce, SettingsLog
from serve_app.knowledge.catalog import Catalog
from serve_app.parts import Parts
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore
from serve_app.types import new_id


def create_app(
    config: AppConfig,
    parts: Parts,
    database: Database,
    check_parts: Callable[[], Awaitable[dict[str, str]]],
) -> FastAPI:
    """`check_parts` names each part, with `ok` or with what is wrong. The API keys come from the environment.

    `app.state.loops` are tasks that go on as long as it serves: see `check_loops`.
    """
    app = FastAPI(
        title="Rayconteur",
        lifespan=_lifespan,
        middleware=[
            Middleware(RequestScope),
            Middleware(ApiKeys, keys=_api_keys()),
            Middleware(BodyGuard, max_upload_bytes=config.api.max_upload_bytes),
        ],
    )
    app.state.loops = []
    app.state.context = Context(
        config=config,
        parts=parts,
        database=database,
        catalog=Catalog(database, *(encoder.model_id for encoder in config.encoders)),
        files=FileStore(database, config.storage.files_folder),
        backups=BackupJobs(database, config),
        settings=SettingsInForce(SettingsLog(database), config.parents),
        background=BackgroundResponses(parts, config, database),
        check_parts=check_parts,
        parsers=CapacityLimiter(2),
        runner_id=new_id("run"),
    )
    add_error_handlers(app)
    for resource in (
        settings,  # before models, whose ids may hold slashes
        models,
        embeddings,
        chat_completions,
        responses,
        transfer,  # before the conversations: `import` is no conversation's id
        conversations,
        insights,
        memory,
        files,
        vector_stores,
        statistics,
        backups,
        stats,
    ):
        app.include_router(resource.router)
    app.include_router(health.router)
    return app


def check_loops(app: FastAPI) -> None:
    """Raises what has ended one of its loops: without that it serves wrongly, and should be replaced."""
    for loop in app.state.loops:
        if loop.done() and not loop.cancelled():
            loop.result()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context = app.state.context
    # Before the first request, or another process would take its turn for one that was left.
    await run_in_threadpool(beat, context.database, context.runner_id)
    app.state.loops = [
        asyncio.create_task(keep_beating(context)),
        asyncio.create_task(context.background.work()),
        asyncio.create_task(keep_capacities(context)),
        asyncio.create_task(sweep_expired(context)),
        asyncio.create_task(statistics.save_tallies(context)),
        asyncio.create_task(settings.refresh_settings(context)),
        asyncio.create_task(insights.keep_facts(app)),
    ]
    yield
    for loop in app.state.loops:
        loop.cancel()
    await asyncio.wait(app.state.loops)
    await chat.drain()
    # Or the other gateways leave its share of the models alone until it has been silent for long enough.
    with suppress(RayconteurError):
        await run_in_threadpool(leave, context.database, context.runner_id)


def _api_keys() -> list[str]:
    return [key for given in os.environ.get(API_KEYS_ENV, "").split(",") if (key := given.strip())]
