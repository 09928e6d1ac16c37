"""`/v1/chat/completions`: the model itself, in vLLM's own words; with the tool `file_search`, after a search.

The body is not modelled here: what we need is checked, all else goes on to vLLM, which knows its fields best. Without a
search the stream is passed on unread.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import Field, ValidationError
from starlette.responses import Response

from serve_app.admission.tiers import PRIORITIES
from serve_app.api.checks import (
    CACHE_HEADER,
    SETTINGS_HEADER,
    RequestTimeoutMs,
    ServiceTier,
    build_search,
    cache_use,
    expect,
    require_model,
    tier_of,
)
from serve_app.api.context import Context, InContext
from serve_app.api.errors import invalid_request, to_json
from serve_app.api.sse import EventStream, while_connected
from serve_app.api.wire import FileSearchTool, Wire
from serve_app.errors import InternalError, InvalidRequest, RayconteurError
from serve_app.generation.cache import outcome
from serve_app.generation.citations import CitedText
from serve_app.generation.prompt import add_sources, fit_passages, newest_user_text, prefix_key, text_of
from serve_app.generation.settings import Applied, fill_in, has_own_beams
from serve_app.generation.stream import before, parse_chunks, stream_before
from serve_app.search import Search, build_queries, find_passages
from serve_app.types import Json
from serve_app.types.generation import CacheUse, GenerationRequest
from serve_app.types.knowledge import Passage

logger = logging.getLogger(__name__)

router = APIRouter(tags=["chat"])

DONE = "data: [DONE]\n\n"


class ChatCompletionBody(Wire):
    """What is checked here of a request. vLLM checks the rest, and takes all fields of OpenAI's and its own."""

    # Messages and tools are OpenAI's; only vLLM knows which the model can take.
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = Field(default=None, strict=True)
    tools: list[dict[str, Any]] | None = None
    service_tier: ServiceTier | None = None
    # Strict, because the body goes on as it came.
    max_tokens: int | None = Field(None, ge=1, strict=True)
    max_completion_tokens: int | None = Field(None, ge=1, strict=True)
    profile: str | None = None
    no_repeat_ngram_size: int | None = Field(None, ge=0, le=64, strict=True)
    vllm_xargs: dict[str, Any] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


_BODY_SCHEMA = {
    "required": True,
    "content": {"application/json": {"schema": ChatCompletionBody.model_json_schema()}},
}


@router.post("/v1/chat/completions", openapi_extra={"requestBody": _BODY_SCHEMA})
async def create_chat_completion(
    request: Request, context: InContext, request_timeout_ms: RequestTimeoutMs = None
) -> Response:
    payload = _read_body(await request.body())
    payload["model"] = require_model(context, payload.get("model"))
    tier = tier_of(payload.pop("service_tier", None))
    # The sources come before the newest question only, so that the key is the same at the next.
    session_id = payload.get("prompt_cache_key") or payload.get("user") or prefix_key(payload["messages"])
    cache = cache_use(request.headers)
    search = await _take_search(payload, cache, context)
    applied = _apply_settings(payload, context)

    is_best_of = has_own_beams(applied.settings, payload)
    fill_in(payload, applied.settings)

    now = asyncio.get_running_loop().time
    timeout_s = min(context.config.api.request_timeout_s, (request_timeout_ms or math.inf) / 1000)
    deadline = now() + timeout_s
    asked = GenerationRequest(
        payload, request.state.request_id, PRIORITIES[tier], session_id, request.state.caller, timeout_s, cache
    )
    passages: tuple[Passage, ...] | None = None
    if search:
        with expect(context, asked):
            passages = await while_connected(request, before(deadline, _add_sources(asked, search, context)))
    generation = replace(asked, timeout_s=deadline - now())
    headers = {SETTINGS_HEADER: applied.to_header()}

    if payload.get("stream"):
        events = stream_before(deadline, context.parts.generator.stream(generation))
        if is_best_of:
            events = _best_stream(events)
        if passages is not None:
            events = _cite_stream(events, passages)
        first = await while_connected(request, anext(events, DONE))
        headers[CACHE_HEADER] = outcome.get()
        return EventStream(_pass_on(first, events, generation.request_id), headers)
    completion = await while_connected(request, before(deadline, context.parts.generator.complete(generation)))
    headers[CACHE_HEADER] = outcome.get()
    if is_best_of:
        completion["choices"] = completion["choices"][:1]
    if passages is not None:
        _cite_completion(completion, passages)
    completion["service_tier"] = tier
    return Response(orjson.dumps(completion), media_type="application/json", headers=headers)


def _apply_settings(payload: Json, context: Context) -> Applied:
    """What the client left open. Its words for it are in the body, as vLLM's are."""
    profile = payload.pop("profile", None)
    max_tokens = payload.get("max_completion_tokens") or payload.get("max_tokens")

    def count_prompt_tokens() -> int:
        count_tokens = context.parts.of(payload["model"]).count_tokens
        return sum(count_tokens(text_of(message.get("content"))) for message in payload["messages"])

    return context.settings.apply(payload["model"], profile, max_tokens, count_prompt_tokens)


