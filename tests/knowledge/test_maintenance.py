import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest

from serve_app.knowledge import index, maintenance, search
from serve_app.knowledge.index import FilePassages, IndexWriter
from serve_app.knowledge.maintenance import KEEP_VERSIONS_FOR, Duty, Rota
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import Piece
from serve_app.types import AttributeValue, FloatMatrix, FloatVector
from serve_app.types.knowledge import (
    Comparison,
    Filter,
    IndexState,
    Optimization,
    Passage,
    Ranking,
    SearchQuery,
    TableState,
)
from tests.fakes import RecordedMetrics

STORE = "vs_0a"
ROUNDS = 30
DIMENSIONS = 32
VECTORS = Ranking(text_weight=0)
KEPT_S = KEEP_VERSIONS_FOR.total_seconds()


@pytest.fixture
def writer(tmp_path: Path) -> IndexWriter:
    """A store of thirty small commits."""
    writer = IndexWriter(tmp_path)
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
        while added == 0 or not optimised.done():
            add(writer, f"new-{added}")
            added += 1
            assert len(await found(tmp_path, max_results=500)) == ROUNDS + added
        optimised.result()
    assert len(await found(tmp_path, max_results=500)) == ROUNDS + added


async def test_deletions_and_maintenance_go_on_meanwhile(writer: IndexWriter, tmp_path: Path) -> None:
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
    writer = IndexWriter(tmp_path)
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


def test_each_round_is_a_metric(tmp_path: Path) -> None:
    metrics = RecordedMetrics()
    writer = IndexWriter(tmp_path, metrics)
    for number in range(3):
        add(writer, f"file-{number}")

    assert metrics.observed == {}
    writer.maintain(STORE)
    writer.optimize(STORE)
    writer.optimize(STORE)

    assert {key: len(times) for key, times in metrics.observed.items()} == {
        ("rayconteur_maintenance_seconds", "automatic"): 1,
        ("rayconteur_maintenance_seconds", "requested"): 2,
    }


# --- many changes -------------------------------------------------------------------------------


async def test_fragments_and_segments_stay_few_however_many_commits_there_are(tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path)
    most = 0
    for number in range(30):
        add(writer, f"file-{number}")
        writer.maintain(STORE)
        most = max(most, *lengths(tmp_path))

    assert most <= 4
    assert len(await found(tmp_path, max_results=500)) == 30


def test_no_more_than_a_quarter_of_a_store_is_moved_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_MIN_MERGED_ROWS", 0)
    writer = IndexWriter(tmp_path)
    moved = []
    for number in range(40):
        add_many(writer, f"file-{number}", unit_vectors(number, 10), {})
        before = fragment_rows(tmp_path)
        writer.maintain(STORE)
        after = fragment_rows(tmp_path)
        moved.append(sum(rows for each, rows in before.items() if each not in after) / sum(before.values()))

    assert 0 < max(moved) <= 0.25
    assert len(after) < 20


def test_maintenance_catches_up_with_what_came_before_it(writer: IndexWriter, tmp_path: Path) -> None:
    writer.maintain(STORE)

    fragments, segments = lengths(tmp_path)
    assert (fragments, segments) == (1, 1)
    assert table(tmp_path).index_stats("text_idx").num_unindexed_rows == 0


