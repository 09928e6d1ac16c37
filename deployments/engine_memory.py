"""vLLM's engine has processes of its own: their memory, asked for and let go of from the replica, and their end."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from serve_app import vitals
from serve_app.vitals import CacheName, CacheSize, GpuMemory, Releasable

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class EngineMemory:
    """In the replica. What is said of the GPUs is as old as the last `ask`."""

    def __init__(self, engine: "AsyncLLM") -> None:
        self.engine = engine
        self.gpu: GpuMemory | None = None
        self.unused_gpu_bytes: int | None = None

    async def end_with_this_process(self) -> None:
        await self.engine.collective_rpc("rayconteur_end_with", args=(os.getpid(),))

    async def ask(self) -> None:
        """Answered by all workers between two steps of the engine."""
        answers = [each for each in await self.engine.collective_rpc("rayconteur_gpu_memory") if each is not None]
        if answers:
            allocated, peak, unused = (sum(column) for column in zip(*answers, strict=True))
            self.gpu, self.unused_gpu_bytes = GpuMemory(allocated, peak), unused

    def caches(self) -> Sequence[Releasable]:
        always = (_PrefixCache(self), _EngineGarbage(self))
        return (*always, _EngineGpuCache(self)) if self.gpu else always


@dataclass(frozen=True, slots=True)
class _PrefixCache:
    """Its memory is the engine's for good, so that no bytes get free; only what it holds is forgotten."""

    memory: EngineMemory
    name: ClassVar[CacheName] = "prefix"

    def size(self) -> CacheSize:
        return CacheSize()

    async def release(self) -> bool:
        is_released: bool = await self.memory.engine.reset_prefix_cache()
        return is_released


@dataclass(frozen=True, slots=True)
class _EngineGpuCache:
    memory: EngineMemory
    name: ClassVar[CacheName] = "gpu"

    def size(self) -> CacheSize:
        return CacheSize(size_bytes=self.memory.unused_gpu_bytes)

    async def release(self) -> bool:
        await self.memory.engine.collective_rpc("rayconteur_empty_gpu_cache")
        await self.memory.ask()
        return True


@dataclass(frozen=True, slots=True)
class _EngineGarbage:
    """The replica's, and that of the engine's processes."""

    memory: EngineMemory
    name: ClassVar[CacheName] = "garbage"

    def size(self) -> CacheSize:
        return CacheSize()

    async def release(self) -> bool:
        await self.memory.engine.collective_rpc("rayconteur_collect_garbage")
        vitals.collect_garbage()
        return True
