import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Literal

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from serve_app.errors import InternalError, InvalidRequest
from serve_app.knowledge import maintenance
from serve_app.knowledge.index import FilePassages, IndexWriter
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import Piece
from serve_app.knowledge.table import Where, column_of
from serve_app.types import AttributeValue, FloatMatrix
from serve_app.types.knowledge import AttributeChange, Comparison, Compound, Filter, Passage, Ranking, SearchQuery

STORE = "vs_0a"
VECTORS = Ranking(text_weight=0)
WORDS = Ranking(embedding_weight=0)


class Store:
    """A writer and a reader of one folder, in 4 dimensions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = IndexWriter(folder)
        self.reader = IndexReader(folder)

    def add(
        self,
        file_id: str,
        *texts: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        vectors: FloatMatrix | None = None,
        fence: int = 1,
    ) -> None:
        pieces = [Piece(text, 100 * number) for number, text in enumerate(texts)]
        if vectors is None:
            vectors = np.tile(np.array([1, 0, 0, 0], dtype=np.float32), (len(texts), 1))
        self.writer.add(STORE, [FilePassages(file_id, f"{file_id}.txt", attributes or {}, pieces, vectors, fence)])

    async def search(
        self,
        text: str = "",
        vector: Sequence[float] = (1, 0, 0, 0),
        *,
        ranking: Ranking = VECTORS,
        where: Filter | None = None,
        max_results: int = 10,
        table_version: int | None = None,
    ) -> tuple[Passage, ...]:
        given = None if ranking.embedding_weight == 0 else np.array(vector, dtype=np.float32)
        return await self.reader.search(SearchQuery(STORE, text, given, max_results, where, ranking, table_version))

    async def file_ids(self, where: Filter) -> list[str]:
        return sorted(passage.file_id for passage in await self.search(where=where))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "vectors")


def test_maintenance_is_no_change_and_what_comes_after_it_is_one(store: Store) -> None:
    for number in range(6):
        store.add(f"file-{number}", *(f"word{number} text {each}" for each in range(30)))
    recorded = store.writer.version(STORE)
    assert recorded is not None
    store.writer.optimize(STORE)  # compacts, and moves the rows of the text's index

    assert not store.writer.has_changed_since(STORE, recorded)

    store.add("file-7", "one more")
    assert store.writer.has_changed_since(STORE, recorded)


def test_the_tables_of_a_store_are_no_others(store: Store) -> None:
    for name in (STORE, f"{STORE}_1b", f"{STORE}b", f"{STORE}b_1b"):
        store.writer.add(name, [FilePassages("file-1", "a", {}, [Piece("a", 0)], _directions(0))])

    assert store.writer.tables_of(STORE) == {STORE, f"{STORE}_1b"}
    with pytest.raises(InvalidRequest):
        store.writer.tables_of("*")


def test_a_file_from_before_there_were_keys_is_known_by_its_path(store: Store) -> None:
    store.add("file-1", "a", attributes={"path": "notes/a.md"})
    store.add("file-2", "b")
    lancedb.connect(store.folder).open_table(STORE).update(values={"key": None})

    assert {each.file_id: each.key for each in store.writer.files(STORE)} == {
        "file-1": "notes/a.md",
        "file-2": "file-2",
    }


def _directions(*degrees: float) -> FloatMatrix:
    """Unit vectors at these angles to (1, 0, 0, 0)."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians), 0 * radians, 0 * radians], axis=1).astype(np.float32)


# --- searching ----------------------------------------------------------------------------------


async def test_store_without_passages_gives_nothing(store: Store) -> None:
    await store.reader.ready()
    assert await store.search("anything", where=Comparison("eq", "year", 2020.0)) == ()


async def test_passage_comes_back_whole(store: Store) -> None:
    store.add(
        "file-1", "First.", "Second.", attributes={"tag": "a'b", "year": 2020.0, "ok": True}, vectors=_directions(0, 60)
    )

    first, second = await store.search()

    assert (first.passage_id, first.store_id, first.file_id, first.filename) == (
        "file-1-0",
        STORE,
        "file-1",
        "file-1.txt",
    )
    assert (second.text, second.start) == ("Second.", 100)
    assert second.attributes == {"tag": "a'b", "year": 2020.0, "ok": True}


