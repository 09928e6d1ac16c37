"""From the upload to the search: Cranfield's abstracts over HTTP, beside the bare encoder and the lessons' own stack.

    python -m bench.ingestion

One after the other: an application that is started for it ingests all abstracts; the same encoder encodes the same
passages and does nothing else; `SentenceTransformer.encode` in float32 feeds Chroma, if chromadb is installed, which
the lock file does not ask for. Prints passages per second, and the application's as ratios; beside them as many as
there would be if all arithmetic went as fast as one large float32 matrix product, which no encoder in float32 exceeds.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openai

from bench.eval import Document, read_documents, upload
from bench.figures import found, parse_arguments
from bench.servers import ROOT
from serve_app.config import EncoderConfig
from serve_app.knowledge.encode import load_encoder
from serve_app.knowledge.split import passage_size, split, texts_to_encode
from serve_app.models import resolve_model
from tests.served.application import serving

ALONE = "its encoder alone"
CHROMA = "SentenceTransformer in float32, and Chroma"
PEAK = "a float32 matrix product's speed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cranfield")
    parser.add_argument("--documents", type=int, help="only the first so many")
    arguments = parse_arguments(parser)
    documents = read_documents(arguments.data / "corpus.jsonl")[: arguments.documents]
    texts = passages_of(documents)

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as application:
        ours = len(texts) / asyncio.run(through_the_api(application.url, documents))
    rates = {"Rayconteur, from upload to searchable": ours, ALONE: len(texts) / encoding(texts)}
    if find_spec("chromadb"):
        rates[CHROMA] = len(texts) / with_chroma(texts)
    rates[PEAK] = len(texts) / (operations(texts) / peak_operations_per_s())

    print(
        f"{len(documents)} files, {len(texts)} passages\n\n| what | passages/s | Rayconteur's, of it |\n|---|---|---|"
    )
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {ours / rate:.2f} |")
    found("ingestion: passages/s of its encoder alone", ours / rates[ALONE], at_least=0.8)
    found("ingestion: its encoder alone, of a float32 matrix product's speed", rates[ALONE] / rates[PEAK])
    if CHROMA in rates:
        found("ingestion: times as fast as the lessons' own stack", ours / rates[CHROMA], at_least=3)
        found("ingestion: a float32 matrix product, times the lessons' own stack", rates[PEAK] / rates[CHROMA])


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
    encoder = load_encoder(EncoderConfig(), "THROUGHPUT")
    encoder.encode(texts[:64])  # loads and compiles
    began = time.monotonic()
    encoder.encode(texts)
    return time.monotonic() - began


def operations(texts: Sequence[str]) -> float:
    """Multiplications and additions of the matrix products that a BERT makes of these texts, without padding."""
    encoder = load_encoder(EncoderConfig())
    shape = json.loads((Path(resolve_model(EncoderConfig().model_source)) / "config.json").read_text())
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    added = encoder.tokenizer.num_special_tokens_to_add(False)
    lengths = [min(len(each.ids), encoder.max_tokens + added) for each in encoder.tokenizer.encode_batch_fast(texts)]
    # Query, key, value and output; the two of the feed-forward network; the scores and what they weigh.
    return float(
        sum(layers * length * 2 * (4 * hidden**2 + 2 * hidden * inner + 2 * length * hidden) for length in lengths)
    )


def peak_operations_per_s() -> float:
    size = 4096
    matrix = np.random.default_rng(1).random((size, size), dtype=np.float32)
    times_s = []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        times_s.append(time.perf_counter() - began)
    return 2 * size**3 / min(times_s)


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
