"""`rayconteur backup`, `backups` and `restore`, against the real HTTP app and a worker that does the jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from openai import OpenAI
from typer.testing import CliRunner, Result

from serve_app.api.app import create_app
from serve_app.backup.worker import BackupWorker
from serve_app.cli import app
from serve_app.config import AppConfig, BackupConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from tests.databases import opened
from tests.fakes import FakeIndexer, FakeParts
from tests.server import serve


class BackingUp(FakeIndexer):
    """Does the jobs at once."""

    def __init__(self, worker: BackupWorker) -> None:
        self._worker = worker

    async def wake(self) -> None:
        while self._worker.run_once():
            pass


@dataclass(frozen=True)
class Server:
    url: str
    openai: OpenAI

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--url", self.url])


@contextmanager
def running_server(folder: Path, backups: Path) -> Iterator[Server]:
    config = AppConfig(storage=StorageConfig(folder=folder), backup=BackupConfig(url=str(backups)))

    async def check_parts() -> dict[str, str]:
        return {}

    with opened(config.storage.resolved_database_url) as database:
        parts = FakeParts(ConversationLog(database, max_cached=10)).parts
        parts = replace(parts, indexer=BackingUp(BackupWorker(database, config)))
        with (
            serve(create_app(config, parts, database, check_parts)) as url,
            OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as openai,
        ):
            yield Server(url, openai)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "server", tmp_path / "backups") as server:
        yield server


def backup_id(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout.split(":")[0]


def test_everything_is_backed_up_and_restored_on_another_server(server: Server, tmp_path: Path) -> None:
    file = server.openai.files.create(file=("a.txt", b"Paris is in France."), purpose="assistants")
    store = server.openai.vector_stores.create(name="france", file_ids=[file.id])

    taken = server.run("backup")

    assert "1 stores, 1 files" in taken.stdout
    with running_server(tmp_path / "other", tmp_path / "backups") as other:
        assert f"{backup_id(taken)}  " in other.run("backups").stdout
        result = other.run("restore", backup_id(taken))
        assert f"france: restored as {store.id}" in result.stdout
        assert "1 stores, 1 files, 0 conversations restored" in result.stdout
        assert other.openai.files.content(file.id).read() == b"Paris is in France."
        assert "0 stores, 0 files" in other.run("restore", backup_id(taken)).stdout


def test_one_store_under_another_name(server: Server) -> None:
    server.openai.vector_stores.create(name="france")
    server.openai.vector_stores.create(name="spain")
    taken = backup_id(server.run("backup", "--store", "france"))
    assert "france" in server.run("backups").stdout

    again = server.run("restore", taken, "--store", "france")
    missing = server.run("restore", taken, "--store", "spain")
    renamed = server.run("restore", taken, "--store", "france", "--as", "france of then")

    assert again.exit_code == 1
    assert "give a 'name'" in again.stderr
    assert missing.exit_code == 1
    assert f"{taken} has no store 'spain'; those that it has: france" in missing.stderr
    assert "france of then: restored as vs_" in renamed.stdout
    assert {store.name for store in server.openai.vector_stores.list()} == {"france", "spain", "france of then"}


def test_a_backup_that_fails_says_why(server: Server, tmp_path: Path) -> None:
    file = server.openai.files.create(file=("a.txt", b"Paris is in France."), purpose="assistants")
    (tmp_path / "server" / "files" / file.id).unlink()

    result = server.run("backup")

    assert result.exit_code == 1
    assert f"The bytes of {file.id} are lost" in result.stderr
    assert "failed: The bytes" in server.run("backups").stderr


def test_without_backups_it_says_how_to_take_one(server: Server) -> None:
    result = server.run("backups")

    assert (result.exit_code, result.stdout) == (0, "")
    assert "rayconteur backup takes one" in result.stderr