async def test_vector_scores_are_cosines_and_never_negative(store: Store) -> None:
    store.add("file-1", "a", "b", "c", "d", vectors=_directions(120, 0, 90, 60))

    found = await store.search()

    assert [passage.text for passage in found] == ["b", "d", "c", "a"]
    assert [passage.score for passage in found] == pytest.approx([1, 0.5, 0, 0], abs=1e-6)


async def test_text_scores_fall_and_stay_below_one(store: Store) -> None:
    store.add("file-1", "wing wing wing", "a wing and much else that is not about it at all", "nothing here")

    found = await store.search("wing", ranking=WORDS)

    assert [passage.text[:9] for passage in found] == ["wing wing", "a wing an"]
    assert 1 > found[0].score > found[1].score > 0


async def test_hybrid_puts_first_what_both_halves_find(store: Store) -> None:
    store.add("file-1", "unlike words", "the lift of a wing", "wing", vectors=_directions(0, 10, 90))

    found = await store.search("lift wing", ranking=Ranking())

    assert found[0].text == "the lift of a wing"
    assert found[0].score == pytest.approx((61 / 62 + 1) / 2)
    assert all(0 <= passage.score <= 1 for passage in found)


async def test_weights_at_their_extremes_are_the_pure_searches(store: Store) -> None:
    generator = np.random.default_rng(1)
    texts = ["wing " * number + "drag " * (number % 7) + "lift " * number**2 for number in range(1, 40)]
    store.add("file-1", *texts, vectors=_directions(*generator.permutation(39)))

    only_words = await store.search("wing drag", ranking=Ranking(0, 1))
    mostly_words = await store.search("wing drag", ranking=Ranking(1e-9, 1))
    only_vectors = await store.search("wing drag", ranking=Ranking(1, 0))
    mostly_vectors = await store.search("wing drag", ranking=Ranking(1, 1e-9))

    assert [each.passage_id for each in only_vectors] == [each.passage_id for each in mostly_vectors]
    assert [each.passage_id for each in only_words] == [each.passage_id for each in mostly_words]
    assert only_words != only_vectors


async def test_scores_below_the_threshold_are_left_out(store: Store) -> None:
    store.add("file-1", "a", "b", vectors=_directions(0, 60))

    found = await store.search(ranking=Ranking(text_weight=0, score_threshold=0.6))

    assert [passage.text for passage in found] == ["a"]


async def test_at_most_max_results(store: Store) -> None:
    store.add("file-1", *[f"wing {number}" for number in range(70)])

    for ranking in (VECTORS, WORDS, Ranking()):
        assert len(await store.search("wing", ranking=ranking, max_results=50)) == 50
        assert len(await store.search("wing", ranking=ranking, max_results=1)) == 1


async def test_place_comes_back(store: Store) -> None:
    pieces = [Piece("a", 0), Piece("b", 9, pages=(2, 3), heading=("Guide", "Install"))]
    store.writer.add(STORE, [FilePassages("file-1", "a.pdf", {}, pieces, _directions(0, 10))])

    nowhere, somewhere = await store.search()

    assert (nowhere.pages, nowhere.heading) == (None, ())
    assert (somewhere.pages, somewhere.heading) == ((2, 3), ("Guide", "Install"))
    assert somewhere.place_to_json() == {
        "start": 9,
        "end": 10,
        "page": 2,
        "last_page": 3,
        "heading": ["Guide", "Install"],
    }


async def test_table_that_was_made_before_there_were_places_is_searched_and_added_to(
    store: Store, tmp_path: Path
) -> None:
    store.add("file-1", "a")
    lancedb.connect(tmp_path / "vectors").open_table(STORE).drop_columns(["page", "last_page", "heading"])

    assert [passage.pages for passage in await store.search()] == [None]

    pieces = [Piece("b", 0, pages=(1, 1), heading=("Guide",))]
    store.writer.add(STORE, [FilePassages("file-2", "a.pdf", {}, pieces, _directions(10))])
    assert [passage.heading for passage in await store.search()] == [(), ("Guide",)]


