from dataclasses import replace

import numpy as np
import pytest

from serve_app.knowledge.rank import diversify, rank
from serve_app.types.knowledge import Passage, Ranking

VECTORS = Ranking(text_weight=0)
WORDS = Ranking(embedding_weight=0)


def passage(text: str, cosine: float | None = None, bm25: float | None = None, store_id: str = "vs_1") -> Passage:
    return Passage(f"{store_id}-{text}", store_id, "file-1", "a.txt", text, 0.0, 0, cosine=cosine, bm25=bm25)


def scored(text: str, score: float, degrees: float) -> Passage:
    radians = np.radians(degrees)
    vector = np.array([np.cos(radians), np.sin(radians)], dtype=np.float32)
    return replace(passage(text), score=score, vector=vector)


def test_halves_alone_keep_their_own_scores() -> None:
    assert [(each.text, each.score) for each in rank([passage("a", -0.2), passage("b", 0.7)], VECTORS)] == [
        ("b", 0.7),
        ("a", 0.0),
    ]
    assert [each.score for each in rank([passage("a", bm25=10.0)], WORDS)] == [0.5]


def test_both_halves_are_fused_by_rank() -> None:
    found = [passage("a", 0.9), passage("b", 0.8), passage("b", bm25=3.0), passage("c", bm25=2.0)]

    ranked = rank(found, Ranking())

    assert [each.text for each in ranked] == ["b", "a", "c"]
    assert [each.score for each in ranked] == pytest.approx([(61 / 62 + 1) / 2, 1 / 2, 61 / 62 / 2])


def test_ranks_are_taken_over_all_stores() -> None:
    # In its own store each of them is first in both halves.
    found = [passage("far", 0.1, 0.5, "vs_2"), passage("near", 0.9, 7.0, "vs_1"), passage("also", 0.8, 6.0, "vs_1")]

    ranked = rank(found, Ranking())

    assert [each.text for each in ranked] == ["near", "also", "far"]
    assert ranked[0].score == 1.0


def test_near_identical_passages_are_one_and_take_one_rank() -> None:
    copies = [passage("A  copy", 0.8, 5.0, "vs_2"), passage("a copy", 0.9, None), passage("A COPY", None, 5.0)]
    other = passage("other", 0.7, 4.0)

    best, second = rank([*copies, other], Ranking())

    assert (best.text, best.cosine, best.bm25, best.score) == ("a copy", 0.9, 5.0, 1.0)
    assert second.text == "other"
    assert second.score == pytest.approx(61 / 62)


def test_diversity_passes_over_what_says_the_same() -> None:
    found = [scored("a", 0.9, 0), scored("like a", 0.8, 10), scored("unlike", 0.5, 80)]

    assert [each.text for each in diversify(found, 0.5, 3)] == ["a", "unlike", "like a"]
    assert [each.text for each in diversify(found, 0.5, 2)] == ["a", "unlike"]
    assert [each.score for each in diversify(found, 0.5, 3)] == [0.9, 0.5, 0.8]


def test_lambda_of_one_is_relevance_alone() -> None:
    found = [scored(f"{number}", 1 - number / 10, 5 * number) for number in range(6)]

    assert diversify(found, 1.0, 6) == found
    assert [each.text for each in diversify(found, 0.0, 2)] == ["0", "5"]


def test_nothing_found_stays_nothing() -> None:
    assert rank([], Ranking()) == []
    assert diversify([], 0.5, 10) == []
