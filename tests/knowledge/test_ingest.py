import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, insert, select, update

from serve_app.config import IngestionConfig, RetentionConfig
from serve_app.errors import Unavailable
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.ingest import Ingestor
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.versions import Versions
from serve_app.metrics import NO_METRICS, Metrics
from serve_app.storage.database import Database
from serve_app.storage.schema import files, vector_store_files, vector_stores
from serve_app.types import FloatMatrix, Json
from serve_app.types.knowledge import Passage, Ranking, SearchQuery
from tests.fakes import RecordedMetrics
from tests.knowledge.test_parse import pdf

STORE = "vs_0a"
ENCODER = "all-minilm-l6-v2"


class Folder:
    """The bytes of uploaded files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def path(self, file_id: str) -> Path:
        return self.folder / file_id


class Interrupted:
    """An encoder that does something else first, as a client might in the middle of an ingestion."""

    def __init__(self, encoder: TextEncoder, interruption: Callable[[], None]) -> None:
        self.model_id = encoder.model_id
        self.dimensions = encoder.dimensions
        self.max_tokens = encoder.max_tokens
        self.tokenizer = encoder.tokenizer
        self._encoder = encoder
        self._interruption = interruption
        self.calls: list[int] = []

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        self.calls.append(len(texts))
        self._interruption()
        return self._encoder.encode(texts)


class Library:
    """A database, a folder of files and an index, with what a test does to them."""

    def __init__(self, root: Path, database: Database, encoder: TextEncoder) -> None:
        self.database = database
        self.encoder = encoder
        self.root = root
        self.folder = Folder(root / "files")
        self.index = IndexWriter(root / "vectors")
        self.versions = Versions(database, self.index, RetentionConfig())
        self.reader = IndexReader(root / "vectors")

    def ingestor(
        self,
        *,
        encoder: TextEncoder | None = None,
        lease_s: float = 60,
        max_attempts: int = 3,
        metrics: Metrics = NO_METRICS,
    ) -> Ingestor:
        config = IngestionConfig(
            lease_s=lease_s, max_attempts=max_attempts, poll_interval_s=1, max_file_characters=10**6
        )
        encoders = {ENCODER: encoder or self.encoder}
        return Ingestor(self.database, self.folder, encoders, self.index, self.versions, config, metrics)

    def add_store(self, store_id: str = STORE, encoder: str = ENCODER) -> None:
        row = {
            "id": store_id,
            "metadata": {},
            "encoder": encoder,
            "chunking_strategy": {"type": "auto"},
            "created_at": 1,
            "last_active_at": 1,
        }
        with self.database.write() as connection:
            connection.execute(insert(vector_stores).values(row))

    def add_file(
        self,
        file_id: str,
        content: str | bytes,
        *,
        store_id: str = STORE,
        media_type: str = "text/plain",
        attributes: Json | None = None,
        **job: Any,
    ) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.folder.path(file_id).write_bytes(data)
        file = {
            "id": file_id,
            "filename": f"{file_id}.txt",
            "media_type": media_type,
            "purpose": "assistants",
            "size_bytes": len(data),
            "sha256": "",
            "created_at": 1,
        }
        row = {
            "store_id": store_id,
            "file_id": file_id,
            "key": file_id,
            "version": 1,
            "status": "in_progress",
            "attributes": attributes or {},
            "chunking_strategy": {"type": "auto"},
            "usage_bytes": 0,
            "passages": 0,
            "created_at": 1,
            "fence": 0,
            "lease_until": 0.0,
            "attempts": 0,
        } | job
        with self.database.write() as connection:
            connection.execute(insert(files).values(file))
            connection.execute(insert(vector_store_files).values(row))

    def change(self, file_id: str, **values: Any) -> None:
        with self.database.write() as connection:
            connection.execute(update(vector_store_files).where(vector_store_files.c.file_id == file_id).values(values))

    def job(self, file_id: str) -> Json:
        with self.database.read() as connection:
            query = select(vector_store_files).where(vector_store_files.c.file_id == file_id)
            return dict(connection.execute(query).mappings().one())

    async def passages(self, store_id: str = STORE) -> tuple[Passage, ...]:
        """All of the store's, in the order of their files."""
        vector = np.zeros(self.encoder.dimensions, dtype=np.float32)
        vector[0] = 1
        query = SearchQuery(store_id, "", vector, 10_000, ranking=Ranking(text_weight=0))
        found = await self.reader.search(query)
        return tuple(sorted(found, key=lambda passage: (passage.file_id, passage.start)))


