"""How fast an engine writes, of late: measured while it works, kept while it rests."""

import math

_REMEMBERS_S = 2.0
"""What is so old counts a third: an engine slows down within a second when many come at once."""


class Pace:
    """The seconds that one sequence takes for one token, its share of the reading of prompts included."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._newest = 0.0
        """Tokens since the last look."""
        self._seconds = 0.0
        """Of all sequences together, since `_tokens` were written."""
        self._at = 0.0

    def wrote(self, tokens: float) -> None:
        self._newest += tokens

    def advance(self, now: float, sequences: float) -> None:
        """So many sequences have been in the engine since the last call."""
        if sequences > 0:
            passed_s = now - self._at
            kept = math.exp(-passed_s / _REMEMBERS_S)
            self._tokens = self._tokens * kept + self._newest
            self._seconds = self._seconds * kept + passed_s * sequences
            self._newest = 0.0
        self._at = now

    @property
    def seconds_per_token(self) -> float | None:
        """None before anything has been written."""
        return self._seconds / self._tokens if self._tokens > 0 else None
