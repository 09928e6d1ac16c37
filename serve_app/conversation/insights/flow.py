"""How a conversation moves: from topic to topic, and along what was said before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.conversation.insights.topics import Segment, Turn, context_of, unit
from serve_app.types import FloatVector, MessageFacts


@dataclass(frozen=True, slots=True)
class Transition:
    """From one segment to the next."""

    index: int
    """Of the segment that begins; the one before it ends."""
    distance: float
    """Of the turn that it begins with."""
    likest: int | None
    """The earlier segment, beside the one that ends, that is most like the new one. None if there is none."""
    likeness: float | None
    """The cosine of the two: near 1 the conversation has come back to it."""


@dataclass(frozen=True, slots=True)
class Flow:
    transitions: tuple[Transition, ...]
    answers_kept: float | None
    """The mean cosine of the assistant's messages and what was said right before them. None if there is no such one."""
    questions_kept: float | None
    """The same of the user's messages."""


def measure_flow(messages: Sequence[MessageFacts], turns: Sequence[Turn], segments: Sequence[Segment]) -> Flow:
    if not messages:
        return Flow((), None, None)
    vectors = np.stack([message.vector for message in messages])
    centres = [unit(vectors[segment.start : segment.stop].sum(axis=0)) for segment in segments]
    kept = {index: float(vectors[index] @ context_of(vectors, index)) for index in range(1, len(messages))}
    return Flow(
        transitions=tuple(
            _transition(index, turns[segments[index].start], centres) for index in range(1, len(segments))
        ),
        answers_kept=_mean([kept[index] for index in kept if messages[index].role == "assistant"]),
        questions_kept=_mean([kept[index] for index in kept if messages[index].role == "user"]),
    )


def _transition(index: int, turn: Turn, centres: Sequence[FloatVector]) -> Transition:
    earlier = [float(centres[index] @ centre) for centre in centres[: index - 1]]
    if not earlier:
        return Transition(index, turn.distance, None, None)
    likest = int(np.argmax(earlier))
    return Transition(index, turn.distance, likest, earlier[likest])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
