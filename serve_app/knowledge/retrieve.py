"""From questions to passages: embed, search every store, bring what was found into one order."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from serve_app.knowledge.distinct import first_of_each
from serve_app.knowledge.rank import diversify, rank
from serve_app.parts import Parts, Reranker
from serve_app.types import Filter, FloatVector, Passage, Ranking, RerankRequest, SearchQuery

_MIN_DIVERSE = 50
_MIN_FUSED = 20

Answered = tuple[str, Passage]
"""A passage, after the question that found it."""


async def retrieve(
    parts: Parts,
    *,
    tables: Mapping[str, int | None],
    queries: Sequence[str],
    max_results: int,
    filter: Filter | None = None,
    ranking: Ranking,
) -> tuple[Passage, ...]:
    """The passages of all stores that answer any of the queries best: at most `max_results`, best first, each once.

    `tables` are the stores' ids, each with the version of its table (see `SearchQuery`).
    With `ranking.reranked` the scores are the cross-encoder's. After `ranking.mmr_lambda` they no longer fall from one
    passage to the next.
    """
    candidates = max(max_results, ranking.reranked)
    if ranking.mmr_lambda is not None:
        candidates = max(candidates, _MIN_DIVERSE, 5 * max_results)

    found = await _search(parts, tables, queries, candidates, filter, ranking)
    answered = _best_of_each(found)[:candidates]
    if ranking.reranked and answered:
        assert parts.reranker is not None, "without a reranker the API refuses to rerank"
        answered = await _rerank(parts.reranker, answered)
    passages = [passage for _, passage in answered if passage.score >= ranking.score_threshold]
    if ranking.mmr_lambda is not None:
        passages = diversify(passages, ranking.mmr_lambda, max_results)
    return tuple(passages[:max_results])


async def _search(
    parts: Parts,
    tables: Mapping[str, int | None],
    queries: Sequence[str],
    candidates: int,
    filter: Filter | None,
    ranking: Ranking,
) -> list[Answered]:
    """What each query finds, ranked over all stores."""
    # No vectors for a search by text alone: the encoder has other work.
    vectors: Sequence[FloatVector | None] = [None] * len(queries)
    if ranking.embedding_weight > 0:
        vectors = list(await parts.query_embedder.embed(queries, tuple(tables)))
    # Ranks within one store say nothing about another: the retriever's are taken anew, from more than is wanted.
    is_fused = len(tables) > 1 and ranking.is_hybrid
    wanted = max(_MIN_FUSED, 2 * candidates) if is_fused else candidates
    asked = replace(ranking, score_threshold=0.0) if is_fused or ranking.reranked else ranking
    searches = [
        SearchQuery(
            store_id, text, vector, wanted, filter, asked, table_version, with_vectors=ranking.mmr_lambda is not None
        )
        for text, vector in zip(queries, vectors, strict=True)
        for store_id, table_version in tables.items()
    ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(parts.retriever.search(search)) for search in searches]
    except ExceptionGroup as failures:
        # Whoever asked knows the leaves of errors.py, not groups of them.
        raise failures.exceptions[0] from None
    found: list[Answered] = []
    for number, query in enumerate(queries):
        of_stores = [task.result() for task in tasks[number * len(tables) : (number + 1) * len(tables)]]
        passages = rank(chain.from_iterable(of_stores), ranking) if len(tables) > 1 else of_stores[0]
        found += [(query, passage) for passage in passages]
    return found


def _best_of_each(found: Sequence[Answered]) -> list[Answered]:
    """Best first; what several queries found, or what is near-identical, once."""
    ordered = sorted(found, key=lambda answered: answered[1].score, reverse=True)
    return first_of_each(ordered, lambda answered: answered[1].text)


async def _rerank(reranker: Reranker, answered: Sequence[Answered]) -> list[Answered]:
    request = RerankRequest(tuple((query, passage.text) for query, passage in answered))
    scores = await reranker.rerank(request)
    scored = [
        (query, replace(passage, score=float(score))) for (query, passage), score in zip(answered, scores, strict=True)
    ]
    return sorted(scored, key=lambda answered: answered[1].score, reverse=True)