@pytest.fixture
def library(tmp_path: Path, database: Database, encoder: TextEncoder) -> Library:
    library = Library(tmp_path, database, encoder)
    library.add_store()
    return library


async def test_waiting_file_becomes_searchable_and_completed(library: Library) -> None:
    library.add_file("file-1", "Ferrets sleep up to eighteen hours a day.", attributes={"animal": "ferret"})

    assert library.ingestor().run_once() == 1

    (passage,) = await library.passages()
    assert passage.passage_id == "file-1-0"
    assert passage.filename == "file-1.txt"
    assert passage.text == "Ferrets sleep up to eighteen hours a day."
    assert passage.attributes == {"animal": "ferret"}
    job = library.job("file-1")
    assert (job["status"], job["passages"], job["error_code"], job["attempts"]) == ("completed", 1, None, 1)
    assert job["usage_bytes"] == len(passage.text) + 4 * library.encoder.dimensions


async def test_passages_know_their_place(library: Library) -> None:
    section = "It is about one thing. " * 70
    library.add_file("file-1", pdf("Page one.", "", "Page three."), media_type="application/pdf")
    library.add_file("file-2", f"# Guide\n\n{section}\n\n## Install\n\n{section}", media_type="text/markdown")
    library.add_file("file-3", "# a comment\nprint()", media_type="text/plain")

    library.ingestor().run_once()

    document, *guide, code = await library.passages()
    assert (document.pages, document.heading) == ((1, 3), ())
    assert guide[0].heading == ("Guide",)
    assert guide[-1].heading == ("Guide", "Install")
    assert guide[-1].pages is None
    assert code.heading == ()


async def test_near_identical_passages_of_a_file_are_stored_once(library: Library) -> None:
    notice = "This page is intended to be blank. " * 20
    chapters = [f"# Chapter {number}\n\n" + f"It is about number {number}. " * 25 for number in (1, 2)]
    text = "\n\n".join([chapters[0], f"# Notice\n\n{notice}", chapters[1], f"# NOTICE\n\n{notice}"])
    library.add_file("file-1", text, media_type="text/markdown")

    library.ingestor().run_once()

    found = await library.passages()
    assert [passage.heading for passage in found] == [("Chapter 1",), ("Notice",), ("Chapter 2",)]
    assert library.job("file-1")["passages"] == 3


def test_nothing_to_do_is_no_work(library: Library) -> None:
    assert library.ingestor().run_once() == 0


def test_small_files_are_encoded_together_and_committed_once_per_store(library: Library) -> None:
    library.add_store("vs_0b")
    for number in range(6):
        library.add_file(f"file-{number}", f"Note {number}.", store_id="vs_0a" if number % 2 else "vs_0b")
    encoder = Interrupted(library.encoder, lambda: None)

    assert library.ingestor(encoder=encoder).run_once() == 6

    assert encoder.calls == [6]
    for store_id in ("vs_0a", "vs_0b"):
        assert library.index.version(store_id) == 4  # made, indexed twice, and one commit
    assert {library.job(f"file-{number}")["status"] for number in range(6)} == {"completed"}


async def test_bad_files_fail_alone_and_say_why(library: Library) -> None:
    library.add_file("file-blank", " \n\t ")
    library.add_file("file-good", "A good one.")
    library.add_file("file-pdf", b"%PDF-1.7\nnothing that follows", media_type="application/pdf")
    library.add_file("file-what", b"?", media_type="image/png")
    library.add_file("file-gone", "gone")
    library.folder.path("file-gone").unlink()

    assert library.ingestor().run_once() == 5

    outcome = {name: library.job(f"file-{name}") for name in ("blank", "good", "pdf", "what", "gone")}
    assert {name: (job["status"], job["error_code"]) for name, job in outcome.items()} == {
        "blank": ("failed", "invalid_file"),
        "good": ("completed", None),
        "pdf": ("failed", "invalid_file"),
        "what": ("failed", "unsupported_file"),
        "gone": ("failed", "server_error"),
    }
    assert "no text" in outcome["blank"]["error_message"]
    assert "upload it again" in outcome["gone"]["error_message"]
    assert [passage.file_id for passage in await library.passages()] == ["file-good"]


