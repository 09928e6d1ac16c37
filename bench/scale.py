"""Search of small and large stores: time, recall and queries per second, through the retriever's handle.

    python -m bench.scale [--rows 10000 100000 1000000] [--direct]

The retriever is a deployment of its own on Ray Serve, and is asked by another, as the gateway asks it; with `--direct`
its code is called in this process. Prints a Markdown table. Vectors and texts are made up (see `passages.py`); the
questions' vectors are not part of the times. Chroma is measured beside it, at 100,000 passages, if it is installed,
which the lock file does not ask for.
"""

import argparse
import asyncio
import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import lancedb
import numpy as np

from bench.figures import found as tell
from bench.figures import parse_arguments
from bench.passages import ONE_PERCENT, file_id, make_files, make_texts, make_vectors, one_percent_of
from serve_app import parts
from serve_app.cli.cluster import DEFAULT_ENVIRONMENT, OBJECT_STORE_BYTES
from serve_app.config import AppConfig, StorageConfig
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.search import IndexReader
from serve_app.types import FloatMatrix
from serve_app.types.knowledge import Ranking, SearchQuery

QUESTIONS = 200
QUESTIONS_SEED = 2**32
K = 10
CLIENTS = 16
CHUNK = 20_000
CHROMA_ROWS = 100_000
VECTORS = Ranking(text_weight=0)
HEADER = (
    "| passages | p50 ms | p99 ms | recall@10 | 1 % p50 ms | 1 % recall@10 | words p50 ms | both p50 ms |"
    " queries/s, 16 clients | of LanceDB's |\n|---|---|---|---|---|---|---|---|---|---|"
)

TIMEOUT_S = 30

Truth = list[set[str]]
"""For each question the ids of the nearest passages."""
Search = Callable[[int], Awaitable[Sequence[str]]]
"""The ids of the passages found for the question of this number."""


@dataclass(frozen=True, slots=True)
class Figures:
    p50_ms: float
    p99_ms: float
    recall: float


@dataclass(frozen=True, slots=True)
class Row:
    """Of the table: one store."""

    rows: int
    everything: Figures
    one_percent: Figures
    words: Figures
    both: Figures
    per_s: float
    lancedb_per_s: float

    def __str__(self) -> str:
        return (
            f"| {self.rows:,} | {self.everything.p50_ms:.1f} | {self.everything.p99_ms:.1f}"
            f" | {self.everything.recall:.4f} | {self.one_percent.p50_ms:.1f} | {self.one_percent.recall:.4f}"
            f" | {self.words.p50_ms:.1f} | {self.both.p50_ms:.1f} | {self.per_s:.0f}"
            f" | {self.per_s / self.lancedb_per_s:.2f} |"
        )


