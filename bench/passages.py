"""Passages made up for benchmarks: unit vectors in a thousand clusters, and words as frequent as words are.

The vectors of a cluster differ in all directions, so that its passages are almost equally near to a question: that is
harder for an approximate index than what encoders make.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from serve_app.knowledge.index import FilePassages
from serve_app.knowledge.split import Piece
from serve_app.types import FloatMatrix
from serve_app.types.knowledge import Comparison

DIMENSIONS = 384
FILE_PASSAGES = 20
ONE_PERCENT = Comparison("eq", "tenant", "t7")

_CLUSTERS = 1000
_SPREAD = 0.8
"""Length of what is added to a cluster's unit vector: two of a cluster have a cosine of about 0.6."""
_TENANTS = 100
_VOCABULARY = np.array([f"word{number:x}" for number in range(30_000)])
_ZIPF = 1.2
_PASSAGE_WORDS = 60


def make_vectors(seed: int, count: int) -> FloatMatrix:
    centres = _unit(np.random.default_rng(0).standard_normal((_CLUSTERS, DIMENSIONS), dtype=np.float32))
    generator = np.random.default_rng(seed + 1)
    noise = generator.standard_normal((count, DIMENSIONS), dtype=np.float32)
    return _unit(centres[generator.integers(_CLUSTERS, size=count)] + _SPREAD / np.sqrt(DIMENSIONS) * noise)


def make_texts(seed: int, count: int, words: int = _PASSAGE_WORDS) -> list[str]:
    ranks = np.minimum(np.random.default_rng(seed).zipf(_ZIPF, size=(count, words)), len(_VOCABULARY)) - 1
    return [" ".join(row) for row in _VOCABULARY[ranks]]


def make_files(start: int, vectors: FloatMatrix) -> Iterator[FilePassages]:
    """Files of 20 passages each, of a hundred tenants in turn; the first holds passage number `start` of the store."""
    texts = make_texts(start, len(vectors))
    for offset in range(0, len(vectors), FILE_PASSAGES):
        number = (start + offset) // FILE_PASSAGES
        yield FilePassages(
            file_id=file_id(start + offset),
            filename=f"document-{number}.md",
            attributes={"tenant": f"t{number % _TENANTS}", "year": 1950.0 + number % 77},
            pieces=[Piece(text, 400 * each) for each, text in enumerate(texts[offset : offset + FILE_PASSAGES])],
            vectors=vectors[offset : offset + FILE_PASSAGES],
        )


def file_id(passage: int) -> str:
    """Of the file that holds this passage of the store."""
    return f"file-{passage // FILE_PASSAGES:048x}"


def one_percent_of(passages: Sequence[int]) -> list[int]:
    """Those of a store that `ONE_PERCENT` lets through."""
    return [passage for passage in passages if passage // FILE_PASSAGES % _TENANTS == 7]


def _unit(vectors: FloatMatrix) -> FloatMatrix:
    lengths: FloatMatrix = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
