from collections.abc import Iterator

import openai
import pytest

from tests.encoder import other_encoder
from tests.served.application import Application, serving

MODEL = "smollm2-135m-instruct"
TRANSFORMERS = "smollm2-135m-instruct/transformers"
"""The same model, in the engine for machines without vLLM."""
BOTH = [MODEL, TRANSFORMERS]
ENCODER, OTHER_ENCODER = "all-minilm-l6-v2", "two-layers"

HANG_TIMEOUT_S = 20
"""Much longer than a step of this model takes, and short for a test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "served":
            item.add_marker(pytest.mark.served)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    folder = tmp_path_factory.mktemp("served")
    encoder = {"model_id": OTHER_ENCODER, "model_source": other_encoder()}
    further = {
        "model_id": TRANSFORMERS,
        "backend": "transformers",
        "engine": {"max_model_len": 8192, "max_num_seqs": 32, "kv_cache_memory_bytes": 402653184},
    }
    with pytest.MonkeyPatch.context() as environment:
        # Or a test of them waits ten seconds.
        environment.setenv("RAY_metrics_report_interval_ms", "4000")
        with serving(
            folder,
            further_encoders=[encoder],
            generator={"hang_timeout_s": HANG_TIMEOUT_S},
            further_generators=[further],
        ) as application:
            yield application


@pytest.fixture
def client(application: Application) -> Iterator[openai.OpenAI]:
    application.wait_until_ready()
    with openai.OpenAI(base_url=f"{application.url}/v1", api_key="none", timeout=180, max_retries=0) as client:
        yield client
