"""What responses and chat completions check alike before the model may see a request."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import Header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from serve_app.admission.tiers import Tier
from serve_app.api.context import Context
from serve_app.api.wire import FileSearchTool
from serve_app.errors import InvalidRequest, NotFound
from serve_app.generation.admitted import build_demand
from serve_app.generation.cache import is_determined
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.history import AsOf
from serve_app.search import Search
from serve_app.types.generation import CacheUse, GenerationRequest
from serve_app.types.knowledge import StoreTable

ServiceTier = Literal["auto", "default", "flex", "priority"]

RequestTimeoutMs = Annotated[int | None, Header(alias="x-request-timeout-ms", ge=1, lt=2**31)]
"""So long the client waits for the whole answer."""

SETTINGS_HEADER = "x-settings"
"""Which revision of the settings an answer was made with, and which rules of which profile applied."""


CACHE_HEADER = "x-cache"
"""What the response cache had to do with an answer."""


def cache_use(headers: Headers) -> CacheUse:
    """`cache-control` of a request: by `no-store` its answer is not kept either, by `no-cache` it is only made anew."""
    directives = {each.strip().lower() for each in headers.get("cache-control", "").split(",")}
    if "no-store" in directives:
        return "off"
    return "refresh" if "no-cache" in directives else "use"


async def require_tables(
    catalog: Catalog, store_ids: Sequence[str], as_of: AsOf | None, cache: CacheUse
) -> dict[str, StoreTable]:
    """What a search of these stores is to read: see `Catalog.require_stores`."""
    tables = await run_in_threadpool(catalog.require_stores, store_ids, as_of)
    if cache == "use":
        return tables
    return {store_id: replace(table, content=None) for store_id, table in tables.items()}


def require_model(context: Context, model: str | None) -> str:
    """The model's id, the first one's if none is named. Raises `NotFound` for one that does not write here."""
    configured = list(context.config.models)
    if model is None:
        return configured[0]
    if model not in configured:
        raise NotFound(
            f"The model {model!r} does not exist here; this server answers as {' or '.join(map(repr, configured))}",
            param="model",
            code="model_not_found",
        )
    return model


def tier_of(service_tier: ServiceTier | None) -> Tier:
    return "default" if service_tier is None or service_tier == "auto" else service_tier


def expect(context: Context, request: GenerationRequest) -> AbstractContextManager[None]:
    """What is done within this for a request, before the model is asked, is not for nothing. Raises `Overloaded`.

    Its messages need not be all that the model will be shown.
    """
    if may_be_cached(request):
        return nullcontext()
    model = request.payload["model"]
    demand = build_demand(request, context.parts.of(model).count_tokens, is_streamed=True)
    return context.parts.admissions.of(context.config.models[model].model_id).expect(demand)


def may_be_cached(request: GenerationRequest) -> bool:
    """Then the model may not be needed, and has to refuse it itself."""
    return request.cache == "use" and is_determined(request.payload)


async def build_search(
    context: Context, tool: FileSearchTool, cache: CacheUse, *, with_results: bool = False
) -> Search:
    """Raises `NotFound` for a vector store that does not exist, or a version that is not kept, `InvalidRequest` for a
    ranker that is not there.
    """
    if isinstance(tool.as_of, int) and len(set(tool.vector_store_ids)) > 1:
        raise InvalidRequest(
            "'as_of' is a number, which is one store's version: send a time for several", param="as_of"
        )
    return Search(
        tables=await require_tables(context.catalog, tool.vector_store_ids, tool.as_of, cache),
        max_passages=tool.max_num_results or context.config.retrieval.max_passages,
        filter=tool.filters.to_filter() if tool.filters else None,
        ranking=tool.ranking_options.to_ranking(context.config.retrieval.reranker),
        with_results=with_results,
        rewrites=tool.rewrite_query,
    )
