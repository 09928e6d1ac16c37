"""Jobs are done once, whoever dies on the way, and their backups are listed, deleted and cleaned up after."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from serve_app.backup import restore
from serve_app.backup.repository import Repository
from serve_app.backup.worker import MAX_ATTEMPTS, BackupWorker
from serve_app.errors import Conflict, InvalidRequest, NotFound
from serve_app.storage.schema import backup_jobs
from serve_app.types import Json, PageQuery
from tests.backup.system import System
from tests.backup.test_restore import CHANGES, fill


def run_until_killed(system: System, step: str, count: int) -> None:
    arguments = [str(system.folder), system.config.backup_url, step, str(count)]
    ended = subprocess.run([sys.executable, "-m", "tests.backup.killed", *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL


def let_leases_end(system: System) -> None:
    with system.database.write() as connection:
        connection.execute(update(backup_jobs).values(lease_until=time.time() - 1))


def ids(system: System, page: PageQuery = PageQuery()) -> list[str]:  # noqa: B008 - a frozen value
    return [backup["id"] for backup in system.jobs.list_backups(page).data]


@pytest.mark.parametrize(("step", "count"), [("put", 1), ("put", 8), ("commit", 1)])
def test_a_backup_whose_indexer_is_killed_is_taken_over(
    system: System, elsewhere: System, step: str, count: int
) -> None:
    store_id = fill(system)
    backup = system.jobs.create_backup(None)
    run_until_killed(system, step, count)
    assert not system.worker.run_once(), "the lease of the dead one still holds"
    assert system.jobs.get_backup(backup["id"])["status"] == ("completed" if step == "commit" else "in_progress")
    let_leases_end(system)

    assert system.worker.run_once()

    assert system.jobs.get_backup(backup["id"])["status"] == "completed"
    assert not system.worker.run_once()
    assert not list(system.folder.glob(".backup-work*"))
    assert elsewhere.restore(backup["id"])["error"] is None
    assert elsewhere.passages(store_id) == system.passages(store_id)


def test_a_new_indexer_does_not_wait_for_the_lease_of_the_one_before(system: System) -> None:
    fill(system)
    backup = system.jobs.create_backup(None)
    run_until_killed(system, "put", 1)

    system.worker.take_over()

    assert system.worker.run_once()
    assert system.jobs.get_backup(backup["id"])["status"] == "completed"


@pytest.mark.parametrize(("step", "count"), [("fetch", 1), ("fetch", 20), ("_insert", 1)])
def test_a_restore_that_is_killed_shows_nothing_and_is_taken_over(
    system: System, elsewhere: System, step: str, count: int
) -> None:
    store_id = fill(system)
    backup = system.back_up()
    nothing = elsewhere.rows()
    asked = elsewhere.jobs.create_restore(backup["id"], None, None)

    run_until_killed(elsewhere, step, count)

    assert elsewhere.rows() == nothing
    let_leases_end(elsewhere)
    assert elsewhere.worker.run_once()
    assert elsewhere.jobs.get_restore(backup["id"], asked["id"])["status"] == "completed"
    assert elsewhere.rows(but=CHANGES) == system.rows(but=CHANGES)
    assert elsewhere.uploads() == system.uploads()
    assert elsewhere.passages(store_id) == system.passages(store_id)
    assert not list(elsewhere.folder.glob(".backup-work*"))


def test_a_job_that_kills_its_indexer_again_and_again_is_given_up(system: System) -> None:
    backup = system.jobs.create_backup(None)
    with system.database.write() as connection:
        connection.execute(update(backup_jobs).values(fence=MAX_ATTEMPTS))

    assert system.worker.run_once()

    failed = system.jobs.get_backup(backup["id"])
    assert (failed["status"], failed["error"]["message"]) == ("failed", "It was cut off 3 times")


def test_who_has_lost_a_job_changes_nothing(system: System, elsewhere: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stalled for longer than its lease, and another has taken over."""
    fill(system)
    backup = system.back_up()
    nothing, paths = elsewhere.rows(), elsewhere.paths()
    asked = elsewhere.jobs.create_restore(backup["id"], None, None)
    fetch = Repository.fetch

    def take_over(*arguments: object) -> None:
        with elsewhere.database.write() as connection:
            connection.execute(update(backup_jobs).values(fence=7))
        fetch(*arguments)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(Repository, "fetch", take_over)
    assert elsewhere.worker.run_once()

    assert elsewhere.rows() == nothing
    assert elsewhere.paths() == paths
    assert elsewhere.jobs.get_restore(backup["id"], asked["id"])["status"] == "in_progress"


