"""What a replica tells the metrics, without Ray."""

from collections.abc import Sequence
from typing import ClassVar

import pytest

from deployments.replica import Replica
from serve_app.vitals import CacheName, CacheSize, GpuMemory, Releasable
from tests.fakes import RecordedMetrics


class Cache:
    name: ClassVar[CacheName] = "index"

    def __init__(self, size: CacheSize) -> None:
        self._size = size

    def size(self) -> CacheSize:
        return self._size

    async def release(self) -> bool:
        return True


class OnGpu(Replica):
    def caches(self) -> Sequence[Releasable]:
        return (Cache(CacheSize(entries=7)), *super().caches())

    def gpu_memory(self) -> GpuMemory:
        return GpuMemory(allocated_bytes=70, peak_bytes=90)


async def measured(replica: Replica) -> dict[tuple[str, ...], float]:
    metrics = RecordedMetrics()
    replica.metrics = metrics
    await replica.check_health()
    return metrics.values


async def test_its_memory_is_a_gauge_and_what_it_has_not_is_none() -> None:
    values = await measured(Replica())

    assert list(values) == [("rayconteur_replica_memory_bytes",)]
    assert values["rayconteur_replica_memory_bytes",] > 50e6


async def test_gpus_and_caches_are_gauges_as_far_as_they_are_known() -> None:
    replica = OnGpu()
    values = await measured(replica)

    del values["rayconteur_replica_memory_bytes",]
    assert values == {
        ("rayconteur_gpu_memory_bytes", "allocated"): 70,
        ("rayconteur_gpu_memory_bytes", "peak"): 90,
        ("rayconteur_cache_entries", "index"): 7,
    }
    assert [cache.name for cache in replica.caches()] == ["index", "gpu", "garbage"]


async def test_what_loading_has_left_is_let_go_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, collected = Replica(), []
    monkeypatch.setattr("serve_app.vitals.collect_garbage", lambda: collected.append(True))

    await measured(replica)
    await measured(replica)

    assert len(collected) == 1
