"""`api`: the whole app behind a real server, over a fresh database, with stand-ins for the parts."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from openai import OpenAI

from serve_app.api import settings
from serve_app.api.app import create_app
from serve_app.api.context import Context
from serve_app.config import ApiConfig, AppConfig, EncoderConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.parts import Parts
from serve_app.storage.database import Database
from tests.api.parts import HashEmbedder, RecordingIndexer, ScriptedRetriever, knowledge_parts
from tests.databases import opened
from tests.fakes import LocalSessions
from tests.server import serve

MAX_UPLOAD_BYTES = 100_000


@dataclass
class Api:
    url: str
    folder: Path
    database: Database
    embedder: HashEmbedder
    retriever: ScriptedRetriever
    indexer: RecordingIndexer
    part_states: dict[str, str]
    context: Context

    def __post_init__(self) -> None:
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def upload(self, name: str = "notes.txt", content: bytes = b"Paris is in France.") -> str:
        return self.openai.files.create(file=(name, content), purpose="assistants").id

    def kept_files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "files").iterdir())


@pytest.fixture(autouse=True)
def _no_other_gateways(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of settings waits for them otherwise, a second."""
    monkeypatch.setattr(settings, "_IN_FORCE_EVERYWHERE_S", 0)


StartApi = Callable[[], Api]


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[StartApi]:
    """For tests that change the environment first."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(running_api(tmp_path))


@pytest.fixture
def api(start_api: StartApi) -> Api:
    return start_api()


@pytest.fixture(scope="module")
def shared_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One for all tests of a file that leave nothing in it, or do not care what is there."""
    with running_api(tmp_path_factory.mktemp("api")) as api:
        yield api


@contextmanager
def running_api(folder: Path) -> Iterator[Api]:
    embedder, retriever, indexer = HashEmbedder(), ScriptedRetriever(), RecordingIndexer()
    part_states = {"generator": "ok", "indexer": "ok"}
    with open_test_database(folder) as database:
        sessions = LocalSessions(ConversationLog(database, max_cached=10))
        app = build_app(folder, database, knowledge_parts(embedder, retriever, indexer, sessions), part_states)
        with serve(app) as url:
            api = Api(url, folder, database, embedder, retriever, indexer, part_states, app.state.context)
            with api.openai, api.http:
                yield api


def open_test_database(folder: Path) -> closing[Database]:
    return opened(StorageConfig(folder=folder).resolved_database_url)


def build_app(
    folder: Path, database: Database, parts: Parts, part_states: dict[str, str], *further_encoders: str
) -> FastAPI:
    async def check_parts() -> dict[str, str]:
        return part_states

    config = AppConfig(
        storage=StorageConfig(folder=folder),
        api=ApiConfig(max_upload_bytes=MAX_UPLOAD_BYTES),
        further_encoders=tuple(EncoderConfig(model_id=each) for each in further_encoders),
    )
    return create_app(config, parts, database, check_parts)