def test_who_has_lost_a_job_takes_nothing_from_who_does_it_now(
    system: System, elsewhere: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts an indexer while the one before it still stops."""
    store_id = fill(system)
    backup = system.back_up()
    asked = elsewhere.jobs.create_restore(backup["id"], None, None)
    old = Thread(target=elsewhere.worker.run_once)
    has_begun, may_end = Event(), Event()
    fetch, prepare = Repository.fetch, restore._prepare

    def fetch_later(*arguments: Any) -> None:
        if current_thread() is old and not has_begun.is_set():
            has_begun.set()
            may_end.wait(60)
        fetch(*arguments)

    def prepare_later(*arguments: Any) -> None:
        if current_thread() is not old:
            may_end.set()
            old.join()
        prepare(*arguments)

    monkeypatch.setattr(Repository, "fetch", fetch_later)
    monkeypatch.setattr(restore, "_prepare", prepare_later)
    old.start()
    assert has_begun.wait(60)
    successor = BackupWorker(elsewhere.database, elsewhere.config)
    successor.take_over()

    assert successor.run_once()

    assert elsewhere.jobs.get_restore(backup["id"], asked["id"])["error"] is None
    assert elsewhere.rows(but=CHANGES) == system.rows(but=CHANGES)
    assert elsewhere.uploads() == system.uploads()
    assert elsewhere.passages(store_id) == system.passages(store_id)
    assert not list(elsewhere.folder.glob(".backup-work*"))


def test_a_lease_is_renewed_while_the_work_goes_on(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.upload("one")
    put = Repository.put
    leases = []

    def lease_until() -> float:
        with system.database.read() as connection:
            return float(connection.execute(select(backup_jobs.c.lease_until)).scalar_one())

    def slow_put(*arguments: object) -> None:
        first = lease_until()
        while lease_until() == first:
            pass
        leases.append(first)
        put(*arguments)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(Repository, "put", slow_put)
    system.jobs.create_backup(None)

    assert BackupWorker(system.database, system.config, lease_s=0.3).run_once()

    assert leases
    assert len(ids(system)) == 1


def test_a_file_whose_bytes_are_lost_fails_the_backup_with_its_name(system: System) -> None:
    lost, changed = system.upload("lost"), system.upload("changed")
    system.files.path(lost).unlink()
    assert lost in system.back_up()["error"]["message"]
    system.files.delete(lost)
    system.files.path(changed).write_bytes(b"rotten.")
    assert changed in system.back_up()["error"]["message"]
    system.files.delete(changed)
    assert system.back_up()["error"] is None
    assert [backup["status"] for backup in system.jobs.list_backups(PageQuery(order="asc")).data].count("failed") == 2


def test_a_place_that_cannot_be_reached_fails_the_backup(system: System, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir(exist_ok=True)
    backup = system.jobs.create_backup(None)
    (tmp_path / "backups").rmdir()
    (tmp_path / "backups").write_text("a file where a folder should be")

    assert system.worker.run_once()

    (tmp_path / "backups").unlink()
    assert "cannot be reached" in system.jobs.get_backup(backup["id"])["error"]["message"]


def test_deleting_frees_what_no_other_backup_needs(system: System, elsewhere: System, tmp_path: Path) -> None:
    store_id = fill(system)
    first = system.back_up()
    repository = Repository(str(tmp_path / "backups"))
    system.add_document(store_id, "One more")
    second = system.back_up()
    both = set(repository.stored())

    system.jobs.delete_backup(first["id"])
    assert ids(system) == [second["id"]]
    assert system.worker.run_once()

    left = set(repository.stored())
    assert left < both
    manifest = repository.manifest(second["id"])
    assert left == {manifest.items.sha256} | {item.sha256 for item in repository.items(manifest)}
    assert elsewhere.restore(second["id"])["error"] is None
    with pytest.raises(NotFound):
        system.jobs.get_backup(first["id"])
    with pytest.raises(NotFound):
        system.jobs.delete_backup(first["id"])
    system.jobs.delete_backup(second["id"])
    assert system.worker.run_once()
    assert repository.stored() == {}


def test_a_backup_that_is_being_made_is_not_deleted_and_a_failed_one_is(system: System) -> None:
    backup = system.jobs.create_backup(None)
    with pytest.raises(Conflict, match="is being made"):
        system.jobs.delete_backup(backup["id"])
    with system.database.write() as connection:
        connection.execute(update(backup_jobs).values(status="failed", error_code="server_error", error_message="?"))

    system.jobs.delete_backup(backup["id"])

    assert ids(system) == []


def test_nothing_is_pruned_while_a_snapshot_cannot_be_read(system: System, tmp_path: Path) -> None:
    damaged, other = system.back_up(), system.back_up()
    repository = Repository(str(tmp_path / "backups"))
    (tmp_path / "backups" / "snapshots" / f"{damaged['id']}.json").write_text("{}")
    before = repository.stored()

    system.jobs.delete_backup(other["id"])
    assert system.worker.run_once()

    assert repository.stored() == before
    assert not system.worker.run_once()


def test_lists_are_paged(system: System) -> None:
    made = [*(system.back_up() for _ in range(3)), system.jobs.create_backup(None)]
    newest_first = sorted(made, key=lambda backup: (backup["created_at"], backup["id"]), reverse=True)
    order = [backup["id"] for backup in newest_first]

    assert ids(system) == order
    assert ids(system, PageQuery(order="asc")) == order[::-1]
    first = system.jobs.list_backups(PageQuery(limit=3))
    assert ([each["id"] for each in first.data], first.has_more) == (order[:3], True)
    assert ids(system, PageQuery(after=order[1])) == order[2:]
    assert ids(system, PageQuery(before=order[3], limit=2)) == order[1:3]
    with pytest.raises(InvalidRequest, match="backup_0"):
        system.jobs.list_backups(PageQuery(after="backup_0"))


def test_a_backup_of_some_stores_holds_them_and_their_files_only(system: System, elsewhere: System) -> None:
    store_id = fill(system)
    other = system.add_store("other")
    system.add_document(other, "Not asked for")
    with pytest.raises(NotFound, match="vs_0"):
        system.jobs.create_backup(["vs_0"])

    backup = system.back_up(store_id)
    restored = elsewhere.restore(backup["id"])

    assert backup["vector_store_ids"] == [store_id]
    assert [(each["id"], each["name"]) for each in backup["vector_stores"]] == [(store_id, "docs")]
    assert (restored["files"], restored["conversations"]) == (2, 0)
    assert [each["id"] for each in elsewhere.catalog.list_stores(PageQuery()).data] == [store_id]
    assert elsewhere.passages(store_id) == system.passages(store_id)


def test_jobs_of_a_later_version_do_not_stop_the_others(system: System) -> None:
    """Whatever is wrong with a job, it fails alone."""
    system.jobs.create_backup(None)
    row: Json = {"id": "0", "kind": "restore", "backup_id": "backup_0", "status": "in_progress", "request": {"what": 1}}
    row |= {"result": {}, "created_at": 0, "fence": 0, "lease_until": 0.0}
    with system.database.write() as connection:
        connection.execute(insert(backup_jobs).values(row))

    assert system.worker.run_once()
    assert system.worker.run_once()

    assert [each["status"] for each in system.jobs.list_backups(PageQuery()).data] == ["completed"]
