"""How well the default settings find what people judged relevant: Cranfield and XQuAD, without a server.

    python bench/retrieval.py [FOLDER]

Prints nDCG@10 and Recall@10 for Cranfield, hit@5 for XQuAD, each by vectors alone, by words alone, and by both.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import ir_measures
from ir_measures import Qrel, R, ScoredDoc, nDCG

from serve_app.config import EncoderConfig
from serve_app.knowledge.encode import TextEncoder, load_encoder
from serve_app.knowledge.index import FilePassages, IndexWriter
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import passage_size, split, texts_to_encode
from serve_app.types import Json
from serve_app.types.knowledge import Ranking, SearchQuery

RANKINGS = {
    "vector": Ranking(text_weight=0),
    "text": Ranking(embedding_weight=0),
    "hybrid": Ranking(),
}


def main(folder: Path) -> None:
    encoder = load_encoder(EncoderConfig())
    with tempfile.TemporaryDirectory() as index_folder:
        cranfield = Collection(Path(index_folder), "vs_c0", encoder, _read(folder / "cranfield" / "corpus.jsonl"))
        queries = {each["_id"]: each["text"] for each in _read(folder / "cranfield" / "queries.jsonl")}
        qrels = _qrels(folder / "cranfield" / "qrels.tsv")
        for name, ranking in RANKINGS.items():
            found = asyncio.run(cranfield.search(queries, ranking, files=10))
            run = [ScoredDoc(query, file, -rank) for query, ids in found.items() for rank, file in enumerate(ids)]
            # What is judged "of minimum interest" counts as relevant, as in the collection's own tables.
            measures = ir_measures.calc_aggregate([nDCG @ 10, R @ 10], qrels, run)
            print(f"cranfield {name:7} nDCG@10 {measures[nDCG @ 10]:.4f}  Recall@10 {measures[R @ 10]:.4f}")

        xquad = Collection(Path(index_folder), "vs_d0", encoder, _read(folder / "xquad" / "documents.jsonl"))
        questions = list(_read(folder / "xquad" / "questions.jsonl"))
        texts = {each["_id"]: each["question"] for each in questions}
        for name, ranking in RANKINGS.items():
            found = asyncio.run(xquad.search(texts, ranking, passages=5))
            hits = sum(each["document_id"] in found[each["_id"]] for each in questions)
            print(f"xquad     {name:7} hit@5 {hits / len(questions):.4f}")


class Collection:
    """A collection in a vector store, one file per document."""

    def __init__(self, folder: Path, store_id: str, encoder: TextEncoder, documents: Iterable[Json]) -> None:
        self._folder = folder
        self._store_id = store_id
        self._encoder = encoder
        size = passage_size({"type": "auto"}, encoder.max_tokens)
        texts = {each["_id"]: f"{each['title']}\n\n{each['text']}" for each in documents}
        pieces = {
            name: split(text, encoder.tokenizer, size.max_tokens, size.overlap_tokens) for name, text in texts.items()
        }
        started = time.perf_counter()
        vectors = encoder.encode([each for name in texts for each in texts_to_encode(texts[name], pieces[name])])
        passages_per_s = len(vectors) / (time.perf_counter() - started)
        files, start = [], 0
        for name, each in pieces.items():
            files.append(FilePassages(f"file-{name}", name, {}, each, vectors[start : start + len(each)]))
            start += len(each)
        writer = IndexWriter(folder)
        writer.add(store_id, files)
        writer.optimize(store_id)
        print(f"{store_id}: {len(files)} files, {len(vectors)} passages, encoded {passages_per_s:.0f} passages/s")

    async def search(
        self, queries: dict[str, str], ranking: Ranking, *, files: int | None = None, passages: int = 50
    ) -> dict[str, list[str]]:
        """For each query the files of the first `passages`, each once, at most `files`."""
        reader = IndexReader(self._folder)
        vectors = self._encoder.encode(list(queries.values()))
        found = {}
        for (query_id, text), vector in zip(queries.items(), vectors, strict=True):
            query = SearchQuery(self._store_id, text, vector, passages, ranking=ranking)
            names = dict.fromkeys(passage.filename for passage in await reader.search(query))
            found[query_id] = list(names)[:files]
        return found


def _read(path: Path) -> Iterable[Json]:
    with path.open() as lines:
        return [json.loads(line) for line in lines]


def _qrels(path: Path) -> list[Qrel]:
    with path.open() as lines:
        next(lines)
        return [Qrel(query, document, int(score)) for query, document, score in map(str.split, lines)]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "shared" / "data")