async def test_vectors_are_read_only_if_asked_for(store: Store) -> None:
    store.add("file-1", "a", "b", vectors=_directions(0, 60))
    question = SearchQuery(STORE, "a", np.array([1, 0, 0, 0], dtype=np.float32))

    assert [passage.vector for passage in await store.reader.search(question)] == [None, None]
    found = await store.reader.search(replace(question, with_vectors=True))
    assert np.array_equal([passage.vector for passage in found if passage.vector is not None], _directions(0, 60))
    assert await store.reader.search(replace(question, store_id="vs_0b", with_vectors=True)) == ()


@pytest.mark.parametrize("ranking", [VECTORS, WORDS, Ranking()])
async def test_near_identical_passages_are_found_once_and_the_page_is_still_full(
    store: Store, ranking: Ranking
) -> None:
    for number in range(120):
        text = "Wing  wing." if number % 2 else "wing wing."
        store.add(f"copy-{number}", text, vectors=_directions(number / 100))
    others = [f"wing {'and lift ' * number}" for number in range(1, 10)]
    store.add("others", *others, vectors=_directions(*range(10, 19)))

    found = await store.search("wing", ranking=ranking)

    assert [passage.text.lower().split()[:2] for passage in found[:1]] == [["wing", "wing."]]
    assert [passage.text for passage in found[1:]] == others
    assert [passage.score for passage in found] == sorted((each.score for each in found), reverse=True)


async def test_filter_chooses_among_near_identical_passages(store: Store) -> None:
    store.add("file-1", "wing", attributes={"year": 1.0})
    store.add("file-2", "Wing", attributes={"year": 2.0}, vectors=_directions(30))

    assert await store.file_ids(Comparison("gt", "year", 0.0)) == ["file-1"]
    assert await store.file_ids(Comparison("gt", "year", 1.0)) == ["file-2"]


@pytest.mark.parametrize(
    "text", ["", " ", "the of and", '+-*/(){}[]^"~:?\\', "\x00", "x" * 100_000, "wing AND NOT lift", "text:*"]
)
async def test_no_text_is_too_strange_to_search(store: Store, text: str) -> None:
    store.add("file-1", "wing", "lift")

    found = await store.search(text, ranking=Ranking())

    assert {passage.text for passage in found} == {"wing", "lift"}


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("The wings of the aircraft were running hot", "wing run"),
        ("Die Häuser der Großstadt", "großstadt"),
        ("Москва столица России", "столица"),
        ("東京は日本の首都です", "首都"),
        ("北京是中国的首都", "中国"),
        ("한국의 수도는 서울이다", "수도는"),
        ("Le château de l’été", "chateau"),
    ],
)
async def test_words_of_many_languages_are_found(store: Store, text: str, question: str) -> None:
    store.add("file-1", "something else entirely", text)

    assert [passage.text for passage in await store.search(question, ranking=WORDS)] == [text]


async def test_new_passages_are_found_at_once_by_both_halves(store: Store) -> None:
    store.add("file-1", "old")
    assert len(await store.search("old", ranking=WORDS)) == 1

    store.add("file-2", "new")

    assert [passage.text for passage in await store.search("new", ranking=WORDS)] == ["new"]
    assert len(await store.search()) == 2


# --- changes ------------------------------------------------------------------------------------


async def test_removed_file_is_found_no_more(store: Store) -> None:
    store.add("file-1", "wing")
    store.add("file-2", "wing")

    store.writer.remove_file(STORE, "file-1")

    for ranking in (VECTORS, WORDS):
        assert [passage.file_id for passage in await store.search("wing", ranking=ranking)] == ["file-2"]


async def test_passages_can_be_added_after_all_were_removed(store: Store) -> None:
    store.add("file-1", "wing")
    store.writer.remove_file(STORE, "file-1")
    assert await store.search() == ()

    store.add("file-1", "wing again")

    assert [passage.text for passage in await store.search()] == ["wing again"]


async def test_claims_can_be_removed_apart(store: Store) -> None:
    # The latest comes first: each takes away what earlier ones have written.
    store.add("file-1", "third claim", fence=3)
    store.add("file-1", "second claim", fence=2)
    store.add("file-1", "first claim", fence=1)

    store.writer.remove_file(STORE, "file-1", before_fence=2)
    store.writer.remove_file(STORE, "file-1", fence=3)

    assert [passage.text for passage in await store.search()] == ["second claim"]


