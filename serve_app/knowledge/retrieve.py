"""From questions to passages: embed, search every store, bring what was found into one order."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from serve_app.errors import InvalidRequest
from serve_app.knowledge.distinct import first_of_each
from serve_app.knowledge.rank import diversify, rank
from serve_app.parts import Parts, Reranker
from serve_app.types import FloatMatrix
from serve_app.types.knowledge import Filter, Passage, Ranking, RerankRequest, SearchQuery, StoreTable

_MIN_DIVERSE = 50
_MIN_FUSED = 20

Answered = tuple[str, Passage]
"""A passage, after the question that found it."""


async def retrieve(
    parts: Parts,
    *,
    tables: Mapping[str, StoreTable],
    queries: Sequence[str],
    max_results: int,
    filter: Filter | None = None,
    ranking: Ranking,
) -> tuple[Passage, ...]:
    """The passages of all stores that answer any of the queries best: at most `max_results`, best first, each once.

    `tables` are the stores' ids, each with what is to be read. Passages that different encoders have found are put into
    one order by their scores. With `ranking.reranked` the scores are the cross-encoder's. After `ranking.mmr_lambda`
    they no longer fall from one passage to the next. Raises `InvalidRequest` for that over several encoders.
    """
    if ranking.mmr_lambda is not None and len(_by_encoder(tables)) > 1:
        raise InvalidRequest(
            f"'ranking_options.mmr' compares vectors, and those of these stores were made by several encoders:"
            f" {', '.join(sorted(_by_encoder(tables)))}. Search one after the other",
            param="ranking_options.mmr",
        )
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
    tables: Mapping[str, StoreTable],
    queries: Sequence[str],
    candidates: int,
    filter: Filter | None,
    ranking: Ranking,
) -> list[Answered]:
    """What each query finds, ranked over all stores."""
    # No vectors for a search by text alone: the encoder has other work.
    vectors: dict[str, FloatMatrix] = {}
    if ranking.embedding_weight > 0:
        encoders = _by_encoder(tables)
        matrices = await asyncio.gather(
            *(parts.query_embedder.embed(queries, store_ids, model) for model, store_ids in encoders.items())
        )
        vectors = dict(zip(encoders, matrices, strict=True))
    # Ranks within one store say nothing about another: the retriever's are taken anew, from more than is wanted.
    is_fused = len(tables) > 1 and ranking.is_hybrid
    wanted = max(_MIN_FUSED, 2 * candidates) if is_fused else candidates
    asked = replace(ranking, score_threshold=0.0) if is_fused or ranking.reranked else ranking
    searches = [
        SearchQuery(
            store_id=store_id,
            text=text,
            vector=vectors[table.encoder][number] if vectors else None,
            max_results=wanted,
            filter=filter,
            ranking=asked,
            table_version=table.version,
            with_vectors=ranking.mmr_lambda is not None,
            table_suffix=table.suffix,
            content=table.content,
        )
        for number, text in enumerate(queries)
        for store_id, table in tables.items()
    ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(parts.retriever.search(search)) for search in searches]
    except ExceptionGroup as failures:
        # Whoever asked knows the leaves of errors.py, not groups of them.
        raise failures.exceptions[0] from None
    # Neither do cosines of one encoder about another's.
    groups = list(_by_encoder(tables).values()) if vectors else [tuple(tables)]
    found: list[Answered] = []
    for number, query in enumerate(queries):
        results = [task.result() for task in tasks[number * len(tables) : (number + 1) * len(tables)]]
        of_store = dict(zip(tables, results, strict=True))
        for store_ids in groups:
            together = chain.from_iterable(of_store[store_id] for store_id in store_ids)
            passages = rank(together, ranking) if len(tables) > 1 else together
            found += [(query, passage) for passage in passages]
    return found


def _by_encoder(tables: Mapping[str, StoreTable]) -> dict[str, tuple[str, ...]]:
    """The stores that each encoder has made."""
    stores: dict[str, tuple[str, ...]] = {}
    for store_id, table in tables.items():
        stores[table.encoder] = (*stores.get(table.encoder, ()), store_id)
    return stores


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
