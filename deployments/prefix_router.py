"""Which replica of a generator gets a request: the one that has the beginning of its prompt in the cache, unless that
is so much busier than another that computing the beginning anew is sooner done.

`serve_config.yaml` names it as `request_router_class`. What a request's session hashes to is Ray's own business
(`ConsistentHashRouter`); here is only when to leave it.
"""

from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica


# Ray's classes have no types for mypy.
class PrefixRouter(ConsistentHashRouter):  # type: ignore[misc]
    """Leaves a session's replica while it has over `max_lead` more requests than the least busy one.

    Requests are those that a replica works on or holds in its own queue, from all gateways, as it said itself when the
    last one reached it. If that is not known any more it is asked.
    """

    def initialize_state(self, *, max_lead: int, **kwargs: Any) -> None:
        super().initialize_state(**kwargs)
        if not isinstance(max_lead, int) or max_lead < 0:
            raise ValueError(f"max_lead is {max_lead!r}: give a number of requests, 0 or more")
        self._max_lead = max_lead

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """In the order in which they are to be tried."""
        in_order = [rank[0] for rank in await super().choose_replicas(candidate_replicas, pending_request) if rank]
        if not in_order or len(candidate_replicas) == 1:
            return [[replica] for replica in in_order]
        own = await self._count_requests(in_order[:1])
        # Without a look at the others: none can be more than all of it behind.
        if own[0] <= self._max_lead:
            return [[replica] for replica in in_order]
        # Of equals the next one on the ring: then a session that leaves does not wander.
        everyone = list(dict.fromkeys([*in_order, *candidate_replicas]))
        counts = await self._count_requests(everyone)
        least = min(counts)
        if own[0] - least > self._max_lead:
            in_order = list(dict.fromkeys([everyone[counts.index(least)], *in_order]))
        return [[replica] for replica in in_order]

    async def _count_requests(self, replicas: list[RunningReplica]) -> list[float]:
        """Of each. One that does not say within Ray's deadline has infinitely many."""
        known = {each.replica_id: self.replica_queue_len_cache.get(each.replica_id) for each in replicas}
        unknown = [each for each in replicas if known[each.replica_id] is None]
        for replica, count in await self._probe_queue_lens(unknown, 0):
            known[replica.replica_id] = count
        counts = (known[each.replica_id] for each in replicas)
        return [float("inf") if count is None else count for count in counts]