async def test_dropped_store_is_empty_and_one_made_anew_is_not_confused_with_it(store: Store) -> None:
    store.add("file-1", "old")
    assert len(await store.search("old", ranking=Ranking())) == 1

    store.writer.drop(STORE)
    assert await store.search("old", ranking=Ranking()) == ()
    store.add("file-2", "new")

    found = await store.search("old", ranking=Ranking())
    assert [passage.text for passage in found] == ["new"]


async def test_open_reader_notices_that_a_store_was_dropped_and_made_anew(store: Store) -> None:
    store.add("file-1", "old", attributes={"year": 2020.0})
    assert len(await store.search("old", ranking=Ranking())) == 1

    store.writer.drop(STORE)
    store.add("file-2", "new")

    assert [passage.text for passage in await store.search("new", ranking=Ranking())] == ["new"]


async def test_a_store_can_be_dropped_while_its_indices_are_being_written(store: Store, tmp_path: Path) -> None:
    store.add("file-1", "old")
    indices = tmp_path / "vectors" / f"{STORE}.lance" / "_indices"
    has_begun, until = Event(), time.monotonic() + 0.5

    def write() -> None:
        number = 0
        while time.monotonic() < until:
            number += 1
            with suppress(OSError):
                indices.mkdir(parents=True, exist_ok=True)
                (indices / str(number)).touch()
            has_begun.set()

    writing = asyncio.create_task(asyncio.to_thread(write))
    await asyncio.to_thread(has_begun.wait)
    await asyncio.to_thread(store.writer.drop, STORE)
    await writing

    assert await store.search("old", ranking=Ranking()) == ()


def test_changes_to_what_is_not_there_do_nothing(store: Store) -> None:
    store.writer.remove_file(STORE, "file-1")
    store.writer.update_attributes(STORE, AttributeChange(STORE, "file-1", {"year": 2020.0}))
    store.writer.drop(STORE)
    store.writer.maintain(STORE)
    assert store.writer.version(STORE) is None


async def test_attributes_are_replaced(store: Store) -> None:
    store.add("file-1", "wing", "lift", attributes={"year": 2020.0, "tag": "a"})
    store.add("file-2", "tail", attributes={"year": 2020.0})

    store.writer.update_attributes(STORE, AttributeChange(STORE, "file-1", {"year": "MMXX", "new": True}))

    assert await store.file_ids(Comparison("eq", "year", 2020.0)) == ["file-2"]
    assert await store.file_ids(Comparison("eq", "year", "MMXX")) == ["file-1", "file-1"]
    assert await store.file_ids(Comparison("eq", "new", True)) == ["file-1", "file-1"]
    assert await store.file_ids(Comparison("eq", "tag", "a")) == []
    assert {tuple(each.attributes.items()) for each in await store.search("wing", ranking=WORDS)} == {
        (("year", "MMXX"), ("new", True))
    }


async def test_maintenance_indexes_the_tail_and_keeps_every_answer(store: Store) -> None:
    for number in range(5):
        store.add(f"file-{number}", f"wing number {number}")
    before = store.writer.version(STORE)
    await store.search("wing", ranking=Ranking())

    store.writer.maintain(STORE)
    after = store.writer.version(STORE)
    store.writer.maintain(STORE)

    assert before is not None
    assert after is not None
    assert after > before
    assert store.writer.version(STORE) == after  # nothing left to do
    for ranking in (VECTORS, WORDS, Ranking()):
        assert len(await store.search("wing", ranking=ranking)) == 5


# --- versions -----------------------------------------------------------------------------------


async def test_a_replacement_is_one_commit(store: Store) -> None:
    store.add("file-1", "the old text")
    store.add("file-2", "of another document")
    before = store.writer.version(STORE)
    assert before is not None

    new = FilePassages("file-3", "a.txt", {}, [Piece("the new text", 0)], _directions(0), 1)
    store.writer.add(STORE, [new], replacing=["file-1"])

    assert store.writer.version(STORE) == before + 1
    assert {each.text for each in await store.search()} == {"the new text", "of another document"}
    assert {each.text for each in await store.search("text", ranking=WORDS)} == {"the new text"}
    then = await store.search(table_version=before)
    assert {each.text for each in then} == {"the old text", "of another document"}


async def test_a_replacement_by_nothing_removes(store: Store) -> None:
    store.add("file-1", "the old text")
    empty = FilePassages("file-3", "a.txt", {}, [], _directions(), 1)
    store.writer.add(STORE, [empty], replacing=["file-1"])
    assert await store.search() == ()


