"""Citations: from the numbers that the model writes, or found afterwards where it wrote none.

The model sees passages numbered from 1 and is asked to write `[1]` or `[1, 2]` after what it takes from them.
`CitedText` takes these markers out of the stream. A small model often forgets them: `attribute` then
compares each sentence with the passages. That is post-hoc attribution, the baseline of Gao et al. 2023 ("Enabling
Large Language Models to Generate Text with Citations", ALCE) and of Bohnet et al. 2022 ("Attributed Question
Answering"), here with shared words in place of a second model: a citation says where to look, it proves nothing.
"""

import re
from collections.abc import Iterator, Sequence

from serve_app.types import Json
from serve_app.types.knowledge import Passage

_MARKER = re.compile(r" ?\[(\d{1,2}(?:, ?\d{1,2}){0,9})\](?!\()")
"""A `(` after it makes it a Markdown link."""

_PERHAPS_MARKER = re.compile(r"(?: ?\[(?:\d{1,2}(?:, ?\d{1,2}){0,9}(?:, ?|\])?)?| )\Z")
"""What the next delta may make a marker, or may make a link."""


class CitedText:
    """An answer that comes in pieces, with its citations; the pieces may cut a marker anywhere."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.text = ""
        """What has been given out: the answer without its markers."""
        self.annotations: list[Json] = []
        """OpenAI's `file_citation` objects, by rising `index`, which is a character index in the text."""
        self._passages = passages
        self._held = ""

    def feed(self, delta: str) -> str:
        """What can be shown now. Only the beginning of a possible marker is held back."""
        received = self._held + delta
        perhaps = _PERHAPS_MARKER.search(received)
        end = perhaps.start() if perhaps else len(received)
        self._held = received[end:]
        return self._take_markers(received[:end])

    def finish(self) -> str:
        """What was held back, once the answer has ended. If it has no citation by then, they are looked for."""
        held, self._held = self._held, ""
        rest = self._take_markers(held)
        if not self.annotations:
            self.annotations = attribute(self.text, self._passages)
        return rest

    def _take_markers(self, received: str) -> str:
        before = len(self.text)
        position = 0
        for marker in _MARKER.finditer(received):
            self.text += received[position : marker.start()]
            position = marker.end()
            for number in marker[1].split(","):
                self._cite(int(number))
        self.text += received[position:]
        return self.text[before:]

    def _cite(self, number: int) -> None:
        if 1 <= number <= len(self._passages):
            citation = build_citation(self._passages[number - 1], len(self.text))
            if citation not in self.annotations:
                self.annotations.append(citation)


def build_citation(passage: Passage, index: int) -> Json:
    return {
        "type": "file_citation",
        "file_id": passage.file_id,
        "filename": passage.filename,
        "index": index,
        # What OpenAI's citations do not have: which version of which document.
        "key": passage.key,
        "version": passage.version,
        "place": passage.place_to_json(),
    }


# --- after the fact -----------------------------------------------------------------------------

MIN_SHARED_WORDS = 0.6
"""Share of a sentence's content words that one passage must hold to be cited for it."""

MIN_CONTENT_WORDS = 2

_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+(?=\s|\Z)|[。！？]|(?=\n|\Z))")
_WORD = re.compile(r"[^\W_]+")
# Scripts that put no spaces between words: Thai to Khmer, kana, Han.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+")


def attribute(text: str, passages: Sequence[Passage]) -> list[Json]:
    """Cite each sentence to the passage that holds most of its content words, if it holds enough of them.

    The citation is at the sentence's end. Between equals the passage that ranks first is cited.
    """
    vocabularies = [_content_words(passage.text) for passage in passages]
    citations = []
    for sentence in _SENTENCE.finditer(text):
        words = _content_words(sentence[0])
        if len(words) < MIN_CONTENT_WORDS or not passages:
            continue
        shares = [len(words & vocabulary) / len(words) for vocabulary in vocabularies]
        best = max(range(len(passages)), key=shares.__getitem__)
        if shares[best] >= MIN_SHARED_WORDS:
            citations.append(build_citation(passages[best], sentence.end()))
    return citations


def _content_words(text: str) -> set[str]:
    return set(_split_words(text.casefold()))


def _split_words(text: str) -> Iterator[str]:
    """Numbers, words of four letters or more (shorter ones carry little in any language), and pairs of letters where a
    script has no spaces."""
    for run in _UNSPACED.findall(text):
        yield from (run[start : start + 2] for start in range(max(1, len(run) - 1)))
    for word in _WORD.findall(_UNSPACED.sub(" ", text)):
        if len(word) >= 4 or any(character.isdigit() for character in word):
            yield word
