"""The memory of this very process, and a torch that is only pretended: there is no GPU where these tests run."""

import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest

from serve_app import vitals
from serve_app.vitals import CacheName, CacheSize, Garbage, GpuCache, GpuMemory, ReleasedCache


@dataclass
class Cache:
    name: ClassVar[CacheName] = "query_vectors"
    entries: int | None = 3
    is_used: bool = False

    def size(self) -> CacheSize:
        return CacheSize(self.entries, None if self.entries is None else 100 * self.entries)

    async def release(self) -> bool:
        if not self.is_used and self.entries is not None:
            self.entries = 0
        return not self.is_used


async def test_a_release_says_what_each_cache_has_freed() -> None:
    caches = [Cache(), Cache(is_used=True), Cache(entries=None)]

    assert await vitals.release(caches) == (
        ReleasedCache("query_vectors", True, CacheSize(3, 300)),
        ReleasedCache("query_vectors", False, CacheSize(0, 0)),
        ReleasedCache("query_vectors", True, CacheSize()),
    )


async def test_garbage_goes_back_to_the_system() -> None:
    this = [psutil.Process()]
    # Small pieces, which the allocator does not map one by one and so does not give back by itself.
    pieces = [bytes(1000) for _ in range(100_000)]
    last = pieces[-1]
    full = vitals.rss_bytes(this)
    del pieces

    assert await Garbage().release()

    assert full - vitals.rss_bytes(this) > 50e6
    assert len(last) == 1000


def test_a_process_that_is_gone_takes_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(gone.pid)
    gone.wait()

    assert vitals.rss_bytes([process]) == 0
    assert vitals.rss_bytes([psutil.Process(), process]) > 10e6


def test_the_node_has_more_than_it_uses() -> None:
    memory = vitals.node_memory()

    assert 0 < memory.used_bytes < memory.total_bytes


class Cuda:
    """Two devices of which a process uses some."""

    def __init__(self) -> None:
        self.reserved = [100, 30]

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def memory_allocated(self, device: int) -> int:
        return [60, 10][device]

    def max_memory_allocated(self, device: int) -> int:
        return [90, 20][device]

    def memory_reserved(self, device: int) -> int:
        return self.reserved[device]

    def empty_cache(self) -> None:
        self.reserved = [60, 10]


async def test_a_gpu_gives_back_what_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda()))

    assert vitals.gpu_memory() == GpuMemory(allocated_bytes=70, peak_bytes=110)
    assert await vitals.release([GpuCache()]) == (ReleasedCache("gpu", True, CacheSize(None, 60)),)


@pytest.mark.parametrize("torch", [None, SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False))])
def test_who_uses_no_gpu_has_none(monkeypatch: pytest.MonkeyPatch, torch: object) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)

    assert vitals.gpu_memory() is None
    vitals.empty_gpu_cache()
