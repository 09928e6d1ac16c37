"""A machine that loses its power: what it may leave of a table, and what is on the disk in any case."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete

from serve_app.knowledge import durable
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.index import FilePassages
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import Piece
from serve_app.knowledge.table_files import list_files
from serve_app.storage.database import Database
from serve_app.storage.schema import store_versions
from tests.knowledge.test_ingest import STORE, Library


@pytest.fixture
def library(tmp_path: Path, database: Database, encoder: TextEncoder) -> Library:
    library = Library(tmp_path, database, encoder)
    library.add_store()
    return library


def folder_of(library: Library) -> Path:
    return library.root / "vectors" / f"{STORE}.lance"


def commit_unrecorded(library: Library) -> None:
    """Two commits, and what maintenance makes of them."""
    for number in range(2):
        vectors = np.eye(1, library.encoder.dimensions, dtype=np.float32)
        library.index.add(STORE, [FilePassages(f"lost-{number}", "a.txt", {}, [Piece("Lost.", 0)], vectors)])
    library.index.maintain(STORE)
    library.index.remove_file(STORE, "lost-0")
    library.index.tag(STORE, 2)


async def found(library: Library) -> list[str]:
    library.reader = IndexReader(library.root / "vectors")
    return [passage.file_id for passage in await library.passages()]


@pytest.mark.parametrize("end", [0, 10])
@pytest.mark.parametrize(
    ("pattern", "choose"),
    [
        ("_versions/*.manifest", min),  # the newest: their names count down
        ("_versions/*.manifest", max),
        ("data/*.lance", min),
        ("data/*.lance", max),
        ("_indices/*/*.lance", max),
        ("_deletions/*.arrow", max),
        ("_refs/tags/*.json", min),
        ("_versions/*.json", min),
    ],
)
async def test_what_is_torn_is_dropped_and_done_again(
    library: Library, pattern: str, choose: Callable[[set[Path]], Path], end: int
) -> None:
    library.add_file("file-0", "Recorded.")
    library.ingestor().run_once()
    whole = set(folder_of(library).rglob("*"))
    commit_unrecorded(library)
    hint = folder_of(library) / "_versions" / "latest_version_hint.json"
    torn = hint if pattern == "_versions/*.json" else choose(set(folder_of(library).glob(pattern)) - whole)
    os.truncate(torn, end)

    after = Library(library.root, library.database, library.encoder)
    after.versions.undo_unrecorded()

    assert await found(after) == ["file-0"]
    after.add_file("file-1", "Added later.")
    after.ingestor().run_once()
    after.index.optimize(STORE)
    after.versions.enforce_retention(STORE, {STORE})
    assert after.job("file-1")["status"] == "completed"
    assert await found(after) == ["file-0", "file-1"]


def test_what_is_whole_stays(library: Library) -> None:
    library.add_file("file-0", "Recorded.")
    library.ingestor().run_once()
    library.index.maintain(STORE)
    library.index.optimize(STORE)
    before = library.index.version(STORE)
    for path in folder_of(library).glob("_versions/*.manifest"):
        if path != min(folder_of(library).glob("_versions/*.manifest")):
            os.truncate(path, 0)  # as clean-up leaves older ones: without what they consist of

    assert library.index.drop_torn(STORE, 0)

    assert library.index.version(STORE) == before


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_table_that_is_searched_is_never_removed(library: Library, is_recorded: bool) -> None:
    library.add_file("file-0", "Recorded.")
    library.ingestor().run_once()
    if not is_recorded:  # a store from before there were versions
        with library.database.write() as connection:
            connection.execute(delete(store_versions))
    for path in folder_of(library).glob("data/*"):
        os.truncate(path, 0)
    before = set(folder_of(library).rglob("*"))

    library.versions.undo_unrecorded()

    assert set(folder_of(library).rglob("*")) == before


async def test_a_table_of_which_nothing_was_recorded_is_made_anew(library: Library) -> None:
    commit_unrecorded(library)
    for manifest in folder_of(library).glob("_versions/*.manifest"):
        os.truncate(manifest, 0)

    after = Library(library.root, library.database, library.encoder)
    after.versions.undo_unrecorded()
    after.add_file("file-0", "The first.")
    after.ingestor().run_once()

    assert await found(after) == ["file-0"]


def test_what_is_recorded_is_on_the_disk(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[Path] = set()
    monkeypatch.setattr(durable, "sync_path", synced.add)
    record, table = library.versions.record, folder_of(library)
    on_disk: list[set[Path]] = []

    def record_and_look(*arguments: Any) -> None:
        record(*arguments)
        on_disk.append(set(synced))

    monkeypatch.setattr(library.versions, "record", record_and_look)
    earlier: set[Path] = set()
    for number in range(2):
        synced.clear()
        library.add_file(f"file-{number}", f"Text {number}.")
        library.ingestor().run_once()
        files = {table / path for path in list_files(table, [library.index.version(STORE) or 0])}
        new = files - earlier | {table / "_refs" / "tags" / f"v{number + 1}.json"}
        assert any(path.parent.name == "data" for path in new)
        assert new | {path.parent for path in new} | {table, table.parent} <= on_disk[number]
        assert not on_disk[number] & files & earlier
        earlier |= files
