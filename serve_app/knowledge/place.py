"""Where passages stand in their document: `locate` finds pages and headings from its extracted text alone.

Pages end with a form feed, as `parse.py` leaves them for PDFs, and as some plain texts have them. Headings are
Markdown's.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from serve_app.knowledge.split import Piece

PAGE_END = "\f"
_MAX_HEADING_CHARACTERS = 120

# Code and front matter come first, so that a # in them is no heading. No part can match in two ways: a line of a
# million blanks must not take a million times as long.
_BLOCK = re.compile(
    r"""
      ^[ ]{0,3}(?P<fence>`{3,}|~{3,})[^`\n]*$ (?: .*?^[ ]{0,3}(?P=fence) | .* )
    | \A---\n .*? ^---$
    | ^[ ]{0,3}(?P<marks>\#{1,6})(?P<title>[ \t][^\n]*)$
    | ^(?P<underlined>[^\n\s#>|*+-][^\n]*)\n(?P<line>=+|-{3,})[ \t]*$
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Heading:
    start: int
    path: tuple[str, ...]
    """The headings over it and its own, the highest first."""


def locate(pieces: Iterable[Piece], text: str, *, is_markdown: bool) -> list[Piece]:
    """The pieces with their pages and headings, of those that the text has. The pieces are in order, and cut from it.

    A piece is under the heading over its first character that the piece before does not have: what overlaps would
    name the section before.
    """
    page_ends = [match.start() for match in re.finditer(PAGE_END, text)]
    headings = list(_headings(text)) if is_markdown else []
    located = []
    end = 0
    for piece in pieces:
        heading = _heading_at(headings, max(piece.start, end), text)
        end = piece.start + len(piece.text)
        pages = (_page_at(page_ends, piece.start), _page_at(page_ends, end - 1)) if page_ends else None
        located.append(replace(piece, pages=pages, heading=heading))
    return located


def _page_at(page_ends: Sequence[int], index: int) -> int:
    return bisect_right(page_ends, index - 1) + 1


def _heading_at(headings: Sequence[_Heading], index: int, text: str) -> tuple[str, ...]:
    while index < len(text) and text[index].isspace():
        index += 1
    number = bisect_right(headings, index, key=lambda heading: heading.start)
    return headings[number - 1].path if number else ()


def _headings(text: str) -> Iterator[_Heading]:
    path: dict[int, str] = {}
    for block in _BLOCK.finditer(text):
        title = (block["title"] or block["underlined"] or "").strip().rstrip("#").strip()
        if title:
            level = len(block["marks"]) if block["marks"] else 1 if block["line"].startswith("=") else 2
            path = {above: each for above, each in path.items() if above < level}
            path[level] = title[:_MAX_HEADING_CHARACTERS]
            yield _Heading(block.start(), tuple(path.values()))
