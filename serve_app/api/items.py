"""Conversation items: from what clients send to what is stored, and to what the model's messages are made of."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from serve_app.api.wire import Wire
from serve_app.errors import InvalidRequest
from serve_app.types import Json, new_id


class TextPart(Wire):
    type: Literal["input_text", "output_text", "text"]
    text: str


class OtherPart(Wire):
    type: str


def type_of(value: object) -> object:
    """The `type` of a part or a tool as a client sends it."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


_TEXT_TYPES = ("input_text", "output_text", "text")

Part = Annotated[
    Annotated[TextPart, Tag("text")] | Annotated[OtherPart, Tag("other")],
    Discriminator(lambda part: "text" if type_of(part) in _TEXT_TYPES else "other"),
]


class InputItem(Wire):
    """A message, or the call of a tool that an earlier response made."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    queries: list[str] | None = None


InputItems = Annotated[list[InputItem], Field(min_length=1, max_length=1000)]


def build_items(given: str | Sequence[InputItem], param: str) -> tuple[Json, ...]:
    """OpenAI's items with new ids, complete and in order. Raises `InvalidRequest` for what is not text.

    Ids that the client sends are not kept: an item may be sent again, and is then another item.
    """
    if isinstance(given, str):
        return (_build_message("user", [given]),)
    return tuple(_build_item(item, f"{param}.{index}") for index, item in enumerate(given))


def _build_item(item: InputItem, param: str) -> Json:
    if item.type == "file_search_call":
        return {
            "type": "file_search_call",
            "id": new_id("fs"),
            "status": "completed",
            "queries": item.queries or [],
            "results": None,
        }
    if item.type == "item_reference":
        raise InvalidRequest(f"{param!r} is an item_reference, which is not supported: send the item", param=param)
    if item.type != "message":
        raise InvalidRequest(f"{param!r} has the type {item.type!r}; only messages are supported", param=param)
    if item.role is None:
        raise InvalidRequest(f"'{param}.role' is required: user, assistant, system or developer", param=f"{param}.role")
    if item.content is None:
        raise InvalidRequest(f"'{param}.content' is required", param=f"{param}.content")
    if isinstance(item.content, str):
        return _build_message(item.role, [item.content])
    return _build_message(item.role, [_read_text(part, f"{param}.content") for part in item.content])


def _read_text(part: TextPart | OtherPart, param: str) -> str:
    if isinstance(part, OtherPart):
        raise InvalidRequest(
            f"{param!r} has a part of the type {part.type!r}, which the model cannot read: only text is supported",
            param=param,
        )
    return part.text


def _build_message(role: str, texts: Sequence[str]) -> Json:
    if role == "assistant":
        parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    else:
        parts = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "id": new_id("msg"), "status": "completed", "role": role, "content": parts}
