import asyncio
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.errors import Unavailable
from serve_app.knowledge.query_cache import CachedEmbedder
from serve_app.metrics import Tally
from serve_app.types import FloatMatrix
from tests.api.parts import DIMENSIONS, HashEmbedder
from tests.fakes import Hold, RecordedMetrics

MODEL = "all-minilm-l6-v2"


def cached(embedder: HashEmbedder, max_queries: int = 100) -> CachedEmbedder:
    return CachedEmbedder(embedder, max_queries, Counter())


class HeldEmbedder(HashEmbedder):
    """Waits to be let go on before it answers, and fails if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = Hold()
        self.failure: Exception | None = None

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        vectors = await super().embed(texts, model)
        await self.hold.wait()
        if self.failure:
            raise self.failure
        return vectors


async def test_only_what_is_new_is_embedded_and_the_order_is_that_of_the_texts() -> None:
    embedder = HashEmbedder()
    queries = cached(embedder)
    expected = await HashEmbedder().embed(["a", "b", "c", "a"], MODEL)

    await queries.embed(["b"], ["vs_1"], MODEL)
    found = await queries.embed(["a", "b", "c", "a"], ["vs_1"], MODEL)
    again = await queries.embed(["a", "b", "c", "a"], ["vs_2"], MODEL)

    assert embedder.calls == [["b"], ["a", "c"]]
    assert found.shape == (4, DIMENSIONS)
    assert np.array_equal(found, expected)
    assert np.array_equal(again, expected)


async def test_each_model_has_vectors_of_its_own() -> None:
    embedder = HashEmbedder()
    queries = cached(embedder)

    one, other = await asyncio.gather(queries.embed(["a"], [], MODEL), queries.embed(["a"], [], "other"))

    assert not np.allclose(one, other)
    assert np.array_equal(await queries.embed(["a"], [], "other"), other)
    assert np.array_equal(await queries.embed(["a"], [], MODEL), one)
    assert embedder.calls == [["a"], ["a"]]


async def test_what_a_caller_does_to_its_vectors_is_its_own_affair() -> None:
    queries = cached(HashEmbedder())
    found = await queries.embed(["a"], [], MODEL)
    expected = found.copy()

    found[:] = 0

    assert np.array_equal(await queries.embed(["a"], [], MODEL), expected)


async def test_the_query_that_was_used_longest_ago_gives_way() -> None:
    embedder = HashEmbedder()
    queries = cached(embedder, max_queries=2)
    for text in ("a", "b", "a", "c"):
        await queries.embed([text], [], MODEL)

    await queries.embed(["a", "c"], [], MODEL)
    assert embedder.calls == [["a"], ["b"], ["c"]]
    await queries.embed(["b"], [], MODEL)
    assert embedder.calls[3:] == [["b"]]


async def test_more_queries_at_once_than_are_kept_are_all_answered() -> None:
    queries = cached(HashEmbedder(), max_queries=1)

    assert np.array_equal(
        await queries.embed(["a", "b", "c"], [], MODEL), await HashEmbedder().embed(["a", "b", "c"], MODEL)
    )


async def test_the_same_query_at_the_same_time_is_embedded_once() -> None:
    embedder = HeldEmbedder()
    queries = cached(embedder)

    first = asyncio.create_task(queries.embed(["a"], [], MODEL))
    await embedder.hold.reached.wait()
    others = [asyncio.create_task(queries.embed(["a", "b"], [], MODEL)) for _ in range(3)]
    embedder.hold.release.set()

    expected = await HashEmbedder().embed(["a", "b"], MODEL)
    assert np.array_equal(await first, expected[:1])
    for other in others:
        assert np.array_equal(await other, expected)
    assert embedder.calls == [["a"], ["b"]]


async def test_who_goes_away_takes_no_answer_from_the_others() -> None:
    embedder = HeldEmbedder()
    queries = cached(embedder)
    first = asyncio.create_task(queries.embed(["a"], [], MODEL))
    await embedder.hold.reached.wait()
    second = asyncio.create_task(queries.embed(["a"], [], MODEL))

    first.cancel()
    await asyncio.wait([first])
    embedder.hold.release.set()

    assert first.cancelled()
    assert np.array_equal(await second, await HashEmbedder().embed(["a"], MODEL))


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    embedder = HeldEmbedder()
    embedder.failure = Unavailable("the encoder is loading")
    queries = cached(embedder)
    waiting = [asyncio.create_task(queries.embed(["a"], [], MODEL)) for _ in range(2)]
    await embedder.hold.reached.wait()
    embedder.hold.release.set()
    for each in waiting:
        with pytest.raises(Unavailable, match="is loading"):
            await each

    embedder.failure = None
    await queries.embed(["a"], [], MODEL)

    assert embedder.calls == [["a"], ["a"]]


async def test_hits_and_misses_are_counted_for_each_store() -> None:
    tallies, metrics = Counter[Tally](), RecordedMetrics()
    queries = CachedEmbedder(HashEmbedder(), 100, tallies, metrics)

    await queries.embed(["a"], ["vs_1"], MODEL)
    await queries.embed(["a", "b", "b"], ["vs_1", "vs_2", "vs_2"], MODEL)

    assert tallies == {
        Tally("vs_1", "query_cache_hit"): 2,
        Tally("vs_1", "query_cache_miss"): 2,
        Tally("vs_2", "query_cache_hit"): 2,
        Tally("vs_2", "query_cache_miss"): 1,
    }
    assert metrics.totals == {("rayconteur_query_cache_hits",): 2, ("rayconteur_query_cache_misses",): 2}
