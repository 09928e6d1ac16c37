"""What many small changes leave: 500 rounds of "add 20 passages, search", against the same store built at once.

Maintenance runs beside it as in the indexer, and nobody calls it. The last 10 versions are tagged, as they are kept by
default. Prints a Markdown table. Takes three minutes, most of it until old versions may be removed.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event, Thread

import lancedb
import numpy as np

from bench.figures import found, parse_arguments
from bench.passages import FILE_PASSAGES, make_files, make_texts, make_vectors
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.maintenance import KEEP_VERSIONS_FOR
from serve_app.knowledge.search import IndexReader
from serve_app.types.knowledge import Ranking, SearchQuery

CHURNED, FRESH = "vs_c0", "vs_f0"
KEPT_VERSIONS = 10
QUESTIONS = 100
QUESTIONS_SEED = 2**32
LOOK_EVERY_S = 1.0
RANKINGS = {"vectors": Ranking(text_weight=0), "words": Ranking(embedding_weight=0), "both": Ranking()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = IndexWriter(folder)
        build(writer, arguments.rounds)
        with maintained(writer):
            rounds_s = asyncio.run(churn(folder, writer, arguments.rounds))
            at_once = asyncio.run(measure(folder))
            time.sleep(KEEP_VERSIONS_FOR.total_seconds() + 20)
        later = asyncio.run(measure(folder))
        print(f"{arguments.rounds} rounds in {rounds_s:.0f} s\n")
        print("| | built at once | churned | ratio | ratio right after the last round |\n|---|---|---|---|---|")
        for name, (fresh_ms, churned_ms) in later.items():
            print(
                f"| search by {name}, p50 ms | {fresh_ms:.1f} | {churned_ms:.1f} | {churned_ms / fresh_ms:.2f}"
                f" | {at_once[name][1] / at_once[name][0]:.2f} |"
            )
            what = f"after {arguments.rounds} rounds: search by {name}, times a fresh store's"
            found(what, churned_ms / fresh_ms, at_most=1.5)
        fresh_mb, churned_mb = size_mb(folder, FRESH), size_mb(folder, CHURNED)
        print(f"| disk, MB | {fresh_mb:.1f} | {churned_mb:.1f} | {churned_mb / fresh_mb:.2f} | |")
        found(f"after {arguments.rounds} rounds: disk, times a fresh store's", churned_mb / fresh_mb, at_most=1.5)


async def churn(folder: Path, writer: IndexWriter, rounds: int) -> float:
    """Add and search. Returns how many seconds it took."""
    reader = IndexReader(folder)
    database = lancedb.connect(folder)
    began = time.monotonic()
    for number in range(rounds):
        start = number * FILE_PASSAGES
        await asyncio.to_thread(writer.add, CHURNED, list(make_files(start, make_vectors(start, FILE_PASSAGES))))
        table = database.open_table(CHURNED)
        table.tags.create(f"v{number}", table.version)
        if number >= KEPT_VERSIONS:
            table.tags.delete(f"v{number - KEPT_VERSIONS}")
        question = make_vectors(QUESTIONS_SEED, 1)[0]
        await reader.search(SearchQuery(CHURNED, make_texts(QUESTIONS_SEED, 1, 6)[0], question))
    return time.monotonic() - began


def build(writer: IndexWriter, rounds: int) -> None:
    vectors = np.concatenate([make_vectors(each * FILE_PASSAGES, FILE_PASSAGES) for each in range(rounds)])
    writer.add(FRESH, list(make_files(0, vectors)))
    writer.maintain(FRESH)


async def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """The p50 in ms of each kind of search, in the fresh store and in the other, asked in turn; all is warm."""
    reader = IndexReader(folder)
    vectors, texts = make_vectors(QUESTIONS_SEED, QUESTIONS), make_texts(QUESTIONS_SEED, QUESTIONS, 6)
    p50s_ms = {}
    for name, ranking in RANKINGS.items():
        times_ms: dict[str, list[float]] = {FRESH: [], CHURNED: []}
        for question in [*range(QUESTIONS), *range(QUESTIONS)]:
            for store_id, times in times_ms.items():
                began = time.perf_counter()
                await reader.search(SearchQuery(store_id, texts[question], vectors[question], ranking=ranking))
                times.append(1e3 * (time.perf_counter() - began))
        p50s_ms[name] = (median(times_ms[FRESH][QUESTIONS:]), median(times_ms[CHURNED][QUESTIONS:]))
    return p50s_ms


@contextmanager
def maintained(writer: IndexWriter) -> Iterator[None]:
    """As the indexer does it."""
    is_done = Event()

    def maintain() -> None:
        while not is_done.is_set():
            if not writer.maintain_next():
                is_done.wait(LOOK_EVERY_S)

    thread = Thread(target=maintain)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def size_mb(folder: Path, store_id: str) -> float:
    return sum(path.stat().st_size for path in (folder / f"{store_id}.lance").rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    main()
