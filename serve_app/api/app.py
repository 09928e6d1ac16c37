"""`create_app`: the whole HTTP API as a FastAPI app, over parts that are passed in."""

import importlib
import importlib.util
import os
from collections.abc import Awaitable, Callable
from types import ModuleType

from fastapi import FastAPI
from fastapi.middleware import Middleware

from serve_app.api import embeddings, files, health, models, vector_stores
from serve_app.api.context import Context
from serve_app.api.errors import add_error_handlers
from serve_app.api.middleware import ApiKeys, BodyGuard, RequestScope
from serve_app.config import API_KEYS_ENV, AppConfig
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.parse import detect_media_type
from serve_app.parts import Parts
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore


def create_app(
    config: AppConfig,
    parts: Parts,
    database: Database,
    check_parts: Callable[[], Awaitable[dict[str, str]]],
) -> FastAPI:
    """`check_parts` names each part, with `ok` or with what is wrong. The API keys come from the environment."""
    app = FastAPI(
        title="Rayconteur",
        middleware=[
            Middleware(RequestScope),
            Middleware(ApiKeys, keys=_api_keys()),
            Middleware(BodyGuard, max_upload_bytes=config.api.max_upload_bytes),
        ],
    )
    app.state.context = Context(
        config=config,
        parts=parts,
        database=database,
        catalog=Catalog(database, config.encoder.model_id),
        files=FileStore(database, config.storage.files_folder, config.api.max_upload_bytes, detect_media_type),
        check_parts=check_parts,
    )
    add_error_handlers(app)
    for resource in (models, embeddings, *_conversational(), files, vector_stores, health):
        app.include_router(resource.router)
    return app


def _conversational() -> list[ModuleType]:
    names = [f"serve_app.api.{name}" for name in ("chat_completions", "responses", "conversations")]
    return [importlib.import_module(name) for name in names if importlib.util.find_spec(name)]


def _api_keys() -> list[str]:
    return [key for given in os.environ.get(API_KEYS_ENV, "").split(",") if (key := given.strip())]
