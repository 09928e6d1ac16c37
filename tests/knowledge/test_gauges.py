import time
from pathlib import Path

from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.gauges import measure
from serve_app.storage.database import Database
from tests.fakes import RecordedMetrics
from tests.knowledge.test_ingest import Library, damage

QUEUE, OLDEST, UNINDEXED = (
    "rayconteur_ingestion_queue_files",
    "rayconteur_ingestion_oldest_seconds",
    "rayconteur_unindexed_rows",
)


def gauges(library: Library) -> dict[tuple[str, ...], float]:
    metrics = RecordedMetrics()
    measure(library.database, library.index, metrics)
    return metrics.values


def test_the_queue_is_measured_until_it_is_empty(tmp_path: Path, database: Database, encoder: TextEncoder) -> None:
    library = Library(tmp_path, database, encoder)
    library.add_store()
    library.add_file("file-1", "One.", created_at=int(time.time()) - 100)
    library.add_file("file-2", "Two.", created_at=int(time.time()) - 20)
    library.add_file("file-3", "Three.", created_at=int(time.time()) - 900, status="failed")

    waiting = gauges(library)
    library.ingestor().run_once()
    done = gauges(library)

    assert waiting[QUEUE,] == 2
    assert 100 <= waiting[OLDEST,] < 200
    assert (done[QUEUE,], done[OLDEST,]) == (0, 0)


def test_the_store_with_most_unindexed_rows_is_the_one_that_shows(
    tmp_path: Path, database: Database, encoder: TextEncoder
) -> None:
    library = Library(tmp_path, database, encoder)
    for store_id in ("vs_0a", "vs_0b", "vs_0c"):
        library.add_store(store_id)
    for number, store_id in enumerate(["vs_0a", "vs_0b", "vs_0b"]):
        library.add_file(f"file-{number}", f"Note {number}.", store_id=store_id)
    library.ingestor().run_once()

    before = gauges(library)
    library.index.optimize("vs_0b")
    after = gauges(library)
    library.index.optimize("vs_0a")

    assert before[UNINDEXED, "text"] == 2
    assert after[UNINDEXED, "text"] == 1
    assert gauges(library)[UNINDEXED, "text"] == 0
    # No vector index: that is how a small store is searched, and nothing that lags behind.
    assert before[UNINDEXED, "vector"] == 0


def test_a_damaged_table_hides_no_other(tmp_path: Path, database: Database, encoder: TextEncoder) -> None:
    library = Library(tmp_path, database, encoder)
    for store_id in ("vs_0a", "vs_0b"):
        library.add_store(store_id)
        library.add_file(f"file-of-{store_id}", "A note.", store_id=store_id)
    library.ingestor().run_once()
    damage(library, "vs_0a")

    assert gauges(library)[UNINDEXED, "text"] == 1
