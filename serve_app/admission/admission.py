"""One model's door: a request enters at once, waits for its turn, or is refused at once with the time to come back.

What is inside is counted in sequences and in tokens of the engine's cache: a prompt, and as much of an answer as
answers have taken of late. No more prompts are let in than the engine reads in one step, so that none waits long for
its first word; of long ones, which it reads in parts, only so many that short ones are read beside them. Who finds no
room is let in by tier, and within a tier in turns between callers. How long that takes is forecast from what is inside
and from the engine's pace, so that who would wait too long is refused before anything has been done for it.

For one event loop, which is the only lock. A step takes a time that grows with the number of tiers and callers; only a
forecast looks at all that is inside.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.admission.fair_queue import FairQueue
from serve_app.admission.inside import Inside, Request
from serve_app.admission.load import Demand, Load
from serve_app.admission.settings import AdmissionSettings, Limits
from serve_app.admission.tiers import TIERS, Tier
from serve_app.errors import Overloaded
from serve_app.metrics import ADMISSION_WAIT_SECONDS, ADMITTED, NO_METRICS, REFUSED, Metrics
from serve_app.types.generation import Capacity

SURE = 0.4
"""Share of the longest wait that may be forecast: who is let wait is not to be refused in the end. At four times the
capacity (`bench.goodput`) more than one refusal in twenty came only after that wait with 0.75, and fewer with this.
"""

SURE_OF_LONG = 0.6
"""The same for long prompts, of which just one often takes so long to be read. With 0.8 more than one refusal in twenty
came late, in a simulation of the traffic of `bench.steady`.
"""

BACKGROUND_WAIT_S = 60.0
"""What no client waits for is refused only after so long, and then asks again."""

_SOONEST_S, _LATEST_S = 0.05, 30.0
"""What a refused client may be told: a forecast of minutes means that the engine stands still."""


class Place:
    """A request's place inside, until it leaves."""

    def __init__(self, admission: "Admission", request: Request) -> None:
        self._admission, self._request = admission, request

    @property
    def load(self) -> Load:
        return self._request.load

    def wrote(self, tokens: int) -> None:
        """So many tokens more, of all its answers together."""
        self._admission.write(self._request, tokens)

    def ended(self) -> None:
        """All its answers are whole."""
        self._admission.inside.learn(self._request)

    def leave(self) -> None:
        """Give the place to others. Once more does nothing."""
        self._admission.leave(self._request)


