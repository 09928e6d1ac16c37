from collections.abc import Iterator

import pytest
import ray
from ray import serve


@pytest.fixture(scope="package")
def ray_with_a_gpu() -> Iterator[None]:
    """It is declared, and not there."""
    ray.init(address="local", num_cpus=16, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray_with_a_gpu: None) -> Iterator[None]:
    """A Ray of its own, on which nothing is served yet."""
    yield
    serve.shutdown()
