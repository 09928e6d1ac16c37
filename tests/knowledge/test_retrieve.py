import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import InvalidRequest, Unavailable
from serve_app.knowledge.retrieve import retrieve
from serve_app.parts import Parts
from serve_app.types import Scores
from serve_app.types.knowledge import Passage, Ranking, RerankRequest, StoreTable
from tests.api.parts import HashEmbedder, RecordingIndexer, ScriptedRetriever, knowledge_parts

VECTORS = Ranking(text_weight=0)
TABLE = StoreTable("all-minilm-l6-v2")


class WordReranker:
    """A passage is relevant by the share of the question's words that it holds."""

    def __init__(self) -> None:
        self.requests: list[RerankRequest] = []

    async def rerank(self, request: RerankRequest) -> Scores:
        self.requests.append(request)
        pairs = [(set(question.split()), set(text.split())) for question, text in request.pairs]
        return np.array([len(asked & held) / len(asked) for asked, held in pairs], dtype=np.float32)


def passage(store_id: str, text: str, score: float, vector: Sequence[float] | None = None) -> Passage:
    unit = None if vector is None else np.array(vector, dtype=np.float32)
    return Passage(
        f"{store_id}-{text}", store_id, "file_a", "a.txt", text, score, 0, cosine=score, bm25=score, vector=unit
    )


def parts_of(retriever: ScriptedRetriever, reranker: WordReranker | None = None) -> Parts:
    return replace(knowledge_parts(HashEmbedder(), retriever, RecordingIndexer()), reranker=reranker)


async def test_every_store_is_asked_every_question_and_each_passage_comes_once() -> None:
    embedder, retriever = HashEmbedder(), ScriptedRetriever()
    retriever.answers["one"] = [passage("vs_1", "p", 0.3), passage("vs_2", "q", 0.9)]
    retriever.answers["two"] = [passage("vs_1", "p", 0.5), passage("vs_2", "r", 0.4)]
    parts = knowledge_parts(embedder, retriever, RecordingIndexer())

    found = await retrieve(
        parts, tables={"vs_1": TABLE, "vs_2": TABLE}, queries=["one", "two"], max_results=3, ranking=VECTORS
    )

    assert [(each.store_id, each.text, each.score) for each in found] == [
        ("vs_2", "q", 0.9),
        ("vs_1", "p", 0.5),
        ("vs_2", "r", 0.4),
    ]
    assert embedder.calls == [["one", "two"]]
    assert [query.max_results for query in retriever.queries] == [3, 3, 3, 3]


async def test_scores_of_one_store_are_the_retrievers() -> None:
    retriever = ScriptedRetriever()
    retriever.answers["one"] = [passage("vs_1", "p", 0.3)]

    (found,) = await retrieve(
        parts_of(retriever),
        tables={"vs_1": TABLE},
        queries=["one"],
        max_results=3,
        ranking=Ranking(score_threshold=0.2),
    )

    assert found.score == 0.3
    assert retriever.queries[0].ranking.score_threshold == 0.2


async def test_hybrid_ranks_are_taken_anew_over_several_stores() -> None:
    retriever = ScriptedRetriever()
    # As the retriever gives them: each the first in both halves of its own store.
    good, better = replace(passage("vs_1", "good", 0.5), score=1.0), replace(passage("vs_2", "better", 0.6), score=1.0)
    retriever.answers["one"] = [good, better]

    async def search(score_threshold: float) -> list[tuple[str, float]]:
        ranking = Ranking(score_threshold=score_threshold)
        tables = {"vs_1": TABLE, "vs_2": TABLE}
        found = await retrieve(parts_of(retriever), tables=tables, queries=["one"], max_results=15, ranking=ranking)
        return [(each.text, each.score) for each in found]

    assert await search(0.0) == [("better", 1.0), ("good", pytest.approx(61 / 62))]
    assert await search(0.99) == [("better", 1.0)]
    # More than is wanted, and none left out: a store cannot know which of its passages will count.
    assert {(each.max_results, each.ranking.score_threshold) for each in retriever.queries} == {(30, 0.0)}


async def test_what_is_near_identical_in_two_stores_comes_once() -> None:
    retriever = ScriptedRetriever()
    retriever.answers["one"] = [passage("vs_1", "a copy", 0.3), passage("vs_2", "A  Copy", 0.4)]

    found = await retrieve(
        parts_of(retriever), tables={"vs_1": TABLE, "vs_2": TABLE}, queries=["one"], max_results=3, ranking=VECTORS
    )

    assert [each.store_id for each in found] == ["vs_2"]


async def test_reranker_reads_the_candidates_and_its_scores_count() -> None:
    retriever, reranker = ScriptedRetriever(), WordReranker()
    retriever.answers["red fox"] = [passage("vs_1", text, 0.9) for text in ("a fox", "a crow", "a red fox")]
    ranking = Ranking(score_threshold=0.4, reranked=3)

    found = await retrieve(
        parts_of(retriever, reranker), tables={"vs_1": TABLE}, queries=["red fox"], max_results=2, ranking=ranking
    )

    assert [(each.text, each.score) for each in found] == [("a red fox", 1.0), ("a fox", 0.5)]
    assert retriever.queries[0].max_results == 3
    assert retriever.queries[0].ranking.score_threshold == 0.0


