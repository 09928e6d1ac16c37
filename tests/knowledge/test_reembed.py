"""Moves to another encoder: the real index, the real ingestion, on each kind of database."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from sqlalchemy import delete, select, text, update

from serve_app.config import IngestionConfig, RetentionConfig
from serve_app.errors import InvalidRequest, Unavailable
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.encode import TextEncoder, unit_rows
from serve_app.knowledge.reembed import Reembedder
from serve_app.knowledge.versions import Versions, hold
from serve_app.storage.database import Database, open_database
from serve_app.storage.schema import files, reembeddings, store_versions
from serve_app.types import FloatMatrix, FloatVector, Json
from serve_app.types.knowledge import Passage, Ranking, SearchQuery, StoreFileRef, StoreVersionRef
from tests.knowledge.test_ingest import ENCODER, STORE, Library

NARROW = "narrow"
DIMENSIONS = 96


def nothing() -> None: ...


def void(_: object) -> None: ...


class Narrow:
    """Another encoder: the real one's vectors, thrown into fewer dimensions, from a window of 40 tokens."""

    model_id = NARROW
    dimensions = DIMENSIONS
    max_tokens = 40

    def __init__(self, encoder: TextEncoder, interruption: Callable[[], None] = nothing) -> None:
        self.tokenizer = encoder.tokenizer
        self.texts: list[str] = []
        self.interruption = interruption
        """Called after each batch, before anybody has its vectors."""
        self._encoder = encoder
        self._projection = np.random.default_rng(0).normal(size=(encoder.dimensions, DIMENSIONS))

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        self.texts += texts
        vectors = unit_rows(np.asarray(self._encoder.encode(texts) @ self._projection, dtype=np.float32))
        self.interruption()
        return vectors


class Counted(Narrow):
    """The store's first encoder, as it is."""

    model_id = ENCODER

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__(encoder)
        self.dimensions = encoder.dimensions
        self.max_tokens = encoder.max_tokens

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        self.texts += texts
        return self._encoder.encode(texts)


class Moving(Library):
    """A library with two encoders."""

    def __init__(self, root: Path, database: Database, encoder: TextEncoder) -> None:
        super().__init__(root, database, encoder)
        self.root = root
        self.first, self.narrow = Counted(encoder), Narrow(encoder)
        self.catalog = Catalog(database, ENCODER, NARROW)
        self.add_store()

    @property
    def encoders(self) -> dict[str, TextEncoder]:
        return {ENCODER: self.first, NARROW: self.narrow}

    def put(self, file_id: str, text: str, **job: Any) -> None:
        """Add a file and ingest it."""
        self.add_file(file_id, text, **job)
        self.ingest()

    def ingest(self) -> None:
        ingestor = self.ingestor()
        ingestor._encoders = self.encoders
        while ingestor.run_once():
            pass

    def ask(self, model: str) -> Json:
        return self.catalog.reembed(STORE, model)

    def reembedder(self, lease_s: float = 60, max_attempts: int = 3) -> Reembedder:
        config = IngestionConfig(lease_s=lease_s, max_attempts=max_attempts, max_file_characters=10**6)
        return Reembedder(self.database, self.folder, self.encoders, self.index, self.versions, config)

    def move(self, model: str) -> None:
        self.ask(model)
        assert self.reembedder().run_once()

    def enforce_retention(self) -> None:
        self.versions.enforce_retention(STORE, self.index.tables_of(STORE))

    @property
    def model(self) -> str:
        return str(self.store()["model"])

    def store(self) -> Json:
        return self.catalog.get_store(STORE)

    def rows(self, store_id: str = STORE) -> dict[str, Json]:
        """All of the table that searches read now."""
        table = self.root / "vectors" / f"{self.versions.table(store_id)}.lance"
        rows: list[Json] = lance.dataset(str(table)).to_table().to_pylist() if table.exists() else []
        assert len({row["passage_id"] for row in rows}) == len(rows)
        return {row["passage_id"]: row for row in rows}

    def files(self) -> set[str]:
        return {row["file_id"] for row in self.rows().values()}

    async def search(self, text: str, as_of: int | None = None) -> list[Passage]:
        """By its vector."""
        (table,) = self.catalog.require_stores([STORE], as_of).values()
        vector: FloatVector = self.encoders[table.encoder].encode([text])[0]
        query = SearchQuery(
            STORE,
            text,
            vector,
            50,
            ranking=Ranking(text_weight=0),
            table_version=table.version,
            table_suffix=table.suffix,
        )
        return list(await self.reader.search(query))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(open_database(database_url)) as database:
        yield database


