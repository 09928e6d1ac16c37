"""What can be stored: the same on SQLite, which takes nearly anything, as on PostgreSQL, which does not.

And what is said of that which cannot be found.
"""

import math
from collections.abc import Sequence

from serve_app.errors import InvalidRequest, NotFound
from serve_app.types import Json
from serve_app.types.conversation import OpenTurn

MAX_ID_LENGTH = 80
MAX_KEY_LENGTH = 255


def is_id(value: object) -> bool:
    """Whether it could be an id in the database. What could not is simply not found."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and value.isascii() and value.isprintable()


def not_found(kind: str, missing_id: str, param: str | None = None) -> NotFound:
    return NotFound(f"{kind} with id {missing_id!r} not found.", param=param)


def check_turn(turn: OpenTurn) -> None:
    """Raises `InvalidRequest` for a question that cannot be stored, whether it is to be or not."""
    check_items(turn.input_items, "input")
    check_json(turn.response)
    if turn.idempotency_key is not None:
        check_key(turn.idempotency_key)


def check_key(key: str) -> None:
    """Raises `InvalidRequest` for an idempotency key that cannot be stored."""
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"The idempotency key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters.", param="Idempotency-Key"
        )


def check_items(items: Sequence[Json], param: str) -> None:
    """Raises `InvalidRequest` for an item without a usable id, or with content that cannot be stored."""
    for item in items:
        if not is_id(item.get("id")):
            raise InvalidRequest(
                f"The item id {item.get('id')!r} must be 1 to {MAX_ID_LENGTH} printable ASCII characters.", param=param
            )
        check_json(item, param)


def check_json(value: object, param: str | None = None) -> None:
    """Raises `InvalidRequest` for a NUL character in any string, and for numbers that JSON does not have."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_json(key, param)
            check_json(inner, param)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_json(inner, param)
    elif isinstance(value, str) and "\0" in value:
        raise InvalidRequest("Text must not contain the character U+0000.", param=param)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{value} is not a JSON number.", param=param)