async def test_passage_is_reranked_for_the_question_that_found_it_best() -> None:
    retriever, reranker = ScriptedRetriever(), WordReranker()
    retriever.answers["fox"] = [passage("vs_1", "a fox", 0.9), passage("vs_1", "a crow", 0.2)]
    retriever.answers["crow"] = [passage("vs_1", "a crow", 0.8)]

    found = await retrieve(
        parts_of(retriever, reranker),
        tables={"vs_1": TABLE},
        queries=["fox", "crow"],
        max_results=5,
        ranking=Ranking(reranked=2),
    )

    assert reranker.requests == [RerankRequest((("fox", "a fox"), ("crow", "a crow")))]
    assert [each.score for each in found] == [1.0, 1.0]


async def test_no_candidates_are_no_work_for_the_reranker() -> None:
    reranker = WordReranker()

    assert (
        await retrieve(
            parts_of(ScriptedRetriever(), reranker),
            tables={"vs_1": TABLE},
            queries=["a"],
            max_results=5,
            ranking=Ranking(reranked=2),
        )
        == ()
    )
    assert reranker.requests == []


async def test_diversity_is_over_the_reranked_passages_of_all_stores() -> None:
    retriever = ScriptedRetriever()
    retriever.answers["red fox"] = [
        passage("vs_1", "one red fox", 0.1, [1, 0]),
        passage("vs_2", "two red fox", 0.2, [1, 0]),
        passage("vs_2", "a fox", 0.1, [0, 1]),
    ]

    found = await retrieve(
        parts_of(retriever, WordReranker()),
        tables={"vs_1": TABLE, "vs_2": TABLE},
        queries=["red fox"],
        max_results=2,
        ranking=Ranking(text_weight=0, reranked=3, mmr_lambda=0.5),
    )

    assert [each.text for each in found] == ["two red fox", "a fox"]
    assert {(each.max_results, each.with_vectors) for each in retriever.queries} == {(50, True)}


async def test_one_failure_ends_the_other_searches_and_is_raised_as_it_is() -> None:
    class HalfDown(ScriptedRetriever):
        was_cancelled = False

        async def search(self, query: object) -> tuple[Passage, ...]:
            if getattr(query, "store_id", "") == "vs_down":
                raise Unavailable("no index")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
            return ()

    retriever = HalfDown()

    with pytest.raises(Unavailable, match="no index"):
        await retrieve(
            parts_of(retriever),
            tables={"vs_up": TABLE, "vs_down": TABLE},
            queries=["a"],
            max_results=3,
            ranking=Ranking(),
        )
    assert retriever.was_cancelled


async def test_each_encoder_embeds_the_queries_once_for_the_stores_that_it_made() -> None:
    embedder, retriever = HashEmbedder(), ScriptedRetriever()
    parts = knowledge_parts(embedder, retriever, RecordingIndexer())
    other = StoreTable("other", "_0a", 7)

    await retrieve(
        parts,
        tables={"vs_1": TABLE, "vs_2": other, "vs_3": TABLE},
        queries=["one", "two"],
        max_results=3,
        ranking=VECTORS,
    )

    assert embedder.calls == [["one", "two"], ["one", "two"]]
    expected = {
        "vs_1": await embedder.embed(["one", "two"], TABLE.encoder),
        "vs_2": await embedder.embed(["one", "two"], "other"),
    }
    expected["vs_3"] = expected["vs_1"]
    for store_id, vectors in expected.items():
        asked = [query for query in retriever.queries if query.store_id == store_id]
        assert [query.text for query in asked] == ["one", "two"]
        for query, vector in zip(asked, vectors, strict=True):
            assert query.vector is not None
            assert np.array_equal(query.vector, vector)
            assert (query.table_suffix, query.table_version) == (("_0a", 7) if store_id == "vs_2" else ("", None))


async def test_hybrid_ranks_are_taken_among_the_stores_of_one_encoder() -> None:
    retriever = ScriptedRetriever()
    # The other encoder's cosines are all higher, which says nothing.
    low = [replace(passage("vs_1", f"low {number}", 0.3), cosine=0.3 - number / 10) for number in range(2)]
    high = [replace(passage("vs_2", f"high {number}", 0.9), cosine=0.9 - number / 10) for number in range(2)]
    retriever.answers["one"] = [*low, *high]
    tables = {"vs_1": TABLE, "vs_2": StoreTable("other")}

    found = await retrieve(parts_of(retriever), tables=tables, queries=["one"], max_results=4, ranking=Ranking())

    assert {each.text for each in found[:2]} == {"low 0", "high 0"}
    assert {each.text for each in found[2:]} == {"low 1", "high 1"}


async def test_diversity_over_several_encoders_is_refused() -> None:
    tables = {"vs_1": TABLE, "vs_2": StoreTable("other")}
    with pytest.raises(InvalidRequest, match="all-minilm-l6-v2, other") as refused:
        await retrieve(
            parts_of(ScriptedRetriever()),
            tables=tables,
            queries=["one"],
            max_results=3,
            ranking=replace(VECTORS, mmr_lambda=0.5),
        )
    assert refused.value.param == "ranking_options.mmr"