@pytest.fixture
def library(tmp_path: Path, database: Database, encoder: TextEncoder) -> Moving:
    return Moving(tmp_path, database, encoder)


FERRETS = "".join(f"Ferret number {number} sleeps up to eighteen hours a day. " for number in range(30))
OTTERS = "".join(f"Otter number {number} holds hands while it sleeps. " for number in range(40))


async def test_moved_store_is_what_it_had_been_if_it_was_made_by_the_other_encoder(library: Moving) -> None:
    library.add_store("vs_0b", encoder=NARROW)
    for store_id in (STORE, "vs_0b"):
        name = store_id[-1]
        library.add_file(f"file-{name}", f"# Ferrets\n\n{FERRETS}", store_id=store_id, media_type="text/markdown")
        library.add_file(f"file-{name}-2", OTTERS, store_id=store_id, attributes={"year": 2020.0})
    library.ingest()

    library.move(NARROW)

    moved, made = list(library.rows().values()), list(library.rows("vs_0b").values())
    assert len(moved) == len(made) > 10
    for one, other in zip(moved, made, strict=True):
        for column in ("text", "start", "heading", "version", "fence", "attributes", "n_79656172"):
            assert one[column] == other[column]
        assert len(one["vector"]) == DIMENSIONS
        assert np.dot(one["vector"], other["vector"]) > 0.999
    assert library.store()["reembedding"] is None
    assert library.store()["model"] == NARROW
    for file_id, twin in (("file-a", "file-b"), ("file-a-2", "file-b-2")):
        assert library.job(file_id)["passages"] == library.job(twin)["passages"]
        assert library.job(file_id)["usage_bytes"] == library.job(twin)["usage_bytes"]
    best = (await library.search("otters hold hands while they sleep"))[0]
    assert best.file_id == "file-a-2"


