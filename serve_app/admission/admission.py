"""One model's door: a request enters at once, waits for its turn, or is refused at once with the time to come back.

What is inside is counted in sequences and in tokens of the engine's cache: a prompt, and as much of an answer as
answers have taken of late. No more prompts are let in than the engine reads in one step, so that none waits long for
its first word. Who finds no room is let in by tier, and within a tier in turns between callers. How long that takes is
forecast from what is inside and from the engine's pace, so that who would wait too long is refused before anything
has been done for it.

For one event loop, which is the only lock. A step takes a time that grows with the number of tiers and callers; only a
forecast looks at all that is inside.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from serve_app.admission.callers import Callers
from serve_app.admission.fair_queue import FairQueue
from serve_app.admission.forecast import tokens_until_free
from serve_app.admission.load import Demand, Load
from serve_app.admission.pace import Pace
from serve_app.admission.settings import AdmissionSettings, Limits
from serve_app.admission.tiers import SHARES, TIERS, Tier
from serve_app.errors import Overloaded
from serve_app.metrics import ADMISSION_WAIT_SECONDS, ADMITTED, NO_METRICS, REFUSED, Metrics
from serve_app.types import Capacity

SURE = 0.75
"""Share of the longest wait that may be forecast: who is let wait is not to be refused in the end."""

BACKGROUND_WAIT_S = 60.0
"""What no client waits for is refused only after so long, and then asks again."""

_OPEN_TO_ALL = 0.8
"""Share of an engine's sequences; the others are for `priority`, see `tiers.SHARES`."""

_FIRST_GUESS_TOKENS = 128
"""How long answers are, before there have been any."""
_NEWEST_WEIGHS = 0.05
_PRIORITY_STAYS_S = 30.0
"""So long after a priority request the next one is reckoned with."""
_SOONEST_S, _LATEST_S = 0.05, 30.0
"""What a refused client may be told: a forecast of minutes means that the engine stands still."""

_BOUNDLESS = Load(1e12, 1e12, 1e12)
"""Infinity cannot be taken from itself."""


class Place:
    """A request that waits for its place in the engine, has it, or has left it."""

    __slots__ = ("_admission", "admitted", "answer_tokens", "began", "demand", "load", "written_tokens")

    def __init__(self, admission: "Admission", demand: Demand, answer_tokens: int, load: Load) -> None:
        self.demand, self.answer_tokens, self.load = demand, answer_tokens, load
        self.admitted: asyncio.Future[None] | None = None
        """Of one that had to wait."""
        self.began = 0.0
        self.written_tokens = 0
        """Of all its answers together."""
        self._admission = admission

    @property
    def caller(self) -> str:
        return self.demand.caller

    def wrote(self, tokens: int) -> None:
        if not self.written_tokens:
            self._admission.begin_writing(self)
        self.written_tokens += tokens
        self._admission.pace.wrote(tokens)

    def ended(self) -> None:
        """All answers are whole."""
        self._admission.learn(self)

    def leave(self) -> None:
        """Give the place to others. Once more does nothing."""
        self._admission.leave(self)


