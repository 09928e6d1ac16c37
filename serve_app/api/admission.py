"""What responses and chat completions check alike before the model may see a request."""

from typing import Literal

from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context
from serve_app.api.wire import FileSearchTool
from serve_app.errors import InvalidRequest, NotFound
from serve_app.search import Search

ServiceTier = Literal["auto", "default", "flex", "priority"]

PRIORITIES: dict[str, int] = {"priority": -10, "auto": 0, "default": 0, "flex": 10}
"""vLLM's priority of a service tier: lower is earlier."""

SETTINGS_HEADER = "x-settings"
"""Which revision of the settings an answer was made with, and which rules of which profile applied."""


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