def test_what_became_of_files_is_counted(library: Library) -> None:
    library.add_file("file-blank", " \n\t ")
    library.add_file("file-empty", "")
    library.add_file("file-what", b"?", media_type="image/png")
    library.add_file("file-long", "A sentence of seven words, no more. " * 200)
    library.add_file("file-short", "A short one.")
    metrics = RecordedMetrics()

    library.ingestor(metrics=metrics).run_once()

    assert metrics.totals == {
        ("rayconteur_ingested_files",): 2,
        ("rayconteur_ingested_passages",): library.job("file-long")["passages"] + 1,
        ("rayconteur_ingestion_failures", "invalid_file"): 2,
        ("rayconteur_ingestion_failures", "unsupported_file"): 1,
    }
    assert library.job("file-long")["passages"] > 1


def test_file_tried_too_often_fails(library: Library) -> None:
    library.add_file("file-1", "It kills whoever reads it.", attempts=3)

    assert library.ingestor(max_attempts=3).run_once() == 1

    job = library.job("file-1")
    assert (job["status"], job["error_code"]) == ("failed", "server_error")
    assert "3 times" in job["error_message"]


def test_a_new_indexer_does_not_wait_for_the_lease_of_the_one_before(library: Library) -> None:
    library.add_file("file-1", "Held by a process that is gone.", fence=1, attempts=1, lease_until=1e12)
    ingestor = library.ingestor()
    assert ingestor.run_once() == 0

    ingestor.take_over()

    assert ingestor.run_once() == 1
    assert library.job("file-1")["status"] == "completed"


def test_an_indexer_that_was_replaced_and_lives_on_commits_nothing(library: Library) -> None:
    library.add_file("file-1", "Claimed by the one before.")
    before = library.ingestor(encoder=Interrupted(library.encoder, lambda: library.ingestor().take_over()))

    before.run_once()

    assert library.job("file-1")["status"] == "in_progress"
    assert library.index.version(STORE) is None
    assert library.ingestor().run_once() == 1
    assert library.job("file-1")["status"] == "completed"


def test_file_whose_indexer_died_is_taken_on_alone(library: Library) -> None:
    library.add_file("file-1", "It may be the reason.", attempts=1)
    library.add_file("file-2", "It is not.")

    assert library.ingestor().run_once() == 1
    assert (library.job("file-1")["status"], library.job("file-2")["status"]) == ("completed", "in_progress")


def test_file_under_a_live_lease_is_left_alone(library: Library) -> None:
    library.add_file("file-1", "Somebody else's.", lease_until=4_000_000_000.0)

    assert library.ingestor().run_once() == 0


def test_store_of_another_encoder_is_refused(library: Library) -> None:
    library.add_store("vs_0b", encoder="some-other")
    library.add_file("file-1", "Vectors that cannot be compared.", store_id="vs_0b")

    library.ingestor().run_once()

    assert library.job("file-1")["error_code"] == "server_error"
    assert "some-other" in library.job("file-1")["error_message"]


async def test_file_cancelled_meanwhile_leaves_no_passages(library: Library) -> None:
    library.add_file("file-1", "Not wanted any more.")
    library.add_file("file-2", "Still wanted.")
    cancel = Interrupted(library.encoder, lambda: library.change("file-1", status="cancelled"))

    library.ingestor(encoder=cancel).run_once()

    assert [passage.file_id for passage in await library.passages()] == ["file-2"]
    assert library.job("file-1")["status"] == "cancelled"


async def test_claim_that_another_took_over_writes_nothing(library: Library) -> None:
    library.add_file("file-1", "The same file, ingested twice.")

    def overtake() -> None:
        library.change("file-1", lease_until=0.0)
        library.ingestor().run_once()

    library.ingestor(encoder=Interrupted(library.encoder, overtake)).run_once()

    assert library.job("file-1")["status"] == "completed"
    assert library.job("file-1")["fence"] == 2
    assert [passage.passage_id for passage in await library.passages()] == ["file-1-0"]


