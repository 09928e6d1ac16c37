"""How a conversation moves: from topic to topic, and along what was said before."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from serve_app.conversation.insights.message import vectors_of
from serve_app.conversation.insights.topics import Segment, Turn, contexts_of, unit_rows
from serve_app.types import Scores
from serve_app.types.conversation import MessageFacts


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
    vectors = vectors_of(messages)
    kept = np.sum(vectors * contexts_of(vectors), axis=1)
    centres = unit_rows(np.stack([vectors[segment.start : segment.stop].sum(axis=0) for segment in segments]))
    likeness = centres @ centres.T
    return Flow(
        transitions=tuple(
            _transition(index, turns[segments[index].start], likeness[index]) for index in range(1, len(segments))
        ),
        answers_kept=_mean_of(kept, messages, "assistant"),
        questions_kept=_mean_of(kept, messages, "user"),
    )


def _transition(index: int, turn: Turn, likeness: Scores) -> Transition:
    earlier = likeness[: index - 1]
    if not len(earlier):
        return Transition(index, turn.distance, None, None)
    likest = int(np.argmax(earlier))
    return Transition(index, turn.distance, likest, float(earlier[likest]))


def _mean_of(kept: Scores, messages: Sequence[MessageFacts], role: str) -> float | None:
    # The first has nothing before it.
    theirs = [float(kept[index]) for index in range(1, len(messages)) if messages[index].role == role]
    return fmean(theirs) if theirs else None
