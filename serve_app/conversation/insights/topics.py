"""Where the topic shifts, the segments in between, and a label for each.

A turn and its reply are compared with the three turns before, the nearest counting most. How unlike they are is
measured against the conversation's own turns, so that the same rule holds for terse and for wordy people, and for any
encoder. Cues of the words come on top: who answers a question, or begins by pointing back ("that", "yes"), stays with
the topic; who asks rather changes it. `bench/insights.py` measures this.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop
from itertools import chain, pairwise

import numpy as np

from serve_app.conversation.insights.message import vectors_of
from serve_app.types import FloatMatrix, Scores
from serve_app.types.conversation import MessageFacts

CONTEXT_TURNS = 3
DECAY = 0.7
"""The weight of a turn, compared with the next one nearer to where the topic may shift."""

THRESHOLD_SD = 0.5
"""Shifts are the turns that score so many standard deviations above the mean: TextTiling's cut-off (Hearst 1997)."""

CUE_SD = 0.5
"""What each cue adds or takes away. All the same: with few labels equal weights predict best (Dawes 1979)."""

LABEL_WORDS = 3


@dataclass(frozen=True, slots=True)
class Turn:
    distance: float
    """1 - the cosine of the turn, with its reply, and what came before: 0 is the same, 1 has nothing to do with it."""
    score: float
    """The distance in standard deviations from the conversation's mean, with the cues added. 0 for the first."""
    is_shift: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Messages on one topic: those from `start` up to, and without, `stop`."""

    start: int
    stop: int
    terms: tuple[str, ...]
    """Its most telling words, the best first. None if there are no words that say something."""
    label: str
    """The terms, or else how it begins."""


def find_shifts(messages: Sequence[MessageFacts]) -> list[Turn]:
    """One for each message, in order."""
    if len(messages) < 2:
        return [Turn(0.0, 0.0, is_shift=False) for _ in messages]
    vectors = vectors_of(messages)
    distances = 1 - np.sum(_with_replies(vectors) * contexts_of(vectors), axis=1)[1:]
    cues = [_cues(before, message) for before, message in pairwise(messages)]
    scores = _standardized(distances) + CUE_SD * np.array(cues)
    least = scores.mean() + THRESHOLD_SD * scores.std()
    later = [
        Turn(float(distance), float(score), is_shift=bool(score > least))
        for distance, score in zip(distances, scores, strict=True)
    ]
    return [Turn(0.0, 0.0, is_shift=False), *later]


def find_segments(messages: Sequence[MessageFacts], turns: Sequence[Turn]) -> list[Segment]:
    """Every message is in one of them, in order."""
    if not messages:
        return []
    starts = [0, *(index for index, turn in enumerate(turns) if turn.is_shift)]
    ranges = list(zip(starts, [*starts[1:], len(messages)], strict=True))
    terms = find_terms([messages[start:stop] for start, stop in ranges])
    return [
        Segment(start, stop, best, label=", ".join(best) or messages[start].opening)
        for (start, stop), best in zip(ranges, terms, strict=True)
    ]


def contexts_of(vectors: FloatMatrix) -> FloatMatrix:
    """For each turn what those before it say together, the nearest counting most. Zeros for the first."""
    sums = np.zeros_like(vectors)
    for back in range(1, CONTEXT_TURNS + 1):
        sums[back:] += DECAY ** (back - 1) * vectors[:-back]
    return unit_rows(sums)


def unit_rows(vectors: FloatMatrix) -> FloatMatrix:
    """Each with length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: FloatMatrix = vectors / np.where(lengths > 0, lengths, 1)
    return rows


def find_terms(segments: Sequence[Sequence[MessageFacts]]) -> list[tuple[str, ...]]:
    """For each segment its most telling words, by class-based tf-idf (Grootendorst 2022)."""
    counts = [Counter(chain.from_iterable(message.terms for message in segment)) for segment in segments]
    everywhere = Counter[str]()
    for count in counts:
        everywhere.update(count)
    average = everywhere.total() / len(segments)

    def ranked(count: Counter[str]) -> Iterator[str]:
        """The best first; of equal ones the longer phrase, then the one that came first."""
        ranks = [
            (-number * math.log(1 + average / everywhere[term]), -term.count(" "), place, term)
            for place, (term, number) in enumerate(count.items())
        ]
        # Few are looked at: a heap need not sort the others.
        heapify(ranks)
        while ranks:
            yield heappop(ranks)[-1]

    return [_without_repeats(ranked(count)) for count in counts]


def _with_replies(vectors: FloatMatrix) -> FloatMatrix:
    """For each turn what it says together with its reply: whoever replies to a new topic takes it up."""
    sums = vectors.copy()
    sums[:-1] += DECAY * vectors[1:]
    return unit_rows(sums)


def _cues(before: MessageFacts, message: MessageFacts) -> int:
    """What the words say beside the vectors: positive for a new topic, negative for the same."""
    return int(message.is_question) - int(before.is_question) - int(message.continues)


def _standardized(values: Scores) -> Scores:
    spread = values.std()
    # Vectors are kept in half precision: below this the turns do not differ.
    return (values - values.mean()) / spread if spread > 1e-3 else np.zeros_like(values)


def _without_repeats(terms: Iterable[str]) -> tuple[str, ...]:
    """The first of them, until they have `LABEL_WORDS` words, without those that repeat a word."""
    chosen: list[str] = []
    taken: set[str] = set()
    for term in terms:
        if not taken.intersection(term.split()):
            chosen.append(term)
            taken.update(term.split())
        if len(taken) >= LABEL_WORDS:
            break
    return tuple(chosen)
