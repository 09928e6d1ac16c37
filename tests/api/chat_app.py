"""The app behind a real server with the fakes, for the routes that talk to the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from fastapi import FastAPI
from openai import OpenAI

from serve_app.api.app import create_app
from serve_app.config import AppConfig, GeneratorConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.types.knowledge import Passage
from tests.databases import opened
from tests.fakes import FakeParts
from tests.server import serve

MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class ChatApp:
    url: str
    fakes: FakeParts
    openai: OpenAI
    http: httpx.Client
    store_id: str
    """A vector store in which every search finds the same passages."""
    app: FastAPI
    log: ConversationLog
    passages: Sequence[Passage]

    def with_fresh_fakes(self) -> "ChatApp":
        """The same server and database, with parts that no test has touched."""
        fakes = FakeParts(self.log, self.passages)
        self.app.state.context = replace(self.app.state.context, parts=fakes.parts)
        self.app.state.context.background.parts = fakes.parts
        return replace(self, fakes=fakes)


@contextmanager
def running_chat(
    folder: Path, passages: Sequence[Passage] = (), further_generators: tuple[GeneratorConfig, ...] = ()
) -> Iterator[ChatApp]:
    config = AppConfig(storage=StorageConfig(folder=folder), further_generators=further_generators)

    async def check_parts() -> dict[str, str]:
        return {}

    with opened(config.storage.resolved_database_url) as database:
        log = ConversationLog(database, max_cached=10)
        fakes = FakeParts(log, passages)
        app = create_app(config, fakes.parts, database, check_parts)
        with (
            serve(app) as url,
            OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as openai,
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            store_id = openai.vector_stores.create(name="rivers").id
            yield ChatApp(url, fakes, openai, http, store_id, app, log, passages)
