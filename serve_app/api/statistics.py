"""`/v1/vector_stores/{id}/statistics`: what a store holds, the state of its indices, and how its searches have gone."""

import asyncio
import logging
from collections import Counter
from typing import NoReturn

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context, InContext
from serve_app.counts import Times
from serve_app.errors import RayconteurError
from serve_app.knowledge.statistics import add_tallies, load_statistics
from serve_app.types import Json
from serve_app.types.knowledge import IndexState

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])

log = logging.getLogger(__name__)

_SAVE_EVERY_S = 5


@router.get("/{store_id}/statistics")
async def get_statistics(store_id: str, context: InContext) -> Json:
    """Of searches through other gateways, those of the last seconds may not be counted yet."""
    await run_in_threadpool(context.catalog.get_store, store_id)
    await _save_tallies(context)
    statistics = await run_in_threadpool(load_statistics, context.database, store_id)
    table = await context.parts.indexer.describe(store_id)
    return {
        "object": "vector_store.statistics",
        "vector_store_id": store_id,
        "documents": statistics.documents,
        "passages": table.passages,
        "versions": statistics.versions,
        "size_bytes": table.size_bytes,
        "index": {
            "fragments": table.fragments,
            "vector": _index_to_json(table.vector),
            "text": _index_to_json(table.text),
        },
        "searches": {**times_to_json(statistics.searches), "failed": statistics.failed_searches},
        "query_cache": {"hits": statistics.query_cache_hits, "misses": statistics.query_cache_misses},
    }


async def save_tallies(context: Context) -> NoReturn:
    """Every few seconds, and at the end: no search waits for it."""
    try:
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            await _save_tallies(context)
    finally:
        await _save_tallies(context)


async def _save_tallies(context: Context) -> None:
    tallies = context.parts.tallies
    if not tallies:
        return
    taken = Counter(tallies)
    tallies.clear()
    try:
        await run_in_threadpool(add_tallies, context.database, taken)
    except RayconteurError as error:
        # If it was committed all the same they are counted twice, which does less harm than not at all.
        tallies.update(taken)
        log.warning("statistics of searches will be saved later: %s", error)


def _index_to_json(index: IndexState) -> Json:
    return {"kind": index.kind, "indexed_rows": index.indexed_rows, "unindexed_rows": index.unindexed_rows}


def times_to_json(times: Times) -> Json:
    return {
        "count": times.count,
        "mean_ms": _rounded(times.mean_ms),
        "p50_ms": _rounded(times.p50_ms),
        "p95_ms": _rounded(times.p95_ms),
        "p99_ms": _rounded(times.p99_ms),
    }


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else float(f"{milliseconds:.3g}")
