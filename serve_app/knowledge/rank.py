"""The order of what was found: `rank` joins the two halves of a search, `diversify` takes unlike passages first.

Both work on passages of any number of stores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from serve_app.knowledge.distinct import fingerprint
from serve_app.types.knowledge import Passage, Ranking

_RRF_K = 60
"""Cormack, Clarke and Buettcher 2009."""
_BM25_HALF = 10.0


def rank(found: Iterable[Passage], ranking: Ranking) -> list[Passage]:
    """Each passage once with its score, best first; of near-identical ones only the best.

    With both halves the score is the weighted sum of reciprocal ranks, as a part of the highest possible; with the
    vectors alone the cosine, negative ones as 0; with the text alone BM25 as s / (s + 10).
    """
    distinct: dict[str, Passage] = {}
    for passage in found:
        key = fingerprint(passage.text)
        distinct[key] = _join(distinct[key], passage) if key in distinct else passage
    passages = list(distinct.values())
    if ranking.is_hybrid:
        scores = _fused(passages, ranking)
    elif ranking.embedding_weight > 0:
        scores = [min(max(passage.cosine or 0.0, 0.0), 1.0) for passage in passages]
    else:
        scores = [bm25 / (bm25 + _BM25_HALF) for bm25 in (passage.bm25 or 0.0 for passage in passages)]
    scored = [replace(passage, score=score) for passage, score in zip(passages, scores, strict=True)]
    return sorted(scored, key=lambda passage: -passage.score)


def _join(one: Passage, other: Passage) -> Passage:
    """The nearer of two near-identical passages, or one that both halves have found, with both scores."""
    nearer, further = (other, one) if _cosine(other) > _cosine(one) else (one, other)
    return nearer if nearer.bm25 is not None else replace(nearer, bm25=further.bm25)


def _cosine(passage: Passage) -> float:
    return -1.0 if passage.cosine is None else passage.cosine


def _fused(passages: Sequence[Passage], ranking: Ranking) -> list[float]:
    """Weighted reciprocal rank fusion. What is near-identical has been joined before, or copies would take ranks."""
    nearest = _reciprocal_ranks([passage.cosine for passage in passages])
    matching = _reciprocal_ranks([passage.bm25 for passage in passages])
    best = (ranking.embedding_weight + ranking.text_weight) / (_RRF_K + 1)
    return [
        min((ranking.embedding_weight * near + ranking.text_weight * match) / best, 1.0)
        for near, match in zip(nearest, matching, strict=True)
    ]


def _reciprocal_ranks(scores: Sequence[float | None]) -> list[float]:
    ordered = sorted((-score, index) for index, score in enumerate(scores) if score is not None)
    reciprocals = [0.0] * len(scores)
    for position, (_, index) in enumerate(ordered, start=1):
        reciprocals[index] = 1.0 / (_RRF_K + position)
    return reciprocals


def diversify(passages: Sequence[Passage], mmr_lambda: float, max_results: int) -> list[Passage]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): each next one is relevant and unlike those before it.

    `mmr_lambda` weighs a passage's score, the rest of 1 its highest cosine with those already taken. Passages come
    with their vectors. The scores stay as they are, so they no longer fall from one result to the next.
    """
    if not passages:
        return []
    vectors = np.stack([passage.vector for passage in passages if passage.vector is not None])
    relevance = np.array([passage.score for passage in passages])
    likeness = np.zeros(len(passages))
    left = np.ones(len(passages), dtype=bool)
    taken: list[Passage] = []
    while left.any() and len(taken) < max_results:
        worth = np.where(left, mmr_lambda * relevance - (1 - mmr_lambda) * likeness, -np.inf)
        best = int(worth.argmax())
        taken.append(passages[best])
        left[best] = False
        likeness = np.maximum(likeness, vectors @ vectors[best])
    return taken
