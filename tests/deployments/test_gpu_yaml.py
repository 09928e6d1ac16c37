"""`cluster/gpu.yaml` on a Ray cluster with one declared GPU. Placement is Ray's and real; kernels are not run here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig

ROOT = Path(__file__).parents[2]
SHIPPED = ["serve_config.yaml", "cluster/gpu.yaml"]
NAMES = {"Gateway", "Sessions", "Embedder", "Retriever", "Generator", "Indexer"}


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_yaml_is_valid_and_leaves_no_number_to_chance(name: str) -> None:
    config = load(name)
    ServeDeploySchema.model_validate(config)
    application = config["applications"][0]
    AppConfig.model_validate(application["args"])
    deployments = {each["name"]: each for each in application["deployments"]}
    assert set(deployments) == NAMES
    for deployment in deployments.values():
        assert {"num_replicas", "autoscaling_config"} & set(deployment)
        assert deployment["max_queued_requests"] > 0
        assert deployment["backpressure_config"]["status_code"] == 429
        for needed in ("max_ongoing_requests", "health_check_period_s", "health_check_timeout_s"):
            assert deployment[needed] > 0
        assert deployment["graceful_shutdown_timeout_s"] > 0
        assert deployment["ray_actor_options"]["num_cpus"] > 0
    assert config["http_options"]["host"] == "127.0.0.1"


def test_the_laptop_yaml_fits_two_cores() -> None:
    deployments = load("serve_config.yaml")["applications"][0]["deployments"]
    assert sum(each["ray_actor_options"]["num_cpus"] for each in deployments) <= 2


def test_gpu_memory_of_the_generator_stays_within_its_fraction() -> None:
    application = load("cluster/gpu.yaml")["applications"][0]
    fractions = {each["name"]: each["ray_actor_options"].get("num_gpus", 0) for each in application["deployments"]}
    assert sum(fractions.values()) == pytest.approx(1)
    assert application["args"]["generator"]["engine"]["gpu_memory_utilization"] <= fractions["Generator"]


@pytest.fixture
def gpu_cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=16, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("gpu_cluster")
def test_embedder_indexer_and_generator_share_the_one_gpu() -> None:
    config = load("cluster/gpu.yaml")
    config["applications"][0]["import_path"] = "tests.deployments.placement:build_app"
    config["http_options"] = {"host": "127.0.0.1", "port": 8233}
    schema = ServeDeploySchema.model_validate(config)
    serve.start(http_options={"host": "127.0.0.1", "port": 8233})
    # What `serve deploy` calls behind its REST route.
    client = serve.context._get_global_client()
    assert client is not None
    client.deploy_apps(schema, _blocking=True)

    placed = serve.get_app_handle("rayconteur").remote().result(timeout_s=60)

    assert {name for name, place in placed.items() if place["gpus"] == "0"} == {"embedder", "indexer", "generator"}
    assert ray.available_resources().get("GPU", 0) == pytest.approx(0, abs=1e-3)
