"""Follow-up questions over XQuAD ("And in 1999?"): how often the passage that answers is among the first five.

`followups.jsonl` holds 46 dialogues: a question of XQuAD by its id, a question of ours that leaves out what it is
about, and the document that answers it, in a third of them another one than the first question's. Without `--url` the
library is asked, for the question as it is and widened by the one before; the control are XQuAD's own questions, each
after one of another article and after one of the same, since a question that needs nothing must not be harmed. With
`--url` a served application is asked, also with `rewrite_query`: its own model then restates the question.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from bench.eval import read_documents, upload
from bench.figures import found, parse_arguments
from bench.retrieval import Collection
from serve_app.config import EncoderConfig
from serve_app.generation.question import widen
from serve_app.knowledge.encode import TextEncoder, load_encoder
from serve_app.knowledge.search import IndexReader
from serve_app.search import Search, find_passages
from serve_app.types import FloatMatrix, Json
from serve_app.types.knowledge import Passage, Ranking, SearchQuery, StoreTable

ROOT = Path(__file__).resolve().parent.parent
STORE = "vs_d0"
HITS_AT = 5


@dataclass(frozen=True, slots=True)
class Dialogue:
    first: str
    answer: str
    """Of the first question."""
    second: str
    document_id: str
    """Which answers the second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--url", help="a served application, e.g. http://127.0.0.1:8000")
    arguments = parse_arguments(parser)
    folder = arguments.data / "xquad"
    if arguments.url:
        asyncio.run(ask_served(arguments.url, folder))
    else:
        asyncio.run(ask_library(folder))


async def ask_library(folder: Path) -> None:
    encoder = load_encoder(EncoderConfig())
    sets = {
        "follow-ups": follow_ups(folder),
        "after another article": controls(folder, same_article=False),
        "after the same article": controls(folder, same_article=True),
    }
    with tempfile.TemporaryDirectory() as index_folder:
        Collection(Path(index_folder), STORE, encoder, read_lines(folder / "documents.jsonl"))
        parts = LibraryParts(encoder, Path(index_folder))
        print(f"| questions | | as asked | only widened | both, as served |\n|---|---|{'---|' * 3}")
        for name, dialogues in sets.items():
            shares = [await hits(dialogues, how, parts) / len(dialogues) for how in ("asked", "widened", "both")]
            found(f"questions, {name}: hit@5 as served", shares[-1])
            print(f"| {name} | {len(dialogues)} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)


async def hits(dialogues: Sequence[Dialogue], how: str, parts: Any) -> int:
    search = Search({STORE: StoreTable("all-minilm-l6-v2")}, max_passages=HITS_AT, filter=None, ranking=Ranking())
    total = 0
    for each in dialogues:
        widened = widen(each.second, [{"role": "user", "content": each.first}]) or each.second
        queries = {"asked": (each.second,), "widened": (widened,), "both": (each.second, widened)}[how]
        total += each.document_id in [passage.filename for passage in await find_passages(search, queries, parts)]
    return total


class LibraryParts:
    """As much of `Parts` as a search takes."""

    def __init__(self, encoder: TextEncoder, folder: Path) -> None:
        self.query_embedder = self.retriever = self
        self.reranker = None
        self._encoder, self._reader = encoder, IndexReader(folder)

    async def embed(self, texts: Sequence[str], _store_ids: Sequence[str], _model: str) -> FloatMatrix:
        return self._encoder.encode(texts)

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        return await self._reader.search(query)


async def ask_served(url: str, folder: Path) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        store_id = await upload(client, "xquad", read_documents(folder / "documents.jsonl"))
        dialogues = follow_ups(folder)
        for rewrites in (False, True):
            found = [await ask(client, store_id, each, rewrites) for each in dialogues]
            share = sum(hit for hit, _ in found) / len(found)
            print(f"| follow-ups over HTTP, rewrite_query: {rewrites} | {len(found)} | {share:.3f} |", flush=True)
            for each, (hit, queries) in zip(dialogues, found, strict=True):
                print(f"{'hit ' if hit else 'MISS'} {each.first!r}, {each.second!r} -> {queries[-1]!r}")


async def ask(client: openai.AsyncOpenAI, store_id: str, dialogue: Dialogue, rewrites: bool) -> tuple[bool, list[str]]:
    spoken: Any = [
        {"role": "user", "content": dialogue.first},
        {"role": "assistant", "content": dialogue.answer},
    ]
    conversation = await client.conversations.create(items=spoken)
    tool: Any = {
        "type": "file_search",
        "vector_store_ids": [store_id],
        "max_num_results": HITS_AT,
        "rewrite_query": rewrites,
    }
    response = await client.responses.create(
        input=dialogue.second,
        conversation=conversation.id,
        tools=[tool],
        include=["file_search_call.results"],
        max_output_tokens=1,
    )
    call: Any = response.output[0]
    return dialogue.document_id in [each.filename.removesuffix(".txt") for each in call.results], call.queries


def follow_ups(folder: Path) -> list[Dialogue]:
    questions = {each["_id"]: each for each in read_lines(folder / "questions.jsonl")}
    dialogues = []
    for each in read_lines(Path(__file__).with_suffix(".jsonl")):
        first = questions[each["question_id"]]
        dialogues.append(Dialogue(first["question"], first["answers"][0], each["follow_up"], each["document_id"]))
    return dialogues


def controls(folder: Path, *, same_article: bool) -> list[Dialogue]:
    """Every question of XQuAD, after another one."""
    generator = random.Random(0)
    questions = read_lines(folder / "questions.jsonl")
    dialogues = []
    for each in questions:
        others = [
            other for other in questions if other is not each and (article(other) == article(each)) == same_article
        ]
        first = generator.choice(others)
        dialogues.append(Dialogue(first["question"], first["answers"][0], each["question"], each["document_id"]))
    return dialogues


def article(question: Json) -> str:
    name: str = question["document_id"].rpartition("-")[0]
    return name


def read_lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