Measure = Callable[[int, tuple[Truth, Truth]], Row]
"""The row of the table for the store of so many passages, from what is truly nearest: see `find_nearest`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--folder", type=Path, help="where the stores are kept, and used again; otherwise a temporary one"
    )
    parser.add_argument("--direct", action="store_true", help="without Ray")
    arguments = parse_arguments(parser)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        storage = StorageConfig(folder=folder)
        # First of all, as Ray forks, and Lance must not have begun by then.
        measure = stack.enter_context(called_directly(storage) if arguments.direct else through_handle(storage))
        for rows in arguments.rows:
            build(storage.vectors_folder, rows)
        print(HEADER)
        p50s_ms = {}
        for rows in arguments.rows:
            row = measure(rows, find_nearest(make_vectors(QUESTIONS_SEED, QUESTIONS), rows))
            print(row, flush=True)
            tell_of(row)
            p50s_ms[rows] = row.everything.p50_ms
        if len(p50s_ms) > 1:
            smallest, largest = min(p50s_ms), max(p50s_ms)
            growth = p50s_ms[largest] / p50s_ms[smallest]
            print(f"\nFrom {smallest:,} to {largest:,} passages the p50 grows {growth:.2f} times.")
            tell(f"search: growth of the p50 from {smallest:,} to {largest:,} passages, times", growth, at_most=3)
        if CHROMA_ROWS in arguments.rows:
            measure_chroma(folder)


def tell_of(row: Row) -> None:
    p50_ms, ratio = row.everything.p50_ms, row.per_s / row.lancedb_per_s
    passages = f"{row.rows:,} passages"
    if row.rows >= 100_000:
        tell(f"search of {passages}: p50", p50_ms, "ms", at_most=10 if row.rows <= 100_000 else 15)
    tell(f"search of {passages}: recall@10", row.everything.recall, at_least=0.99)
    tell(f"search of 1 % of {passages}: p50, times that of all", row.one_percent.p50_ms / p50_ms, at_most=2)
    tell(f"search of {passages}: queries/s of LanceDB's own, 16 clients", ratio, at_least=0.8)


@contextlib.contextmanager
def called_directly(storage: StorageConfig) -> Iterator[Measure]:
    folder = storage.vectors_folder
    yield lambda rows, truths: asyncio.run(compare(IndexReader(folder), folder, rows, truths))


@contextlib.contextmanager
def through_handle(storage: StorageConfig) -> Iterator[Measure]:
    """Serve runs the application's own retriever, and the clients in a replica that has its handle."""
    os.environ.update(DEFAULT_ENVIRONMENT | {"RAY_AUTH_MODE": "disabled"})
    import ray
    from ray import serve
    from ray.serve.handle import DeploymentHandle

    from deployments.adapters import RemoteRetriever
    from deployments.retriever import Retriever

    class Clients:
        def __init__(self, handle: DeploymentHandle[Any]) -> None:
            self._retriever = RemoteRetriever(handle, TIMEOUT_S)

        async def compare(self, rows: int, truths: tuple[Truth, Truth]) -> Row:
            return await compare(self._retriever, storage.vectors_folder, rows, truths)

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    # With Serve's settings for throughput a handle belongs to one event loop, and ends with it.
    with asyncio.Runner() as runner:
        try:
            searching = serve.deployment(Retriever, max_ongoing_requests=64).bind(AppConfig(storage=storage))
            clients = serve.run(serve.deployment(Clients).bind(searching), route_prefix=None)

            async def ask(rows: int, truths: tuple[Truth, Truth]) -> Row:
                row: Row = await clients.compare.remote(rows, truths)
                return row

            yield lambda rows, truths: runner.run(ask(rows, truths))
        finally:
            serve.shutdown()
            ray.shutdown()


async def compare(retriever: parts.Retriever, folder: Path, rows: int, truths: tuple[Truth, Truth]) -> Row:
    vectors, texts = make_vectors(QUESTIONS_SEED, QUESTIONS), make_texts(QUESTIONS_SEED, QUESTIONS, words=6)
    truth, truth_of_one_percent = truths

    def search(**changes: Any) -> Search:
        asked = {"ranking": VECTORS} | changes

        async def find(question: int) -> list[str]:
            query = SearchQuery(store_of(rows), texts[question], vectors[question], K, **asked)
            return [passage.passage_id for passage in await retriever.search(query)]

        return find

    everything = await time_serially(search(), truth)
    one_percent = await time_serially(search(filter=ONE_PERCENT), truth_of_one_percent)
    words = await time_serially(search(ranking=Ranking(embedding_weight=0)))
    both = await time_serially(search(ranking=Ranking()))
    direct = await lancedb_search(folder, store_of(rows), vectors)
    ours_per_s, direct_per_s = [], []
    for _ in range(3):
        direct_per_s.append(await count_per_second(direct))
        ours_per_s.append(await count_per_second(search()))
    return Row(rows, everything, one_percent, words, both, median(ours_per_s), median(direct_per_s))


def store_of(rows: int) -> str:
    return f"vs_{rows:x}"


def build(folder: Path, rows: int) -> None:
    """A store as the indexer makes and maintains it, if it is not there."""
    writer, store_id = IndexWriter(folder), store_of(rows)
    if writer.version(store_id) is not None:
        return
    for start, vectors in _chunks(rows):
        writer.add(store_id, list(make_files(start, vectors)))
    writer.maintain(store_id)


