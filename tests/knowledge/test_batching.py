"""What many requests want encoded at once: who shares a batch, who waits how long, and who fails."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from serve_app.knowledge.batching import BatchingEncoder
from serve_app.types import FloatMatrix


class HeldEncoder:
    """Each batch waits to be let go on. A text's vector says which text it is; `bad` fails."""

    model_id, dimensions, max_tokens = "held", 2, 256
    tokenizer = Tokenizer(models.BPE())

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.has_begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        self.batches.append(list(texts))
        self.has_begun.release()
        assert self.may_end.acquire(timeout=20)
        if "bad" in texts:
            raise ValueError("bad")
        return np.array([vector_of(text) for text in texts], dtype=np.float32)


def vector_of(text: str) -> list[float]:
    return [len(text), sum(map(ord, text))]


@pytest.fixture
def held() -> HeldEncoder:
    return HeldEncoder()


@pytest.fixture
def encoder(held: HeldEncoder) -> Iterator[BatchingEncoder]:
    with ThreadPoolExecutor(1) as thread:
        yield BatchingEncoder(held, thread)


async def begun(held: HeldEncoder) -> None:
    assert await asyncio.to_thread(held.has_begun.acquire, True, 20)


async def test_what_waits_together_is_encoded_together(encoder: BatchingEncoder, held: HeldEncoder) -> None:
    first = asyncio.create_task(encoder.encode(["a"]))
    await begun(held)
    others = [asyncio.create_task(encoder.encode([text])) for text in ("b", "cc", "d")]
    await asyncio.sleep(0)
    held.may_end.release(2)

    vectors = await asyncio.gather(first, *others)

    assert held.batches == [["a"], ["b", "cc", "d"]]
    assert [vector.tolist() for vector in vectors] == [[vector_of(text)] for text in ("a", "b", "cc", "d")]


async def test_question_waits_for_one_batch_of_a_long_request(encoder: BatchingEncoder, held: HeldEncoder) -> None:
    passages = [f"{number} " * 400 for number in range(100)]
    long = asyncio.create_task(encoder.encode(passages))
    await begun(held)
    question = asyncio.create_task(encoder.encode(["question"]))
    await asyncio.sleep(0)
    held.may_end.release(1_000)

    assert (await question).tolist() == [vector_of("question")]
    assert (await long).tolist() == [vector_of(text) for text in passages]
    assert len(held.batches[0]) < len(passages)
    assert "question" in held.batches[1]


async def test_what_is_left_of_a_cancelled_request_is_not_encoded(encoder: BatchingEncoder, held: HeldEncoder) -> None:
    long = asyncio.create_task(encoder.encode(["x" * 2_000] * 100))
    await begun(held)
    long.cancel()
    question = asyncio.create_task(encoder.encode(["question"]))
    await asyncio.sleep(0)
    held.may_end.release(1_000)

    await question

    assert held.batches[1:] == [["question"]]


async def test_failure_is_theirs_whose_texts_were_in_the_batch(encoder: BatchingEncoder, held: HeldEncoder) -> None:
    held.may_end.release(2)

    with pytest.raises(ValueError, match="bad"):
        await encoder.encode(["bad"])
    assert (await encoder.encode(["good"])).tolist() == [vector_of("good")]


async def test_no_texts_have_no_vectors(encoder: BatchingEncoder) -> None:
    assert (await encoder.encode([])).shape == (0, 2)