async def test_searches_read_the_old_table_until_the_switch(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.put("file-2", OTTERS)
    seen: list[tuple[str, str | None]] = []

    def look() -> None:
        store = library.store()
        seen.append((store["model"], (store["reembedding"] or {}).get("model")))
        assert len(library.rows()) == library.job("file-1")["passages"] + library.job("file-2")["passages"]

    library.narrow.interruption = look

    library.move(NARROW)

    assert seen == [(ENCODER, NARROW)]
    assert library.model == NARROW


def test_each_batch_says_how_far_it_is(library: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.knowledge.reembed._MAX_BATCH_FILES", 1)
    for number in range(3):
        library.put(f"file-{number}", f"Note {number}.")
    seen: list[Json] = []
    library.narrow.interruption = lambda: seen.append(library.store()["reembedding"])

    library.move(NARROW)

    assert [(each["status"], each["files_done"], each["files_total"]) for each in seen] == [
        ("in_progress", 0, 0),
        ("in_progress", 1, 3),
        ("in_progress", 2, 3),
    ]
    assert [each["seconds_left"] is None for each in seen] == [True, False, False]


async def test_what_changes_meanwhile_is_in_the_new_table(library: Moving) -> None:
    library.put("file-1", FERRETS, key="document")
    library.put("file-2", "It is removed meanwhile.")
    library.put("file-3", "Its attributes change.", attributes={"year": 2020.0})

    def change() -> None:
        library.narrow.interruption = nothing
        library.put("file-4", OTTERS, key="document", version=2)
        library.put("file-5", "A new one.")
        library.versions.remove_file(StoreFileRef(STORE, "file-2"))
        library.catalog.remove_file(STORE, "file-2")
        library.catalog.update_attributes(STORE, "file-3", {"year": 2021.0})
        library.versions.update_attributes(StoreFileRef(STORE, "file-3"))

    library.narrow.interruption = change

    library.move(NARROW)

    assert library.model == NARROW
    assert library.files() == {"file-3", "file-4", "file-5"}
    assert library.rows()["file-3-0"]["n_79656172"] == 2021.0
    assert library.narrow.texts.count("Its attributes change.") == 1  # only what is encoded anew takes time
    assert {passage.attributes.get("year") for passage in await library.search("attributes")} == {None, 2021.0}


def test_file_taken_out_meanwhile_is_not_put_in_behind_the_stores_back(library: Moving) -> None:
    library.put("file-1", "It is removed meanwhile.")
    library.put("file-2", "It stays.")
    written: list[set[str]] = []

    def remove() -> None:
        library.narrow.interruption = nothing
        library.versions.remove_file(StoreFileRef(STORE, "file-1"))

    maintain = library.index.maintain

    def look(name: str) -> None:
        written.append(set(library.index.written_files(name)))
        maintain(name)

    library.narrow.interruption = remove
    library.index.maintain = look  # type: ignore[method-assign]  # after the first round

    library.move(NARROW)

    assert written == [{"file-2"}]


async def test_file_that_is_being_ingested_at_the_switch_is_ingested_by_the_new_encoder(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.add_file("file-2", OTTERS)
    ingestor = library.ingestor()
    first = library.first

    class Slow(Counted):
        def encode(self, texts: Sequence[str]) -> FloatMatrix:
            library.move(NARROW)
            return first.encode(texts)

    ingestor._encoders = {ENCODER: Slow(library.encoder), NARROW: library.narrow}
    assert ingestor.run_once() == 1
    assert library.files() == {"file-1"}
    assert library.job("file-2")["status"] == "in_progress"

    library.ingest()

    assert library.files() == {"file-1", "file-2"}
    assert library.job("file-2")["status"] == "completed"
    assert {len(row["vector"]) for row in library.rows().values()} == {DIMENSIONS}


async def test_the_way_back_is_open_and_computes_only_what_has_changed(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.put("file-2", OTTERS)
    before = library.rows()
    library.move(NARROW)
    library.first.texts.clear()

    library.move(ENCODER)

    assert library.first.texts == []
    assert library.rows() == before

    library.move(NARROW)
    library.put("file-3", "Only this is new.")
    library.versions.remove_file(StoreFileRef(STORE, "file-2"))
    library.first.texts.clear()
    library.move(ENCODER)

    assert library.first.texts == ["Only this is new."]
    assert library.files() == {"file-1", "file-3"}
    assert len(library.index.tables_of(STORE)) == 2  # not one for each move


async def test_file_that_is_removed_and_added_again_is_made_anew_on_the_way_back(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.move(NARROW)
    library.versions.remove_file(StoreFileRef(STORE, "file-1"))
    library.catalog.remove_file(STORE, "file-1")
    with library.database.write() as connection:
        connection.execute(delete(files).where(files.c.id == "file-1"))
    static = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    library.put("file-1", FERRETS, chunking_strategy=static)
    narrow = [row["text"] for row in library.rows().values()]

    library.move(ENCODER)

    assert [row["text"] for row in library.rows().values()] == narrow  # 100 tokens for both


async def test_as_of_answers_from_the_table_of_its_time(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.put("file-2", OTTERS)
    library.versions.remove_file(StoreFileRef(STORE, "file-2"))
    then = [(await library.search("sleep", as_of=version)) for version in (1, 2, 3)]

    library.move(NARROW)

    assert [await library.search("sleep", as_of=version) for version in (1, 2, 3)] == then
    versions = library.catalog.list_versions(STORE)
    assert [(each["version"], each["model"]) for each in versions] == [
        (4, NARROW),
        (3, ENCODER),
        (2, ENCODER),
        (1, ENCODER),
    ]
    without = Catalog(library.database, NARROW)
    with pytest.raises(InvalidRequest, match="further_encoders"):
        without.require_stores([STORE], as_of=1)
    assert without.require_stores([STORE])


async def test_roll_back_brings_the_old_encoder_back(library: Moving) -> None:
    library.put("file-1", FERRETS)
    before, job = library.rows(), library.job("file-1")
    library.move(NARROW)
    library.put("file-2", OTTERS)
    library.first.texts.clear()

    version = library.versions.roll_back(StoreVersionRef(STORE, 1))

    assert library.model == ENCODER
    assert library.rows() == before
    assert library.catalog.get_version(STORE, version)["model"] == ENCODER
    after = library.job("file-1")
    assert (after["passages"], after["usage_bytes"]) == (job["passages"], job["usage_bytes"])
    assert library.first.texts == []
    assert {passage.file_id for passage in await library.search("sleep")} == {"file-1"}


def test_roll_back_calls_a_move_off(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.put("file-2", OTTERS)
    library.narrow.interruption = lambda: void(library.versions.roll_back(StoreVersionRef(STORE, 1)))

    library.move(NARROW)

    assert (library.model, library.store()["reembedding"]) == (ENCODER, None)
    assert library.files() == {"file-1"}


def test_roll_back_makes_a_file_what_it_was(library: Moving) -> None:
    library.put("file-1", FERRETS, key="ferrets")
    library.versions.remove_file(StoreFileRef(STORE, "file-1"))
    # And added again, as another document.
    library.change("file-1", key="stoats", version=3, since_version=None, until_version=None, passages=0)
    library.change("file-1", status="failed", error_code="server_error", error_message="It was cut off")

    library.versions.roll_back(StoreVersionRef(STORE, 1))

    job = library.job("file-1")
    assert (job["key"], job["version"], job["status"], job["since_version"]) == ("ferrets", 1, "completed", 3)
    assert (job["error_code"], job["error_message"]) == (None, None)
    library.put("file-2", OTTERS, key="ferrets", version=2)
    assert library.files() == {"file-2"}


def test_the_last_change_of_attributes_is_in_the_table_whichever_comes_there_last(library: Moving) -> None:
    library.put("file-1", FERRETS)
    for year in (2020.0, 2021.0):
        library.catalog.update_attributes(STORE, "file-1", {"year": year})

    for _ in range(2):
        library.versions.update_attributes(StoreFileRef(STORE, "file-1"))

    assert {row["attributes"] for row in library.rows().values()} == {'{"year": 2021.0}'}


def test_old_table_goes_with_the_last_version_in_it(library: Moving) -> None:
    library.versions = Versions(library.database, library.index, RetentionConfig(keep_versions=2))
    library.put("file-1", FERRETS)
    library.move(NARROW)
    library.enforce_retention()
    library.enforce_retention()
    assert len(library.index.tables_of(STORE)) == 2

    library.put("file-2", OTTERS)
    library.enforce_retention()
    assert len(library.index.tables_of(STORE)) == 2  # a search may just be reading it
    library.enforce_retention()

    assert library.index.tables_of(STORE) == {library.versions.table(STORE)}
    library.first.texts.clear()
    library.move(ENCODER)
    assert library.first.texts != []
    assert library.files() == {"file-1", "file-2"}


def test_pinned_version_keeps_the_old_table(library: Moving) -> None:
    library.versions = Versions(library.database, library.index, RetentionConfig(keep_versions=1))
    library.put("file-1", FERRETS)
    library.catalog.pin_version(STORE, 1, is_pinned=True)
    library.move(NARROW)
    for _ in range(3):
        library.enforce_retention()

    assert len(library.index.tables_of(STORE)) == 2

    library.catalog.pin_version(STORE, 1, is_pinned=False)
    for _ in range(2):
        library.enforce_retention()

    assert len(library.index.tables_of(STORE)) == 1


def test_call_with_the_stores_own_encoder_calls_a_move_off(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.narrow.interruption = lambda: void(library.ask(ENCODER))

    library.move(NARROW)

    assert (library.model, library.store()["reembedding"]) == (ENCODER, None)
    assert not library.reembedder().run_once()
    for _ in range(2):
        library.enforce_retention()
    assert library.index.tables_of(STORE) == {STORE}


def test_unreadable_file_fails_the_move_and_says_which(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.put("file-2", OTTERS)
    content = library.folder.path("file-2").read_bytes()
    library.folder.path("file-2").unlink()

    library.move(NARROW)

    failed = library.store()["reembedding"]
    assert (failed["model"], failed["status"], failed["error"]["code"]) == (NARROW, "failed", "unreadable_file")
    assert "file-2" in failed["error"]["message"]
    assert library.model == ENCODER
    assert library.files() == {"file-1", "file-2"}
    assert not library.reembedder().run_once()

    library.folder.path("file-2").write_bytes(content)
    library.move(NARROW)

    assert library.model == NARROW
    assert library.files() == {"file-1", "file-2"}


def test_file_that_vanishes_because_it_is_taken_out_fails_nothing(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.put("file-2", OTTERS)
    path = library.folder.path

    def remove_first(file_id: str) -> Path:
        if file_id == "file-2" and path(file_id).exists():
            library.versions.remove_file(StoreFileRef(STORE, "file-2"))
            path(file_id).unlink()
        return path(file_id)

    library.folder.path = remove_first  # type: ignore[method-assign]

    library.move(NARROW)

    assert library.model == NARROW
    assert library.files() == {"file-1"}


def test_move_to_an_encoder_that_is_gone_fails(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.ask(NARROW)
    config = IngestionConfig()
    only_first = {ENCODER: library.first}
    assert Reembedder(library.database, library.folder, only_first, library.index, library.versions, config).run_once()

    assert library.store()["reembedding"]["error"]["code"] == "model_not_found"
    assert library.model == ENCODER


def test_move_that_comes_no_step_further_fails(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.ask(NARROW)
    with library.database.write() as connection:
        connection.execute(update(reembeddings).values(attempts=3))

    library.reembedder(max_attempts=3).run_once()

    assert "3 times" in library.store()["reembedding"]["error"]["message"]


def test_error_of_the_encoder_fails_the_move_and_not_the_indexer(library: Moving) -> None:
    library.put("file-1", FERRETS)

    def run_out() -> None:
        raise OSError("No space left on device")

    library.narrow.interruption = run_out

    library.move(NARROW)

    assert "No space left" in library.store()["reembedding"]["error"]["message"]


def test_move_under_a_live_lease_is_left_alone_until_it_is_taken_over(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.ask(NARROW)
    with library.database.write() as connection:
        connection.execute(update(reembeddings).values(lease_until=4_000_000_000.0))
    assert not library.reembedder().run_once()

    library.reembedder().take_over()

    assert library.reembedder().run_once()
    assert library.model == NARROW


def test_claim_that_another_took_over_writes_nothing(library: Moving) -> None:
    library.put("file-1", FERRETS)

    def overtake() -> None:
        library.narrow.interruption = nothing
        library.reembedder().take_over()
        library.reembedder().run_once()

    library.narrow.interruption = overtake

    library.move(NARROW)

    assert library.model == NARROW
    with library.database.read() as connection:
        versions = connection.execute(select(store_versions.c.version)).scalars().all()
    assert sorted(versions) == [1, 2]
    assert library.files() == {"file-1"}


def test_store_without_passages_moves_too(library: Moving) -> None:
    library.move(NARROW)
    assert library.model == NARROW
    assert library.index.tables_of(STORE) == set()

    library.put("file-1", "The first one.")

    assert {len(row["vector"]) for row in library.rows().values()} == {DIMENSIONS}


def test_store_deleted_meanwhile_leaves_no_table(library: Moving) -> None:
    library.put("file-1", FERRETS)

    def delete_store() -> None:
        library.catalog.stop_ingestion(STORE)
        library.index.drop(STORE)
        library.catalog.delete_store(STORE)

    library.narrow.interruption = delete_store

    library.move(NARROW)

    assert library.index.tables_of(STORE) == set()


def test_statistics_and_maintenance_follow_the_store(library: Moving) -> None:
    library.put("file-1", FERRETS)
    library.move(NARROW)

    state = library.index.describe(library.versions.table(STORE))

    assert state.passages == library.job("file-1")["passages"] == len(library.rows())


_CHILD = """
import os, signal, sys
from pathlib import Path
from serve_app.config import EncoderConfig, IngestionConfig
from serve_app.knowledge import reembed
from serve_app.knowledge.encode import load_encoder
from serve_app.storage.database import open_database
from tests.knowledge.test_reembed import Moving

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

root, url, step, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
reembed._MAX_BATCH_FILES = 1
library = Moving.__new__(Moving)
encoder = load_encoder(EncoderConfig(backend="openvino"))
add_store, Moving.add_store = Moving.add_store, lambda self: None
library.__init__(root, open_database(url), encoder)
if step == "record":
    library.versions.record = die
else:
    add = library.index.add
    calls = iter(range(1, 100))
    def add_and_die(*arguments, **options):
        add(*arguments, **options)
        if next(calls) == count: die()
    library.index.add = add_and_die
library.reembedder().run_once()
"""


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_other_process_changes_a_table_meanwhile(library: Moving, database_url: str) -> None:
    def hold_at_once(database: Database, store_id: str) -> None:
        with database.write() as connection:
            connection.execute(text("SET LOCAL lock_timeout = 1"))
            hold(connection, store_id)

    with closing(open_database(database_url)) as other:
        with library.versions.changing(STORE):
            hold_at_once(other, "vs_0b")
            with pytest.raises(Unavailable):
                hold_at_once(other, STORE)
        hold_at_once(other, STORE)


# On PostgreSQL each takes as long, and only the SQL would be another.
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("step", "count", "made_again"), [("add", 1, 2), ("add", 2, 1), ("record", 0, 0)])
async def test_killed_move_goes_on_where_it_was(
    library: Moving, tmp_path: Path, database_url: str, step: str, count: int, made_again: int
) -> None:
    for number in range(3):
        library.put(f"file-{number}", f"Note {number}.")
    library.ask(NARROW)
    _move_until_killed(tmp_path, database_url, step, count)
    assert library.model == ENCODER
    library.reembedder().take_over()
    library.versions.undo_unrecorded()
    assert {passage.file_id for passage in await library.search("Note")} == {"file-0", "file-1", "file-2"}

    library.reembedder().run_once()

    assert library.model == NARROW
    assert len(library.narrow.texts) == made_again
    assert set(library.rows()) == {"file-0-0", "file-1-0", "file-2-0"}
    before = library.index.version(library.versions.table(STORE))
    library.versions.undo_unrecorded()
    assert library.index.version(library.versions.table(STORE)) == before


def _move_until_killed(root: Path, database_url: str, step: str, count: int) -> None:
    command = [sys.executable, "-c", _CHILD, str(root), database_url, step, str(count)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