async def test_replacements_and_maintenance_go_on_beside_each_other(store: Store) -> None:
    store.add("file-0", "text 0")

    def replace_all() -> None:
        for number in range(1, 40):
            new = FilePassages(f"file-{number}", "a.txt", {}, [Piece(f"text {number}", 0)], _directions(0), 1)
            store.writer.add(STORE, [new], replacing=[f"file-{number - 1}"])

    with ThreadPoolExecutor(2) as pool:
        replacing = pool.submit(replace_all)
        while not replacing.done():
            pool.submit(store.writer.optimize, STORE).result()
        replacing.result()

    assert [each.text for each in await store.search()] == ["text 39"]


async def test_only_what_is_tagged_can_be_searched_once_it_is_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("file-1", "the first text")
    kept, passages = store.writer.tag(STORE, 1)
    assert passages == 1
    store.add("file-2", "the second text")
    gone, _ = store.writer.tag(STORE, 2)
    store.add("file-3", "the third text")
    assert len(await store.search(table_version=gone)) == 2

    store.writer.let_go(STORE, {2, 7})
    monkeypatch.setattr(maintenance, "KEEP_VERSIONS_FOR", timedelta(0))
    store.writer.optimize(STORE)

    assert [each.text for each in await store.search(table_version=kept)] == ["the first text"]
    assert len(await store.search()) == 3
    with pytest.raises(InvalidRequest) as refused:
        await IndexReader(store.folder).search(SearchQuery(STORE, "", _directions(0)[0], 9, None, VECTORS, gone))
    assert refused.value.code == "version_gone"


async def test_a_table_can_be_made_what_it_was(store: Store) -> None:
    store.add("file-1", "the first text", attributes={"year": 2020.0})
    then, _ = store.writer.tag(STORE, 1)
    store.add("file-2", "the second text", attributes={"place": "here"})
    store.writer.remove_file(STORE, "file-1")

    store.writer.restore(STORE, then)

    (found,) = store.writer.files(STORE)
    assert (found.file_id, found.attributes, found.passages) == ("file-1", {"year": 2020.0}, 1)
    assert found.size_bytes == len("the first text") + 4 * 4
    assert [each.text for each in await store.search("text", ranking=Ranking())] == ["the first text"]
    store.writer.restore(STORE, 0)
    assert await store.search() == ()


@pytest.mark.parametrize("store_id", ["", "vs_", "vs_XYZ", "vs_0a/../vs_0b", "vs_0a'", "other", "vs_0a\n"])
async def test_what_is_no_store_id_is_refused(store: Store, store_id: str) -> None:
    with pytest.raises(InvalidRequest):
        store.writer.drop(store_id)
    with pytest.raises(InvalidRequest):
        await store.reader.search(SearchQuery(store_id, "", np.ones(4, dtype=np.float32)))


def test_vectors_of_another_encoder_are_refused(store: Store) -> None:
    store.add("file-1", "wing")
    with pytest.raises(InternalError):
        store.writer.add(STORE, [FilePassages("file-2", "b", {}, [Piece("b", 0)], np.ones((1, 8), dtype=np.float32))])


# --- filters ------------------------------------------------------------------------------------


@pytest.fixture
def filed(store: Store) -> Store:
    store.add("file-1", "a", attributes={"year": 2019.0, "tag": "red", "draft": False})
    store.add("file-2", "b", attributes={"year": 2020.0, "tag": 'it\'s "blue"', "draft": True})
    store.add("file-3", "c", attributes={"year": "2020", "tiny": -1e-7})
    store.add("file-4", "d")
    return store


