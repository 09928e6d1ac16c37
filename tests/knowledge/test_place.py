import pytest
from tokenizers import Tokenizer

from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.place import locate
from serve_app.knowledge.split import Piece, split

GUIDE = """\
---
title: no heading
---
Before any heading.

# Guide

## Install ##

Run it.

```sh
# no heading
```

### On a *Mac*

Brew it.

Use
===

Ask it.

Often
-----

#hashtag and | a | table |
"""


@pytest.fixture(scope="session")
def tokenizer(encoder: TextEncoder) -> Tokenizer:
    return encoder.tokenizer


def heading_of(part: str, text: str = GUIDE) -> tuple[str, ...]:
    (piece,) = locate([Piece(part, text.index(part))], text, is_markdown=True)
    return piece.heading


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ("Before any", ()),
        ("# Guide", ("Guide",)),
        ("\n\n## Install", ("Guide", "Install")),
        ("Run it.", ("Guide", "Install")),
        ("# no heading\n```", ("Guide", "Install")),
        ("Brew it.", ("Guide", "Install", "On a *Mac*")),
        ("Ask it.", ("Use",)),
        ("#hashtag", ("Use", "Often")),
    ],
)
def test_passage_is_under_the_headings_over_it(part: str, path: tuple[str, ...]) -> None:
    assert heading_of(part) == path


def test_code_that_does_not_end_has_no_headings() -> None:
    assert heading_of("the end", "# Guide\n\n~~~~\n~~~\n# comment\n\nthe end") == ("Guide",)


def test_overlap_does_not_put_a_passage_under_the_section_before() -> None:
    text = "# One\n\nFirst. Last of one.\n\n# Two\n\nSecond."
    pieces = [Piece(text[:26], 0), Piece(text[14:], 14)]

    located = locate(pieces, text, is_markdown=True)

    assert pieces[1].text.startswith("Last of one.")
    assert [piece.heading for piece in located] == [("One",), ("Two",)]


def test_comments_in_code_are_no_headings() -> None:
    text = "# a comment\nprint()"

    assert locate([Piece(text, 0)], text, is_markdown=False) == [Piece(text, 0)]


def test_pages_are_counted_by_form_feeds() -> None:
    text = "one\f\n\n\f\n\nthree\f\n\nfour"
    pieces = [Piece("one", 0), Piece(text[text.index("three") :], text.index("three")), Piece("four", len(text) - 4)]

    assert [piece.pages for piece in locate(pieces, text, is_markdown=False)] == [(1, 1), (3, 4), (4, 4)]


def test_what_ends_with_its_page_is_on_no_other() -> None:
    text = "one\ftwo"

    assert [piece.pages for piece in locate([Piece("one\f", 0), Piece("two", 4)], text, is_markdown=False)] == [
        (1, 1),
        (2, 2),
    ]


def test_real_pieces_of_a_long_document_find_their_section_and_page(tokenizer: Tokenizer) -> None:
    text = "\f\n\n".join(f"# Section {number}\n\n" + f"It is about number {number}. " * 60 for number in range(1, 9))

    pieces = locate(split(text, tokenizer, 254, 31), text, is_markdown=True)

    assert len(pieces) > 8
    for piece in pieces:
        number = int(piece.text.rstrip(". ").rsplit(" ", 1)[1])
        assert piece.heading == (f"Section {number}",)
        assert piece.pages is not None
        assert piece.pages[1] == number


@pytest.mark.parametrize(
    "line", [" " * 300_000, "# " + "a " * 150_000, "a" * 300_000 + "\n", "~" * 300_000, "`" * 300_000 + "\n"]
)
def test_no_line_takes_more_than_its_length(line: str) -> None:
    # With a pattern that can match in two ways one of these takes minutes.
    (piece,) = locate([Piece("end", len(line) + 1)], f"{line}\nend", is_markdown=True)

    assert piece.pages is None
