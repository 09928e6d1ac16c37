"""What is in one model's engine, how much more there may be, and when."""

import asyncio
import math
from dataclasses import replace

from serve_app.admission.callers import Callers
from serve_app.admission.forecast import tokens_until_free
from serve_app.admission.load import Demand, Load
from serve_app.admission.pace import Pace
from serve_app.admission.settings import AdmissionSettings, Limits
from serve_app.admission.tiers import SHARES, TIERS, Tier
from serve_app.types.generation import Capacity

_OPEN_TO_ALL = 0.8
"""Share of an engine's sequences; the others are for `priority`, see `tiers.SHARES`."""

_OWED_TO_BACKGROUND = 1 / 8
"""Share of what everybody may use that is background work's in any case: it comes last, and yet goes on."""

_FIRST_GUESS_TOKENS = 128
"""How long answers are, before there have been any."""
_NEWEST_WEIGHS = 0.05
_PRIORITY_STAYS_S = 30.0
"""So long after a priority request the next one is reckoned with."""
_BOUNDLESS = Load(1e12, 1e12, 1e12, 1e12)
"""Infinity cannot be taken from itself."""
_NOTHING = Load()


class Request:
    """One that asks for a place in the engine, has it, or had it."""

    __slots__ = ("admitted", "answer_tokens", "began", "demand", "load", "written_tokens")

    def __init__(self, demand: Demand, answer_tokens: int, load: Load) -> None:
        self.demand, self.answer_tokens, self.load = demand, answer_tokens, load
        self.admitted = asyncio.get_running_loop().create_future()
        self.began = 0.0
        self.written_tokens = 0
        """Of all its answers together."""

    @property
    def caller(self) -> str:
        return self.demand.caller


