"""The router in front of real replicas, of a deployment that costs nothing."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import ray
from ray import serve
from ray._common.test_utils import SignalActor
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
    answer: str = desk.options(session_id=session).who.remote().result(timeout_s=30)
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
@pytest.mark.timeout(240)
def test_a_session_leaves_its_replica_only_while_that_is_too_far_ahead(desk: DeploymentHandle[Any]) -> None:
    owners = {session: who(desk, session) for session in SESSIONS}
    assert len(set(owners.values())) == 3
    session, own = next(iter(owners.items()))

    with ExitStack() as stack:
        assert stack.enter_context(held(desk, session, MAX_LEAD - 1)) == [own] * (MAX_LEAD - 1)
        # One that has just been answered may still be counted.
        assert {each: who(desk, each) for each in SESSIONS} == owners

        assert stack.enter_context(held(desk, session, 2)) == [own, own]
        wait_until(lambda: who(desk, session) != own, 30, "it leaves a replica with 4 requests for one without any")
        others = {each: owner for each, owner in owners.items() if owner != own}
        assert {each: who(desk, each) for each in others} == others

        for other in {owner: each for each, owner in others.items()}.values():
            stack.enter_context(held(desk, other, 1))
        wait_until(lambda: who(desk, session) == own, 30, "it is back at a replica with 4 while the others have 1")

    wait_until(lambda: {each: who(desk, each) for each in SESSIONS} == owners, 30, "every session is back")


@pytest.mark.parametrize("max_lead", [-1, 1.5, "3", None])
def test_a_lead_that_makes_no_sense_is_refused(max_lead: Any) -> None:  # as a YAML may have it
    router = object.__new__(PrefixRouter)
    router._deployment_id = "Generator"
    with pytest.raises(ValueError, match="max_lead"):
        router.initialize_state(max_lead=max_lead)
