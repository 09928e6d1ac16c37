"""What runs in vLLM's processes, in processes of our own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest

from deployments.cpu_sampler import CpuSampler
from deployments.worker_extension import WorkerExtension
from tests.served.application import ROOT, wait_until

# The first starts the second, which starts the third: a replica, its engine and the engine's worker.
CHAIN = """
import subprocess, sys, time
from deployments.worker_extension import WorkerExtension
depth, first = int(sys.argv[1]), int(sys.argv[2])
if depth < 2:
    subprocess.Popen([sys.executable, sys.argv[0], str(depth + 1), str(first)])
else:
    WorkerExtension().rayconteur_end_with(first)
    print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    program = tmp_path_factory.mktemp("chain") / "chain.py"
    program.write_text(CHAIN)
    command = f"import os, sys; os.execv(sys.executable, [sys.executable, {str(program)!r}, '0', str(os.getpid())])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, env=environment
    ) as started:
        yield started
        started.kill()


def test_the_engine_and_its_workers_end_with_their_replica(replica: subprocess.Popen[str]) -> None:
    assert replica.stdout is not None
    assert replica.stdout.readline() == "ready\n"
    processes = psutil.Process(replica.pid).children(recursive=True)
    assert len(processes) == 2

    os.kill(replica.pid, signal.SIGKILL)

    wait_until(lambda: not any(is_running(each) for each in processes), 60, "they are gone")


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_is_not_above_it_is_not_watched() -> None:
    before = set(threading.enumerate())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        WorkerExtension().rayconteur_end_with(stranger.pid)
        stranger.communicate(b"\n")

    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("logprobs_mode", "use_fp64_gumbel", "is_ours"),
    [("raw_logprobs", False, True), ("processed_logprobs", False, False), ("raw_logprobs", True, False)],
)
def test_vllms_sampler_stays_where_it_does_more_than_draw(
    logprobs_mode: str, use_fp64_gumbel: bool, is_ours: bool
) -> None:
    sampler = SimpleNamespace(logprobs_mode=logprobs_mode, use_fp64_gumbel=use_fp64_gumbel, topk_topp_sampler=None)
    worker = WorkerExtension()
    worker.model_runner = SimpleNamespace(sampler=sampler)

    assert worker.rayconteur_use_cpu_sampler() is is_ours
    assert isinstance(sampler.topk_topp_sampler, CpuSampler) is is_ours
