"""The memory of a process: what it takes, what it keeps in caches, and how it lets go of them."""

import ctypes
import gc
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, get_args

import psutil

from serve_app.counts import Counted

CacheName = Literal["responses", "query_vectors", "conversations", "index", "prefix", "gpu", "garbage"]
CACHES: tuple[CacheName, ...] = get_args(CacheName)
"""All there are, whichever replica has them."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """None: nobody can tell."""

    entries: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """As torch counts it, of all devices together."""

    allocated_bytes: int
    peak_bytes: int
    """The most that was ever allocated."""


@dataclass(frozen=True, slots=True)
class NodeMemory:
    total_bytes: int
    used_bytes: int
    """What no new process could have."""


@dataclass(frozen=True, slots=True)
class EngineVitals:
    """vLLM's, as of its last step."""

    model: str
    running: int
    waiting: int
    kv_cache_usage: float
    """The share that requests hold, from 0 to 1. What is only kept for later ones does not count."""
    kv_cache_tokens: int
    """So many fit in."""
    prefix_cache_queries: int
    """Tokens of the last 1,000 prompts, or of those since the prefix cache was released."""
    prefix_cache_hits: int
    """Of them so many had been computed before."""


@dataclass(frozen=True, slots=True)
class ReplicaVitals:
    deployment: str
    replica: str
    node: str
    pid: int
    started_at: float
    """Unix seconds."""
    rss_bytes: int
    """Of its process, and of those that it has started."""
    node_memory: NodeMemory
    gpu: GpuMemory | None
    caches: dict[CacheName, CacheSize]
    engine: EngineVitals | None = None
    counted: Counted | None = None


@dataclass(frozen=True, slots=True)
class ReleasedCache:
    name: CacheName
    is_released: bool
    """False: it is in use, and stays."""
    freed: CacheSize


@dataclass(frozen=True, slots=True)
class Released:
    """What one replica has let go of."""

    deployment: str
    replica: str
    node: str
    rss_bytes_before: int
    rss_bytes_after: int
    caches: tuple[ReleasedCache, ...]


@dataclass(frozen=True, slots=True)
class Silence:
    """A deployment of which not every replica has answered."""

    deployment: str
    message: str


class Releasable(Protocol):
    """A cache, or whatever else a process can do without."""

    @property
    def name(self) -> CacheName: ...

    def size(self) -> CacheSize: ...

    async def release(self) -> bool:
        """Drop what no request is using. False if all stays, because some of it is in use."""
        ...


async def release(caches: Iterable[Releasable]) -> tuple[ReleasedCache, ...]:
    """One after the other, with what each has freed."""
    done = []
    for cache in caches:
        before = cache.size()
        is_released = await cache.release()
        after = cache.size()
        freed = CacheSize(_difference(before.entries, after.entries), _difference(before.size_bytes, after.size_bytes))
        done.append(ReleasedCache(cache.name, is_released, freed))
    return tuple(done)


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, before - after)


# --- this process ---------------------------------------------------------------------------------


def rss_bytes(processes: Sequence[psutil.Process]) -> int:
    """Of those that are alive."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def node_memory() -> NodeMemory:
    memory = psutil.virtual_memory()
    return NodeMemory(memory.total, memory.total - memory.available)


def gpu_memory() -> GpuMemory | None:
    """What this process has on its GPUs; None if it uses none."""
    # Whoever uses a GPU has imported torch, which would cost the others 300 MB.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return GpuMemory(
        allocated_bytes=sum(torch.cuda.memory_allocated(device) for device in devices),
        peak_bytes=sum(torch.cuda.max_memory_allocated(device) for device in devices),
    )


class GpuCache:
    """Memory that torch has taken from a GPU and does not use now."""

    name: ClassVar[CacheName] = "gpu"

    def size(self) -> CacheSize:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return CacheSize()
        devices = range(torch.cuda.device_count())
        return CacheSize(
            size_bytes=sum(torch.cuda.memory_reserved(each) - torch.cuda.memory_allocated(each) for each in devices)
        )

    async def release(self) -> bool:
        empty_gpu_cache()
        return True


class Garbage:
    """Objects that only each other need, and free memory that the allocator has not given back."""

    name: ClassVar[CacheName] = "garbage"

    def size(self) -> CacheSize:
        return CacheSize()

    async def release(self) -> bool:
        collect_garbage()
        return True


def empty_gpu_cache() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def collect_garbage() -> None:
    """Stops all threads of the process for as long as it takes: some 0.1 s for a million objects."""
    gc.collect()
    # glibc keeps freed memory for its next callers; other C libraries have no such function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
