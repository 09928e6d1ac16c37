from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.split import PassageSize, Piece, passage_size, split, split_all, texts_to_encode


@pytest.fixture(scope="session")
def tokenizer(encoder: TextEncoder) -> Tokenizer:
    return encoder.tokenizer


_WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
_LINES = st.sampled_from(
    ["# Title\n\n", "## Part\n\n", "\n\n", "\n", " ", "- item\n", "```\ncode\n```\n", "| a | b |\n", ""]
)
_TEXTS = st.lists(st.tuples(_LINES, _WORDS), max_size=40).map(
    lambda parts: "".join(line + word for line, word in parts)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_TEXTS, max_tokens=st.sampled_from([4, 20, 60]), overlap=st.sampled_from([0, 2, 10]))
def test_pieces_cover_the_text_and_fit(tokenizer: Tokenizer, text: str, max_tokens: int, overlap: int) -> None:
    pieces = split(text, tokenizer, max_tokens, min(overlap, max_tokens // 2))

    covered: set[int] = set()
    for piece in pieces:
        assert piece.text == text[piece.start : piece.start + len(piece.text)]
        # One character may be several tokens, and is never cut.
        assert len(tokenizer.encode(piece.text, add_special_tokens=False).ids) <= max_tokens or len(piece.text) == 1
        covered.update(range(piece.start, piece.start + len(piece.text)))
    assert all(text[index].isspace() for index in range(len(text)) if index not in covered)
    assert [piece.start for piece in pieces] == sorted(piece.start for piece in pieces)


def test_cuts_fall_on_headings(tokenizer: Tokenizer) -> None:
    text = f"# Ferrets\n\n{'They sleep a lot. ' * 20}\n\n# Otters\n\n{'They swim a lot. ' * 20}"

    pieces = split(text, tokenizer, 120, 0)

    assert [piece.text.splitlines()[0] for piece in pieces] == ["# Ferrets", "# Otters"]


def test_neighbours_overlap(tokenizer: Tokenizer) -> None:
    text = " ".join(f"Sentence number {number} is here." for number in range(60))

    pieces = split(text, tokenizer, 60, 20)

    assert all(later.start < former.start + len(former.text) for former, later in pairwise(pieces))


@pytest.mark.parametrize("text", ["", " \n\t\n "])
def test_blank_text_has_no_pieces(tokenizer: Tokenizer, text: str) -> None:
    assert split(text, tokenizer, 100, 10) == []


def test_text_of_several_slabs_is_whole(tokenizer: Tokenizer) -> None:
    text = "\n\n".join(f"Paragraph {number} of a long report." for number in range(4000))

    pieces = split(text, tokenizer, 254, 0)

    assert len(text) > 120_000
    assert "\n\n".join(piece.text for piece in pieces) == text


def test_many_empty_lines_are_left_out_and_places_stay(tokenizer: Tokenizer) -> None:
    """The splitter alone would take minutes."""
    text = "First." + "\n" * 40_000 + "Second." + " \n" * 20_000 + "Third." + "\n" * 40_000

    pieces = split(text, tokenizer, 254, 31)

    assert [piece.text for piece in pieces] == ["First.", "Second.", "Third."]
    assert [piece.start for piece in pieces] == [text.index(piece.text) for piece in pieces]


def test_wide_columns_are_no_boundary(tokenizer: Tokenizer) -> None:
    text = f"first{' ' * 5000}second"

    assert [piece.text for piece in split(text, tokenizer, 254, 31)] == [text]


def test_texts_split_together_are_as_alone(tokenizer: Tokenizer) -> None:
    texts = ["", "One.", "\n\n".join(f"Paragraph {number} of a long report." for number in range(4000)), " \n "]

    assert split_all(texts, tokenizer, 100, 10) == [split(text, tokenizer, 100, 10) for text in texts]


def test_word_without_end_is_cut(tokenizer: Tokenizer) -> None:
    pieces = split("x" * 10_000, tokenizer, 100, 0)

    assert [len(piece.text) for piece in pieces] == [2000] * 5


def test_auto_fits_the_window_but_stays_a_passage() -> None:
    assert passage_size({"type": "auto"}, 254) == PassageSize(254, 31)
    assert passage_size({"type": "auto"}, 8190) == PassageSize(512, 64)


def test_static_size_is_taken_as_it_is() -> None:
    strategy = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}

    assert passage_size(strategy, 254) == PassageSize(800, 400)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Ferrets\nThey sleep.", "Ferrets"),
        ("\n## Ferrets and otters\n\nThey sleep.", "Ferrets and otters"),
        ("Ferrets\n\nThey sleep.", "Ferrets"),
        ("A first paragraph, which is no title because it is long. " * 3 + "\n\nThey sleep.", ""),
        ("A line\nof a paragraph.", ""),
        ("# " + "word " * 100, ("word " * 100)[:120]),
    ],
)
def test_vectors_of_later_passages_know_the_title(text: str, title: str) -> None:
    pieces = [Piece("the first", 0), Piece("a later one", 500)]

    assert texts_to_encode(text, pieces) == ["the first", f"{title}\na later one" if title else "a later one"]