@pytest.mark.parametrize(
    ("where", "files"),
    [
        (Comparison("eq", "year", 2020.0), "2"),
        (Comparison("eq", "year", "2020"), "3"),
        (Comparison("ne", "year", 2020.0), "134"),
        (Comparison("gt", "year", 2019.0), "2"),
        (Comparison("gte", "year", 2019.0), "12"),
        (Comparison("lt", "year", 2020.0), "1"),
        (Comparison("lte", "year", 2020.0), "12"),
        (Comparison("lt", "tiny", 0.0), "3"),
        (Comparison("eq", "tiny", -1e-7), "3"),
        (Comparison("gt", "tiny", -1e300), "3"),
        (Comparison("in", "year", (2019.0, "2020")), "13"),
        (Comparison("nin", "year", (2019.0, "2020")), "24"),
        (Comparison("in", "year", ()), ""),
        (Comparison("nin", "year", ()), "1234"),
        (Comparison("eq", "tag", 'it\'s "blue"'), "2"),
        (Comparison("eq", "tag", True), ""),
        (Comparison("ne", "tag", True), "1234"),
        (Comparison("gt", "tag", 3.0), ""),
        (Comparison("eq", "draft", True), "2"),
        (Comparison("eq", "draft", False), "1"),
        (Comparison("ne", "draft", True), "134"),
        (Comparison("eq", "tag", "' OR 1=1 --"), ""),
        (Comparison("eq", "tag", "red' OR 'a'='a"), ""),
        (Comparison("ne", "tag", "\\' OR true --"), "1234"),
        (Comparison("in", "tag", ("x') OR (true", "red")), "1"),
        (Compound("and", (Comparison("gte", "year", 2019.0), Comparison("eq", "draft", True))), "2"),
        (Compound("or", (Comparison("eq", "tag", "red"), Comparison("eq", "year", "2020"))), "13"),
        (
            Compound(
                "and",
                (
                    Comparison("ne", "tag", "red"),
                    Compound("or", (Comparison("eq", "draft", True), Comparison("lt", "tiny", 1.0))),
                ),
            ),
            "23",
        ),
    ],
)
async def test_filter_lets_through(filed: Store, where: Filter, files: str) -> None:
    assert await filed.file_ids(where) == [f"file-{number}" for number in files]


@pytest.mark.parametrize(("kind", "files"), [("in", "123"), ("nin", "4")])
async def test_a_filter_may_name_a_thousand_values(filed: Store, kind: Literal["in", "nin"], files: str) -> None:
    values: tuple[AttributeValue, ...] = (
        *(float(year) for year in range(1600, 2100)),
        *(str(year) for year in range(1600, 2100)),
    )
    where = Comparison(kind, "year", values)
    assert await filed.file_ids(where) == [f"file-{number}" for number in files]
    # A chain of ORs would be as deep as it is long, and too deep for LanceDB's stack.
    columns = pa.schema({column_of("year", value): pa.null() for value in (1.0, "1")})
    assert Where(columns).of(where).count(" OR ") == 1


async def test_filter_holds_for_both_halves(store: Store) -> None:
    store.add("file-1", "wing", attributes={"tag": "a"})
    store.add("file-2", "wing", attributes={"tag": "b"})

    for ranking in (VECTORS, WORDS, Ranking()):
        found = await store.search("wing", ranking=ranking, where=Comparison("eq", "tag", "b"))
        assert [passage.file_id for passage in found] == ["file-2"]


async def test_few_of_many_are_found_through_a_filter(store: Store) -> None:
    store.add("file-1", *["wing"] * 500, attributes={"tag": "common"})
    store.add("file-2", "wing, and much more than that", attributes={"tag": "rare"}, vectors=_directions(170))

    for ranking in (VECTORS, WORDS, Ranking()):
        found = await store.search("wing", ranking=ranking, where=Comparison("eq", "tag", "rare"))
        assert [passage.file_id for passage in found] == ["file-2"]


async def test_unknown_key_is_refused_with_those_that_exist(filed: Store) -> None:
    with pytest.raises(InvalidRequest, match=r"'colour'.*'draft', 'tag', 'tiny', 'year'") as refusal:
        await filed.search(where=Comparison("ne", "colour", "red"))

    assert refusal.value.param == "filters"


@pytest.mark.parametrize("key", ["it's", '"; DROP TABLE', "`tag`", "日本 🎉" * 12, "a.b", " ", "tag = 'x' OR 1"])
async def test_any_text_can_be_a_key(store: Store, key: str) -> None:
    store.add("file-1", "a", attributes={key: "x"})
    store.add("file-2", "b", attributes={key: "y"})

    assert await store.file_ids(Comparison("eq", key, "y")) == ["file-2"]


async def test_infinite_number_is_refused(filed: Store) -> None:
    with pytest.raises(InvalidRequest):
        await filed.search(where=Comparison("lt", "year", float("inf")))
