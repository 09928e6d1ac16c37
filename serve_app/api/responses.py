"""`/v1/responses`: questions, each answered by `chat.reply`, and the stored answers."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Discriminator, Field, Tag
from starlette.datastructures import State
from starlette.responses import Response

from serve_app.admission.tiers import BACKGROUND, PRIORITIES
from serve_app.api.checks import (
    CACHE_HEADER,
    RequestTimeoutMs,
    ServiceTier,
    build_search,
    cache_use,
    expect,
    require_model,
    tier_of,
)
from serve_app.api.context import Context, InContext
from serve_app.api.items import InputItems, build_items, type_of
from serve_app.api.response_events import EventEncoder
from serve_app.api.sse import EventStream, while_connected
from serve_app.api.wire import FileSearchTool, Metadata, PageParameters, Wire
from serve_app.chat import Turn, reply
from serve_app.errors import InvalidRequest, RayconteurError
from serve_app.events import AnswerStarted, Event, Finished
from serve_app.generation.cache import outcome
from serve_app.generation.prompt import newest_user_text, text_of
from serve_app.generation.settings import Applied, Settings, fill_in
from serve_app.memory import max_read_items
from serve_app.types import Json, new_id, now_s
from serve_app.types.conversation import OpenTurn
from serve_app.types.generation import CacheUse, GenerationRequest

router = APIRouter(tags=["responses"])

RESULTS = "file_search_call.results"

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


class ConversationRef(Wire):
    id: str


class OtherTool(Wire):
    type: str


# What claims to be file_search is checked as that.
Tool = Annotated[
    Annotated[FileSearchTool, Tag("file_search")] | Annotated[OtherTool, Tag("other")],
    Discriminator(lambda tool: "file_search" if type_of(tool) == "file_search" else "other"),
]


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    # `schema` is a method of pydantic's models.
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Wire):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class CreateResponse(Wire):
    model: str | None = None
    input: str | InputItems
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationRef | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    # What a choice may hold depends on the tool.
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    text: TextConfig | None = None
    # Taken and given back; no model here reasons.
    reasoning: dict[str, Any] | None = None
    metadata: Metadata | None = None
    service_tier: ServiceTier | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    profile: str | None = None


@router.post("/v1/responses", response_model=None)
async def create_response(
    body: CreateResponse,
    request: Request,
    response: Response,
    context: InContext,
    idempotency_key: IdempotencyKey = None,
    request_timeout_ms: RequestTimeoutMs = None,
) -> Json | Response:
    # Its search is made, and its answer written, when its turn has come.
    cache: CacheUse = "off" if body.background else cache_use(request.headers)
    turn = await build_turn(body, request.state, idempotency_key, request_timeout_ms, cache, context)
    if body.background:
        queued = await context.background.queue(turn)
        return _follow(queued["id"], -1, context) if body.stream else queued
    # One that is sent again may have its answer already.
    with nullcontext() if idempotency_key else expect(context, _first_look(turn)):
        events = reply(turn, context.parts, context.config)
        if body.stream:
            begun = await while_connected(request, _peek(events))
            return EventStream(_encode(begun, events), {CACHE_HEADER: outcome.get()})
        finished = await while_connected(request, _finish(events))
    response.headers[CACHE_HEADER] = outcome.get()
    return finished.response


@router.get("/v1/responses/{response_id}", response_model=None)
async def get_response(
    response_id: str,
    context: InContext,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
) -> Json | Response:
    """With `stream`, the events of its stream as they came and come, those after number `starting_after`."""
    response = await context.parts.sessions.get_response(response_id)
    return _follow(response_id, starting_after, context) if stream else response


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, context: InContext) -> Json:
    await context.parts.sessions.delete_response(response_id)
    context.background.stop(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, context: InContext) -> Json:
    return await context.background.cancel(response_id)


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(response_id: str, page: Annotated[PageParameters, Query()], context: InContext) -> Json:
    items = await context.parts.sessions.list_input_items(response_id, page.to_query())
    return items.to_json()


async def build_turn(
    body: CreateResponse,
    asked: State,
    idempotency_key: str | None,
    timeout_ms: int | None,
    cache: CacheUse,
    context: Context,
) -> Turn:
    """Check a request as a whole. Raises `InvalidRequest` or `NotFound`; nothing has happened yet then."""
    model = require_model(context, body.model)
    conversation_id = body.conversation.id if isinstance(body.conversation, ConversationRef) else body.conversation
    if conversation_id and body.previous_response_id:
        raise InvalidRequest(
            "'previous_response_id' cannot be used together with 'conversation': send one of them",
            param="previous_response_id",
        )
    if body.background and body.store is False:
        raise InvalidRequest("'background' needs 'store': who asks comes back for the response", param="background")
    if idempotency_key and conversation_id and body.store is False:
        raise InvalidRequest(
            "An 'Idempotency-Key' needs 'store': without it there is no response to give to who asks again",
            param="store",
        )
    for name in body.include or ():
        if name != RESULTS:
            raise InvalidRequest(f"'include' names {name!r}; only {RESULTS!r} is supported", param="include")

    input_items = build_items(body.input, "input")
    tool = _chosen_tool(body)
    if tool and not newest_user_text(input_items):
        raise InvalidRequest("'input' has no user message, and file_search has nothing to look for", param="input")
    applied = _apply_settings(body, model, input_items, context)
    return Turn(
        opening=OpenTurn(
            response=_build_response(body, model, conversation_id, applied),
            input_items=input_items,
            conversation_id=conversation_id,
            previous_response_id=body.previous_response_id,
            store=body.store is not False,
            idempotency_key=idempotency_key,
            max_history_items=max_read_items(context.config),
            # A background response belongs to whoever has claimed its job.
            runner_id=None if body.background else context.runner_id,
        ),
        sampling=_build_sampling(body, model, applied.settings),
        request_id=asked.request_id,
        search=await build_search(context, tool, cache, with_results=RESULTS in (body.include or ())) if tool else None,
        priority=BACKGROUND if body.background else PRIORITIES[tier_of(body.service_tier)],
        caller=asked.caller,
        # Nobody waits for a background response.
        timeout_s=timeout_ms / 1000 if timeout_ms and not body.background else None,
        cache=cache,
    )


def _first_look(turn: Turn) -> GenerationRequest:
    """As far as it is known before anything has been read or searched for it."""
    instructions = {"content": turn.opening.response["instructions"]}
    payload = {**turn.sampling, "messages": [instructions, *turn.opening.input_items]}
    return GenerationRequest(
        payload, turn.request_id, turn.priority, caller=turn.caller, timeout_s=turn.timeout_s, cache=turn.cache
    )


async def _peek(events: AsyncGenerator[Event, None]) -> list[Event]:
    """What happens until the model begins. Before, an error has its HTTP status, and takes the question back."""
    begun: list[Event] = []
    async for event in events:
        begun.append(event)
        if isinstance(event, AnswerStarted | Finished):
            break
    return begun


async def _encode(begun: list[Event], events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    encoder = EventEncoder()
    async with aclosing(events):
        yield b"".join(map(encoder.encode, begun))
        async for event in events:
            yield encoder.encode(event)


def _follow(response_id: str, starting_after: int, context: Context) -> EventStream:
    encoder = EventEncoder(starting_after)

    async def encoded() -> AsyncGenerator[bytes, None]:
        async with aclosing(context.background.follow(response_id)) as events:
            try:
                async for event in events:
                    if data := encoder.encode(event):
                        yield data
            except RayconteurError as error:
                yield encoder.encode_error(error)

    return EventStream(encoded())


async def _finish(events: AsyncGenerator[Event, None]) -> Finished:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                break
    assert isinstance(event, Finished)
    return event


def _chosen_tool(body: CreateResponse) -> FileSearchTool | None:
    """The file_search tool, if it is to be used: it always is, unless `tool_choice` is none."""
    chosen = None
    for index, tool in enumerate(body.tools or ()):
        if isinstance(tool, OtherTool):
            raise InvalidRequest(
                f"'tools.{index}' has the type {tool.type!r}; only 'file_search' is supported here", param="tools"
            )
        if chosen:
            raise InvalidRequest("'tools' has file_search twice: name all stores in one", param="tools")
        chosen = tool
    choice = body.tool_choice or "auto"
    kind = choice if isinstance(choice, str) else choice.get("type")
    if kind not in ("auto", "none", "required", "file_search"):
        raise InvalidRequest(f"'tool_choice' is {choice!r}, which is not supported", param="tool_choice")
    if kind in ("required", "file_search") and not chosen:
        raise InvalidRequest(f"'tool_choice' is {choice!r}, but there is no such tool in 'tools'", param="tool_choice")
    return None if kind == "none" else chosen


def _apply_settings(body: CreateResponse, model: str, input_items: Sequence[Json], context: Context) -> Applied:
    """What the client left open. The prompt's length is that of what it sent: the history is not read yet."""

    def count_prompt_tokens() -> int:
        texts = [body.instructions or "", *(text_of(item["content"]) for item in input_items)]
        return sum(map(context.parts.of(model).count_tokens, texts))

    return context.settings.apply(model, body.profile, body.max_output_tokens, count_prompt_tokens)


