"""How the messages of a conversation feel, whether that changes, and where it turns.

VADER (Hutto and Gilbert 2014) knows English only. A message whose language cannot be told from its few words counts as
being in the one that most of the others are in; where that is not English its sentiment is not known, and said so.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression
from typing import Literal

from serve_app.types.conversation import MessageFacts

NEUTRAL = 0.05
"""Scores nearer to 0 are neither positive nor negative, as VADER's authors have it."""

SMOOTHED_MESSAGES = 3
"""The mood at a message is the mean of so many: one word does not turn a conversation."""

TREND = 0.2
"""The least change, from the first to the last message along the fitted line, that is called one."""

Mood = Literal["positive", "negative", "neutral"]
Trend = Literal["improving", "worsening", "steady"]


@dataclass(frozen=True, slots=True)
class TurningPoint:
    index: int
    """Of the message."""
    mood_before: Mood
    mood: Mood


@dataclass(frozen=True, slots=True)
class Sentiment:
    scores: tuple[float | None, ...]
    """One for each message, from -1 to 1. None where it is not known."""
    change: float | None
    """From the first to the last message of the user, along a fitted line. None with fewer than two that are known."""
    turning_points: tuple[TurningPoint, ...]
    """Where the user's mood goes from positive to negative, or back."""

    @property
    def trend(self) -> Trend | None:
        if self.change is None:
            return None
        return "improving" if self.change >= TREND else "worsening" if self.change <= -TREND else "steady"


def measure_sentiment(messages: Sequence[MessageFacts]) -> Sentiment:
    main = _main_language(messages)
    scores = tuple(message.english_sentiment if (message.language or main) == "en" else None for message in messages)
    users = [
        (index, score)
        for index, (message, score) in enumerate(zip(messages, scores, strict=True))
        if message.role == "user" and score is not None
    ]
    return Sentiment(scores, _change([score for _, score in users]), tuple(_turning_points(users)))


def mood_of(score: float) -> Mood:
    return "positive" if score >= NEUTRAL else "negative" if score <= -NEUTRAL else "neutral"


def mean_of(scores: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [score for score in scores if score is not None]
    return fmean(known) if known else None


def _main_language(messages: Sequence[MessageFacts]) -> str | None:
    languages = Counter(message.language for message in messages if message.language)
    return languages.most_common(1)[0][0] if languages else None


def _change(scores: Sequence[float]) -> float | None:
    if len(scores) < 2:
        return None
    return linear_regression(range(len(scores)), scores).slope * (len(scores) - 1)


def _turning_points(scores: Sequence[tuple[int, float]]) -> Iterable[TurningPoint]:
    moods = []
    for last in range(SMOOTHED_MESSAGES - 1, len(scores)):
        recent = scores[last - SMOOTHED_MESSAGES + 1 : last + 1]
        mood = mood_of(fmean(score for _, score in recent))
        if mood != "neutral":
            moods.append((recent[-1][0], mood))
    for (_, before), (index, mood) in pairwise(moods):
        if mood != before:
            yield TurningPoint(index, before, mood)
