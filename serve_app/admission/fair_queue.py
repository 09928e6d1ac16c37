"""Those of one tier who wait: callers take turns, by their weights and by what they ask for.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996), by tokens. A caller's tag is the
time of a clock that ticks with the work done; each of its requests moves the tag on by `tokens / weight`, and the
caller with the lowest tag is next. One that asks seldom is soon served; one that asks much waits behind itself.
"""

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from serve_app.admission.load import Load


class Waiter(Protocol):
    @property
    def caller(self) -> str: ...
    @property
    def load(self) -> Load: ...


T = TypeVar("T", bound=Waiter)


@dataclass(slots=True)
class _Flow(Generic[T]):
    """One caller's."""

    tag: float = 0.0
    """When its next request may be served, on the queue's clock."""
    short: OrderedDict[T, int] = field(default_factory=OrderedDict)
    """Those who wait, with their numbers."""
    long: OrderedDict[T, int] = field(default_factory=OrderedDict)
    """And those whose prompts are long: they wait for what short ones do not need."""
    load: Load = field(default_factory=Load)
    """Of those who wait, and of those who are expected."""

    def lane(self, waiter: T) -> OrderedDict[T, int]:
        return self.long if waiter.load.long_prompts else self.short


class FairQueue(Generic[T]):
    """All methods take a time that grows with the number of callers at most, never with that of requests.

    Callers are API keys, or those of the server itself, so they are few and are never forgotten.
    """

    def __init__(self) -> None:
        self.weights: Mapping[str, float] = {}
        """By caller; 1 where nothing is said."""
        self.load = Load()
        """Of all who wait or are expected."""
        self._flows: dict[str, _Flow[T]] = {}
        self._clock = 0.0
        self._waiting = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def add(self, waiter: T) -> None:
        flow = self._flow(waiter.caller)
        if not (flow.short or flow.long):
            flow.tag = max(flow.tag, self._clock)
        flow.lane(waiter)[waiter] = next(self._numbers)
        self._waiting += 1
        self._count(flow, waiter.load)

    def remove(self, waiter: T) -> None:
        """It does not wait any more, and has not been served."""
        flow = self._flow(waiter.caller)
        del flow.lane(waiter)[waiter]
        self._waiting -= 1
        self._count(flow, waiter.load * -1)

    def heads(self) -> list[T]:
        """Each caller's first of either kind, in the order of their turns, and then of their coming."""
        firsts = []
        for flow in self._flows.values():
            for lane in (flow.short, flow.long):
                if lane:
                    waiter, number = next(iter(lane.items()))
                    firsts.append((flow.tag, number, waiter))
        return [waiter for _, _, waiter in sorted(firsts, key=lambda first: first[:2])]

    def serve(self, waiter: T) -> None:
        """The turn of one of the heads has come."""
        self.remove(waiter)
        self.charge(waiter.caller, waiter.load)

    def charge(self, caller: str, load: Load) -> None:
        """Something of this caller's is served."""
        flow = self._flow(caller)
        self._clock = flow.tag = max(flow.tag, self._clock)
        flow.tag += load.tokens / self._weight(caller)

    def expect(self, caller: str, load: Load) -> None:
        """Something of this caller's will come soon; a negative load takes that back."""
        self._count(self._flow(caller), load)

    def ahead(self, caller: str) -> Load:
        """What is served before something new of this caller's."""
        own = self._flow(caller)
        turn = max(own.tag, self._clock) + own.load.tokens / self._weight(caller)
        ahead = own.load
        for name, flow in self._flows.items():
            if flow is not own and flow.load.tokens > 0:
                served_tokens = (turn - max(flow.tag, self._clock)) * self._weight(name)
                ahead += flow.load * min(max(served_tokens / flow.load.tokens, 0.0), 1.0)
        return ahead

    def _flow(self, caller: str) -> _Flow[T]:
        if caller not in self._flows:
            self._flows[caller] = _Flow()
        return self._flows[caller]

    def _count(self, flow: _Flow[T], load: Load) -> None:
        flow.load += load
        self.load += load

    def _weight(self, caller: str) -> float:
        return self.weights.get(caller, 1.0)
