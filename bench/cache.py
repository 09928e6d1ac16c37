"""What the response cache saves: the time of a first answer, and of the same one from the cache, over HTTP.

    python -m bench.cache [--prompts 5] [--repeats 40]

Starts an application of its own. Each prompt is asked once, one after the other, and then again and again; a line of
the table is one way of asking. Ends with an error if a repeated answer is not a hit, or says anything else.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import orjson

from bench.conversations import DOCUMENT
from bench.figures import found, parse_arguments
from tests.served.application import Application, serving

Json = dict[str, Any]

MAX_TOKENS = 64


@dataclass
class Way:
    """One way of asking, and the seconds it took: of first answers, and of hits."""

    name: str
    path: str
    body: Json
    first_s: list[float] = field(default_factory=list)
    hit_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-cache-") as folder, serving(Path(folder)) as application:
        asyncio.run(measure(application, arguments.prompts, arguments.repeats))


async def measure(application: Application, prompts: int, repeats: int) -> None:
    async with aiohttp.ClientSession(base_url=application.url, timeout=aiohttp.ClientTimeout(total=300)) as http:
        tool = {"type": "file_search", "vector_store_ids": [await make_store(http)]}
        chat = {"temperature": 0, "max_completion_tokens": MAX_TOKENS}
        response = {"temperature": 0, "max_output_tokens": MAX_TOKENS}
        ways = [
            Way("chat completion", "/v1/chat/completions", chat),
            Way("chat completion, streamed", "/v1/chat/completions", chat | {"stream": True}),
            Way("chat completion with file_search", "/v1/chat/completions", chat | {"tools": [tool]}),
            Way("response", "/v1/responses", response),
            Way("response, streamed", "/v1/responses", response | {"stream": True}),
            Way("response with file_search", "/v1/responses", response | {"tools": [tool]}),
            Way("response with file_search, not stored", "/v1/responses", response | {"tools": [tool], "store": False}),
        ]
        for number, way in enumerate(ways):
            for prompt in (f"{number}-{each}: what does a ticket to Molene cost?" for each in range(prompts)):
                body = {**way.body, **asked(way.path, prompt)}
                seconds, outcome, text = await ask(http, way.path, body)
                assert outcome == "miss", outcome
                way.first_s.append(seconds)
                for _ in range(repeats):
                    seconds, outcome, again = await ask(http, way.path, body)
                    assert (outcome, again) == ("hit", text), f"{outcome}: {again!r} and not {text!r}"
                    way.hit_s.append(seconds)
    print(f"| {MAX_TOKENS} tokens at most | first answer p50 ms | hit p50 ms | hit p95 ms |\n|---|---|---|---|")
    for way in ways:
        p95 = quantiles(way.hit_s, n=20)[-1]
        found(f"hit of the response cache: {way.name}, p50", round(1e3 * median(way.hit_s), 1), "ms", at_most=10)
        print(f"| {way.name} | {1e3 * median(way.first_s):.0f} | {1e3 * median(way.hit_s):.1f} | {1e3 * p95:.1f} |")


def asked(path: str, prompt: str) -> Json:
    return {"input": prompt} if path == "/v1/responses" else {"messages": [{"role": "user", "content": prompt}]}


async def ask(http: aiohttp.ClientSession, path: str, body: Json) -> tuple[float, str, str]:
    """The seconds until the whole answer was there, what the cache had to do with it, and its text with citations."""
    began = time.perf_counter()
    async with http.post(path, json=body) as answer:
        data = await answer.read()
    seconds = time.perf_counter() - began
    assert answer.status == 200, data
    text = text_of_stream(data) if body.get("stream") else text_of(orjson.loads(data))
    return seconds, answer.headers["x-cache"], text


def text_of_stream(data: bytes) -> str:
    chunks = [orjson.loads(line[6:]) for line in data.splitlines() if line.startswith(b"data: {")]
    deltas = [chunk.get("delta", "") for chunk in chunks if chunk.get("type") == "response.output_text.delta"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(deltas) + "".join(choice["delta"].get("content") or "" for choice in choices)


def text_of(answer: Json) -> str:
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        return f"{message['content']} {message.get('annotations')}"
    (part,) = next(item for item in answer["output"] if item["type"] == "message")["content"]
    return f"{part['text']} {part['annotations']}"


async def make_store(http: aiohttp.ClientSession) -> str:
    form = aiohttp.FormData({"purpose": "assistants"})
    form.add_field("file", DOCUMENT.encode(), filename="ferry.txt")
    uploaded = await (await http.post("/v1/files", data=form)).json()
    store = await (await http.post("/v1/vector_stores", json={"file_ids": [uploaded["id"]]})).json()
    while store["status"] != "completed":
        await asyncio.sleep(0.1)
        store = await (await http.get(f"/v1/vector_stores/{store['id']}")).json()
    store_id: str = store["id"]
    return store_id


if __name__ == "__main__":
    main()
