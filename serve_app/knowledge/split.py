"""A document's text to passages: `split` cuts along its structure, measured in the encoder's tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from semantic_text_splitter import MarkdownSplitter
from tokenizers import Tokenizer

from serve_app.types import Json

_MAX_AUTO_TOKENS = 512
_MAX_CHARACTERS_PER_TOKEN = 20
_SLAB_CHARACTERS = 50_000
_EMPTY_LINES = re.compile(r"(?<!\s)(?:[^\S\n]*\n){100,}")
_MAX_TITLE_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage to be: `text` is what the document has from its character `start` on."""

    text: str
    start: int
    pages: tuple[int, int] | None = None
    """The first and the last page that it is on, counted from 1; None where there are no pages."""
    heading: tuple[str, ...] = ()
    """The headings that it is under, the highest first."""


@dataclass(frozen=True, slots=True)
class PassageSize:
    max_tokens: int
    overlap_tokens: int


def passage_size(chunking_strategy: Json, encoder_max_tokens: int) -> PassageSize:
    """How long passages are under an OpenAI `chunking_strategy`, checked before.

    `auto` is what the encoder sees whole, so that no word of a passage is missing from its vector, but not over 512
    tokens, beyond which one vector stands for too many things. An eighth overlaps, about two sentences: enough for a
    thought that a cut divides, and little enough that a file's index does not grow by half.
    A `static` size may be beyond the encoder's window: its vector is then made from the beginning of the passage, and
    the rest is found by its words only.
    """
    if chunking_strategy.get("type") == "static":
        static = chunking_strategy["static"]
        return PassageSize(static["max_chunk_size_tokens"], static["chunk_overlap_tokens"])
    max_tokens = min(encoder_max_tokens, _MAX_AUTO_TOKENS)
    return PassageSize(max_tokens, max_tokens // 8)


def split(text: str, tokenizer: Tokenizer, max_tokens: int, overlap_tokens: int) -> list[Piece]:
    """Pieces of at most `max_tokens`, in order, that together hold all of the text but blank space at their ends.

    Cuts fall on the highest boundary that fits: headings, then paragraphs, sentences, words. The tokenizer must not
    truncate or pad. An empty or blank text has no pieces.
    """
    (pieces,) = split_all([text], tokenizer, max_tokens, overlap_tokens)
    return pieces


def split_all(texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int, overlap_tokens: int) -> list[list[Piece]]:
    """As `split`, for many texts: on all cores, and other threads of Python go on meanwhile."""
    slabs = [(number, start, slab) for number, text in enumerate(texts) for start, slab in _slabs(text)]
    found = _splitter(tokenizer, max_tokens, overlap_tokens).chunk_all_indices([slab for _, _, slab in slabs])
    pieces: list[list[Piece]] = [[] for _ in texts]
    for (number, start, _), chunks in zip(slabs, found, strict=True):
        for offset, chunk in chunks:
            pieces[number] += _bounded(Piece(chunk, start + offset), max_tokens * _MAX_CHARACTERS_PER_TOKEN)
    return pieces


def texts_to_encode(text: str, pieces: Sequence[Piece]) -> list[str]:
    """What the vectors of a document's pieces are made from: each piece under the title of the document, if it has one.

    A piece from the middle seldom names what it is about. With the title a full passage exceeds the encoder's window by
    less than the overlap: what is cut off, the next passage begins with.
    """
    title = _title(text)
    return [piece.text if piece.start == 0 or not title else f"{title}\n{piece.text}" for piece in pieces]


def _title(text: str) -> str:
    """The first line, if it is a heading or a short paragraph of its own."""
    line, _, rest = text.lstrip().partition("\n")
    is_title = line.startswith("#") or (len(line) <= _MAX_TITLE_CHARACTERS and rest.startswith("\n"))
    return line.lstrip("# ").strip()[:_MAX_TITLE_CHARACTERS] if is_title else ""


@lru_cache(maxsize=16)
def _splitter(tokenizer: Tokenizer, max_tokens: int, overlap_tokens: int) -> MarkdownSplitter:
    # Making one copies the tokenizer's whole vocabulary, which takes longer than to split a short text.
    return MarkdownSplitter.from_huggingface_tokenizer(tokenizer, max_tokens, overlap=overlap_tokens)


def _slabs(text: str) -> Iterator[tuple[int, str]]:
    """The text in parts, cut after a paragraph if there is one, and without long stretches of empty lines.

    For these, and where it finds no boundary, the splitter's time grows with the square of the length: 25,000 empty
    lines take it three quarters of a minute.
    """
    start = 0
    for gap_start, gap_end in [*(match.span() for match in _EMPTY_LINES.finditer(text)), (len(text), len(text))]:
        while start < gap_start:
            end = min(start + _SLAB_CHARACTERS, gap_start)
            if end < gap_start:
                boundaries = (text.rfind(boundary, start + 1, end) for boundary in ("\n\n", "\n", " "))
                end = next((boundary for boundary in boundaries if boundary > start + _SLAB_CHARACTERS // 2), end)
            yield start, text[start:end]
            start = end
        start = gap_end


def _bounded(piece: Piece, max_characters: int) -> Iterator[Piece]:
    """Cut what has few tokens but no end: WordPiece sees a word of 100,000 letters as one unknown token."""
    for offset in range(0, len(piece.text), max_characters):
        yield Piece(piece.text[offset : offset + max_characters], piece.start + offset)
