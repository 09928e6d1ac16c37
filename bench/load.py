"""A closed-loop load of streamed chat completions on one OpenAI-compatible server, and what it measured."""

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: seconds to the first token, between tokens, and in all."""

    first_token_s: float
    between_tokens_s: tuple[float, ...]
    total_s: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    requests_per_s: float
    output_tokens_per_s: float
    first_token_p50_ms: float
    first_token_p95_ms: float
    between_tokens_p50_ms: float


async def ask(session: aiohttp.ClientSession, url: str, model: str, prompt: str, max_tokens: int) -> Sample:
    """One streamed answer of exactly `max_tokens` tokens. Raises `RuntimeError` if the server fails.

    If it is refused for now, it asks again when it was told to, as OpenAI's client does; its time goes on meanwhile.
    """
    payload = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    arrivals: list[float] = []
    output_tokens = 0
    headers = {"cache-control": "no-store"}
    async with await _post(session, f"{url}/v1/chat/completions", payload, headers) as response:
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = orjson.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                arrivals.append(time.perf_counter())
            if chunk.get("usage"):
                output_tokens = chunk["usage"]["completion_tokens"]
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(arrivals))
    return Sample(arrivals[0] - began, gaps, time.perf_counter() - began, output_tokens)


async def _post(
    session: aiohttp.ClientSession, url: str, payload: dict[str, Any], headers: dict[str, str]
) -> aiohttp.ClientResponse:
    response = await session.post(url, json=payload, headers=headers)
    while response.status == 429 and "retry-after-ms" in response.headers:
        response.release()
        await asyncio.sleep(float(response.headers["retry-after-ms"]) / 1e3)
        response = await session.post(url, json=payload, headers=headers)
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {await response.text()}")
    return response


async def run_load(url: str, model: str, *, streams: int, requests: int, max_tokens: int, salt: str) -> Figures:
    """`requests` answers over `streams` concurrent streams. `salt` keeps prompts apart, so that no prefix is cached."""
    prompts = iter([f"{salt} {number}: tell me a long story about a lighthouse keeper." for number in range(requests)])
    samples: list[Sample] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=900)) as session:

        async def stream() -> None:
            for prompt in prompts:
                samples.append(await ask(session, url, model, prompt, max_tokens))

        began = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(streams)))
        elapsed_s = time.perf_counter() - began
    first_tokens_ms = sorted(sample.first_token_s * 1e3 for sample in samples)
    gaps_ms = [gap * 1e3 for sample in samples for gap in sample.between_tokens_s]
    return Figures(
        requests_per_s=requests / elapsed_s,
        output_tokens_per_s=sum(sample.output_tokens for sample in samples) / elapsed_s,
        first_token_p50_ms=statistics.median(first_tokens_ms),
        first_token_p95_ms=first_tokens_ms[int(0.95 * (len(first_tokens_ms) - 1))],
        between_tokens_p50_ms=statistics.median(gaps_ms),
    )
