"""The indexer without Ray: its loops do what the database holds."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.indexer import Indexer
from serve_app.backup.jobs import BackupJobs
from serve_app.config import AppConfig, IngestionConfig, StorageConfig
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.documents import NewFile
from serve_app.knowledge.parse import detect_media_type
from serve_app.storage.files import FileStore
from tests.databases import opened
from tests.served.application import wait_until


async def test_it_ingests_and_backs_up_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would be for good, and for all tests that come after this one.
    monkeypatch.setattr("os.nice", lambda _: 0)
    config = AppConfig(storage=StorageConfig(folder=tmp_path), ingestion=IngestionConfig(poll_interval_s=600))
    with opened(config.storage.resolved_database_url) as database:
        files, catalog = FileStore(database, config.storage.files_folder), Catalog(database, config.encoder.model_id)
        jobs = BackupJobs(database, config)
        indexer = Indexer(config)
        await indexer.check_health()
        upload = io.BytesIO(b"The ferry sails at nine.")
        file = files.save(upload, "a.txt", "assistants", detect_media_type=detect_media_type, max_bytes=1000)
        store_id = catalog.create_store(new_files=[NewFile(file["id"])])["id"]
        first = jobs.create_backup(None)["id"]

        await indexer.wake()

        await until(lambda: catalog.get_store(store_id)["status"] == "completed", "the file is indexed")
        await until(lambda: is_completed(jobs, first), "the first backup is taken")
        second = jobs.create_backup(None)["id"]
        await indexer.wake()
        await until(lambda: is_completed(jobs, second), "the second backup is taken")
        await indexer.ready()
        assert [store["passages"] for store in jobs.get_backup(second)["vector_stores"]] == [1]


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, 60, what)


def is_completed(jobs: BackupJobs, backup_id: str) -> bool:
    backup = jobs.get_backup(backup_id)
    assert backup["error"] is None
    return bool(backup["status"] == "completed")
