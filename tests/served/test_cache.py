"""The response cache before the real model and the real search."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from tests.served.application import Application, wait_until
from tests.served.conftest import MODEL
from tests.served.test_metrics import EXPORT_TIMEOUT_S, growth, read_samples

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"

Json = dict[str, Any]


def new_store(client: openai.OpenAI) -> str:
    store_id = client.vector_stores.create(name="cache").id
    add(client, store_id, "goats.txt", "Goats graze on the island of Molene.")
    return store_id


def add(client: openai.OpenAI, store_id: str, name: str, text: str) -> str:
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store_id, file=(name, text.encode()), poll_interval_ms=200
    )
    assert file.status == "completed"
    return file.id


def question(path: str, store_id: str, **fields: Any) -> Json:
    text = f"What is on the island of Molene, says {store_id}?"
    asked: Json = {"input": text} if path == RESPONSES else {"messages": [{"role": "user", "content": text}]}
    limit = {"max_output_tokens": 12} if path == RESPONSES else {"max_completion_tokens": 12}
    tool = {"type": "file_search", "vector_store_ids": [store_id]}
    return {**asked, **limit, "model": MODEL, "temperature": 0, "tools": [tool], **fields}


def said(path: str, answer: httpx.Response) -> Any:
    """The text with its citations, and what it took."""
    if path == CHAT:
        completion = answer.json()
        message = completion["choices"][0]["message"]
        return message["content"], message["annotations"], completion["usage"]
    response = answer.json()
    (part,) = response["output"][-1]["content"]
    return part["text"], part["annotations"], response["usage"]


def streamed_text(answer: httpx.Response) -> str:
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [httpx.Response(200, content=event).json() for event in events]
    deltas = [chunk["delta"] for chunk in chunks if chunk.get("type") == "response.output_text.delta"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(deltas) + "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_hit_equals_the_first_answer_and_a_new_document_makes_a_new_one(
    application: Application, client: openai.OpenAI, path: str
) -> None:
    store_id = new_store(client)
    asked = question(path, store_id, **({"include": ["file_search_call.results"]} if path == RESPONSES else {}))

    def ask(**fields: Any) -> httpx.Response:
        return httpx.post(application.url + path, json=asked | fields, timeout=180).raise_for_status()

    plain, streamed = [ask() for _ in range(2)], [ask(stream=True) for _ in range(2)]
    file_id = add(client, store_id, "light.txt", "On the island of Molene is a lighthouse. What is it for?")
    after = [ask() for _ in range(2)]
    client.vector_stores.files.delete(file_id, vector_store_id=store_id)
    deleted = ask()

    # A response asks the model for a stream in either case.
    outcomes = [each.headers["x-cache"] for each in (*plain, *streamed, *after, deleted)]
    assert outcomes == ["miss", "hit", "hit" if path == RESPONSES else "miss", "hit", "miss", "hit", "hit"]
    assert said(path, plain[0]) == said(path, plain[1]) == said(path, deleted)
    assert streamed_text(streamed[0]) == streamed_text(streamed[1]) == said(path, plain[0])[0]
    assert said(path, after[0]) == said(path, after[1])
    assert after[0].json()["usage"] != plain[0].json()["usage"], "the prompt has another passage"
    assert len({each.json()["id"] for each in (*plain, *after)}) == 4
    if path == RESPONSES:
        found = [
            {each["filename"] for each in answer.json()["output"][0]["results"]} for answer in (plain[1], after[0])
        ]
        assert found == [{"goats.txt"}, {"goats.txt", "light.txt"}]
        assert deleted.json()["output"][0]["results"] == plain[0].json()["output"][0]["results"]
    client.vector_stores.delete(store_id)


async def test_a_hundred_at_once_are_one_generation(application: Application) -> None:
    application.wait_until_ready()
    outcomes = "ray_rayconteur_response_cache_requests_total"
    before = await asyncio.to_thread(read_samples, outcomes)
    asked = {"messages": [{"role": "user", "content": "Count to one hundred."}], "temperature": 0}

    async with httpx.AsyncClient(base_url=application.url, timeout=180) as http:
        posts = [http.post(CHAT, json={**asked, "max_completion_tokens": 24}) for _ in range(100)]
        answers = await asyncio.gather(*posts)

    shown = [answer.headers["x-cache"] for answer in answers]
    assert shown.count("miss") == 1, shown
    assert {"miss"} < set(shown) <= {"miss", "shared", "hit"}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert len({answer.json()["id"] for answer in answers}) == 100

    def are_counted() -> bool:
        return growth(before[outcomes], read_samples(outcomes)[outcomes], outcome="shared") >= shown.count("shared")

    await asyncio.to_thread(wait_until, are_counted, EXPORT_TIMEOUT_S, "the metric")
