"""Quality through the API, as a client gets it: retrieval on Cranfield and XQuAD, and XQuAD's answers on request.

Uploads the collections into two new stores of a served application (one that it starts itself in a folder of its own,
unless `--url` names one), searches with the default settings, hybrid, and prints a Markdown table. The collections are
read from `../shared/data`; `--answers N` also asks the model the first N questions of XQuAD, and `--reranked` shows
what the cross-encoder of the application under `--url` gains or loses.
"""

import argparse
import asyncio
import io
import json
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import openai
from ir_measures import Qrel, R, ScoredDoc, nDCG

from bench.figures import found as tell
from bench.figures import parse_arguments
from bench.servers import ROOT, served

CONCURRENCY = 8
FILES_PER_BATCH = 50

# `ranking_options` as they are sent.
MODES: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "vector": {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}},
    "text": {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}},
}
RERANKED: dict[str, dict[str, Any]] = {"hybrid, reranked": {"ranker": "cross-encoder"}}


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--url", help="a served application, e.g. http://127.0.0.1:8000; default: start one")
    parser.add_argument("--answers", type=int, default=0, metavar="N", help="XQuAD questions to put to the model")
    parser.add_argument("--reranked", action="store_true", help="also search with the configured cross-encoder")
    arguments = parse_arguments(parser)
    modes = MODES | RERANKED if arguments.reranked else MODES
    for collection in ("cranfield", "xquad"):
        if not (arguments.data / collection).is_dir():
            parser.error(f"there is no {arguments.data / collection}: name the folder of the collections with --data")
    with served(arguments.url) as url:
        asyncio.run(evaluate(url, arguments.data, arguments.answers, modes))


async def evaluate(url: str, data: Path, answers: int, modes: dict[str, dict[str, Any]]) -> None:
    print("| collection | search | nDCG@10 | Recall@10 | hit@5 |\n|---|---|---|---|---|")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        await evaluate_cranfield(client, data / "cranfield", modes)
        await evaluate_xquad(client, data / "xquad", answers, modes)


async def evaluate_cranfield(client: openai.AsyncOpenAI, data: Path, modes: dict[str, dict[str, Any]]) -> None:
    store_id = await upload(client, "cranfield", read_documents(data / "corpus.jsonl"))
    queries = {row["_id"]: row["text"] for row in read_lines(data / "queries.jsonl")}
    judgments = [line.split("\t") for line in (data / "qrels.tsv").read_text().splitlines()[1:]]
    qrels = [Qrel(query_id, document_id, int(float(score))) for query_id, document_id, score in judgments]
    for mode, options in modes.items():
        found = await search_all(client, store_id, list(queries.values()), options)
        run = [
            ScoredDoc(query_id, document_id, score)
            for query_id, ranked in zip(queries, found, strict=True)
            for document_id, score in ranked.items()
        ]
        measured = ir_measures.calc_aggregate([nDCG @ 10, R @ 10], qrels, run)
        print(f"| Cranfield | {mode} | {measured[nDCG @ 10]:.3f} | {measured[R @ 10]:.3f} | |", flush=True)
        tell(f"Cranfield, {mode}: nDCG@10", measured[nDCG @ 10], at_least=0.55 if mode == "hybrid" else None)


async def evaluate_xquad(
    client: openai.AsyncOpenAI, data: Path, answers: int, modes: dict[str, dict[str, Any]]
) -> None:
    store_id = await upload(client, "xquad", read_documents(data / "documents.jsonl"))
    questions = read_lines(data / "questions.jsonl")
    for mode, options in modes.items():
        found = await search_all(client, store_id, [row["question"] for row in questions], options)
        hits = [row["document_id"] in list(ranked)[:5] for row, ranked in zip(questions, found, strict=True)]
        print(f"| XQuAD | {mode} | | | {sum(hits) / len(hits):.3f} |", flush=True)
        tell(f"XQuAD, {mode}: hit@5", sum(hits) / len(hits), at_least=0.99 if mode == "hybrid" else None)
    if answers:
        scores = [await answer_f1(client, store_id, row) for row in questions[:answers]]
        print(f"\nXQuAD, {answers} answers of the model over the passages: token F1 {sum(scores) / len(scores):.3f}")


async def upload(client: openai.AsyncOpenAI, name: str, documents: Sequence[Document]) -> str:
    """A new store with one text file for each document; returns once it can all be searched."""
    began = time.monotonic()
    store = await client.vector_stores.create(name=name)
    limit = asyncio.Semaphore(CONCURRENCY)

    async def upload_one(document: Document) -> str:
        async with limit:
            content = io.BytesIO(document.text.encode())
            file = await client.files.create(file=(f"{document.id}.txt", content), purpose="assistants")
            return file.id

    # Attached as they come, so that the first are ingested while the last are uploaded.
    batches = []
    for start in range(0, len(documents), FILES_PER_BATCH):
        file_ids = await asyncio.gather(*map(upload_one, documents[start : start + FILES_PER_BATCH]))
        batches.append(await client.vector_stores.file_batches.create(store.id, file_ids=file_ids))
    for batch in batches:
        done = await client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id, poll_interval_ms=500)
        assert done.file_counts.failed == 0, done
    elapsed_s = time.monotonic() - began
    print(f"{name}: {len(documents)} files searchable after {elapsed_s:.0f} s", file=sys.stderr, flush=True)
    return store.id


async def search_all(
    client: openai.AsyncOpenAI, store_id: str, queries: Sequence[str], options: dict[str, Any]
) -> list[dict[str, float]]:
    """For each query its documents, best first, each with the score of its best passage."""
    limit = asyncio.Semaphore(CONCURRENCY)
    ranking: Any = {"extra_body": {"ranking_options": options}} if options else {}

    async def search_one(query: str) -> dict[str, float]:
        async with limit:
            page = await client.vector_stores.search(store_id, query=query, max_num_results=50, **ranking)
        best: dict[str, float] = {}
        for passage in page.data:
            best.setdefault(passage.filename.removesuffix(".txt"), passage.score)
        return best

    return list(await asyncio.gather(*map(search_one, queries)))


async def answer_f1(client: openai.AsyncOpenAI, store_id: str, row: dict[str, Any]) -> float:
    (model,) = [each.id async for each in client.models.list()][:1]
    response = await client.responses.create(
        model=model,
        instructions="Answer with as few words as possible.",
        input=row["question"],
        tools=[{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 3}],
        max_output_tokens=32,
        temperature=0,
        store=False,
    )
    return max(token_f1(response.output_text, expected) for expected in row["answers"])


def token_f1(answer: str, expected: str) -> float:
    """SQuAD's: overlap of words, without case, punctuation and articles (Rajpurkar et al. 2016)."""

    def words(text: str) -> list[str]:
        plain = "".join(character for character in text.lower() if character not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", plain).split()

    ours, theirs = words(answer), words(expected)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def read_documents(path: Path) -> list[Document]:
    return [Document(row["_id"], f"{row['title']}\n\n{row['text']}") for row in read_lines(path) if row["text"].strip()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
