"""What every route can reach. One is made by `create_app` and kept in `app.state`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from serve_app.background import BackgroundResponses
from serve_app.backup.jobs import BackupJobs
from serve_app.config import AppConfig
from serve_app.generation.settings_log import SettingsInForce
from serve_app.knowledge.catalog import Catalog
from serve_app.parts import Parts
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore


@dataclass(frozen=True, slots=True)
class Context:
    config: AppConfig
    parts: Parts
    database: Database
    catalog: Catalog
    files: FileStore
    backups: BackupJobs
    settings: SettingsInForce
    background: BackgroundResponses
    check_parts: Callable[[], Awaitable[dict[str, str]]]
    """The name of each part, with `ok` or with what is wrong."""
    parsers: CapacityLimiter
    """For the threads that parse files, which take minutes and whole cores: few, and none that others wait for."""
    runner_id: str
    """Of this process, as the other ones know it."""


# Both are async, or FastAPI would send each call through its thread pool.
async def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def get_request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


InContext = Annotated[Context, Depends(get_context)]
RequestId = Annotated[str, Depends(get_request_id)]
"""The `x-request-id` of the answer: the client's own, or one that the middleware made."""
