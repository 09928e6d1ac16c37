"""What every route can reach. One is made by `create_app` and kept in `app.state`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serve_app.config import AppConfig
from serve_app.knowledge.catalog import Catalog
from serve_app.parts import Parts
from serve_app.storage.files import FileStore


@dataclass(frozen=True, slots=True)
class Context:
    config: AppConfig
    parts: Parts
    catalog: Catalog
    files: FileStore
    check_parts: Callable[[], Awaitable[dict[str, str]]]
    """The name of each part, with `ok` or with what is wrong."""


def get_context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


InContext = Annotated[Context, Depends(get_context)]
