"""What the catalog and the file store must do on PostgreSQL as on SQLite, with many at once."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, update

from serve_app.errors import NotFound, RayconteurError, UnsupportedFile
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.documents import NewFile
from serve_app.knowledge.parse import detect_media_type
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore
from serve_app.storage.schema import vector_store_files, vector_stores
from serve_app.types import PageQuery


@pytest.fixture
def files(database: Database, tmp_path: Path) -> FileStore:
    return FileStore(database, tmp_path / "files")


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database, "all-minilm-l6-v2")


def save(files: FileStore, name: str = "a.txt", content: bytes = b"text") -> str:
    upload = io.BytesIO(content)
    file = files.save(upload, name, "assistants", detect_media_type=detect_media_type, max_bytes=1000)
    return str(file["id"])


def at_once(*tasks: Callable[[], object]) -> list[object]:
    """What each returned, or our error that it raised."""

    def run(task: Callable[[], object]) -> object:
        try:
            return task()
        except RayconteurError as error:
            return error

    with ThreadPoolExecutor(len(tasks)) as threads:
        return list(threads.map(run, tasks))


def test_a_store_with_its_files_and_batches(catalog: Catalog, files: FileStore) -> None:
    one, two = save(files), save(files)
    store_id = catalog.create_store(name="docs", metadata={"a": "b"}, new_files=[NewFile(one)])["id"]
    batch = catalog.create_batch(store_id, [NewFile(one), NewFile(two, {"year": 2024, "by": "Zoë"}, key="two")])

    assert batch["file_counts"]["total"] == 2
    assert catalog.get_file(store_id, two)["attributes"] == {"year": 2024, "by": "Zoë"}
    assert catalog.cancel_batch(store_id, batch["id"])["status"] == "cancelled"
    assert catalog.get_store(store_id)["file_counts"]["cancelled"] == 2
    assert catalog.list_stores(PageQuery()).data[0]["name"] == "docs"
    catalog.require_stores([store_id])
    files.delete(one)
    assert [file["id"] for file in catalog.list_files(store_id, PageQuery()).data] == [two]
    catalog.delete_store(store_id)
    with pytest.raises(NotFound):
        catalog.get_store(store_id)


def test_rows_of_the_same_second_page_without_gaps(catalog: Catalog, database: Database) -> None:
    ids = {catalog.create_store()["id"] for _ in range(7)}
    with database.write() as connection:
        connection.execute(update(vector_stores).values(created_at=1))

    for order in ("asc", "desc"):
        down = catalog.list_stores(PageQuery(limit=3, order=order))
        seen = [store["id"] for store in down.data]
        while down.has_more:
            down = catalog.list_stores(PageQuery(after=seen[-1], limit=3, order=order))
            seen += [store["id"] for store in down.data]
        up = catalog.list_stores(PageQuery(before=seen[-1], limit=3, order=order))

        assert len(seen) == 7
        assert set(seen) == ids
        assert [store["id"] for store in up.data] == seen[3:6]
        assert up.has_more


def test_the_same_file_added_by_many_at_once_is_there_once(catalog: Catalog, files: FileStore) -> None:
    file_id = save(files)
    store_id = catalog.create_store()["id"]

    added = at_once(*[lambda: catalog.add_file(store_id, NewFile(file_id))] * 8)

    assert [entry for entry in added if isinstance(entry, RayconteurError)] == []
    assert catalog.get_store(store_id)["file_counts"]["total"] == 1


def test_a_file_deleted_while_it_is_added_is_there_or_not_found(catalog: Catalog, files: FileStore) -> None:
    for _ in range(5):
        file_id = save(files)
        store_id = catalog.create_store()["id"]

        outcomes = at_once(
            lambda: catalog.add_file(store_id, NewFile(file_id)),  # noqa: B023  # all have ended within this round
            lambda: files.delete(file_id),  # noqa: B023
        )

        assert not isinstance(outcomes[1], RayconteurError)
        assert isinstance(outcomes[0], dict | NotFound)
        assert catalog.get_store(store_id)["file_counts"]["total"] == 0


def test_what_is_stopped_or_queued_again_has_a_new_fence(
    catalog: Catalog, files: FileStore, database: Database
) -> None:
    file_id = save(files)
    store_id = catalog.create_store(new_files=[NewFile(file_id)])["id"]

    def fence() -> int:
        with database.read() as connection:
            return int(connection.scalar(select(vector_store_files.c.fence)) or 0)

    catalog.stop_ingestion(store_id, file_id)
    assert fence() == 1
    catalog.add_file(store_id, NewFile(file_id))
    assert fence() == 2


def test_a_file_is_kept_whole_or_not_at_all(files: FileStore, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFile):
        save(files, "picture.png", b"\x89PNG")
    assert list((tmp_path / "files").iterdir()) == []

    file_id = save(files, content=b"the text")

    assert files.path(file_id).read_bytes() == b"the text"
    assert [path.name for path in (tmp_path / "files").iterdir()] == [file_id]
    files.delete(file_id)
    assert list((tmp_path / "files").iterdir()) == []
