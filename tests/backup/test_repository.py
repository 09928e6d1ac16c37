"""The repository on file systems that are not this machine's, and what it says if they cannot be reached."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.backup.repository import Repository, describe
from serve_app.errors import InternalError, InvalidRequest, NotFound, Unavailable
from serve_app.storage.schema import metadata
from tests.backup.system import System
from tests.backup.test_restore import CHANGES, fill


@pytest.fixture
def memory_url() -> Iterator[str]:
    yield "memory://bucket/backups"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def test_backups_need_no_folder(tmp_path: Path, memory_url: str, system: System, elsewhere: System) -> None:
    here = System(system.folder, system.database, memory_url)
    there = System(elsewhere.folder, elsewhere.database, memory_url)
    store_id = fill(here)
    first, second = here.back_up(), here.back_up()
    assert second["bytes_copied"] < 0.02 * first["bytes"]
    here.jobs.delete_backup(first["id"])
    here.worker.run_once()

    assert there.restore(second["id"])["error"] is None

    assert there.rows(but=CHANGES) == here.rows(but=CHANGES)
    assert there.passages(store_id) == here.passages(store_id)
    assert not (tmp_path / "backups").exists()


def test_a_content_that_was_written_in_part_is_written_again(system: System, tmp_path: Path) -> None:
    fill(system)
    system.back_up()
    repository = Repository(str(tmp_path / "backups"))
    for sha256 in repository.stored():
        place = tmp_path / "backups" / "objects" / sha256[:2] / sha256
        place.write_bytes(place.read_bytes()[:-1])

    backup = system.back_up()

    manifest = repository.manifest(backup["id"])
    for item in [manifest.items, *repository.items(manifest)]:
        repository.fetch(item, tmp_path / "fetched")


def test_what_is_given_back_differently_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(str(tmp_path / "backups"))
    (tmp_path / "content").write_bytes(b"content")
    item = describe("files/file_1", tmp_path / "content")
    (tmp_path / "content").write_bytes(b"CONTENT")

    with pytest.raises(InternalError, match="something else than was written for files/file_1"):
        repository.put(tmp_path / "content", item)
    assert repository.stored() == {}


@pytest.mark.parametrize("backup_id", ["backup_1", "../objects", "backup_20260101000000_00/../x", ""])
def test_only_ids_of_backups_are_looked_for(tmp_path: Path, backup_id: str) -> None:
    with pytest.raises(NotFound):
        Repository(str(tmp_path)).manifest(backup_id)


def test_a_manifest_of_a_newer_format_is_refused(system: System, tmp_path: Path) -> None:
    backup = system.back_up()
    repository = Repository(str(tmp_path / "backups"))
    repository.commit(replace(repository.manifest(backup["id"]), format=3))

    with pytest.raises(InvalidRequest, match="newer version"):
        repository.manifest(backup["id"])


def test_without_s3fs_s3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)

    with pytest.raises(Unavailable, match=r"pip install s3fs==\d+"):
        Repository("s3://bucket/backups")


def test_a_folder_of_backups_is_for_its_owner(tmp_path: Path) -> None:
    Repository(str(tmp_path / "backups"))

    assert (tmp_path / "backups").stat().st_mode & 0o777 == 0o700


def test_every_table_is_of_a_store_or_known() -> None:
    """A new table must say whether it is backed up with its store, and what a restore does with its rows."""
    of_stores = {table.name for table in metadata.sorted_tables if "store_id" in table.c}
    of_logs = {table.name for table in metadata.sorted_tables if "log_id" in table.c}
    of_processes = {"backup_jobs", "runners", "response_jobs", "response_journal"}
    known = {"vector_stores", "files", "logs", "model_settings"}

    assert set(metadata.tables) == of_stores | of_logs | of_processes | known
