"""Who speaks, how long and how fast; who asks, and what became of the questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from serve_app.conversation.insights.message import vectors_of
from serve_app.types.conversation import LoggedMessage, MessageFacts

UNRELATED = 0.1
"""An answer whose cosine with its question is below this has nothing to do with it. With all-MiniLM-L6-v2 sentences
about different things are around it; an encoder that finds everything alike never goes so low, and then none is."""

OpenReason = Literal["no_answer", "incomplete", "evasive", "unrelated"]


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the user's, and what became of it."""

    index: int
    answer: int | None
    """The index of the message that follows, if that is the assistant's."""
    relatedness: float | None
    """The cosine of question and answer."""
    open_reason: OpenReason | None
    """Why it counts as not answered; None if it was."""


@dataclass(frozen=True, slots=True)
class Times:
    """Whole seconds, as times are kept."""

    seconds: tuple[int, ...]

    @property
    def median_s(self) -> float | None:
        return median(self.seconds) if self.seconds else None

    @property
    def longest_s(self) -> int | None:
        return max(self.seconds, default=None)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the messages of one side."""

    messages: int
    mean_words: float | None
    longest_words: int | None
    questions: int


@dataclass(frozen=True, slots=True)
class Engagement:
    duration_s: int
    """From the first message to the last."""
    response_times: Times
    """From a message of the user's until the answer to it was complete."""
    pauses: Times
    """From an answer until the user's next message."""
    user: Lengths
    assistant: Lengths
    questions: tuple[Question, ...]

    @property
    def open_questions(self) -> list[Question]:
        return [question for question in self.questions if question.open_reason]


def measure_engagement(logged: Sequence[LoggedMessage], messages: Sequence[MessageFacts]) -> Engagement:
    """`messages` are the facts of `logged`, in the same order."""
    times = [message.created_at for message in logged]
    return Engagement(
        duration_s=times[-1] - times[0] if times else 0,
        response_times=Times(_waits(times, messages, "user", "assistant")),
        pauses=Times(_waits(times, messages, "assistant", "user")),
        user=_lengths([message for message in messages if message.role == "user"]),
        assistant=_lengths([message for message in messages if message.role == "assistant"]),
        questions=tuple(_follow(messages, index) for index in range(len(messages)) if _asks(messages[index])),
    )


def _waits(times: Sequence[int], messages: Sequence[MessageFacts], first: str, second: str) -> tuple[int, ...]:
    turns = zip(times, (message.role for message in messages), strict=True)
    # A clock that was set back must not make a wait negative.
    return tuple(max(0, after - before) for (before, a), (after, b) in pairwise(turns) if (a, b) == (first, second))


def _lengths(messages: Sequence[MessageFacts]) -> Lengths:
    words = [message.words for message in messages]
    return Lengths(
        messages=len(messages),
        mean_words=fmean(words) if words else None,
        longest_words=max(words) if words else None,
        questions=sum(message.is_question for message in messages),
    )


def _asks(message: MessageFacts) -> bool:
    return message.role == "user" and message.is_question


def _follow(messages: Sequence[MessageFacts], index: int) -> Question:
    answer = index + 1
    if answer == len(messages) or messages[answer].role != "assistant":
        return Question(index, None, None, "no_answer")
    question, answering = vectors_of([messages[index], messages[answer]])
    relatedness = float(question @ answering)
    return Question(index, answer, relatedness, _why_open(messages[answer], relatedness))


def _why_open(answer: MessageFacts, relatedness: float) -> OpenReason | None:
    if not answer.characters:
        return "no_answer"
    if answer.status != "completed":
        return "incomplete"
    if answer.is_evasive:
        return "evasive"
    return "unrelated" if relatedness < UNRELATED else None
