import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from serve_app.knowledge import maintenance
from serve_app.knowledge.index import FilePassages, IndexReader, IndexWriter
from serve_app.knowledge.split import Piece
from serve_app.types import IndexState, Optimization, Passage, Ranking, SearchQuery, TableState
from tests.fakes import RecordedMetrics

STORE = "vs_0a"
ROUNDS = 30


@pytest.fixture
def writer(tmp_path: Path) -> IndexWriter:
    """A store of thirty small commits."""
    writer = IndexWriter(tmp_path, 4)
    for number in range(ROUNDS):
        add(writer, f"file-{number}")
    return writer


def add(writer: IndexWriter, file_id: str, *, fence: int = 1) -> None:
    angle = np.float32(sum(file_id.encode()) / 100)
    vector = np.array([[np.cos(angle), np.sin(angle), 0, 0]], dtype=np.float32)
    writer.add(STORE, [FilePassages(file_id, "a.txt", {}, [Piece(f"wing {file_id}", 0)], vector, fence)])


async def found(folder: Path, text: str = "wing", max_results: int = 50) -> list[Passage]:
    vector = np.array([1, 0, 0, 0], dtype=np.float32)
    query = SearchQuery(STORE, text, vector, max_results, None, Ranking())
    return list(await IndexReader(folder).search(query))


async def test_optimising_merges_what_many_commits_left_and_changes_no_answer(
    writer: IndexWriter, tmp_path: Path
) -> None:
    before = await found(tmp_path)

    done = writer.optimize(STORE)

    assert done.fragments == (ROUNDS, 1)
    assert done.duplicates_removed == 0
    assert min(done.size_bytes) > 0
    assert min(*done.search_ms, done.elapsed_ms) > 0
    after = await found(tmp_path)
    assert {passage.passage_id for passage in after} == {passage.passage_id for passage in before}
    assert len(after) == ROUNDS


async def test_what_a_lost_claim_left_is_removed(writer: IndexWriter, tmp_path: Path) -> None:
    # Whoever writes later with an older fence has lost its claim.
    add(writer, "file-3", fence=4)
    add(writer, "file-3", fence=2)
    add(writer, "file-7", fence=3)
    add(writer, "file-7", fence=2)

    assert writer.optimize(STORE).duplicates_removed == 2

    passages = await found(tmp_path)
    assert len(passages) == ROUNDS
    assert len({passage.passage_id for passage in passages}) == ROUNDS
    assert writer.optimize(STORE).duplicates_removed == 0


async def test_appends_and_searches_go_on_meanwhile(writer: IndexWriter, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        optimised = pool.submit(lambda: [writer.optimize(STORE) for _ in range(3)])
        added = 0
        while not optimised.done():
            add(writer, f"new-{added}")
            added += 1
            assert len(await found(tmp_path, max_results=500)) == ROUNDS + added
        optimised.result()
    assert added > 0
    assert len(await found(tmp_path, max_results=500)) == ROUNDS + added


async def test_deletions_and_ingestions_own_maintenance_go_on_meanwhile(
    writer: IndexWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "MAX_SMALL_FRAGMENTS", 1)

    def ingest() -> None:
        for number in range(30):
            add(writer, f"new-{number}")
            writer.maintain(STORE)

    def delete() -> None:
        for number in range(ROUNDS):
            writer.remove_file(STORE, f"file-{number}")

    with ThreadPoolExecutor(3) as pool:
        at_once: list[Future[object]] = [pool.submit(ingest), pool.submit(delete)]
        at_once += [pool.submit(writer.optimize, STORE) for _ in range(10)]
        for each in at_once:
            each.result()

    assert sorted(passage.file_id for passage in await found(tmp_path)) == sorted(f"new-{n}" for n in range(30))


def test_a_store_without_passages_or_one_that_is_gone_has_nothing_to_do(tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path, 4)
    assert writer.optimize(STORE) == Optimization()
    add(writer, "file-1")
    writer.remove_file(STORE, "file-1")
    assert writer.optimize(STORE).search_ms == (0, 0)
    writer.drop(STORE)
    assert writer.optimize(STORE) == Optimization()


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(writer: IndexWriter, tmp_path: Path) -> None:
    data = tmp_path / f"{STORE}.lance" / "data"
    old, young = data / ".tmpOld", data / ".tmpYoung"
    for path in (old, young):
        path.write_bytes(b"half an append")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))

    writer.optimize(STORE)

    assert not old.exists()
    assert young.exists()
    maintenance.sweep(data.parent, timedelta(0))
    assert not young.exists()


def test_a_store_is_described_as_it_is_before_and_after(writer: IndexWriter) -> None:
    before = writer.describe(STORE)
    unindexed = writer.unindexed_rows(STORE)
    writer.optimize(STORE)
    after = writer.describe(STORE)

    assert (before.passages, before.fragments) == (ROUNDS, ROUNDS)
    assert before.text == IndexState("FTS", indexed_rows=0, unindexed_rows=ROUNDS)
    assert unindexed == {"text": ROUNDS}
    assert (after.passages, after.fragments) == (ROUNDS, 1)
    assert after.text == IndexState("FTS", indexed_rows=ROUNDS, unindexed_rows=0)
    assert after.vector == IndexState(None, 0, ROUNDS)
    assert min(before.size_bytes, after.size_bytes) > 0
    writer.drop(STORE)
    assert writer.describe(STORE) == TableState()
    assert writer.unindexed_rows(STORE) == {}


def test_each_round_is_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = RecordedMetrics()
    writer = IndexWriter(tmp_path, 4, metrics)
    for number in range(3):
        add(writer, f"file-{number}")

    writer.maintain(STORE)
    assert metrics.observed == {}
    monkeypatch.setattr(maintenance, "MAX_SMALL_FRAGMENTS", 1)
    writer.maintain(STORE)
    writer.optimize(STORE)
    writer.optimize(STORE)

    assert {key: len(times) for key, times in metrics.observed.items()} == {
        ("rayconteur_maintenance_seconds", "automatic"): 1,
        ("rayconteur_maintenance_seconds", "requested"): 2,
    }
