"""How many threads the arithmetic of a replica takes on a CPU."""

import os

import psutil
import ray


def use_all_cores() -> None:
    """Unless the YAML says `OMP_NUM_THREADS` in the replica's `runtime_env`. To be called before a model is loaded."""
    if "OMP_NUM_THREADS" not in ray.get_runtime_context().runtime_env.get("env_vars", {}):
        # Ray has set it to the replica's `num_cpus`, which are a share for placement here, and no limit.
        os.environ["OMP_NUM_THREADS"] = str(openmp_threads())


def openmp_threads() -> int:
    """One for each core, of those that this process may use."""
    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
