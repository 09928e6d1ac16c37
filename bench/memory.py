"""Ten long turns of one conversation on a served application: how soon the first token comes, and how much of the
prompt the engine had in its cache, by its own counters; without a search, and with one at each turn. Beside it the same
questions to vLLM's own server, by a client that sends the whole conversation each time.

A turn is a paragraph of XQuAD with one of its questions, and an answer of at most `--output-tokens`. `--pause` is what
a reader takes before the next question; a summary that is due is written meanwhile. It prints each turn, and then turn
10 beside turn 2. With all but the question in the cache a token still takes longer the more there is before it: that is
what vLLM's own server shows. The share of the cache with a search is about W / (W + N): W is what the window and the
summary hold, N the new passages and the question. With the default settings W is 2,500 to 4,000 tokens, so N may be 600
for 80 %.
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from bench.eval import read_documents, read_lines, upload
from bench.figures import found, parse_arguments
from bench.servers import ROOT, VLLM, served, served_model, servers, started

TURNS = 10
INSTRUCTIONS = "Answer at length, in several sentences."


@dataclass(frozen=True, slots=True)
class Sample:
    first_token_s: float
    input_tokens: int
    cached_tokens: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--url", help="a served application, e.g. http://127.0.0.1:8000; default: start one")
    parser.add_argument("--conversations", type=int, default=3)
    parser.add_argument("--output-tokens", type=int, default=200)
    parser.add_argument("--passages", type=int, default=2, help="that a search shows the model")
    parser.add_argument("--pause", type=float, default=20, help="seconds between turns")
    arguments = parse_arguments(parser)
    with served(arguments.url) as url:
        asyncio.run(measure(url, arguments))
    vllm = next(each for each in servers() if each.name == VLLM)
    with started(vllm):
        asyncio.run(measure_vllm(vllm.url, served_model(vllm.url), arguments))


async def measure(url: str, arguments: argparse.Namespace) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        store_id = await upload(client, "xquad", read_documents(arguments.data / "xquad" / "documents.jsonl"))
        prompts = long_questions(arguments.data / "xquad", TURNS * arguments.conversations)
        search: Any = {
            "type": "file_search",
            "vector_store_ids": [store_id],
            "max_num_results": arguments.passages,
        }
        for name, tools in (("without a search", []), ("with a search at each turn", [search])):
            talks = []
            for number in range(arguments.conversations):
                asked = prompts[number * TURNS : (number + 1) * TURNS]
                talks.append(await talk(client, asked, tools, arguments.output_tokens, arguments.pause))
            show(name, talks)


async def talk(
    client: openai.AsyncOpenAI, prompts: list[str], tools: list[Any], output_tokens: int, pause_s: float
) -> list[Sample]:
    conversation = await client.conversations.create()
    samples = []
    for prompt in prompts:
        samples.append(await ask(client, conversation.id, prompt, tools, output_tokens))
        await asyncio.sleep(pause_s)
    return samples


async def measure_vllm(url: str, model: str, arguments: argparse.Namespace) -> None:
    prompts = long_questions(arguments.data / "xquad", TURNS * arguments.conversations)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        asked = [prompts[number * TURNS :][:TURNS] for number in range(arguments.conversations)]
        talks = [await talk_to_vllm(client, model, each, arguments.output_tokens) for each in asked]
    show(f"{VLLM}, the whole conversation each time", talks, is_ours=False)


async def talk_to_vllm(client: openai.AsyncOpenAI, model: str, prompts: list[str], output_tokens: int) -> list[Sample]:
    messages: list[Any] = [{"role": "system", "content": INSTRUCTIONS}]
    samples = []
    for prompt in prompts:
        messages.append({"role": "user", "content": prompt})
        began, first_token_s, text = time.perf_counter(), 0.0, ""
        stream = await client.chat.completions.create(
            model=model,
            messages=messages,
            max_completion_tokens=output_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
            if text and not first_token_s:
                first_token_s = time.perf_counter() - began
            if chunk.usage:
                details = chunk.usage.prompt_tokens_details
                cached = (details.cached_tokens if details else None) or 0
                samples.append(Sample(first_token_s, chunk.usage.prompt_tokens, cached))
        messages.append({"role": "assistant", "content": text})
    return samples


async def ask(
    client: openai.AsyncOpenAI, conversation_id: str, prompt: str, tools: list[Any], output_tokens: int
) -> Sample:
    began = time.perf_counter()
    first_token_s = 0.0
    stream = await client.responses.create(
        instructions=INSTRUCTIONS,
        input=prompt,
        conversation=conversation_id,
        tools=tools,
        max_output_tokens=output_tokens,
        stream=True,
    )
    async with stream:
        async for event in stream:
            if event.type == "response.output_text.delta" and not first_token_s:
                first_token_s = time.perf_counter() - began
            if event.type in ("response.completed", "response.incomplete"):
                usage = event.response.usage
                assert usage is not None
                return Sample(first_token_s, usage.input_tokens, usage.input_tokens_details.cached_tokens)
    raise RuntimeError("the stream ended without a response")


def show(name: str, talks: list[list[Sample]], *, is_ours: bool = True) -> None:
    print(f"\n{name}\n\n| turn | input tokens | of the cache | share | first token ms |\n|---|---|---|---|---|")
    by_turn = [[each[turn] for each in talks] for turn in range(TURNS)]
    for number, samples in enumerate(by_turn, 1):
        tokens = statistics.median(each.input_tokens for each in samples)
        cached = statistics.median(each.cached_tokens for each in samples)
        first_ms = first_token_s(samples) * 1000
        print(f"| {number} | {tokens:.0f} | {cached:.0f} | {share(samples):.2f} | {first_ms:.0f} |")
    ratio = first_token_s(by_turn[9]) / first_token_s(by_turn[1])
    found(f"turn 10, {name}: first token, times turn 2's", ratio, at_most=1.3 if is_ours else None)
    found(f"turn 10, {name}: of the prompt from the cache", share(by_turn[9]), at_least=0.8 if is_ours else None)
    print(f"\nturn 10: first token {ratio:.2f} times turn 2's, {share(by_turn[9]):.2f} of the prompt from the cache")


def share(samples: list[Sample]) -> float:
    return statistics.median(each.cached_tokens / each.input_tokens for each in samples)


def first_token_s(samples: list[Sample]) -> float:
    return statistics.median(each.first_token_s for each in samples)


def long_questions(folder: Path, count: int) -> list[str]:
    """Each a paragraph with a question about it, all from different articles in turn, and about as long: what a turn
    takes is to say how much is before it, and not how much it asks.
    """
    documents = {each["_id"]: each for each in read_lines(folder / "documents.jsonl")}
    first_of = {each["document_id"]: each["question"] for each in reversed(read_lines(folder / "questions.jsonl"))}
    ordered = sorted(first_of, key=lambda document_id: document_id[::-1])
    prompts = [f"I have read this:\n\n{documents[each]['text']}\n\n{first_of[each]}" for each in ordered]
    usual = statistics.median(map(len, prompts))
    nearest = set(sorted(prompts, key=lambda prompt: abs(len(prompt) - usual))[:count])
    return [each for each in prompts if each in nearest]


if __name__ == "__main__":
    main()
