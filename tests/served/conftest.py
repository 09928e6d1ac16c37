from collections.abc import Iterator

import openai
import pytest

from tests.served.application import Application, serving

MODEL = "smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "served":
            item.add_marker(pytest.mark.served)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with serving(tmp_path_factory.mktemp("served")) as application:
        yield application


@pytest.fixture
def client(application: Application) -> Iterator[openai.OpenAI]:
    application.wait_until_ready()
    with openai.OpenAI(base_url=f"{application.url}/v1", api_key="none", timeout=180, max_retries=0) as client:
        yield client
