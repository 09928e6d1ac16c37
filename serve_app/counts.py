"""Counting in a process, since its start and over the last minute; and times, which are counted in buckets.

The buckets are logarithmic, each 5 % wider than the one before, so that a figure is within 2.5 % of what was measured,
from however many processes and restarts it comes.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

_SHORTEST_S = 1e-6
_GROWTH = 1.05

_SLICE_S = 5.0
_SLICES = 12


@dataclass(frozen=True, slots=True)
class Times:
    """In milliseconds. None: there was none."""

    count: int
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def bucket_of(seconds: float) -> int:
    return max(0, math.floor(math.log(max(seconds, _SHORTEST_S) / _SHORTEST_S, _GROWTH)))


def milliseconds_of(bucket: int) -> float:
    """The middle of a bucket."""
    return 1e3 * _SHORTEST_S * math.pow(_GROWTH, bucket + 0.5)


def times_of(buckets: Mapping[int, int]) -> Times:
    """From buckets, each with its count."""
    count = sum(buckets.values())
    if not count:
        return Times(0)
    return Times(
        count,
        mean_ms=sum(milliseconds_of(bucket) * total for bucket, total in buckets.items()) / count,
        p50_ms=_percentile(buckets, 0.5 * count),
        p95_ms=_percentile(buckets, 0.95 * count),
        p99_ms=_percentile(buckets, 0.99 * count),
    )


def _percentile(buckets: Mapping[int, int], rank: float) -> float:
    """The shortest time that at least `rank` of them did not exceed."""
    below = 0
    for bucket in sorted(buckets):
        below += buckets[bucket]
        if below >= rank:
            return milliseconds_of(bucket)
    raise AssertionError("a rank beyond the last")


# --- what is counted of a model ------------------------------------------------------------------


class Count(NamedTuple):
    model: str
    kind: Literal["request", "cancelled", "error", "first_token", "between_tokens", "queue", "output_token"]
    detail: int | str = 0
    """Of a time its bucket, of an error its name. Else 0."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What one process has counted, or several together."""

    since_start: Counter[Count] = field(default_factory=Counter)
    last_minute: Counter[Count] = field(default_factory=Counter)
    minute_s: float = 0.0
    """So long is the last minute: less than 60 s soon after a start, and to within 5 s."""

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(
            self.since_start + other.since_start,
            self.last_minute + other.last_minute,
            max(self.minute_s, other.minute_s),
        )


class Counts:
    """Counts for one thread, in about a microsecond each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before: Counter[Count] = Counter()
        """All that is in no slice any more."""
        self._slices: deque[tuple[int, Counter[Count]]] = deque([(self._number(), Counter())])
        self._started_at = clock()

    def add(self, count: Count, amount: int = 1) -> None:
        number = self._number()
        if self._slices[-1][0] != number:
            self._slices.append((number, Counter()))
            self._forget(number)
        self._slices[-1][1][count] += amount

    def add_time(self, model: str, kind: Literal["first_token", "between_tokens", "queue"], seconds: float) -> None:
        self.add(Count(model, kind, bucket_of(seconds)))

    def read(self) -> Counted:
        self._forget(self._number())
        last_minute: Counter[Count] = Counter()
        for _, counted in self._slices:
            last_minute.update(counted)
        return Counted(
            self._before + last_minute, last_minute, min(_SLICE_S * _SLICES, self._clock() - self._started_at)
        )

    def _number(self) -> int:
        return int(self._clock() // _SLICE_S)

    def _forget(self, number: int) -> None:
        while self._slices and self._slices[0][0] <= number - _SLICES:
            self._before.update(self._slices.popleft()[1])
        if not self._slices:
            self._slices.append((number, Counter()))
