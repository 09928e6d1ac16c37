"""What every replica says of itself and lets go of, whichever deployment it is of."""

import logging
import time
from collections.abc import Sequence

import psutil
import ray
from ray import serve

from deployments.adapters import RayMetrics
from serve_app import vitals
from serve_app.counts import Counted
from serve_app.metrics import CACHE_BYTES, CACHE_ENTRIES, GPU_MEMORY_BYTES, REPLICA_MEMORY_BYTES, Metrics
from serve_app.vitals import EngineVitals, Garbage, GpuCache, GpuMemory, Releasable, Released, ReplicaVitals


class Replica:
    """The deployments override what they have more of: caches, an engine, counts, processes, a GPU of their own."""

    def __init__(self) -> None:
        # Ray Serve writes into a replica's log what its own logger is told, and of others no more than warnings.
        for name in ("serve_app", "deployments"):
            logging.getLogger(name).parent = logging.getLogger("ray.serve")
        self.metrics: Metrics = RayMetrics()
        self.processes = [psutil.Process()]
        """This one, and those that it has started."""
        self._started_at = time.time()
        self._has_let_go = False

    def caches(self) -> Sequence[Releasable]:
        return (GpuCache(), Garbage()) if self.gpu_memory() else (Garbage(),)

    def engine_vitals(self) -> EngineVitals | None:
        return None

    def counted(self) -> Counted | None:
        return None

    def gpu_memory(self) -> GpuMemory | None:
        return vitals.gpu_memory()

    async def vitals(self) -> ReplicaVitals:
        deployment, replica, node = _identity()
        return ReplicaVitals(
            deployment=deployment,
            replica=replica,
            node=node,
            pid=self.processes[0].pid,
            started_at=self._started_at,
            rss_bytes=vitals.rss_bytes(self.processes),
            node_memory=vitals.node_memory(),
            gpu=self.gpu_memory(),
            caches={cache.name: cache.size() for cache in self.caches()},
            engine=self.engine_vitals(),
            counted=self.counted(),
        )

    async def release(self, names: Sequence[str]) -> Released:
        """Let go of these, as far as this replica has them. No request in flight ends or changes by it."""
        deployment, replica, node = _identity()
        before = vitals.rss_bytes(self.processes)
        done = await vitals.release(cache for cache in self.caches() if cache.name in names)
        return Released(deployment, replica, node, before, vitals.rss_bytes(self.processes), done)

    async def check_health(self) -> None:
        """Ray calls this regularly, so here the gauges are set; and before the first request, to let go of what loading
        has left: of a tokenizer's 34 MB nearly half.
        """
        if not self._has_let_go:
            vitals.collect_garbage()
            self._has_let_go = True
        self.metrics.set(REPLICA_MEMORY_BYTES, vitals.rss_bytes(self.processes))
        gpu = self.gpu_memory()
        if gpu is not None:
            self.metrics.set(GPU_MEMORY_BYTES, gpu.allocated_bytes, kind="allocated")
            self.metrics.set(GPU_MEMORY_BYTES, gpu.peak_bytes, kind="peak")
        for cache in self.caches():
            size = cache.size()
            if size.entries is not None:
                self.metrics.set(CACHE_ENTRIES, size.entries, cache=cache.name)
            if size.size_bytes is not None:
                self.metrics.set(CACHE_BYTES, size.size_bytes, cache=cache.name)


def _identity() -> tuple[str, str, str]:
    context = serve.get_replica_context()
    return context.deployment, context.replica_id.unique_id, ray.get_runtime_context().get_node_id()