class Admission:
    def __init__(self, model_id: str, settings: AdmissionSettings, metrics: Metrics = NO_METRICS) -> None:
        self.pace = Pace()
        self._reading_pace = Pace()
        self.load = Load()
        """Of all that is inside."""
        self._model_id, self._metrics = model_id, metrics
        self._queues: dict[Tier, FairQueue[Place]] = {tier: FairQueue() for tier in TIERS}
        self._callers = {tier: Callers() for tier in TIERS}
        self._inside: set[Place] = set()
        self._expected: dict[str, Place] = {}
        self._answer_tokens = float(_FIRST_GUESS_TOKENS)
        self._answer_pace = 0.0
        """Seconds a token of the last whole answers."""
        self._priority_until = 0.0
        self._capacity: Capacity | None = None
        self._gateways = 1
        self.configure(settings)

    # --- what the engine holds ------------------------------------------------------------------

    def configure(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        for tier in TIERS:
            self._queues[tier].weights = self._callers[tier].weights = settings.weights
        self._measure_room()

    def set_capacity(self, capacity: Capacity, gateways: int) -> None:
        """Of all replicas together; this is one of so many gateways, and admits its share."""
        self._capacity, self._gateways = capacity, gateways
        self._measure_room()

    def learn(self, place: Place) -> None:
        """How long answers are, and take. One that had to be short says nothing of the others' length."""
        length = min(place.written_tokens / place.demand.answers, place.demand.max_tokens)
        if length:
            seconds = asyncio.get_running_loop().time() - place.began
            self._answer_pace += _NEWEST_WEIGHS * (seconds / length - self._answer_pace)
        if place.demand.max_tokens >= self._answer_tokens:
            self._answer_tokens += _NEWEST_WEIGHS * (length - self._answer_tokens)

    def waiting(self, tier: Tier) -> int:
        return len(self._queues[tier])

    def has_room(self, tier: Tier) -> bool:
        """Whether a usual request of this tier would be let in at once."""
        usual = Load(1, self._answer_tokens)
        return not self._is_anybody_before(tier) and self._fits(tier, usual)

    # --- coming and going -----------------------------------------------------------------------

    @contextmanager
    def expect(self, demand: Demand) -> Iterator[None]:
        """Before anything is done for a request. It takes no place yet, but who comes after it reckons with it.

        Raises `Overloaded`.
        """
        place = self._build_place(demand)
        self._want(place)
        self._refuse_the_late(place)
        # Clients choose these ids, and may choose one twice.
        if demand.request_id not in self._expected:
            self._expected[demand.request_id] = place
            self._queues[demand.tier].expect(place.caller, place.load)
        try:
            yield
        finally:
            self._stop_expecting(demand.request_id)

    async def enter(self, demand: Demand) -> Place:
        """A place in the engine, which is to be left. Raises `Overloaded`, nearly always at once."""
        self._stop_expecting(demand.request_id)
        place = self._build_place(demand)
        self._want(place)
        tier, queue = demand.tier, self._queues[demand.tier]
        if not self._is_anybody_before(tier) and self._fits(tier, place.load) and self._leaves_room(place):
            queue.charge(place.caller, place.load)
            self._let_in(place)
            self._metrics.observe(ADMISSION_WAIT_SECONDS, 0.0, model=self._model_id, tier=tier)
            return place

        self._refuse_the_late(place)
        loop = asyncio.get_running_loop()
        began, place.admitted = loop.time(), loop.create_future()
        queue.add(place)
        self._let_waiting_in()
        try:
            async with asyncio.timeout(BACKGROUND_WAIT_S if tier == "background" else self._settings.max_wait_s):
                await place.admitted
        except TimeoutError:
            self._give_up(place)
            raise self._refusal(place, "waited", self._forecast(place)) from None
        except asyncio.CancelledError:
            self._give_up(place)
            raise
        self._metrics.observe(ADMISSION_WAIT_SECONDS, loop.time() - began, model=self._model_id, tier=tier)
        return place

    def leave(self, place: Place) -> None:
        if place not in self._inside:
            return
        self._advance_pace()
        self._inside.remove(place)
        self._count(place, place.load * -1)
        self._let_waiting_in()

    def begin_writing(self, place: Place) -> None:
        """The prompt is read."""
        if unread := place.load.unread:
            self._advance_pace()
            self._reading_pace.wrote(unread)
            self._count(place, Load(unread=-unread))
            place.load = replace(place.load, unread=0)
            self._let_waiting_in()

    def _let_in(self, place: Place) -> None:
        self._advance_pace()
        place.began = asyncio.get_running_loop().time()
        if place.demand.tier == "priority":
            self._priority_until = place.began + _PRIORITY_STAYS_S
        self._inside.add(place)
        self._count(place, place.load)
        self._metrics.add(ADMITTED, model=self._model_id, tier=place.demand.tier)

    def _let_waiting_in(self) -> None:
        """Those whose turn it is."""
        while place := self._next():
            self._queues[place.demand.tier].serve(place)
            self._let_in(place)
            assert place.admitted, "it has waited"
            if not place.admitted.done():  # or it has just been cancelled, and leaves
                place.admitted.set_result(None)

    def _next(self) -> Place | None:
        """Where one finds no room nobody overtakes it, unless it has to leave room for just that one."""
        for queue in self._queues.values():
            for place in queue.heads() if len(queue) else ():
                if not self._fits(place.demand.tier, place.load):
                    return None
                if self._leaves_room(place):
                    return place
            if len(queue):
                return None
        return None

    def _count(self, place: Place, load: Load) -> None:
        self.load += load
        self._callers[place.demand.tier].add(place.caller, load, asyncio.get_running_loop().time())

    def _want(self, place: Place) -> None:
        now = asyncio.get_running_loop().time()
        self._callers[place.demand.tier].want(place.caller, place.load, now)

    def _give_up(self, place: Place) -> None:
        if place in self._inside:
            self.leave(place)
        else:
            self._queues[place.demand.tier].remove(place)
            self._let_waiting_in()  # it may have been too large, and the one behind it is not

    def _stop_expecting(self, request_id: str) -> None:
        if place := self._expected.pop(request_id, None):
            self._queues[place.demand.tier].expect(place.caller, place.load * -1)

    # --- room and time --------------------------------------------------------------------------

    def _measure_room(self) -> None:
        """What this gateway may fill with requests of every tier."""
        limits = self._settings.limits.get(self._model_id, Limits())
        capacity = self._capacity or Capacity(math.inf, math.inf, math.inf)
        sequences, tokens = limits.requests or _OPEN_TO_ALL * capacity.sequences, limits.tokens or capacity.tokens
        room = Load(sequences, tokens, capacity.step_tokens) * (1 / self._gateways)
        self._open = room.at_most(_BOUNDLESS)
        self._let_waiting_in()

    def _room(self, tier: Tier) -> Load:
        """For all that is inside once something of this tier comes in."""
        room = self._open * SHARES[tier]
        if tier == "priority" or asyncio.get_running_loop().time() >= self._priority_until:
            return room
        # And prompts are read one by one.
        return replace(room * self._settings.beside_priority, unread=0)

    def _fits(self, tier: Tier, load: Load) -> bool:
        # Alone everything fits: what is too large for the engine it says itself.
        room = self._room(tier)
        return (self.load + load.at_most(room)).fits(room)

    def _leaves_room(self, place: Place) -> bool:
        """For the tier's other callers."""
        room = self._room(place.demand.tier) - self._kept_from(place)
        return (self.load + place.load.at_most(room)).fits(room)

    def _kept_from(self, place: Place) -> Load:
        tier, now = place.demand.tier, asyncio.get_running_loop().time()
        return self._callers[tier].kept_from(place.caller, self._room(tier), now)

    def _is_anybody_before(self, tier: Tier) -> bool:
        for other, queue in self._queues.items():
            if len(queue):
                return True
            if other == tier:
                return False
        return False

    def _build_place(self, demand: Demand) -> Place:
        answer_tokens = min(demand.max_tokens, math.ceil(self._answer_tokens))
        block = self._capacity.block_tokens if self._capacity else 1
        # The prompt is in the cache once, however many its answers are; and whole blocks are given out.
        tokens = _round_up(demand.prompt_tokens + answer_tokens, block)
        tokens += (demand.answers - 1) * _round_up(answer_tokens, block)
        load = Load(demand.answers, tokens, demand.prompt_tokens if demand.is_streamed else 0)
        return Place(self, demand, answer_tokens, load)

    def _refuse_the_late(self, place: Place) -> None:
        """Raises `Overloaded` for who would have to wait too long, or would be done too late for its client."""
        demand = place.demand
        wait_s = 0.0 if demand.tier == "background" else self._forecast(place)
        if wait_s == 0:
            return
        if wait_s > SURE * self._settings.max_wait_s:
            raise self._refusal(place, "wait", wait_s)
        answer_s = place.answer_tokens * (self._seconds_per_token() or 0.0)
        if demand.timeout_s is not None and wait_s + answer_s > demand.timeout_s:
            raise self._refusal(place, "deadline", wait_s)

    def _forecast(self, place: Place) -> float:
        """Seconds until it would be let in."""
        tier = place.demand.tier
        room = self._room(tier) - self._kept_from(place)
        ahead = self._queues[tier].ahead(place.caller)
        for better in TIERS[: TIERS.index(tier)]:
            ahead += self._queues[better].load
        first = self.load + place.load.at_most(room) - room
        missing = first + ahead
        if missing.fits(Load()):
            return 0.0
        if not self._inside or self._seconds_per_token() is None:
            # Nothing is known before the first token: as many may wait as there is room for.
            return 0.0 if missing.fits(room) else self._settings.max_wait_s
        reading_s = max(missing.unread, 0.0) * (self._reading_pace.seconds_per_token or 0.0)
        return max(self._seconds_until_free(missing), self._seconds_until_free(first) + reading_s)

    def _seconds_until_free(self, missing: Load) -> float:
        """Until so much has left, of sequences and of the cache."""
        missing = replace(missing, unread=0)
        if missing.fits(Load()):
            return 0.0
        pace, now = self._seconds_per_token() or 0.0, asyncio.get_running_loop().time()
        leaving = ((self._tokens_left(each, now, pace), each.load) for each in self._inside)
        return tokens_until_free(missing, leaving, self._answer_tokens) * pace

    def _tokens_left(self, place: Place, now: float, pace: float) -> float:
        """Of each of its answers. One that is longer than most may be as long again."""
        demand = place.demand
        written = place.written_tokens / demand.answers or (now - place.began) / pace
        left = place.answer_tokens - written
        return max(left if left > 0 else min(demand.max_tokens - written, self._answer_tokens), 0.0)

    def _seconds_per_token(self) -> float | None:
        """The slower one of what is being written, and of what came in one piece; None before the first token."""
        self._advance_pace()
        current = self.pace.seconds_per_token
        return None if current is None else max(current, self._answer_pace)

    def _advance_pace(self) -> None:
        now = asyncio.get_running_loop().time()
        self.pace.advance(now, self.load.sequences)
        self._reading_pace.advance(now, 1 if self.load.unread else 0)

    def _refusal(self, place: Place, reason: str, wait_s: float) -> Overloaded:
        tier, retry_after_s = place.demand.tier, min(max(wait_s, _SOONEST_S), _LATEST_S)
        self._metrics.add(REFUSED, model=self._model_id, tier=tier, reason=reason)
        return Overloaded(
            f"The model {self._model_id!r} has no room for a request of tier {tier!r}:"
            f" try again in {retry_after_s:.1f} s",
            retry_after_s=retry_after_s,
        )


def _round_up(tokens: int, block: int) -> int:
    return -(-tokens // block) * block
