"""From the upload to the search: Cranfield's abstracts over HTTP, beside the bare encoder and the lessons' own stack.

    python -m bench.ingestion

One after the other: an application that is started for it ingests all abstracts; the same encoder encodes the same
passages and does nothing else; `SentenceTransformer.encode` in float32 feeds Chroma, if chromadb is installed, which
the lock file does not ask for. Prints passages per second, and the application's as ratios.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai

from bench.eval import Document, read_documents, upload
from bench.figures import found, parse_arguments
from bench.servers import ROOT
from serve_app.config import EncoderConfig
from serve_app.knowledge.encode import load_encoder
from serve_app.knowledge.split import passage_size, split, texts_to_encode
from serve_app.models import resolve_model
from tests.served.application import serving

CHROMA = "SentenceTransformer in float32, and Chroma"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cranfield")
    parser.add_argument("--documents", type=int, help="only the first so many")
    arguments = parse_arguments(parser)
    documents = read_documents(arguments.data / "corpus.jsonl")[: arguments.documents]
    texts = passages_of(documents)

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as application:
        ours = len(texts) / asyncio.run(through_the_api(application.url, documents))
    rates = {"Rayconteur, from upload to searchable": ours, "its encoder alone": len(texts) / encoding(texts)}
    if find_spec("chromadb"):
        rates[CHROMA] = len(texts) / with_chroma(texts)

    print(
        f"{len(documents)} files, {len(texts)} passages\n\n| what | passages/s | Rayconteur's, of it |\n|---|---|---|"
    )
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {ours / rate:.2f} |")
    found("ingestion: passages/s of its encoder alone", ours / rates["its encoder alone"], at_least=0.8)
    if CHROMA in rates:
        found("ingestion: times as fast as the lessons' own stack", ours / rates[CHROMA], at_least=3)


def passages_of(documents: Sequence[Document]) -> list[str]:
    encoder = load_encoder(EncoderConfig())
    size = passage_size({"type": "auto"}, encoder.max_tokens)
    texts = []
    for document in documents:
        pieces = split(document.text, encoder.tokenizer, size.max_tokens, size.overlap_tokens)
        texts += texts_to_encode(document.text, pieces)
    return texts


async def through_the_api(url: str, documents: Sequence[Document]) -> float:
    """Seconds until the last can be found."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        began = time.monotonic()
        await upload(client, "cranfield", documents)
        return time.monotonic() - began


def encoding(texts: Sequence[str]) -> float:
    encoder = load_encoder(EncoderConfig())
    encoder.encode(texts[:64])  # loads and compiles
    began = time.monotonic()
    encoder.encode(texts)
    return time.monotonic() - began


def with_chroma(texts: Sequence[str]) -> float:
    """The lessons' own way: encode all, add all."""
    from sentence_transformers import SentenceTransformer

    chromadb: Any = import_module("chromadb")
    model = SentenceTransformer(str(resolve_model(EncoderConfig().model_source)), device="cpu")
    model.encode(list(texts[:64]))
    with tempfile.TemporaryDirectory() as folder:
        collection = chromadb.PersistentClient(path=folder).create_collection("cranfield", embedding_function=None)
        began = time.monotonic()
        vectors = model.encode(list(texts))
        for start in range(0, len(texts), 5000):
            chosen = slice(start, start + 5000)
            ids = [str(number) for number in range(len(texts))[chosen]]
            collection.add(ids=ids, embeddings=vectors[chosen], documents=list(texts[chosen]))
        return time.monotonic() - began


if __name__ == "__main__":
    main()
