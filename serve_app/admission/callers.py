"""What each caller of one tier has inside the engine, so that one that asks much leaves room for the others.

Turns in the queue are not enough: an engine full of one caller's answers has no place for another's until some have
ended. So a caller that holds more than its part leaves free what those with less than theirs have used of late.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.admission.load import Load

_REMEMBERS_S = 60.0
_FORGOTTEN = 0.2
"""Sequences: who had fewer inside, of late, is not reckoned with."""


@dataclass(slots=True)
class _Use:
    inside: Load = field(default_factory=Load)
    peak: Load = field(default_factory=Load)
    """The most that was inside, or was to be; it fades."""
    at: float = 0.0

    def fade(self, now: float) -> None:
        faded = self.peak * math.exp((self.at - now) / _REMEMBERS_S)
        self.peak, self.at = self.inside.at_least(faded), now


class Callers:
    def __init__(self) -> None:
        self.weights: Mapping[str, float] = {}
        """1 where nothing is said."""
        self._uses: dict[str, _Use] = {}

    def want(self, caller: str, load: Load, now: float) -> None:
        """Whether there is room for it or not, others are to leave it."""
        use = self._uses.setdefault(caller, _Use())
        use.fade(now)
        use.peak = use.peak.at_least(use.inside + load)

    def add(self, caller: str, load: Load, now: float) -> None:
        """A negative load when it leaves."""
        use = self._uses.setdefault(caller, _Use())
        use.fade(now)
        use.inside += load
        use.peak = use.inside.at_least(use.peak)

    def kept_from(self, caller: str, room: Load, now: float) -> Load:
        """What this caller has to leave free for others; all of the reading is: its prompts are read one by one."""
        if len(self._uses) < 2:
            return Load()
        for use in self._uses.values():
            use.fade(now)
        about = {name: use for name, use in self._uses.items() if name == caller or use.peak.sequences > _FORGOTTEN}
        weights = {name: self.weights.get(name, 1.0) for name in about}
        one = 1 / sum(weights.values())
        if len(about) < 2:
            return Load()
        kept = room - room.read()
        for name, use in about.items():
            sequences, tokens = room.sequences * weights[name] * one, room.tokens * weights[name] * one
            if name == caller and use.inside.sequences < sequences and use.inside.tokens < tokens:
                return Load()
            if name != caller:
                wanted = use.peak.at_most(Load(sequences, tokens))
                kept += (wanted - use.inside).at_least(Load())
        return kept
