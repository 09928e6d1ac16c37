"""The engine with a tiny random model: what it writes is nonsense, and the same nonsense as `generate` writes."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from serve_app.config import GeneratorConfig
from serve_app.errors import InvalidRequest, Unavailable
from serve_app.generation.stream import parse_chunks
from serve_app.generation.transformers_engine.chat import complete, stream
from serve_app.generation.transformers_engine.engine import TransformersEngine
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest
from tests.language_model import write_language_model

MODEL = "tiny"
SIX_PAGES = 6 * 64 * 2 * 2 * 2 * 8 * 4
"""Bytes for 64 tokens each, of keys and values in two layers, two heads of 8 numbers of 4 bytes."""
PROMPTS = ["Hi", "What is a river?", "One two three four five six", "x" * 150]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """For so small a model more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(source: str, **engine: object) -> TransformersEngine:
    return TransformersEngine(GeneratorConfig(model_id=MODEL, model_source=source, engine=engine), "float32")


@pytest.fixture(scope="module")
def engine(source: str) -> Iterator[TransformersEngine]:
    engine = start(source, max_model_len=400)
    yield engine
    engine.stop()


@pytest.fixture
def one_at_a_time(source: str) -> Iterator[TransformersEngine]:
    engine = start(source, max_num_seqs=1)
    yield engine
    engine.stop()


def ask(prompt: str = "Hi", request_id: str = "req_1", priority: int = 0, **fields: Any) -> GenerationRequest:
    messages = [{"role": "user", "content": prompt}]
    payload = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    return GenerationRequest({**payload, **fields}, request_id, priority)


async def write(engine: TransformersEngine, request: GenerationRequest) -> str:
    content: str = (await complete(engine, request))["choices"][0]["message"]["content"]
    return content


async def tokens(engine: TransformersEngine, request: GenerationRequest) -> list[int]:
    async with aclosing(engine.generate(engine.read(request.payload, request.priority))) as steps:
        return [token_id async for step in steps for token_id in step.token_ids]


async def test_greedy_tokens_of_a_batch_are_those_of_generate(engine: TransformersEngine, source: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(source)

    written = await asyncio.gather(*(tokens(engine, ask(prompt)) for prompt in PROMPTS))

    for prompt, answer in zip(PROMPTS, written, strict=True):
        read = torch.tensor([engine.read(ask(prompt).payload, 0).token_ids])
        expected = model.generate(read, do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0)
        assert answer == expected[0, read.shape[1] :].tolist()


async def test_the_stream_says_what_the_whole_answer_says(engine: TransformersEngine) -> None:
    whole = await complete(engine, ask())
    events = [event async for event in stream(engine, ask(stream_options={"include_usage": True}))]

    chunks = [chunk for event in events for chunk in parse_chunks(event)]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices) == whole["choices"][0]["message"]["content"]
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"] == usage(prompt=len("user:Hi|assistant:"), completion=24)
    assert {chunk["id"] for chunk in chunks} == {whole["id"]} == {"chatcmpl-req_1"}
    assert events[-1].endswith("data: [DONE]\n\n")


def test_an_answer_goes_on_from_its_beginning(engine: TransformersEngine) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    going_on = ask(messages=messages, add_generation_prompt=False, continue_final_message=True)

    read = engine.read(going_on.payload, 0).token_ids

    assert engine.tokenizer.decode(read) == "user:Hi|assistant:Well,"


async def test_a_seed_gives_the_same_answer_whatever_else_is_in_the_batch(engine: TransformersEngine) -> None:
    alone = await tokens(engine, ask(temperature=1, seed=7))

    again, other, *_ = await asyncio.gather(
        *(tokens(engine, ask(temperature=1, seed=seed)) for seed in (7, 8, 9)), tokens(engine, ask("Hello"))
    )

    assert again == alone
    assert other != alone


async def test_no_sequence_of_tokens_comes_twice(engine: TransformersEngine) -> None:
    answer = await tokens(engine, ask(max_tokens=120, vllm_xargs={"no_repeat_ngram_size": 2}))

    pairs = list(pairwise(answer))
    assert len(set(pairs)) == len(pairs) == 119


async def test_it_ends_at_a_stop_string(engine: TransformersEngine) -> None:
    text = await write(engine, ask())
    stop = text[4:6]

    ended = await complete(engine, ask(stop=[stop]))

    choice = ended["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


async def test_it_ends_with_the_models_own_end(engine: TransformersEngine) -> None:
    texts = [
        await complete(engine, ask(temperature=2, seed=seed, max_tokens=300, ignore_eos=False)) for seed in range(6)
    ]

    ended = [each for each in texts if each["choices"][0]["finish_reason"] == "stop"]
    assert ended
    assert "<end>" not in str(ended)


@pytest.mark.parametrize("fields", [{"prompt": "x" * 400}, {"max_tokens": 390}, {"prompt": "x" * 370}])
def test_what_does_not_fit_the_context_is_refused(engine: TransformersEngine, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="maximum context length is 400") as refused:
        engine.read(ask(**fields).payload, 0)
    assert refused.value.code == "context_length_exceeded"


async def test_who_leaves_makes_room(one_at_a_time: TransformersEngine) -> None:
    endless = stream(one_at_a_time, ask(max_tokens=1900))
    await anext(endless)
    waiting = asyncio.create_task(write(one_at_a_time, ask("Next")))
    gone = asyncio.create_task(write(one_at_a_time, ask("Gone", max_tokens=1900)))
    await anext(endless)
    gone.cancel()
    assert not waiting.done()

    await endless.aclose()

    assert await waiting
    assert one_at_a_time._manager.output_router.result_handlers == {}


async def test_who_waits_is_let_in_by_priority(one_at_a_time: TransformersEngine) -> None:
    first = stream(one_at_a_time, ask(max_tokens=200))
    await anext(first)
    done: list[int] = []

    async def note(priority: int) -> None:
        await write(one_at_a_time, ask(priority=priority, max_tokens=2))
        done.append(priority)

    waiting = [asyncio.create_task(note(priority)) for priority in (10, 0, -10)]
    await asyncio.sleep(0)
    async for _ in first:
        pass
    await asyncio.gather(*waiting)

    assert done == [-10, 0, 10]


async def test_a_full_cache_delays_and_changes_nothing(source: str) -> None:
    """For two of the four there is no room until others are done, or put back."""
    roomy, small = start(source), start(source, max_model_len=300, kv_cache_memory_bytes=SIX_PAGES)
    requests = [ask(prompt, max_tokens=100, frequency_penalty=1.0) for prompt in PROMPTS]
    try:
        expected = [await tokens(roomy, request) for request in requests]
        written = await asyncio.gather(*(tokens(small, request) for request in requests))
    finally:
        roomy.stop()
        small.stop()

    assert written == expected


def test_a_cache_without_room_for_one_context_is_refused_at_the_start(source: str) -> None:
    with pytest.raises(ValueError, match=r"the key-value cache holds \d+ tokens, and a request may have 2048"):
        start(source, kv_cache_memory_bytes=SIX_PAGES)


async def test_an_engine_that_has_ended_says_so(source: str) -> None:
    engine = start(source)
    answering = stream(engine, ask(max_tokens=1900))
    await anext(answering)

    engine.stop()

    assert engine.has_died
    with pytest.raises(Unavailable):
        await drain(answering)
    with pytest.raises(Unavailable):
        await write(engine, ask())


async def drain(events: AsyncGenerator[str, None]) -> None:
    async for _ in events:
        pass


def usage(prompt: int, completion: int) -> Json:
    total = prompt + completion
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return {**counts, "prompt_tokens_details": None}
