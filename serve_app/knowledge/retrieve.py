"""From questions to passages: embed, search every store, merge."""

import asyncio
from collections.abc import Mapping, Sequence

from serve_app.parts import Parts
from serve_app.types import Filter, FloatVector, Passage, Ranking, SearchQuery


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
    """
    # No vectors for a search by text alone: the encoder has other work.
    vectors: Sequence[FloatVector | None] = [None] * len(queries)
    if ranking.embedding_weight > 0:
        vectors = list(await parts.query_embedder.embed(queries, tuple(tables)))
    searches = [
        SearchQuery(store_id, text, vector, max_results, filter, ranking, table_version)
        for store_id, table_version in tables.items()
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
