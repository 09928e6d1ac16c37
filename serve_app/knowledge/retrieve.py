"""From questions to passages: embed, search every store, merge."""

import asyncio
from collections.abc import Sequence

from serve_app.parts import Parts
from serve_app.types import Filter, FloatVector, Passage, Ranking, SearchQuery


async def retrieve(
    parts: Parts,
    *,
    store_ids: Sequence[str],
    queries: Sequence[str],
    max_results: int,
    filter: Filter | None = None,
    ranking: Ranking,
) -> tuple[Passage, ...]:
    """The passages of all stores that answer any of the queries best: at most `max_results`, best first, each once."""
    # No vectors for a search by text alone: the encoder has other work.
    vectors: Sequence[FloatVector | None] = [None] * len(queries)
    if ranking.embedding_weight > 0:
        vectors = list(await parts.query_embedder.embed(queries, store_ids))
    searches = [
        SearchQuery(store_id, text, vector, max_results, filter, ranking)
        for store_id in dict.fromkeys(store_ids)
        for text, vector in zip(queries, vectors, strict=True)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(parts.retriever.search(search)) for search in searches]
    except ExceptionGroup as failures:
        # Whoever asked knows the leaves of errors.py, not groups of them.
        raise failures.exceptions[0] from None
    return _merge([task.result() for task in tasks], max_results)


def _merge(found: Sequence[Sequence[Passage]], max_results: int) -> tuple[Passage, ...]:
    best: dict[tuple[str, str], Passage] = {}
    for passages in found:
        for passage in passages:
            key = (passage.store_id, passage.passage_id)
            if key not in best or passage.score > best[key].score:
                best[key] = passage
    return tuple(sorted(best.values(), key=lambda passage: passage.score, reverse=True)[:max_results])
