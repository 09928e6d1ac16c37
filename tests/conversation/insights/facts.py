"""Messages with made-up facts: only what a test is about is said."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from serve_app.types import FloatVector
from serve_app.types.conversation import LoggedMessage, MessageFacts

PLAIN = MessageFacts(
    role="user",
    status="completed",
    characters=10,
    words=2,
    language="en",
    english_sentiment=0.0,
    is_question=False,
    is_evasive=False,
    continues=False,
    terms=(),
    opening="some words",
    vector=b"",
)


def at(degrees: float) -> FloatVector:
    """A unit vector in the plane: the cosine of two is that of the angle between them."""
    radians = np.deg2rad(degrees)
    return np.array([np.cos(radians), np.sin(radians)], dtype=np.float32)


# The fields of `MessageFacts`, as they are.
def says(role: Literal["user", "assistant"] = "user", degrees: float = 0, **fields: Any) -> MessageFacts:
    return replace(PLAIN, role=role, vector=at(degrees).astype("<f2").tobytes(), **fields)


def logged(*messages: MessageFacts, every_s: int = 10) -> tuple[LoggedMessage, ...]:
    """In a log, one after the other: `msg_0`, `msg_1`, …"""
    return tuple(
        LoggedMessage("conv_1", index + 1, f"msg_{index}", 1_000 + every_s * index, facts, None)
        for index, facts in enumerate(messages)
    )