class Inside:
    def __init__(self) -> None:
        self.load = Load()
        """Of all that is inside."""
        self._background = Load()
        self._requests: set[Request] = set()
        self._callers = {tier: Callers() for tier in TIERS}
        self._pace = Pace()
        self._reading_pace = Pace()
        self._long_reading_pace = Pace()
        """In prompts, where that of writing and of other reading is in tokens."""
        self._answer_tokens = float(_FIRST_GUESS_TOKENS)
        self._answer_pace = 0.0
        """Seconds a token of the last whole answers."""
        self._priority_until = 0.0
        self._open = _BOUNDLESS
        self._beside_priority = 1.0
        self._block_tokens = 1
        self._chunk_tokens = math.inf

    def __contains__(self, request: Request) -> bool:
        return request in self._requests

    def measure(self, capacity: Capacity | None, gateways: int, limits: Limits, settings: AdmissionSettings) -> None:
        """How much of an engine, or several, one of so many gateways may fill with requests of every tier."""
        capacity = capacity or Capacity(math.inf, math.inf, math.inf)
        sequences, tokens = limits.requests or _OPEN_TO_ALL * capacity.sequences, limits.tokens or capacity.tokens
        room = Load(sequences, tokens, capacity.step_tokens, capacity.long_prompts) * (1 / gateways)
        if not limits.tokens:
            # Or the longest prompt, which is larger than a share, would find room only at a gateway with nothing else.
            room = replace(room, tokens=max(room.tokens, min(tokens, capacity.context_tokens)))
        self._open = room.at_most(_BOUNDLESS)
        self._block_tokens, self._chunk_tokens = capacity.block_tokens, capacity.chunk_tokens
        self._beside_priority = settings.beside_priority
        for callers in self._callers.values():
            callers.weights = settings.weights

    def build_request(self, demand: Demand) -> Request:
        """With what it will take, if its answers are no longer than others."""
        answer_tokens = min(demand.max_tokens, math.ceil(self._answer_tokens))
        # The prompt is in the cache once, however many its answers are; and whole blocks are given out.
        tokens = self._in_blocks(demand.prompt_tokens + answer_tokens)
        tokens += (demand.answers - 1) * self._in_blocks(answer_tokens)
        load = Load(demand.answers, tokens)
        if demand.is_streamed:
            is_long = demand.prompt_tokens > self._chunk_tokens
            load += Load(long_prompts=1) if is_long else Load(unread=demand.prompt_tokens)
        return Request(demand, answer_tokens, load)

    # --- coming and going -----------------------------------------------------------------------

    def want(self, request: Request) -> None:
        """Whether there is room for it or not, its caller's part is to be left to it."""
        self._callers[request.demand.tier].want(request.caller, request.load, _now())

    def add(self, request: Request) -> None:
        self._advance_paces()
        request.began = _now()
        if request.demand.tier == "priority":
            self._priority_until = request.began + _PRIORITY_STAYS_S
        self._requests.add(request)
        self._count(request, request.load)

    def write(self, request: Request, tokens: int) -> bool:
        """So many more are written. Whether there is more room: with the first of them the prompt is read."""
        load = request.load
        is_first = load.unread + load.long_prompts > 0
        if is_first:
            self._advance_paces()
            self._reading_pace.wrote(load.unread)
            self._long_reading_pace.wrote(load.long_prompts)
            self._count(request, load.read() - load)
            request.load = load.read()
        request.written_tokens += tokens
        self._pace.wrote(tokens)
        return is_first

    def learn(self, request: Request) -> None:
        """How long answers are, and take. One that had to be short says nothing of the others' length."""
        demand = request.demand
        length = min(request.written_tokens / demand.answers, demand.max_tokens)
        if length:
            self._answer_pace += _NEWEST_WEIGHS * ((_now() - request.began) / length - self._answer_pace)
        if demand.max_tokens >= self._answer_tokens:
            self._answer_tokens += _NEWEST_WEIGHS * (length - self._answer_tokens)

    def remove(self, request: Request) -> None:
        self._advance_paces()
        self._requests.remove(request)
        self._count(request, request.load * -1)

    # --- room and time --------------------------------------------------------------------------

    def fits(self, tier: Tier, load: Load, before: Load = _NOTHING) -> bool:
        """Whether there is room for it, and for what is to come `before` it."""
        return _fits(load, self.load + before, self._room(tier))

    def usual_load(self) -> Load:
        """Of a request about whose prompt nothing is known."""
        return Load(1, self._answer_tokens)

    def is_owed(self, load: Load) -> bool:
        """Whether there is a place for this background work, however many others are inside or wait."""
        return _fits(load.read(), self._background, self._open * _OWED_TO_BACKGROUND)

    def leaves_room(self, request: Request) -> bool:
        """For its tier's other callers."""
        return _fits(request.load, self.load, self._room_beside_others(request))

    def seconds_until(self, request: Request, ahead: Load) -> float | None:
        """When it would come in, after what is ahead of it. None if there is nothing to judge by."""
        room = self._room_beside_others(request)
        first = (self.load + request.load.at_most(room) - room).where(request.load)
        missing = first + ahead.where(request.load)
        if missing.fits(Load()):
            return 0.0
        if not self._requests or self._seconds_per_token() is None:
            # As many may wait as there is room for.
            return 0.0 if missing.fits(room) else None
        reading_s = max(missing.unread, 0.0) * (self._reading_pace.seconds_per_token or 0.0)
        reading_s += max(missing.long_prompts, 0.0) * (self._long_reading_pace.seconds_per_token or 0.0)
        return max(self._seconds_until_free(missing), self._seconds_until_free(first) + reading_s)

    def answer_seconds(self, request: Request) -> float:
        """As answers are written now."""
        return request.answer_tokens * (self._seconds_per_token() or 0.0)

    def _room(self, tier: Tier) -> Load:
        """For all that is inside once something of this tier comes in."""
        room = self._open * SHARES[tier]
        if tier == "priority" or _now() >= self._priority_until:
            return room
        # And prompts are read one by one.
        return (room * self._beside_priority).read()

    def _room_beside_others(self, request: Request) -> Load:
        room = self._room(request.demand.tier)
        return room - self._callers[request.demand.tier].kept_from(request.caller, room, _now())

    def _seconds_until_free(self, missing: Load) -> float:
        """Until so much has left, of sequences and of the cache."""
        missing = missing.read()
        if missing.fits(Load()):
            return 0.0
        pace, now = self._seconds_per_token() or 0.0, _now()
        leaving = ((self._tokens_left(each, now, pace), each.load) for each in self._requests)
        return tokens_until_free(missing, leaving, self._answer_tokens) * pace

    def _tokens_left(self, request: Request, now: float, pace: float) -> float:
        """Of each of its answers. One that is longer than most may be as long again."""
        demand = request.demand
        written = request.written_tokens / demand.answers or (now - request.began) / pace
        left = request.answer_tokens - written
        return max(left if left > 0 else min(demand.max_tokens - written, self._answer_tokens), 0.0)

    def _seconds_per_token(self) -> float | None:
        """The slower one of what is being written, and of what came in one piece; None before the first token."""
        self._advance_paces()
        current = self._pace.seconds_per_token
        return None if current is None else max(current, self._answer_pace)

    def _advance_paces(self) -> None:
        now = _now()
        self._pace.advance(now, self.load.sequences)
        # An engine that has little to read does not read slowly.
        self._reading_pace.advance(now, min(self.load.unread / self._open.unread, 1.0))
        self._long_reading_pace.advance(now, min(self.load.long_prompts / self._open.long_prompts, 1.0))

    def _count(self, request: Request, load: Load) -> None:
        self.load += load
        if request.demand.tier == "background":
            self._background += load
        self._callers[request.demand.tier].add(request.caller, load, _now())

    def _in_blocks(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens) * self._block_tokens


def _fits(load: Load, taken: Load, room: Load) -> bool:
    # Alone everything fits: what is too large for the engine it says itself.
    return (taken + load.at_most(room)).where(load).fits(room)


def _now() -> float:
    return asyncio.get_running_loop().time()
