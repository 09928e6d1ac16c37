"""Two gateways over one database and the same parts: what is done at one holds at the other."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.served.application import Application, wait_until
from tests.served.conftest import MODEL
from tests.served.test_settings import PATH, deploy

Gateways = tuple[httpx.Client, httpx.Client]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def gateways(application: Application, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    """Each by its own port, as HAProxy asks them."""
    application.wait_until_ready()
    path = application.folder.parent / "serve_config.yaml"
    config = yaml.safe_load(path.read_text())
    gateway = config["applications"][0]["deployments"][0]
    gateway["num_replicas"] = 2
    # Or two have no room on a machine with two cores.
    gateway["ray_actor_options"]["num_cpus"] /= 2
    doubled = tmp_path_factory.mktemp("gateways") / "doubled.yaml"
    doubled.write_text(yaml.safe_dump(config))
    before = application.replica_pids("Gateway")
    try:
        pids = replaced(application, doubled, before, 2)
        with ExitStack() as clients:
            left, right = (clients.enter_context(client_of(pid)) for pid in pids)
            yield left, right
    finally:
        replaced(application, path, application.replica_pids("Gateway"), 1)
        application.wait_until_ready()


def replaced(application: Application, config: Path, before: list[int], count: int) -> list[int]:
    """The gateways in the place of those before."""
    deploy(config)
    pids: list[int] = []

    def are_there() -> bool:
        pids[:] = application.replica_pids("Gateway")
        return len(pids) == count and not set(pids) & set(before)

    wait_until(are_there, 240, f"{count} new gateways")
    return pids


def client_of(pid: int) -> httpx.Client:
    ports = {
        each.laddr.port for each in psutil.Process(pid).net_connections("tcp") if each.status == psutil.CONN_LISTEN
    }

    def is_http(port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    (port,) = (port for port in ports if is_http(port))
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx.get(f"{url}/readyz", timeout=20).status_code == 200, 120, "the gateway is ready")
    return httpx.Client(base_url=url, timeout=120)


def ask(gateway: httpx.Client, **fields: Any) -> Json:
    body = {"model": MODEL, "max_output_tokens": 8, "temperature": 0, **fields}
    answer: Json = gateway.post("/v1/responses", json=body).raise_for_status().json()
    return answer


def test_settings_that_are_changed_at_one_are_in_force_at_the_other(gateways: Gateways) -> None:
    left, right = gateways
    before = left.get(PATH).json()["settings"]
    try:
        for max_tokens, changing, answering in ((5, left, right), (9, right, left)):
            revision = changing.patch(PATH, json={"max_tokens": max_tokens}).raise_for_status().json()["revision"]

            body = {"messages": [{"role": "user", "content": "Count to twenty."}], "ignore_eos": True, "temperature": 0}
            answer = answering.post("/v1/chat/completions", json=body).raise_for_status()

            assert answer.headers["x-settings"] == f"revision={revision}"
            assert answer.json()["usage"]["completion_tokens"] == max_tokens
    finally:
        left.patch(PATH, json=before).raise_for_status()


def test_a_conversation_goes_on_at_either(gateways: Gateways) -> None:
    left, right = gateways
    conversation = left.post("/v1/conversations", json={}).raise_for_status().json()["id"]

    for number, gateway in enumerate((left, right, left, right)):
        ask(gateway, conversation=conversation, input=f"This is number {number}.")

    for gateway in gateways:
        items = gateway.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"}).json()["data"]
        asked = [each["content"][0]["text"] for each in items if each["role"] == "user"]
        assert asked == [f"This is number {number}." for number in range(4)]
        assert len(items) == 8


def test_a_response_in_the_background_is_read_and_cancelled_at_the_other(gateways: Gateways) -> None:
    left, right = gateways
    response = ask(left, input="Count to a thousand.", background=True, max_output_tokens=6000)
    path = f"/v1/responses/{response['id']}"
    wait_until(lambda: bool(right.get(path).json()["status"] == "in_progress"), 60, "it is being written")

    cancelled = right.post(f"{path}/cancel").raise_for_status().json()

    assert cancelled["status"] == "cancelled"
    assert left.get(path).json()["status"] == "cancelled"


def test_a_document_added_at_one_makes_the_answer_of_the_other_new(gateways: Gateways) -> None:
    left, right = gateways
    store = left.post("/v1/vector_stores", json={"name": "both"}).raise_for_status().json()["id"]
    add(left, store, "goats.txt", "Goats graze on the island of Molene.")
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"What is on Molene, says {store}?"}],
        "temperature": 0,
        "max_completion_tokens": 6,
        "tools": [{"type": "file_search", "vector_store_ids": [store]}],
    }

    def outcome(gateway: httpx.Client) -> str:
        return gateway.post("/v1/chat/completions", json=asked).raise_for_status().headers["x-cache"]

    # Each has a cache of its own.
    first = [outcome(gateway) for gateway in (right, right, left, left)]
    add(left, store, "light.txt", "On the island of Molene is a lighthouse.")
    then = [outcome(gateway) for gateway in (right, left)]
    again = [outcome(gateway) for gateway in (right, left)]
    released = right.post("/v1/admin/memory/release", json={"caches": ["responses"]}).raise_for_status().json()

    assert first == ["miss", "hit", "miss", "hit"]
    assert (then, again) == (["miss", "miss"], ["hit", "hit"])
    freed = [each["caches"]["responses"] for each in released["replicas"] if each["deployment"] == "Gateway"]
    assert [each["released"] for each in freed] == [True, True]
    assert all(each["entries"] > 0 for each in freed)
    assert [outcome(gateway) for gateway in gateways] == ["miss", "miss"]
    left.delete(f"/v1/vector_stores/{store}").raise_for_status()


def add(gateway: httpx.Client, store: str, name: str, text: str) -> None:
    uploaded = gateway.post("/v1/files", files={"file": (name, text.encode())}, data={"purpose": "assistants"})
    file = uploaded.raise_for_status().json()["id"]
    path = f"/v1/vector_stores/{store}/files"
    gateway.post(path, json={"file_id": file}).raise_for_status()
    wait_until(lambda: bool(gateway.get(f"{path}/{file}").json()["status"] == "completed"), 60, "it can be searched")


def test_either_tells_what_both_have_counted(gateways: Gateways) -> None:
    def requests() -> list[int]:
        answers = [gateway.get("/v1/stats").raise_for_status().json() for gateway in gateways]
        for answer in answers:
            assert answer["silent"] == []
            assert [each["deployment"] for each in answer["replicas"]].count("Gateway") == 2
        return [answer["models"][0]["since_start"]["requests"] for answer in answers]

    before = requests()
    for gateway in gateways:
        ask(gateway, input="How are you?", store=False)

    assert before[0] == before[1]
    assert requests() == [before[0] + 2] * 2