def test_the_space_of_what_was_deleted_is_freed(
    writer: IndexWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.maintain(STORE)
    for number in range(ROUNDS - 1):
        writer.remove_file(STORE, f"file-{number}")
    assert deleted_rows(tmp_path) == ROUNDS - 1
    monkeypatch.setattr(maintenance, "KEEP_VERSIONS_FOR", timedelta(0))

    writer.maintain(STORE)
    writer.clean_up(STORE)

    assert deleted_rows(tmp_path) == 0
    assert len(list((tmp_path / f"{STORE}.lance" / "data").iterdir())) == 1


async def test_old_versions_go_but_those_that_are_tagged(
    writer: IndexWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = table(tmp_path)
    tagged = opened.version
    opened.tags.create("v1", tagged)
    monkeypatch.setattr(maintenance, "KEEP_VERSIONS_FOR", timedelta(0))
    for number in range(20):
        add(writer, f"new-{number}")
        writer.maintain(STORE)
    writer.clean_up(STORE)

    versions = [each["version"] for each in opened.list_versions()]
    assert len(versions) == 2
    assert versions[0] == tagged
    opened.checkout("v1")
    assert opened.count_rows() == ROUNDS


# --- large stores -------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexWriter:
    """A store of 2,000 passages, which counts as large here."""
    monkeypatch.setattr(index, "_MIN_INDEXED_ROWS", 1000)
    writer = IndexWriter(tmp_path)
    add_many(writer, "file-1", unit_vectors(1, 1900), {"tag": "common"})
    add_many(writer, "file-2", unit_vectors(2, 100), {"tag": "rare"})
    return writer


def test_a_store_that_has_grown_is_searched_through_an_index(large: IndexWriter, tmp_path: Path) -> None:
    assert "vector" not in indexed_columns(tmp_path)
    large.maintain(STORE)
    assert {"vector", "text", "file_id", "s_" + b"tag".hex()} == indexed_columns(tmp_path)


async def test_the_index_costs_no_answer(large: IndexWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = unit_vectors(3, 20)
    rare = Comparison("eq", "tag", "rare")
    exact = [await nearest(tmp_path, query) for query in queries]
    exact_rare = [await nearest(tmp_path, query, rare) for query in queries]
    large.maintain(STORE)

    # Vectors without any clusters are the hardest there are, and an index is trained from a random beginning.
    approximate = [await nearest(tmp_path, query) for query in queries]
    assert recall(approximate, exact) >= 0.98
    assert [await nearest(tmp_path, query, rare) for query in queries] == exact_rare
    monkeypatch.setattr(search, "_MAX_COMPARED_ROWS", 0)  # the index finds them as well
    found_rare = [await nearest(tmp_path, query, rare) for query in queries]
    assert recall(found_rare, exact_rare) >= 0.98


def recall(found: list[list[str]], exact: list[list[str]]) -> float:
    shared = sum(len(set(ours) & set(theirs)) for ours, theirs in zip(found, exact, strict=True))
    return shared / sum(map(len, exact))


async def test_what_comes_after_the_index_was_made_is_found_and_indexed(large: IndexWriter, tmp_path: Path) -> None:
    large.maintain(STORE)
    new = unit_vectors(4, 300)

    add_many(large, "file-3", new, {"tag": "new", "year": 2020.0})
    assert (await nearest(tmp_path, new[0]))[0] == "file-3-0"
    large.maintain(STORE)

    assert (await nearest(tmp_path, new[0]))[0] == "file-3-0"
    assert table(tmp_path).index_stats("vector_idx").num_unindexed_rows == 0
    assert "n_" + b"year".hex() in indexed_columns(tmp_path)


async def test_an_outgrown_index_is_made_anew_beside_searches_and_appends(large: IndexWriter, tmp_path: Path) -> None:
    large.maintain(STORE)
    made = index_uuids(tmp_path)
    add_many(large, "file-3", unit_vectors(5, 4000), {})
    probe = unit_vectors(6, 1)

    with ThreadPoolExecutor(1) as pool:
        maintained = pool.submit(large.maintain, STORE)
        added = 0
        while added == 0 or not maintained.done():
            add_many(large, f"probe-{added}", probe, {})
            added += 1
            assert (await nearest(tmp_path, probe[0]))[0].startswith("probe-")
        maintained.result()

    assert made.isdisjoint(index_uuids(tmp_path))


def test_an_optimised_store_may_be_empty_or_shrunk(large: IndexWriter, tmp_path: Path) -> None:
    large.maintain(STORE)
    large.remove_file(STORE, "file-1")
    large.optimize(STORE)
    large.remove_file(STORE, "file-2")
    large.optimize(STORE)
    add_many(large, "file-3", unit_vectors(7, 5), {})
    large.optimize(STORE)
    assert table(tmp_path).count_rows() == 5


# --- the rota -----------------------------------------------------------------------------------


def test_a_store_is_maintained_when_it_has_changed_and_then_cleaned_up() -> None:
    rota = Rota()
    assert rota.take(100) is None
    rota.changed("vs_1", 20)
    assert rota.take(100) == Duty("vs_1", is_cleanup=False)
    rota.done(Duty("vs_1", is_cleanup=False), 100, 100)

    assert rota.take(99 + KEPT_S) is None
    assert rota.take(100 + KEPT_S) == Duty("vs_1", is_cleanup=True)
    rota.done(Duty("vs_1", is_cleanup=True), 100 + KEPT_S, 100 + KEPT_S)
    assert rota.take(1e9) is None


def test_a_store_that_never_rests_is_cleaned_up_as_well_and_at_last_of_its_last_version() -> None:
    rota = Rota()
    cleanups = []
    for now in range(1000, 3000, 2):
        if now < 2000:
            rota.changed("vs_1", 20)
        if duty := rota.take(now):
            rota.done(duty, now, now)
            cleanups += [now] * duty.is_cleanup

    assert [now - cleanups[0] for now in cleanups[:3]] == pytest.approx([0, KEPT_S, 2 * KEPT_S], abs=4)
    assert cleanups[-1] >= 1998 + KEPT_S


def test_maintenance_rests_ten_times_as_long_as_it_worked_unless_there_is_a_backlog() -> None:
    rota = Rota()
    rota.done(Duty("vs_1", is_cleanup=False), 100, 106)
    rota.changed("vs_1", 400)
    assert rota.take(165) is None
    assert rota.take(166) == Duty("vs_1", is_cleanup=False)
    rota.done(Duty("vs_1", is_cleanup=False), 166, 206)
    rota.changed("vs_2", 300)
    assert rota.take(207) is None
    rota.changed("vs_2", 300)
    assert rota.take(207) == Duty("vs_2", is_cleanup=False)


def test_the_store_with_most_changes_is_first() -> None:
    rota = Rota()
    for store_id, rows in (("vs_1", 20), ("vs_2", 60), ("vs_1", 20)):
        rota.changed(store_id, rows)
    assert [rota.take(100), rota.take(100)] == [Duty("vs_2", is_cleanup=False), Duty("vs_1", is_cleanup=False)]


def test_an_indexer_looks_after_what_it_finds_and_what_it_changes(writer: IndexWriter, tmp_path: Path) -> None:
    restarted = IndexWriter(tmp_path)
    assert restarted.maintain_next()
    assert not restarted.maintain_next()
    assert lengths(tmp_path) == (1, 1)


def test_a_damaged_table_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = IndexWriter(tmp_path)
    add(writer, "file-1")
    for manifest in (tmp_path / f"{STORE}.lance" / "_versions").iterdir():
        manifest.write_bytes(b"damaged")

    assert writer.maintain_next()
    assert not writer.maintain_next()
    assert STORE in caplog.text


# --- helpers ------------------------------------------------------------------------------------


# LanceDB's tables are not typed here.
def table(folder: Path) -> Any:
    return lancedb.connect(folder).open_table(STORE)


def lengths(folder: Path) -> tuple[int, int]:
    """Fragments, and the segments of the text index."""
    opened = table(folder)
    segments = [index.num_segments for index in opened.list_indices() if index.columns == ["text"]]
    return opened.stats()["fragment_stats"]["num_fragments"], segments[0]


def fragment_rows(folder: Path) -> dict[int, int]:
    return {each.fragment_id: each.count_rows() for each in table(folder).to_lance().get_fragments()}


def deleted_rows(folder: Path) -> int:
    return sum(fragment.num_deletions for fragment in table(folder).to_lance().get_fragments())


def indexed_columns(folder: Path) -> set[str]:
    return {column for index in table(folder).list_indices() for column in index.columns}


def index_uuids(folder: Path) -> set[str]:
    indices = table(folder).to_lance().describe_indices()
    return {segment.uuid for index in indices if index.name == "vector_idx" for segment in index.segments}


def unit_vectors(seed: int, count: int) -> FloatMatrix:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSIONS)).astype(np.float32)
    matrix: FloatMatrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return matrix


def add_many(writer: IndexWriter, file_id: str, vectors: FloatMatrix, attributes: dict[str, AttributeValue]) -> None:
    pieces = [Piece(f"passage {number}", number) for number in range(len(vectors))]
    writer.add(STORE, [FilePassages(file_id, "a.txt", attributes, pieces, vectors)])


async def nearest(folder: Path, vector: FloatVector, where: Filter | None = None) -> list[str]:
    query = SearchQuery(STORE, "", vector, 10, where, VECTORS)
    return [passage.passage_id for passage in await IndexReader(folder).search(query)]
