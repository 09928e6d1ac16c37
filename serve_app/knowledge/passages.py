"""From a file to its passages: `read_text` takes what there is to read in it, `make_passages` cuts and encodes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.errors import InternalError
from serve_app.knowledge.distinct import first_of_each
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.parse import MARKDOWN_TYPES, extract_text
from serve_app.knowledge.place import locate
from serve_app.knowledge.split import PassageSize, Piece, passage_size, split_all, texts_to_encode
from serve_app.types import FloatMatrix, Json


@dataclass(frozen=True, slots=True)
class SourceText:
    """What there is to read in a file, and how it is to be cut."""

    text: str
    size: PassageSize
    is_markdown: bool


def read_text(
    path: Path, media_type: str, chunking_strategy: Json, encoder: TextEncoder, max_characters: int
) -> SourceText:
    """Raises `UnsupportedFile` or `InvalidRequest` for a file that cannot be used, `InternalError` if its bytes are
    lost.
    """
    try:
        text = extract_text(path, media_type, max_characters)
    except FileNotFoundError:
        raise InternalError("The content of the file is gone: upload it again") from None
    return SourceText(text, passage_size(chunking_strategy, encoder.max_tokens), media_type in MARKDOWN_TYPES)


def make_passages(sources: Sequence[SourceText], encoder: TextEncoder) -> list[tuple[list[Piece], FloatMatrix]]:
    """The passages of each and their vectors [passages, dimensions], from full batches."""
    passages = [first_of_each(pieces, lambda piece: piece.text) for pieces in _split(sources, encoder)]
    texts = [texts_to_encode(source.text, pieces) for source, pieces in zip(sources, passages, strict=True)]
    vectors = encoder.encode([text for each in texts for text in each])
    ends = np.cumsum([len(each) for each in texts])
    return list(zip(passages, np.split(vectors, ends[:-1]), strict=True)) if sources else []


def _split(sources: Sequence[SourceText], encoder: TextEncoder) -> list[list[Piece]]:
    pieces: dict[int, list[Piece]] = {}
    for size in {source.size for source in sources}:
        alike = [number for number, source in enumerate(sources) if source.size == size]
        texts = [sources[number].text for number in alike]
        found = split_all(texts, encoder.tokenizer, size.max_tokens, size.overlap_tokens)
        pieces |= zip(alike, found, strict=True)
    return [
        locate(pieces[number], source.text, is_markdown=source.is_markdown) for number, source in enumerate(sources)
    ]
