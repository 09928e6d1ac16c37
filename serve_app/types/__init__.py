"""The plain frozen values that cross processes, and nothing else that is shared; here those of all parts.

JSON bodies (`Json`) are OpenAI's objects as plain dicts: they are stored and sent as they are.
Times are Unix seconds, as OpenAI's are.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# JSON from and to the wire has no narrower type that helps a reader.
Json = dict[str, Any]


FloatMatrix = npt.NDArray[np.float32]
"""[n, dimensions], rows of unit length."""


FloatVector = npt.NDArray[np.float32]
"""[dimensions], of unit length."""


Scores = npt.NDArray[np.float32]
"""[n], each in [0, 1]."""


AttributeValue = str | float | bool


def new_id(prefix: str) -> str:
    """A new unguessable id, e.g. `resp_3f…` (24 random bytes in hex after the prefix)."""
    return f"{prefix}_{secrets.token_hex(24)}"


def now_s() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, in the order asked for. `data` are OpenAI objects, each with an `id`."""

    data: tuple[Json, ...]
    has_more: bool

    def to_json(self) -> Json:
        return {
            "object": "list",
            "data": list(self.data),
            "first_id": self.data[0]["id"] if self.data else None,
            "last_id": self.data[-1]["id"] if self.data else None,
            "has_more": self.has_more,
        }


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page: those after (or before) an id, newest first unless `order` is asc."""

    after: str | None = None
    before: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