class Admission:
    def __init__(self, model_id: str, settings: AdmissionSettings, metrics: Metrics = NO_METRICS) -> None:
        self.inside = Inside()
        self._model_id, self._metrics = model_id, metrics
        self._queues: dict[Tier, FairQueue[Request]] = {tier: FairQueue() for tier in TIERS}
        self._expected: dict[str, Request] = {}
        self._capacity: Capacity | None = None
        self._gateways = 1
        self.configure(settings)

    @property
    def load(self) -> Load:
        """Of all that is inside."""
        return self.inside.load

    @property
    def is_measured(self) -> bool:
        """Whether its engine has said how much it holds. Until then only the settings bound what is let in."""
        return self._capacity is not None

    def waiting(self, tier: Tier) -> int:
        return len(self._queues[tier])

    def has_room(self, tier: Tier) -> bool:
        """Whether a usual request of this tier would be let in at once."""
        usual = self.inside.usual_load()
        return self._is_owed(tier, usual) or (not self._is_anybody_before(tier) and self.inside.fits(tier, usual))

    def configure(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        for queue in self._queues.values():
            queue.weights = settings.weights
        self._measure()

    def set_capacity(self, capacity: Capacity, gateways: int) -> None:
        """Of all replicas together; this is one of so many gateways, and admits its share."""
        self._capacity, self._gateways = capacity, gateways
        self._measure()

    def _measure(self) -> None:
        limits = self._settings.limits.get(self._model_id, Limits())
        self.inside.measure(self._capacity, self._gateways, limits, self._settings)
        self._let_waiting_in()

    # --- coming and going -----------------------------------------------------------------------

    @contextmanager
    def expect(self, demand: Demand) -> Iterator[None]:
        """Before anything is done for a request. It takes no place yet, but who comes after it reckons with it.

        Raises `Overloaded`.
        """
        request = self.inside.build_request(demand)
        self.inside.want(request)
        self._refuse_the_late(request)
        # Clients choose these ids, and may choose one twice.
        if demand.request_id not in self._expected:
            self._expected[demand.request_id] = request
            self._queues[demand.tier].expect(request.caller, request.load)
        try:
            yield
        finally:
            self._stop_expecting(demand.request_id)

    async def enter(self, demand: Demand) -> Place:
        """A place in the engine, which is to be left. Raises `Overloaded`, nearly always at once."""
        self._stop_expecting(demand.request_id)
        request = self.inside.build_request(demand)
        self.inside.want(request)
        tier, queue, waited_s = demand.tier, self._queues[demand.tier], 0.0
        queue.add(request)
        self._let_waiting_in()
        if not request.admitted.done():
            queue.remove(request)
            self._refuse_the_late(request)
            queue.add(request)
            waited_s = await self._wait(request)
        self._metrics.observe(ADMISSION_WAIT_SECONDS, waited_s, model=self._model_id, tier=tier)
        return Place(self, request)

    def write(self, request: Request, tokens: int) -> None:
        if self.inside.write(request, tokens):
            self._let_waiting_in()

    def leave(self, request: Request) -> None:
        if request in self.inside:
            self.inside.remove(request)
            self._let_waiting_in()

    async def _wait(self, request: Request) -> float:
        """Until it is let in. Returns how long that took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        is_background = request.demand.tier == "background"
        try:
            async with asyncio.timeout(BACKGROUND_WAIT_S if is_background else self._settings.max_wait_s):
                await request.admitted
        except TimeoutError:
            self._give_up(request)
            raise self._refusal(request, "waited", self._forecast(request)) from None
        except asyncio.CancelledError:
            self._give_up(request)
            raise
        return loop.time() - began

    def _give_up(self, request: Request) -> None:
        if request in self.inside:
            self.leave(request)
        else:
            self._queues[request.demand.tier].remove(request)
            self._let_waiting_in()  # it may have been too large, and the one behind it is not

    def _stop_expecting(self, request_id: str) -> None:
        if request := self._expected.pop(request_id, None):
            self._queues[request.demand.tier].expect(request.caller, request.load * -1)

    # --- turns ----------------------------------------------------------------------------------

    def _is_owed(self, tier: Tier, load: Load) -> bool:
        return tier == "background" and not self._queues[tier] and self.inside.is_owed(load)

    def _is_anybody_before(self, tier: Tier) -> bool:
        return any(self._queues[each] for each in TIERS[: TIERS.index(tier) + 1])

    def _let_waiting_in(self) -> None:
        """Those whose turn it is."""
        while request := self._next():
            self._queues[request.demand.tier].serve(request)
            self.inside.add(request)
            self._metrics.add(ADMITTED, model=self._model_id, tier=request.demand.tier)
            if not request.admitted.done():  # or it has just been cancelled, and leaves
                request.admitted.set_result(None)

    def _next(self) -> Request | None:
        """Where one finds no room only those overtake it who take nothing of what it waits for, as short prompts and
        long ones do, or for whom it has to leave room. Nor does background work wait for others with what it is owed.
        """
        for request in self._queues["background"].heads()[:1]:
            if self.inside.is_owed(request.load):
                return request
        queue = next((queue for queue in self._queues.values() if queue), None)
        before = Load()
        for request in queue.heads() if queue else ():
            if not self.inside.fits(request.demand.tier, request.load, before):
                before += request.load
            elif self.inside.leaves_room(request):
                return request
        return None

    # --- refusals -------------------------------------------------------------------------------

    def _refuse_the_late(self, request: Request) -> None:
        """Raises `Overloaded` for who would have to wait too long, or would be done too late for its client."""
        demand = request.demand
        wait_s = 0.0 if demand.tier == "background" else self._forecast(request)
        if wait_s == 0:
            return
        if wait_s > (SURE_OF_LONG if request.load.long_prompts else SURE) * self._settings.max_wait_s:
            raise self._refusal(request, "wait", wait_s)
        if demand.timeout_s is not None and wait_s + self.inside.answer_seconds(request) > demand.timeout_s:
            raise self._refusal(request, "deadline", wait_s)

    def _forecast(self, request: Request) -> float:
        """Seconds until it would be let in."""
        tier = request.demand.tier
        ahead = self._queues[tier].ahead(request.caller)
        for better in TIERS[: TIERS.index(tier)]:
            ahead += self._queues[better].load
        wait_s = self.inside.seconds_until(request, ahead)
        return self._settings.max_wait_s if wait_s is None else wait_s

    def _refusal(self, request: Request, reason: str, wait_s: float) -> Overloaded:
        tier, retry_after_s = request.demand.tier, min(max(wait_s, _SOONEST_S), _LATEST_S)
        self._metrics.add(REFUSED, model=self._model_id, tier=tier, reason=reason)
        return Overloaded(
            f"The model {self._model_id!r} has no room for a request of tier {tier!r}:"
            f" try again in {retry_after_s:.1f} s",
            retry_after_s=retry_after_s,
        )
