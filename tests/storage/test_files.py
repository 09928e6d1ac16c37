"""An upload is there with its bytes, or not at all, whatever the database says; what is left over goes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import Connection, delete, update

from serve_app.errors import Overloaded, Unavailable
from serve_app.knowledge.parse import detect_media_type
from serve_app.storage import files as files_module
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore
from serve_app.storage.schema import files
from serve_app.types import PageQuery, now_s


@pytest.fixture
def store(tmp_path: Path, database: Database) -> FileStore:
    return FileStore(database, tmp_path / "files")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new counts as old."""
    monkeypatch.setattr(files_module, "_STALE_AFTER_S", -60)


def upload(store: FileStore, text: str = "Paris") -> str:
    content = io.BytesIO(text.encode())
    kept = store.save(content, "a.txt", "assistants", detect_media_type=detect_media_type, max_bytes=1000)
    return str(kept["id"])


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").iterdir())


def test_a_row_that_was_written_though_the_database_broke_off_has_its_bytes(
    store: FileStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = database.write

    @contextmanager
    def break_off_after_the_commit() -> Iterator[Connection]:
        with write() as connection:
            yield connection
        raise Unavailable("The connection is lost")

    monkeypatch.setattr(database, "write", break_off_after_the_commit)

    with pytest.raises(Unavailable):
        upload(store)

    (listed,) = store.list(PageQuery()).data
    assert store.path(listed["id"]).read_bytes() == b"Paris"


def test_what_is_certainly_not_written_leaves_no_bytes(
    store: FileStore, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NoReturn:
        raise Overloaded("No connection got free")

    monkeypatch.setattr(database, "write", refuse)

    with pytest.raises(Overloaded):
        upload(store)

    assert kept(tmp_path) == []


@pytest.mark.usefixtures("at_once")
def test_bytes_without_a_row_go(store: FileStore, tmp_path: Path, database: Database) -> None:
    alive, deleted = upload(store), upload(store)
    with database.write() as connection:
        connection.execute(delete(files).where(files.c.id == deleted))
    (tmp_path / "files" / "notes by the operator").touch()

    store.remove_orphans()

    assert kept(tmp_path) == sorted([alive, "notes by the operator"])


def test_bytes_without_a_row_stay_for_a_day(store: FileStore, tmp_path: Path, database: Database) -> None:
    upload(store)
    (tmp_path / "files" / "file_being_restored").touch()

    store.remove_orphans()

    assert len(kept(tmp_path)) == 2


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_new_database_takes_nothing_from_the_one_before(
    store: FileStore, tmp_path: Path, database: Database, is_empty: bool
) -> None:
    before, after = upload(store), upload(store)
    with database.write() as connection:
        connection.execute(delete(files).where(files.c.id == before) if not is_empty else delete(files))
        connection.execute(update(files).values(created_at=now_s() + 100))

    store.remove_orphans()

    assert kept(tmp_path) == sorted([before, after])