async def test_store_deleted_meanwhile_leaves_no_table(library: Library) -> None:
    library.add_file("file-1", "In a store that is deleted.")

    def delete_store() -> None:
        with library.database.write() as connection:
            connection.execute(delete(vector_stores).where(vector_stores.c.id == STORE))

    library.ingestor(encoder=Interrupted(library.encoder, delete_store)).run_once()

    assert library.index.version(STORE) is None
    assert await library.passages() == ()


async def test_attributes_changed_meanwhile_are_those_that_count(library: Library) -> None:
    library.add_file("file-1", "A report.", attributes={"year": 2020.0})
    change = Interrupted(library.encoder, lambda: library.change("file-1", attributes={"year": 2021.0}))

    library.ingestor(encoder=change).run_once()

    (passage,) = await library.passages()
    assert passage.attributes == {"year": 2021.0}


async def test_rows_of_a_killed_attempt_are_replaced(library: Library) -> None:
    library.add_file("file-1", "Written once, killed, written again.")
    library.ingestor().run_once()
    library.change("file-1", status="in_progress", lease_until=0.0)

    library.ingestor().run_once()

    assert [passage.passage_id for passage in await library.passages()] == ["file-1-0"]


def test_lease_is_renewed_while_a_file_is_at_work(library: Library) -> None:
    library.add_file("file-1", "A very long one.")
    leases: list[float] = []

    def until_renewed() -> None:
        leases.append(library.job("file-1")["lease_until"])
        while library.job("file-1")["lease_until"] == leases[0]:
            pass
        leases.append(library.job("file-1")["lease_until"])

    library.ingestor(encoder=Interrupted(library.encoder, until_renewed), lease_s=0.3).run_once()

    assert leases[1] > leases[0]
    assert library.job("file-1")["status"] == "completed"


def test_dying_encoder_raises_and_the_file_waits(library: Library) -> None:
    library.add_file("file-1", "A good one.")

    def die() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        library.ingestor(encoder=Interrupted(library.encoder, die)).run_once()

    assert library.job("file-1")["status"] == "in_progress"
    assert library.ingestor().run_once() == 0  # the lease has still to end
    library.change("file-1", lease_until=0.0)
    assert library.ingestor().run_once() == 1
    assert library.job("file-1")["status"] == "completed"


def test_dying_database_raises(library: Library) -> None:
    library.add_file("file-1", "A good one.")

    class Gone:
        def write(self) -> Any:
            raise Unavailable("gone")

        read = write

    ingestor = library.ingestor()
    ingestor._database = Gone()  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        ingestor.run_once()


_CHILD = """
import sys
from pathlib import Path
from serve_app.config import EncoderConfig, IngestionConfig, RetentionConfig
from serve_app.knowledge.encode import load_encoder
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.ingest import Ingestor
from serve_app.knowledge.versions import Versions
from serve_app.storage.database import open_database
from tests.knowledge.test_ingest import Folder

root = Path(sys.argv[1])
encoder = load_encoder(EncoderConfig(backend="openvino", batch_size=8))
index = IndexWriter(root / "vectors")
config = IngestionConfig(lease_s=1000, poll_interval_s=1, max_attempts=9, max_file_characters=10**6)
database = open_database(f"sqlite:///{root / 'rayconteur.db'}")
versions = Versions(database, index, RetentionConfig())
ingestor = Ingestor(database, Folder(root / "files"), {encoder.model_id: encoder}, index, versions, config)

def halt(*_):
    print("here", flush=True)
    sys.stdin.read()

versions.record = halt  # the index is written, the database is not
ingestor.run_once()
"""


