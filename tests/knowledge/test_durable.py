"""A machine that loses its power: what it may leave of a table, and what is on the disk in any case."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serve_app.knowledge import durable, index
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.index import FilePassages
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import Piece
from serve_app.storage.database import Database
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
    library.index.remove_file(STORE, "lost-0")
    library.index.maintain(STORE)
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
    assert before is not None

    library.index.drop_torn(STORE, before - 2)

    assert library.index.version(STORE) == before


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
    synced: set[str] = set()
    monkeypatch.setattr(durable, "sync_path", lambda path: synced.add(str(path)))
    monkeypatch.setattr(index, "_CLOCK_NS", 0)
    record = library.versions.record
    on_disk: list[set[str]] = []

    def look_and_record(*arguments: object) -> None:
        record(*arguments)  # type: ignore[arg-type]
        on_disk.append(set(synced))

    monkeypatch.setattr(library.versions, "record", look_and_record)
    everything: list[set[str]] = []
    for number in range(2):
        synced.clear()
        library.add_file(f"file-{number}", f"Text {number}.")
        library.ingestor().run_once()
        everything.append({str(path) for path in (folder_of(library), *folder_of(library).rglob("*"))})

    assert on_disk[0] == everything[0]
    assert everything[1] - everything[0] <= on_disk[1]
    first_data = {path for path in everything[0] if path.endswith(".lance") and "/data/" in path}
    assert first_data
    assert not first_data & on_disk[1]
