"""`rayconteur reembed`, against the real HTTP app and an indexer that moves stores of which it knows no passage."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from typer.testing import CliRunner, Result

from serve_app.api.app import create_app
from serve_app.cli import app
from serve_app.config import AppConfig, EncoderConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.versions import set_table
from serve_app.storage.database import Database
from serve_app.storage.schema import reembeddings
from tests.databases import opened
from tests.fakes import FakeIndexer, FakeParts
from tests.server import serve

FIRST, OTHER = "all-minilm-l6-v2", "other"


class ScriptedIndexer(FakeIndexer):
    """Does with the moves what it is told to, when it is woken."""

    def __init__(self, database: Database) -> None:
        self.work: Callable[[], None] = lambda: None
        self.database = database

    async def wake(self) -> None:
        self.work()


class Server:
    def __init__(self, url: str, indexer: ScriptedIndexer) -> None:
        self.url = url
        self.indexer = indexer
        self.database = indexer.database
        self.catalog = Catalog(self.database, FIRST, OTHER)
        self.store_id = self.catalog.create_store(name="handbook")["id"]

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--url", self.url])

    def switch(self) -> None:
        with self.database.write() as connection:
            set_table(connection, self.store_id, OTHER, "_0a")

    def call_off(self) -> None:
        with self.database.write() as connection:
            connection.execute(delete(reembeddings))

    def fail(self) -> None:
        with self.database.write() as connection:
            values = {"status": "failed", "error_code": "unreadable_file", "error_message": "a.pdf cannot be read"}
            connection.execute(update(reembeddings).values(values))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    config = AppConfig(storage=StorageConfig(folder=tmp_path), further_encoders=(EncoderConfig(model_id=OTHER),))

    async def check_parts() -> dict[str, str]:
        return {}

    with opened(config.storage.resolved_database_url) as database:
        indexer = ScriptedIndexer(database)
        parts = replace(FakeParts(ConversationLog(database, max_cached=10)).parts, indexer=indexer)
        with serve(create_app(config, parts, database, check_parts)) as url:
            yield Server(url, indexer)


def test_move_is_awaited(server: Server) -> None:
    server.indexer.work = server.switch

    result = server.run("reembed", "handbook", "--model", OTHER)

    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert said.startswith("handbook is searched with other from now on, instead of all-minilm-l6-v2")
    assert "handbook is searched with other" in server.run("reembed", "handbook", "--model", OTHER).stdout


def test_own_encoder_calls_a_move_off(server: Server) -> None:
    server.catalog.reembed(server.store_id, OTHER)

    result = server.run("reembed", "handbook", "--model", FIRST)

    assert result.exit_code == 0, result.output
    assert server.catalog.get_store(server.store_id)["reembedding"] is None


def test_move_that_fails_says_why(server: Server) -> None:
    server.indexer.work = server.fail

    result = server.run("reembed", "handbook", "--model", OTHER)

    assert result.exit_code == 1
    assert "it failed: a.pdf cannot be read" in " ".join(result.stderr.split())


def test_move_that_is_called_off_is_no_success(server: Server) -> None:
    server.indexer.work = server.call_off

    result = server.run("reembed", "handbook", "--model", OTHER)

    assert result.exit_code == 1
    assert "still searched with all-minilm-l6-v2" in " ".join(result.stderr.split())


def test_encoder_that_is_not_configured_is_refused(server: Server) -> None:
    result = server.run("reembed", "handbook", "--model", "bge-m3")

    assert result.exit_code == 1
    assert "further_encoders" in result.stderr