async def test_kill_between_the_two_commits_doubles_and_loses_nothing(library: Library, tmp_path: Path) -> None:
    texts = {f"file-{number}": f"Paragraph of file {number}.\n\n" * 60 for number in range(4)}
    for file_id, text in texts.items():
        library.add_file(file_id, text)
    _ingest_until_killed(tmp_path)
    assert {library.job(file_id)["status"] for file_id in texts} == {"in_progress"}
    for file_id in texts:
        library.change(file_id, lease_until=0.0)

    ingestor = library.ingestor()
    while ingestor.run_once():
        pass

    passages = await library.passages()
    assert len({passage.passage_id for passage in passages}) == len(passages)
    for file_id, text in texts.items():
        assert library.job(file_id)["status"] == "completed"
        mine = [passage for passage in passages if passage.file_id == file_id]
        assert len(mine) == library.job(file_id)["passages"] > 1
        assert mine[0].start == 0
        assert mine[-1].start + len(mine[-1].text) == len(text.rstrip())


async def test_what_a_killed_indexer_did_not_record_is_taken_back(library: Library, tmp_path: Path) -> None:
    library.add_file("file-0", "The first version.", key="document")
    library.add_file("file-9", "Another document.")
    library.ingestor().run_once()
    library.add_file("file-1", "The second version.", key="document", version=2)
    _ingest_until_killed(tmp_path)  # between the two commits
    assert {each.file_id for each in await library.passages()} == {"file-1", "file-9"}
    library.change("file-1", status="cancelled", fence=2)  # so that nobody will do it again

    library.versions.undo_unrecorded()

    assert {each.file_id for each in await library.passages()} == {"file-0", "file-9"}
    before = library.index.version(STORE)
    library.versions.undo_unrecorded()
    assert library.index.version(STORE) == before


def test_nobody_commits_while_the_table_is_compared_and_restored(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library.add_file("file-1", "Recorded.")
    library.ingestor().run_once()
    library.index.remove_file(STORE, "file-1")  # by one that was killed before it recorded it
    refusals: list[str] = []
    restore = library.index.restore

    def try_to_commit_and_restore(name: str, table_version: int) -> None:
        with closing(sqlite3.connect(tmp_path / "rayconteur.db", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                refusals.append(str(error))
        restore(name, table_version)

    monkeypatch.setattr(library.index, "restore", try_to_commit_and_restore)
    library.versions.undo_unrecorded()

    assert refusals == ["database is locked"]
    assert [each.file_id for each in library.index.files(STORE)] == ["file-1"]


def damage(library: Library, store_id: str) -> None:
    """As a disk that was full, or a machine that lost its power, may leave it."""
    manifests = library.root / "vectors" / f"{store_id}.lance" / "_versions"
    min(manifests.glob("*.manifest")).write_bytes(b"")  # the newest: their names count down


def test_a_table_that_cannot_be_read_stops_no_other_store(library: Library, caplog: pytest.LogCaptureFixture) -> None:
    library.add_store("vs_0b")
    for store_id in (STORE, "vs_0b"):
        library.add_file(f"file-of-{store_id}", "Recorded.", store_id=store_id)
    library.ingestor().run_once()
    damage(library, STORE)
    library.index.remove_file("vs_0b", "file-of-vs_0b")  # not recorded

    library.versions.undo_unrecorded()
    library.versions.enforce_retention(STORE, {STORE})

    assert [each.file_id for each in library.index.files("vs_0b")] == ["file-of-vs_0b"]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == 2 * [
        f"store {STORE}: its table cannot be read or written"
    ]


def test_a_table_that_cannot_be_read_can_be_dropped(library: Library) -> None:
    library.add_file("file-1", "Soon gone.")
    library.ingestor().run_once()
    damage(library, STORE)

    library.index.drop(STORE)

    assert library.index.tables() == {}
    assert library.index.version(STORE) is None


def test_files_of_a_table_that_cannot_be_read_fail_and_stop_no_other_store(library: Library) -> None:
    library.add_store("vs_0b")
    library.add_file("file-0", "Recorded.")
    library.ingestor().run_once()
    damage(library, STORE)
    library.add_file("file-1", "Nobody can add it.")
    library.add_file("file-2", "Anybody can add it.", store_id="vs_0b")

    ingestor = library.ingestor(max_attempts=2)
    for _ in range(3):
        ingestor.run_once()
        ingestor.take_over()

    assert (library.job("file-1")["status"], library.job("file-1")["error_code"]) == ("failed", "server_error")
    assert library.job("file-2")["status"] == "completed"


def _ingest_until_killed(root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)
