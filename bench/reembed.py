"""A store that moves to another encoder while it is searched: how fast, and what searches notice.

    python -m bench.reembed

In one process, without Ray: Cranfield's abstracts, the default encoder, and one with 2 of its 6 layers. Prints the
passages per second of the move beside those of the encoder alone, and the times of searches.
"""

import argparse
import asyncio
import io
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from bench.eval import Document, read_documents
from bench.figures import found, parse_arguments
from bench.servers import ROOT
from serve_app.config import EncoderConfig, IngestionConfig, RetentionConfig, StorageConfig
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.documents import NewFile
from serve_app.knowledge.encode import load_encoders
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.ingest import Ingestor
from serve_app.knowledge.parse import detect_media_type
from serve_app.knowledge.reembed import Reembedder
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import passage_size, split, texts_to_encode
from serve_app.knowledge.versions import Versions
from serve_app.storage.database import open_database
from serve_app.storage.files import FileStore
from serve_app.types.knowledge import Ranking, SearchQuery
from tests.encoder import write_encoder

FIRST, OTHER = "all-minilm-l6-v2", "two-layers"
BATCH = 500


class Bench:
    def __init__(self, folder: Path, documents: Sequence[Document]) -> None:
        storage = StorageConfig(folder=folder)
        self.database = open_database(storage.resolved_database_url)
        other = EncoderConfig(model_id=OTHER, model_source=write_encoder(folder / "model"))
        self.encoders = load_encoders([EncoderConfig(), other], "THROUGHPUT")
        for encoder in self.encoders.values():
            encoder.encode(["ready?"])
        self.files = FileStore(self.database, storage.files_folder)
        self.catalog = Catalog(self.database, FIRST, OTHER)
        self.index = IndexWriter(storage.vectors_folder)
        self.reader = IndexReader(storage.vectors_folder)
        self.versions = Versions(self.database, self.index, RetentionConfig())
        parts = (self.database, self.files, self.encoders, self.index, self.versions, IngestionConfig())
        self.ingestor, self.reembedder = Ingestor(*parts), Reembedder(*parts)
        self.documents = documents
        self.store_id = str(self.catalog.create_store()["id"])

    def fill(self) -> None:
        file_ids = [
            self.files.save(
                io.BytesIO(document.text.encode()),
                f"{number}.txt",
                "assistants",
                detect_media_type=detect_media_type,
                max_bytes=10**8,
            )["id"]
            for number, document in enumerate(self.documents)
        ]
        for start in range(0, len(file_ids), BATCH):
            self.catalog.create_batch(self.store_id, [NewFile(each) for each in file_ids[start : start + BATCH]])
        while self.ingestor.run_once():
            pass

    def move(self, model: str) -> float:
        started = time.monotonic()
        self.catalog.reembed(self.store_id, model)
        self.reembedder.run_once()
        store = self.catalog.get_store(self.store_id)
        assert store["model"] == model, store["reembedding"]
        return time.monotonic() - started

    async def search(self, text: str) -> float:
        """Milliseconds, the question's embedding included."""
        started = time.perf_counter()
        (table,) = self.catalog.require_stores([self.store_id]).values()
        (vector,) = await asyncio.to_thread(self.encoders[table.encoder].encode, [text])
        query = SearchQuery(self.store_id, text, vector, 10, ranking=Ranking(), table_suffix=table.suffix)
        found = await self.reader.search(query)
        assert len(found) == 10
        return 1e3 * (time.perf_counter() - started)

    async def searches(self, until: threading.Event) -> list[float]:
        """One after the other, until it is set and at least a hundred times."""
        times: list[float] = []
        while not until.is_set() or len(times) < 100:
            times.append(await self.search(self.documents[len(times) % len(self.documents)].text[:100]))
        return times

    def passages(self) -> int:
        return self.index.describe(self.versions.table(self.store_id)).passages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cranfield")
    parser.add_argument("--documents", type=int, help="only the first so many")
    arguments = parse_arguments(parser)
    documents = [each for each in read_documents(arguments.data / "corpus.jsonl") if each.text.strip()]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), documents[: arguments.documents])
        with closing(bench.database):
            asyncio.run(run(bench))


async def run(bench: Bench) -> None:
    await asyncio.to_thread(bench.fill)
    idle = threading.Event()
    idle.set()
    times = {"before the move": await bench.searches(idle)}
    ended = threading.Event()
    searching = asyncio.create_task(bench.searches(ended))
    under_load = await asyncio.to_thread(bench.move, OTHER)
    ended.set()
    times["during the move"] = await searching
    times["after it"] = await bench.searches(idle)
    back = await asyncio.to_thread(bench.move, FIRST)
    alone = await asyncio.to_thread(bench.move, OTHER)
    passages = bench.passages()
    print(f"{len(bench.documents)} files, {passages} passages of {OTHER}\n")
    print(f"the move, searched all the while: {under_load:.1f} s, {passages / under_load:.0f} passages/s")
    print(f"its encoder alone: {passages / encoding(bench):.0f} passages/s")
    print(f"back, and once more, with nothing changed: {back:.2f} s and {alone:.2f} s\n")
    found("move to another encoder, searched meanwhile: passages/s", passages / under_load)
    print("| searches | number | p50 ms | p99 ms | longest ms |\n|---|---|---|---|---|")
    for name, each in times.items():
        p50, p99 = np.percentile(each, [50, 99])
        found(f"searches {name}: p99", p99, "ms")
        print(f"| {name} | {len(each)} | {p50:.1f} | {p99:.1f} | {max(each):.1f} |")


def encoding(bench: Bench) -> float:
    """Seconds for the same passages in one call."""
    encoder = bench.encoders[OTHER]
    size = passage_size({"type": "auto"}, encoder.max_tokens)
    texts: list[str] = []
    for path in sorted(bench.files.path("").iterdir()):
        text = path.read_text()
        texts += texts_to_encode(text, split(text, encoder.tokenizer, size.max_tokens, size.overlap_tokens))
    started = time.monotonic()
    encoder.encode(texts)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
