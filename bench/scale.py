"""Search of small and large stores: time, recall and queries per second, through the retriever's own code.

Prints a Markdown table. Vectors and texts are made up (see `passages.py`); the questions' vectors are not part of the
times. Chroma is measured beside it, at 100,000 passages, if it is installed, which the lock file does not ask for.
"""

import argparse
import asyncio
import contextlib
import importlib
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
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.search import IndexReader
from serve_app.types import FloatMatrix, Passage, Ranking, SearchQuery

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

Truth = list[set[str]]
"""For each question the ids of the nearest passages."""
Search = Callable[[int], Awaitable[Sequence[str]]]
"""The ids of the passages found for the question of this number."""


@dataclass(frozen=True, slots=True)
class Figures:
    p50_ms: float
    p99_ms: float
    recall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--folder", type=Path, help="where the stores are kept, and used again; otherwise a temporary one"
    )
    arguments = parse_arguments(parser)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(HEADER)
        p50s_ms = {rows: asyncio.run(measure(folder, rows)) for rows in arguments.rows}
        if len(p50s_ms) > 1:
            smallest, largest = min(p50s_ms), max(p50s_ms)
            growth = p50s_ms[largest] / p50s_ms[smallest]
            print(f"\nFrom {smallest:,} to {largest:,} passages the p50 grows {growth:.2f} times.")
            tell(f"search: growth of the p50 from {smallest:,} to {largest:,} passages, times", growth, at_most=3)
        if CHROMA_ROWS in arguments.rows:
            measure_chroma(folder)


async def measure(folder: Path, rows: int) -> float:
    """Print the row of the table for a store of so many passages, and return the p50 of its vector search in ms."""
    store_id = f"vs_{rows:x}"
    build(folder, store_id, rows)
    vectors, texts = make_vectors(QUESTIONS_SEED, QUESTIONS), make_texts(QUESTIONS_SEED, QUESTIONS, words=6)
    truth, truth_of_one_percent = find_nearest(vectors, rows)
    reader = IndexReader(folder)

    def query(question: int, **changes: Any) -> SearchQuery:
        return SearchQuery(store_id, texts[question], vectors[question], K, **({"ranking": VECTORS} | changes))

    def search(**changes: Any) -> Search:
        async def find(question: int) -> list[str]:
            return _ids(await reader.search(query(question, **changes)))

        return find

    everything = await time_serially(search(), truth)
    one_percent = await time_serially(search(filter=ONE_PERCENT), truth_of_one_percent)
    words = await time_serially(search(ranking=Ranking(embedding_weight=0)))
    both = await time_serially(search(ranking=Ranking()))
    direct = await lancedb_search(folder, store_id, vectors)
    ours_per_s, direct_per_s = [], []
    for _ in range(3):
        direct_per_s.append(await count_per_second(direct))
        ours_per_s.append(await count_per_second(search()))
    ratio = median(ours_per_s) / median(direct_per_s)
    print(
        f"| {rows:,} | {everything.p50_ms:.1f} | {everything.p99_ms:.1f} | {everything.recall:.4f}"
        f" | {one_percent.p50_ms:.1f} | {one_percent.recall:.4f} | {words.p50_ms:.1f} | {both.p50_ms:.1f}"
        f" | {median(ours_per_s):.0f} | {ratio:.2f} |",
        flush=True,
    )
    if rows >= 100_000:
        tell(f"search of {rows:,} passages: p50", everything.p50_ms, "ms", at_most=10 if rows <= 100_000 else 15)
    tell(f"search of {rows:,} passages: recall@10", everything.recall, at_least=0.99)
    filtered = one_percent.p50_ms / everything.p50_ms
    tell(f"search of 1 % of {rows:,} passages: p50, times that of all", filtered, at_most=2)
    tell(f"search of {rows:,} passages: queries/s of LanceDB's own, 16 clients", ratio, at_least=0.8)
    return everything.p50_ms


def build(folder: Path, store_id: str, rows: int) -> None:
    """A store as the indexer makes and maintains it, if it is not there."""
    writer = IndexWriter(folder)
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


def _ids(passages: Sequence[Passage]) -> list[str]:
    return [passage.passage_id for passage in passages]


if __name__ == "__main__":
    main()
