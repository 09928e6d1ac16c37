"""`/v1/stats` and the release of memory with the real engine: the figures move as they should."""

import secrets
from typing import Any

import openai
import yaml

from tests.served.application import Application, wait_until
from tests.served.conftest import MODEL

LONG = "The ferry sails at nine, the bakery is closed on Tuesdays, and the lamp shines for twenty-two miles. " * 12


def stats(client: openai.OpenAI) -> Any:
    return client.get("/stats", cast_to=dict[str, Any])


def release(client: openai.OpenAI) -> Any:
    return client.post("/admin/memory/release", cast_to=dict[str, Any])


def of(answer: Any, deployment: str) -> Any:
    (replica,) = (each for each in answer["replicas"] if each["deployment"] == deployment)
    return replica


def cached_tokens(client: openai.OpenAI, prompt: str) -> int:
    # Not of the response cache, which would not ask the engine.
    anew = {"cache-control": "no-store"}
    with client.responses.create(
        input=prompt, max_output_tokens=4, temperature=0, stream=True, extra_headers=anew
    ) as stream:
        usage = list(stream)[-1].response.usage  # type: ignore[union-attr]
    assert usage is not None
    return usage.input_tokens_details.cached_tokens


def test_figures_move_with_requests_and_a_release_forgets_the_prompt(
    application: Application, client: openai.OpenAI
) -> None:
    prompt = f"{secrets.token_hex(8)}: {LONG}"
    served = yaml.safe_load((application.folder.parent / "serve_config.yaml").read_text())
    deployments = served["applications"][0]["deployments"]
    before = stats(client)
    assert cached_tokens(client, prompt) < 0.1 * len(prompt.split())
    assert cached_tokens(client, prompt) > 0.5 * len(prompt.split())

    after = stats(client)

    assert {each["deployment"] for each in after["replicas"]} == {each["name"] for each in deployments}
    assert after["silent"] == []
    (node,) = after["nodes"]
    assert node["rss_bytes"] == sum(each["rss_bytes"] for each in after["replicas"]) < node["memory_total_bytes"]
    assert of(after, "Generator")["rss_bytes"] > 1e9 > of(after, "Gateway")["rss_bytes"]
    engine = of(after, "Generator")["engine"]
    assert (engine["model"], 0 <= engine["kv_cache_usage"] <= 1) == (MODEL, True)
    assert engine["kv_cache_tokens"] > 8000
    assert 0 < engine["prefix_cache_hit_rate"] < 1
    was, now = ((each["models"][0]["since_start"]) for each in (before, after))
    assert now["requests"] - was["requests"] >= 2
    assert now["first_token"]["count"] - was["first_token"]["count"] >= 2
    assert now["between_tokens"]["count"] - was["between_tokens"]["count"] >= 4
    assert now["queue"]["count"] - was["queue"]["count"] >= 2
    assert now["output_tokens"] - was["output_tokens"] >= 8
    assert after["models"][0]["last_minute"]["output_tokens_per_s"] > 0

    # What other tests have left behind may still be folding a conversation.
    wait_until(lambda: of(release(client), "Generator")["caches"]["prefix"]["released"], 60, "the engine is idle")

    assert cached_tokens(client, prompt) == 0


def test_a_release_breaks_no_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count to fifty in words."}],
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    undisturbed = client.chat.completions.create(**asked, max_tokens=32).choices[0].message.content
    assert undisturbed
    words = ""
    # So long that it is still being written while the memory is released.
    with client.chat.completions.create(**asked, max_tokens=2000, stream=True) as stream:
        for number, chunk in enumerate(stream):
            if number == 3:
                released = of(release(client), "Generator")
            words += chunk.choices[0].delta.content or "" if chunk.choices else ""
            if len(words) >= len(undisturbed):
                break

    assert words.startswith(undisturbed)
    assert released["caches"] == {
        "prefix": {"released": False, "entries": None, "bytes": None},
        "garbage": {"released": True, "entries": None, "bytes": None},
    }