def _read_body(body: bytes) -> Json:
    """The body as it came. Raises `InvalidRequest` for what is wrong in the few fields that are looked at here."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not JSON: {error}") from None
    try:
        ChatCompletionBody.model_validate(payload)
    except ValidationError as error:
        raise invalid_request(error.errors(), payload) from None
    # Checked to be an object just now.
    checked: Json = payload
    return checked


async def _take_search(payload: Json, cache: CacheUse, context: Context) -> Search | None:
    """Takes file_search out of the tools; the others are vLLM's."""
    tools = payload.get("tools") or []
    chosen = [index for index, tool in enumerate(tools) if tool.get("type") == "file_search"]
    if not chosen:
        return None
    if len(chosen) > 1:
        raise InvalidRequest("'tools' has file_search twice: name all stores in one", param="tools")
    try:
        tool = FileSearchTool.model_validate(tools[chosen[0]])
    except ValidationError as error:
        located = [{**each, "loc": ("tools", chosen[0], *each["loc"])} for each in error.errors()]
        raise invalid_request(located, payload) from None

    choice = payload.get("tool_choice")
    rest = [tool for index, tool in enumerate(tools) if index != chosen[0]]
    if rest:
        payload["tools"] = rest
    else:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            payload.pop(name, None)
    if isinstance(choice, dict) and choice.get("type") == "file_search":
        payload.pop("tool_choice", None)
    if choice == "none":
        return None
    if not newest_user_text(payload["messages"]):
        raise InvalidRequest(
            "'messages' has no user message, and file_search has nothing to look for", param="messages"
        )
    return await build_search(context, tool, cache)


async def _add_sources(asked: GenerationRequest, search: Search, context: Context) -> tuple[Passage, ...] | None:
    """The passages that now stand before the last question, in the order of their numbers, if they can be cited."""
    payload = asked.payload
    messages, parts = payload["messages"], context.parts.of(payload["model"])
    newest = max(index for index, each in enumerate(messages) if each.get("role") == "user")
    question = newest_user_text(messages)
    queries = await build_queries(
        search, question, messages[:newest], payload["model"], asked.priority, asked.caller, parts
    )
    found = await find_passages(search, queries, parts)
    shown = fit_passages(found, context.config.retrieval.max_passage_tokens, parts.count_tokens)
    payload["messages"] = add_sources(messages, shown)
    # Brackets in JSON are no citations.
    response_format = payload.get("response_format")
    is_text = not isinstance(response_format, dict) or response_format.get("type") == "text"
    return shown if is_text else None


async def _pass_on(first: str, events: AsyncGenerator[str, None], request_id: str) -> AsyncIterator[str]:
    """The stream as it is. A failure in its midst becomes an error event, and the stream still ends as it should."""
    async with aclosing(events):
        try:
            yield first
            async for event in events:
                yield event
        except RayconteurError as error:
            yield _event(to_json(error)) + DONE
        except Exception:
            logger.exception("request %s: the stream failed", request_id)
            internal = InternalError("an internal error occurred: the server's log has the details")
            yield _event(to_json(internal)) + DONE


async def _best_stream(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The stream without the beams that are not the best, for a client that did not ask for them."""
    async with aclosing(events):
        async for event in events:
            for chunk in parse_chunks(event):
                best = [choice for choice in chunk["choices"] if choice["index"] == 0]
                if best or not chunk["choices"]:
                    yield _event({**chunk, "choices": best})
    yield DONE


async def _cite_stream(events: AsyncGenerator[str, None], passages: Sequence[Passage]) -> AsyncGenerator[str, None]:
    """The same stream, its markers taken out. A choice's `annotations` are in a delta of their own before its end."""
    choices: dict[int, CitedText] = {}
    async with aclosing(events):
        async for event in events:
            for chunk in parse_chunks(event):
                for choice in chunk["choices"]:
                    cited = choices.setdefault(choice["index"], CitedText(passages))
                    delta = choice["delta"]
                    if delta.get("content"):
                        delta["content"] = cited.feed(delta["content"])
                    if choice.get("finish_reason"):
                        last = {"content": (delta.pop("content", None) or "") + cited.finish()}
                        annotated = {"index": choice["index"], "delta": {**last, "annotations": cited.annotations}}
                        yield _event({**chunk, "choices": [{**annotated, "logprobs": None, "finish_reason": None}]})
                yield _event(chunk)
    yield DONE


def _cite_completion(completion: Json, passages: Sequence[Passage]) -> None:
    for choice in completion["choices"]:
        message = choice["message"]
        if message.get("content"):
            cited = CitedText(passages)
            message["content"] = cited.feed(message["content"]) + cited.finish()
            message["annotations"] = cited.annotations


def _event(data: Json) -> str:
    return f"data: {orjson.dumps(data).decode()}\n\n"
