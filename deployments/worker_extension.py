"""What we add to vLLM's worker, in each process that holds the model. The replica asks it for these."""

import os
import select
import signal
from collections.abc import Sequence
from threading import Thread
from typing import Any

import psutil

from serve_app import vitals


class WorkerExtension:
    """vLLM makes this a base of its worker's class (`worker_extension_cls`), and refuses names that its class has."""

    model_runner: Any
    """vLLM's."""

    def rayconteur_use_cpu_sampler(self) -> bool:
        """Whether it is in use now: what vLLM's own does beside drawing a token, ours does not."""
        from deployments.cpu_sampler import CpuSampler

        sampler = self.model_runner.sampler
        if sampler.logprobs_mode.startswith("processed") or sampler.use_fp64_gumbel:
            return False
        sampler.topk_topp_sampler = CpuSampler()
        return True

    def rayconteur_gpu_memory(self) -> tuple[int, int, int] | None:
        """Allocated bytes, the most there ever were, and what torch keeps beside them. None without a GPU."""
        memory = vitals.gpu_memory()
        if memory is None:
            return None
        return memory.allocated_bytes, memory.peak_bytes, vitals.GpuCache().size().size_bytes or 0

    def rayconteur_end_with(self, replica_pid: int) -> None:
        """Once the replica is gone, however it went, so is its engine. vLLM's would keep its memory for good."""
        lineage = [os.getpid(), *(parent.pid for parent in psutil.Process().parents())]
        # A worker that Ray has started, perhaps on another node, is Ray's to end.
        if replica_pid in lineage:
            processes = lineage[: lineage.index(replica_pid)]
            Thread(target=_kill_after, args=(os.pidfd_open(replica_pid), processes), daemon=True).start()

    def rayconteur_empty_gpu_cache(self) -> None:
        vitals.empty_gpu_cache()

    def rayconteur_collect_garbage(self) -> None:
        vitals.collect_garbage()


def _kill_after(other: int, processes: Sequence[int]) -> None:
    """`other` is a file descriptor of a process. This one comes first in `processes`, and is killed last."""
    select.select([other], [], [])
    for pid in reversed(processes):
        os.kill(pid, signal.SIGKILL)


WORKER_EXTENSION = f"{__name__}.{WorkerExtension.__name__}"
