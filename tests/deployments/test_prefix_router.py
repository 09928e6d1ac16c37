"""The router in front of real replicas, of a deployment that costs nothing."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray._common.test_utils import SignalActor
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from deployments.prefix_router import PrefixRouter
from tests.served.application import wait_until

MAX_LEAD = 3
SESSIONS = [f"conv_{number}" for number in range(20)]


class Desk:
    async def who(self) -> str:
        return str(serve.get_replica_context().replica_id.unique_id)

    async def hold(self, let_go: Any) -> AsyncIterator[str]:
        """Says who it is, and is busy until the actor is told."""
        yield await self.who()
        await let_go.wait.remote()


@pytest.fixture(scope="module")
def desk() -> Iterator[DeploymentHandle[Any]]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20)
    try:
        serve.start(proxy_location="Disabled")
        router = RequestRouterConfig(
            request_router_class="deployments.prefix_router.PrefixRouter",
            request_router_kwargs={"max_lead": MAX_LEAD, "num_fallback_replicas": 1},
        )
        deployment = serve.deployment(
            Desk,
            num_replicas=3,
            max_ongoing_requests=100,
            ray_actor_options={"num_cpus": 0.1},
            request_router_config=router,
        )
        yield serve.run(deployment.bind(), route_prefix=None)
    finally:
        serve.shutdown()
        ray.shutdown()


def who(desk: DeploymentHandle[Any], session: str) -> str:
    answer: str = desk.options(session_id=session).who.remote().result(timeout_s=60)
    return answer


@contextmanager
def held(desk: DeploymentHandle[Any], session: str, requests: int) -> Iterator[list[str]]:
    """So many requests of a session that last as long as the block does; which replica each is at."""
    let_go = SignalActor.remote()
    calls = [desk.options(session_id=session, stream=True).hold.remote(let_go) for _ in range(requests)]
    yield [next(call) for call in calls]
    ray.get(let_go.send.remote())
    for call in calls:
        assert list(call) == []


@pytest.mark.ray
def test_a_session_leaves_its_replica_only_while_that_is_too_far_ahead(desk: DeploymentHandle[Any]) -> None:
    wait_until(lambda: len({who(desk, each) for each in SESSIONS}) == 3, 60, "the handle knows of all replicas")
    owners = {session: who(desk, session) for session in SESSIONS}
    session, own = next(iter(owners.items()))

    with ExitStack() as stack:
        assert stack.enter_context(held(desk, session, MAX_LEAD - 1)) == [own] * (MAX_LEAD - 1)
        # One that has just been answered may still be counted.
        assert {each: who(desk, each) for each in SESSIONS} == owners

        def one_more_stays() -> bool:
            with ExitStack() as attempt:
                stays = attempt.enter_context(held(desk, session, 1)) == [own]
                if stays:
                    stack.push(attempt.pop_all())
            return stays

        for _ in range(2):
            wait_until(one_more_stays, 60, "nobody is counted who has been answered")
        wait_until(lambda: who(desk, session) != own, 60, "it leaves a replica with 4 requests for one without any")
        others = {each: owner for each, owner in owners.items() if owner != own}
        assert {each: who(desk, each) for each in others} == others

        for other in {owner: each for each, owner in others.items()}.values():
            stack.enter_context(held(desk, other, 1))
        wait_until(lambda: who(desk, session) == own, 60, "it is back at a replica with 4 while the others have 1")

    wait_until(lambda: {each: who(desk, each) for each in SESSIONS} == owners, 60, "every session is back")


@dataclass(frozen=True)
class Replica:
    replica_id: ReplicaID


class Counted(PrefixRouter):
    """Three replicas, without Ray: of each its requests, None where they are not known and it has to be asked."""

    def __init__(self, known: dict[str, int | None], answers: dict[str, int | None]) -> None:
        self._deployment_id = DeploymentID("Generator")
        self.initialize_state(max_lead=MAX_LEAD, num_fallback_replicas=2)
        self._replicas = {each: Replica(each) for each in (ReplicaID(name, self._deployment_id) for name in known)}
        self._rebuild_ring(frozenset(self._replicas))
        self._replica_queue_len_cache = {each: known[each.unique_id] for each in self._replicas}
        self._answers = answers
        self.asked: list[str] = []

    async def _probe_queue_lens(self, replicas: Any, backoff_index: int) -> list[tuple[Replica, int | None]]:
        self.asked += [each.replica_id.unique_id for each in replicas]
        return [(each, self._answers[each.replica_id.unique_id]) for each in replicas]

    async def order(self) -> list[str]:
        """In which replicas are tried for one session."""
        pending = SimpleNamespace(
            metadata=SimpleNamespace(session_id="conv_1"), routing_context=SimpleNamespace(should_backoff=False)
        )
        ranks = await self.choose_replicas(list(self._replicas.values()), pending)
        return [replica.replica_id.unique_id for rank in ranks for replica in rank]


@pytest.mark.parametrize(
    ("own", "second", "third", "expected"),
    [
        (3, 0, 0, [0, 1, 2]),
        (4, 0, 0, [1, 0, 2]),  # of equals the next one on the ring
        (4, 1, 0, [2, 0, 1]),
        (4, 1, 1, [0, 1, 2]),
        (90, 87, 88, [0, 1, 2]),
        (91, 87, 88, [1, 0, 2]),
    ],
)
async def test_the_order_in_which_replicas_are_tried(own: int, second: int, third: int, expected: list[int]) -> None:
    ring = await Counted({"a": 0, "b": 0, "c": 0}, {}).order()

    router = Counted(dict(zip(ring, (own, second, third), strict=True)), {})

    assert await router.order() == [ring[place] for place in expected]
    assert router.asked == []


async def test_a_replica_of_which_nothing_is_known_is_asked_and_one_that_is_silent_is_left() -> None:
    ring = await Counted({"a": 0, "b": 0, "c": 0}, {}).order()

    idle = Counted({ring[0]: None, ring[1]: 0, ring[2]: 0}, {ring[0]: 2})
    silent = Counted({ring[0]: None, ring[1]: None, ring[2]: 7}, {ring[0]: None, ring[1]: 5})

    assert await idle.order() == ring
    assert idle.asked == [ring[0]]
    assert await silent.order() == [ring[1], ring[0], ring[2]]


@pytest.mark.parametrize("max_lead", [-1, 1.5, "3", None])
def test_a_lead_that_makes_no_sense_is_refused(max_lead: Any) -> None:  # as a YAML may have it
    router = Counted({"a": 0}, {})
    with pytest.raises(ValueError, match="max_lead"):
        router.initialize_state(max_lead=max_lead)
