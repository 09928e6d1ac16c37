"""What responses and chat completions check alike before the model may see a request."""

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

from fastapi import Header
from starlette.concurrency import run_in_threadpool

from serve_app.admission.tiers import Tier
from serve_app.api.context import Context
from serve_app.api.wire import FileSearchTool
from serve_app.errors import InvalidRequest, NotFound
from serve_app.generation.admitted import build_demand
from serve_app.search import Search
from serve_app.types import GenerationRequest

ServiceTier = Literal["auto", "default", "flex", "priority"]

RequestTimeoutMs = Annotated[int | None, Header(alias="x-request-timeout-ms", ge=1, lt=2**31)]
"""So long the client waits for the whole answer."""

SETTINGS_HEADER = "x-settings"
"""Which revision of the settings an answer was made with, and which rules of which profile applied."""


def require_model(context: Context, model: str | None) -> str:
    """The model's id, the configured one if none is named. Raises `NotFound` for any other."""
    configured = context.config.generator.model_id
    if model not in (None, configured):
        raise NotFound(
            f"The model {model!r} does not exist here; this server answers as {configured!r}",
            param="model",
            code="model_not_found",
        )
    return configured


def tier_of(service_tier: ServiceTier | None) -> Tier:
    return "default" if service_tier is None or service_tier == "auto" else service_tier


def expect(context: Context, request: GenerationRequest) -> AbstractContextManager[None]:
    """What is done within this for a request, before the model is asked, is not for nothing. Raises `Overloaded`.

    Its messages need not be all that the model will be shown.
    """
    if may_be_cached(request):
        return nullcontext()
    demand = build_demand(request, context.parts.count_tokens, is_streamed=True)
    return context.parts.admissions.of(request.payload["model"]).expect(demand)


def may_be_cached(request: GenerationRequest) -> bool:
    """Whether its answer is determined: then the model may not be needed, and has to refuse it itself."""
    return request.payload.get("temperature") == 0 or request.payload.get("seed") is not None


async def build_search(context: Context, tool: FileSearchTool, *, with_results: bool = False) -> Search:
    """Raises `NotFound` for a vector store that does not exist, or a version that is not kept, `InvalidRequest` for a
    ranker that is not there.
    """
    if isinstance(tool.as_of, int) and len(set(tool.vector_store_ids)) > 1:
        raise InvalidRequest(
            "'as_of' is a number, which is one store's version: send a time for several", param="as_of"
        )
    return Search(
        tables=await run_in_threadpool(context.catalog.require_stores, tool.vector_store_ids, tool.as_of),
        max_passages=tool.max_num_results or context.config.retrieval.max_passages,
        filter=tool.filters.to_filter() if tool.filters else None,
        ranking=tool.ranking_options.to_ranking(context.config.retrieval.reranker),
        with_results=with_results,
        rewrites=tool.rewrite_query,
    )