def find_nearest(questions: FloatMatrix, rows: int) -> tuple[Truth, Truth]:
    """The truly nearest passages of a store, and of one percent of it."""
    best: dict[bool, list[list[tuple[float, int]]]] = {only: [[] for _ in questions] for only in (False, True)}
    for start, vectors in _chunks(rows):
        numbers = range(start, start + len(vectors))
        for only, found in best.items():
            chosen = np.array(one_percent_of(numbers) if only else numbers)
            cosines = questions @ vectors[chosen - start].T
            for question, row in enumerate(cosines):
                nearest = np.argpartition(-row, min(K, len(row) - 1))[:K]
                found[question] += [(float(row[each]), int(chosen[each])) for each in nearest]
                found[question] = sorted(found[question], reverse=True)[:K]
    everything, one_percent = (
        [{_passage_id(number) for _, number in each} for each in best[only]] for only in (False, True)
    )
    return everything, one_percent


async def time_serially(search: Search, truth: Truth | None = None) -> Figures:
    """All questions, one after the other, after a first round to warm up."""
    times_ms, recalls = [], []
    for question in [*range(QUESTIONS), *range(QUESTIONS)]:
        began = time.perf_counter()
        found = await search(question)
        times_ms.append(1e3 * (time.perf_counter() - began))
        if truth is not None:
            recalls.append(len(truth[question].intersection(found)) / K)
    warm = sorted(times_ms[QUESTIONS:])
    return Figures(median(warm), warm[int(0.99 * len(warm))], float(np.mean(recalls)) if recalls else 0.0)


async def count_per_second(search: Search) -> float:
    questions = iter([*range(QUESTIONS), *range(QUESTIONS)])

    async def client() -> None:
        for question in questions:
            await search(question)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return 2 * QUESTIONS / (time.perf_counter() - began)


async def lancedb_search(folder: Path, store_id: str, vectors: FloatMatrix) -> Search:
    """The same search by LanceDB's own API, as one would write it for a single table."""
    database = await lancedb.connect_async(folder, read_consistency_interval=timedelta(0))
    table = await database.open_table(store_id)
    # What a passage is made from: all but its vector, its fence, and the columns of its attributes.
    names = [name for name in (await table.schema()).names if name not in ("vector", "fence")]
    columns = [*(name for name in names if not name.startswith(("s_", "n_"))), "_distance"]

    async def find(question: int) -> list[str]:
        query = table.query().nearest_to(vectors[question]).distance_type("cosine").nprobes(60).refine_factor(4)
        found = await query.limit(K).select(columns).to_list()
        return [row["passage_id"] for row in found]

    return find


def measure_chroma(folder: Path) -> None:
    """Print the time and recall of the search of one percent in Chroma, if it can be imported."""
    try:
        chromadb = importlib.import_module("chromadb")
    except ImportError:
        print("\nChroma is not installed.")
        return
    client = chromadb.PersistentClient(str(folder / "chroma"))
    collection = client.create_collection(
        "passages", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    )
    for start, vectors in _chunks(CHROMA_ROWS):
        passages = [
            (f"{file.file_id}-{number}", vector, {"tenant": file.attributes["tenant"]}, piece.text)
            for file in make_files(start, vectors)
            for number, (vector, piece) in enumerate(zip(file.vectors, file.pieces, strict=True))
        ]
        for begin in range(0, len(passages), 5000):
            ids, embeddings, metadatas, documents = zip(*passages[begin : begin + 5000], strict=True)
            collection.add(
                ids=list(ids), embeddings=list(embeddings), metadatas=list(metadatas), documents=list(documents)
            )
    questions = make_vectors(QUESTIONS_SEED, QUESTIONS)
    _, truth = find_nearest(questions, CHROMA_ROWS)

    async def find(question: int) -> list[str]:
        found = collection.query(query_embeddings=[questions[question]], n_results=K, where={"tenant": "t7"})
        return list(found["ids"][0])

    figures = asyncio.run(time_serially(find, truth))
    print(f"\nChroma, 1 % of {CHROMA_ROWS:,}: p50 {figures.p50_ms:.1f} ms, recall@10 {figures.recall:.4f}.")


def _chunks(rows: int) -> Iterator[tuple[int, FloatMatrix]]:
    for start in range(0, rows, CHUNK):
        yield start, make_vectors(start, min(CHUNK, rows - start))


def _passage_id(number: int) -> str:
    return f"{file_id(number)}-{number % 20}"


if __name__ == "__main__":
    main()