def _build_sampling(body: CreateResponse, model: str, settings: Settings) -> Json:
    """For the model. What neither the client nor the settings say is left to the model's own defaults."""
    sampling: Json = {"model": model}
    if body.max_output_tokens is not None:
        sampling["max_completion_tokens"] = body.max_output_tokens
    if body.temperature is not None:
        sampling["temperature"] = body.temperature
    if body.top_p is not None:
        sampling["top_p"] = body.top_p
    text_format = body.text and body.text.format
    if text_format and text_format.type == "json_object":
        sampling["response_format"] = {"type": "json_object"}
    elif text_format and text_format.type == "json_schema":
        if text_format.json_schema is None:
            raise InvalidRequest("'text.format.schema' is required", param="text.format.schema")
        sampling["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": text_format.name or "answer", "schema": text_format.json_schema},
        }
    fill_in(sampling, settings)
    return sampling


def _build_response(body: CreateResponse, model: str, conversation_id: str | None, applied: Applied) -> Json:
    """The response object as it is before there is an answer, with every field that OpenAI's has."""
    text_format = (body.text and body.text.format) or TextFormat()
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": now_s(),
        "completed_at": None,
        "status": "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "conversation": {"id": conversation_id} if conversation_id else None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": body.reasoning or {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": tier_of(body.service_tier),
        "store": body.store is not False,
        "settings": applied.to_json(),
        "temperature": _first(body.temperature, applied.settings.temperature, 1.0),
        "text": {"format": text_format.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        "top_logprobs": 0,
        "top_p": _first(body.top_p, applied.settings.top_p, 1.0),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _first(*values: float | None) -> float:
    """The first that is given; the last is OpenAI's default."""
    return next(value for value in values if value is not None)
