"""The running summary of a conversation: what the model is asked, what is taken of what it writes, and what is made
without it.

A model that fails or babbles cannot harm a conversation: `refusal` says what is wrong with a summary, and `extract`
needs no model.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from serve_app.generation.prompt import MAX_CHARACTERS_PER_TOKEN, text_of
from serve_app.types import Json

Refusal = Literal["empty", "too_long", "repetitive", "copy", "unchanged", "invented", "unrelated"]
"""Why a summary is not taken."""

CountTokens = Callable[[str], int]

INSTRUCTIONS = (
    "Provide a concise, objective summary of the conversation in up to four sentences, in the language of the"
    " conversation. Keep its names, facts, numbers and wishes. Add nothing."
)
"""Close to what SmolLM2 was trained on ("smol-summarize" in its SmolTalk data set): it then sums up, and does not go
on with the conversation."""

MIN_UNITS = 4
"""A summary of fewer words says nothing."""
MAX_REPETITION = 0.25
"""Share of its sequences of 4 words that came before in it. In what people write it is under 0.02, in a model that
repeats itself near 1 (Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training", seq-rep-4)."""
MAX_COPIED = 0.8
"""Share of its sequences of 6 words that are in the text that it sums up."""
COPY_LENGTH = 0.5
"""Only what is at least so long, measured by that text, is called a copy: a short one quotes what matters."""
MIN_KNOWN_WORDS = 0.4
"""Share of its longer words that are in the text that it sums up. Another language has next to none, nor has babble."""

_WORD = re.compile(r"[^\W_]+")
# Scripts that put no spaces between words: Thai to Khmer, kana, Han.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"'”’)]*(?=\s|\Z)|[。！？]|(?=\n|\Z))", re.DOTALL)
_EXTRACTED_TOKENS = 40
"""Of one message."""


def build_request(before: str, items: Sequence[Json], max_input_tokens: int, count_tokens: CountTokens) -> list[Json]:
    """The messages that ask for one summary of the summary so far and of what leaves the window."""
    texts = [(item["role"], text_of(item["content"])) for item in items if item.get("type") == "message"]
    # Each may be as long as all can be; what a short one leaves is the long ones'.
    room = max_input_tokens
    shown: dict[int, str] = {}
    for left, index in enumerate(sorted(range(len(texts)), key=lambda each: len(texts[each][1]))):
        shown[index] = shorten(texts[index][1], room // (len(texts) - left), count_tokens)
        room -= count_tokens(shown[index])
    lines = [f"{role.capitalize()}: {shown[index]}" for index, (role, _) in enumerate(texts)]
    if before:
        lines.insert(0, f"Before: {before}")
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": "\n\n".join(lines)},
    ]


def refusal(summary: str, before: str, source: str, max_tokens: int, count_tokens: CountTokens) -> Refusal | None:
    """What is wrong with a summary of `before` and `source`; None if it can be kept.

    The language is checked without a library: those that tell languages apart are large, or unsure of three sentences,
    and what matters is only that the summary is in the words of its conversation.
    """
    words = units(summary)
    known = set(units(f"{before} {source}"))
    if len(words) < MIN_UNITS:
        return "empty"
    if count_tokens(summary) > max_tokens:
        return "too_long"
    if repetition(words, 4) > MAX_REPETITION:
        return "repetitive"
    if before and " ".join(words) == " ".join(units(before)):
        return "unchanged"
    if is_copy(words, units(source)) or is_copy(words, units(INSTRUCTIONS)):
        return "copy"
    if any(word.isdigit() and word not in known for word in words):
        return "invented"
    telling = telling_words(words) or set(words)
    if len(telling & known) < MIN_KNOWN_WORDS * len(telling):
        return "unrelated"
    return None


def whole_sentences(text: str) -> str:
    """The text without the sentence in which it breaks off."""
    ends = [match.end() for match in _SENTENCE.finditer(text) if match[0][-1] not in "\n" and _ends(match[0])]
    return text[: ends[-1]].strip() if ends else ""


def extract(before: str, items: Sequence[Json], max_tokens: int, count_tokens: CountTokens) -> str:
    """A summary without the model: how each message begins, the newest ones first to be kept.

    What the summary so far said keeps at most half of the room, its end if not all fits.
    """
    kept = _newest_that_fit(_sentences(before), max_tokens // 2, count_tokens)
    room = max_tokens - count_tokens("\n".join(kept))
    lines = [
        f"{item['role'].capitalize()}: {shorten(_first_sentence(item), _EXTRACTED_TOKENS, count_tokens)}"
        for item in items
        if item.get("type") == "message"
    ]
    return "\n".join([*kept, *_newest_that_fit(lines, room, count_tokens)])


def shorten(text: str, max_tokens: int, count_tokens: CountTokens) -> str:
    """The beginning of a text that is too long, in at most so many tokens."""
    text = text[: MAX_CHARACTERS_PER_TOKEN * max_tokens]
    while text and (tokens := count_tokens(text)) > max_tokens:
        end = min(len(text) - 1, len(text) * max_tokens // tokens)
        whole_words = text[:end] if text[end].isspace() else text[:end].rpartition(" ")[0]
        text = (whole_words or text[:end]).rstrip()
    return text


def units(text: str) -> list[str]:
    """The words of a text in lower case; single letters where a script has no spaces between words."""
    return _WORD.findall(_UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFKC", text).casefold()))


def telling_words(words: Iterable[str]) -> set[str]:
    """Those that carry something in any language: of four letters and more, and numbers."""
    return {word for word in words if len(word) >= 4 or word.isdigit()}


def repetition(words: Sequence[str], length: int) -> float:
    """The share of its sequences of `length` words that have come before."""
    sequences = list(_sequences(words, length))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def is_copy(
    words: Sequence[str], source: Sequence[str], *, least_share: float = COPY_LENGTH, copied: float = MAX_COPIED
) -> bool:
    """Whether more than `copied` of it stands in the source, and it is at least `least_share` as long."""
    sequences = list(_sequences(words, 6))
    if not sequences or len(words) < least_share * len(source):
        return False
    there = Counter(_sequences(source, 6))
    return sum(each in there for each in sequences) > copied * len(sequences)


def _sequences(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _first_sentence(item: Json) -> str:
    return next(iter(_sentences(text_of(item["content"]))), "")


def _sentences(text: str) -> list[str]:
    return [" ".join(match[0].split()) for match in _SENTENCE.finditer(text)]


def _ends(sentence: str) -> bool:
    return sentence.rstrip("\"'”’)")[-1:] in tuple(".!?…。！？")


def _newest_that_fit(lines: Iterable[str], max_tokens: int, count_tokens: CountTokens) -> list[str]:
    kept: list[str] = []
    for line in reversed(list(lines)):
        # Of the whole, not of the line: what joins them counts too.
        if count_tokens("\n".join([line, *kept])) > max_tokens:
            break
        kept.insert(0, line)
    return kept
