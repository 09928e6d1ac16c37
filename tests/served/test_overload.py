"""More requests at once than the real engine can take: each is answered or refused, and the refused leave no trace."""

import asyncio

import httpx

from tests.served.application import Application, wait_until
from tests.served.conftest import MODEL

AT_ONCE = 90
"""Far more than the 32 sequences of the YAML that are open to all."""


async def flood(url: str, conversations: list[str]) -> list[httpx.Response]:
    """A question in each conversation, and as many without one, all at the same time."""
    question = "Tell me a long story about a lighthouse keeper."
    chat = {"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 40, "ignore_eos": True}
    asked = {"model": MODEL, "input": question, "max_output_tokens": 40}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=180, limits=limits) as http, asyncio.TaskGroup() as group:
        in_conversations = [
            group.create_task(http.post("/v1/responses", json={**asked, "conversation": each, "stream": True}))
            for each in conversations
        ]
        others = [
            group.create_task(http.post("/v1/chat/completions", json={**chat, "stream": True}))
            for _ in range(AT_ONCE - len(conversations))
        ]
    return [each.result() for each in (*in_conversations, *others)]


def at_work(http: httpx.Client) -> int:
    """Requests that the engine runs, or has before it."""
    replicas = http.get("/v1/stats").raise_for_status().json()["replicas"]
    (engine,) = (each["engine"] for each in replicas if each["deployment"] == "Generator")
    return int(engine["running"] + engine["waiting"])


def test_a_flood_is_answered_or_refused_and_what_is_refused_leaves_no_trace(application: Application) -> None:
    application.wait_until_ready()
    with httpx.Client(base_url=application.url, timeout=180) as http:
        conversations = [http.post("/v1/conversations", json={}).json()["id"] for _ in range(AT_ONCE // 2)]
        answers = asyncio.run(flood(application.url, conversations))
        items = [len(http.get(f"/v1/conversations/{each}/items").json()["data"]) for each in conversations]

        refused = [answer for answer in answers if answer.status_code != 200]
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["retry-after-ms"]) > 0 for answer in refused)
        assert {answer.json()["error"]["type"] for answer in refused} == {"rate_limit_error"}
        for answer, count in zip(answers, items, strict=False):
            assert count == (2 if answer.status_code == 200 else 0)
        # Nothing of it is left in the engine, and nobody waits.
        wait_until(lambda: at_work(http) == 0, 60, "an idle engine")
        again = {"model": MODEL, "input": "Name a river.", "max_output_tokens": 4}
        assert http.post("/v1/responses", json=again).status_code == 200


def test_a_clients_own_deadline_is_kept(application: Application) -> None:
    application.wait_until_ready()
    asked = {"messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 500, "ignore_eos": True}
    with httpx.Client(base_url=application.url, timeout=180) as http:
        answer = http.post("/v1/chat/completions", json=asked, headers={"x-request-timeout-ms": "300"})

    assert answer.status_code == 504
