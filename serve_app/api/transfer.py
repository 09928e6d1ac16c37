"""A conversation as JSON Lines, out and in: first the conversation, then its items, oldest first."""

import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import IO, Annotated, Any, Literal, TypeVar

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from serve_app.api.context import Context, InContext
from serve_app.api.conversations import ConversationExpiry, seconds_of
from serve_app.api.errors import invalid_request
from serve_app.api.items import InputItem, build_items
from serve_app.api.middleware import check_json
from serve_app.api.wire import Metadata, Wire
from serve_app.conversation.transfer import TimedItem, import_conversation
from serve_app.errors import InvalidRequest, UploadTooLarge
from serve_app.types import Json, new_id, now_s
from serve_app.types.conversation import LoggedItem

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

Line = TypeVar("Line", bound=BaseModel)

MAX_LINE_BYTES = 10 * 2**20
"""As much as any other request may have."""

MAX_ITEMS = 100_000
"""While they are inserted a SQLite database takes no other write, about five seconds."""

_ITEMS_AT_ONCE = 100
_IN_MEMORY_BYTES = 2**20
_JSON_LINES = "application/jsonl"
_IMPORT_SCHEMA: dict[str, Any] = {
    "requestBody": {"required": True, "content": {_JSON_LINES: {"schema": {"type": "string"}}}}
}


class ConversationLine(Wire):
    object: Literal["conversation"]
    metadata: Metadata | None = None
    expires_after: ConversationExpiry | None = None


class ItemLine(Wire):
    object: Literal["conversation.item"]
    created_at: Annotated[int, Field(ge=0, lt=2**40)] | None = None
    item: dict[str, Any]


# --- out ----------------------------------------------------------------------------------------


@router.get("/{conversation_id}/export", response_class=StreamingResponse)
async def export_conversation(conversation_id: str, context: InContext) -> Response:
    """The past that it shares with others is in it like its own. Stored responses are not."""
    conversation = await context.parts.sessions.get_conversation(conversation_id)
    # Before the status is sent, after which nothing can be answered any more.
    first = await context.parts.sessions.export_items(conversation_id, 0, _ITEMS_AT_ONCE)
    return StreamingResponse(_lines(conversation.to_json(), first, context), media_type=_JSON_LINES)


async def _lines(conversation: Json, items: Sequence[LoggedItem], context: Context) -> AsyncIterator[bytes]:
    yield _line(conversation)
    while items:
        yield b"".join(
            _line({"object": "conversation.item", "created_at": each.created_at, "item": each.body}) for each in items
        )
        items = await context.parts.sessions.export_items(conversation["id"], items[-1].seq, _ITEMS_AT_ONCE)


def _line(value: Json) -> bytes:
    return orjson.dumps(value) + b"\n"


# --- in -----------------------------------------------------------------------------------------


@router.post("/import", openapi_extra=_IMPORT_SCHEMA)
async def import_lines(request: Request, context: InContext) -> Json:
    """What an export wrote becomes a new conversation, with new ids. All of it, or nothing."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spool:
        async for block in request.stream():
            await run_in_threadpool(spool.write, block)
        return await run_in_threadpool(_import, spool, context)


def _import(spool: IO[bytes], context: Context) -> Json:
    # Twice, so that what is wrong is found before anything waits for the database.
    for count, _ in enumerate(_read_items(spool), 1):
        if count > MAX_ITEMS:
            raise UploadTooLarge(f"A conversation can be imported with at most {MAX_ITEMS:,} items")
    header = _read_header(spool)
    metadata, expires_after_s = header.metadata or {}, seconds_of(header.expires_after)
    imported = import_conversation(context.database, new_id("conv"), metadata, expires_after_s, _read_items(spool))
    return imported.to_json()


def _read_header(spool: IO[bytes]) -> ConversationLine:
    for number, line in _read_lines(spool):
        return _parse(ConversationLine, number, line)
    raise InvalidRequest("Line 1 is missing: it holds the conversation, as an export writes it")


def _read_items(spool: IO[bytes]) -> Iterator[TimedItem]:
    _read_header(spool)
    now = now_s()
    for number, line in _read_lines(spool):
        if number > 1:
            given = _parse(ItemLine, number, line)
            yield (now if given.created_at is None else given.created_at), _build_item(given.item, number)


def _read_lines(spool: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Each with its number. Empty ones are passed over, but for the first."""
    spool.seek(0)
    number = 0
    while line := spool.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InvalidRequest(f"Line {number} is longer than {MAX_LINE_BYTES} bytes")
        if number == 1 or line.strip():
            yield number, line


def _parse(kind: type[Line], number: int, line: bytes) -> Line:
    value: object = None
    try:
        check_json(line)
        value = orjson.loads(line)
        return kind.model_validate(value)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"Line {number} is not JSON: {error}") from None
    except ValidationError as error:
        raise _in_line(number, invalid_request(error.errors(), value)) from None
    except InvalidRequest as error:
        raise _in_line(number, error) from None


def _build_item(given: Json, number: int) -> Json:
    """With a new id, and with what an answer had beside its text: citations, and what a search found."""
    try:
        item = build_items([InputItem.model_validate(given)], "item")[0]
    except ValidationError as error:
        raise _in_line(number, invalid_request(error.errors(), given)) from None
    except InvalidRequest as error:
        raise _in_line(number, error) from None
    if given.get("status") in ("completed", "incomplete"):
        item["status"] = given["status"]
    if item["type"] == "file_search_call":
        return item | {"results": _objects(given.get("results"))}
    if item["role"] == "assistant" and isinstance(given["content"], list):
        for part, given_part in zip(item["content"], given["content"], strict=True):
            part["annotations"] = _objects(given_part.get("annotations")) or []
    return item


def _objects(value: object) -> list[Json] | None:
    """A list of objects as it is; None for anything else."""
    return value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else None


def _in_line(number: int, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(f"Line {number}: {error.message}", param=error.param, code=error.code)
