"""Questions that need their conversation, such as "And in 1999?", as ones that can be searched for.

Without the model the questions before are put in front: the search by words weighs them by how rare they are, and the
encoder reads sentences better than lists of key terms. With it, the question is restated; `take_restatement` says
whether what the model writes can be used.
"""

from collections.abc import Sequence

from serve_app.generation.prompt import text_of
from serve_app.generation.summary import CountTokens, is_copy, shorten, telling_words, units
from serve_app.types import Json

INSTRUCTIONS = (
    "Rewrite the last question of a conversation so that it can be understood without the conversation: put in the"
    " names that it leaves out. Write only the question."
)

# Without examples a small model gives the question back as it is.
_EXAMPLES = (
    (
        "User: Who designed the Tower Bridge?\nAssistant: Horace Jones.\n\nLast question: And when was it opened?",
        "When was the Tower Bridge opened?",
    ),
    (
        "User: How high is Mount Everest?\nAssistant: 8,849 metres.\n\nLast question: Who climbed it first?",
        "Who climbed Mount Everest first?",
    ),
)

MAX_RESTATED_TOKENS = 64

MIN_WORDS_BEFORE = 6
"""A question before with fewer may itself need the one before it."""
MAX_WORDS_BEFORE = 40
"""Of what is longer the end is taken, where the question mostly is."""
_MAX_QUESTIONS_BEFORE = 3
_MAX_SHOWN_MESSAGES = 6
_MAX_SHOWN_TOKENS = 80
"""Of one message of the conversation."""


def widen(question: str, past: Sequence[Json]) -> str | None:
    """The question after those before it, as far as they are needed; None if there are none.

    `past` are items or chat messages, oldest first.
    """
    before: list[str] = []
    for message in [each for each in past if each.get("role") == "user"][: -_MAX_QUESTIONS_BEFORE - 1 : -1]:
        if len(before) >= MIN_WORDS_BEFORE:
            break
        before = [*text_of(message.get("content")).split(), *before]
    return " ".join([*before[-MAX_WORDS_BEFORE:], question]) if before else None


def build_restatement_request(question: str, past: Sequence[Json], count_tokens: CountTokens) -> list[Json]:
    """The messages that ask the model for the question in other words."""
    spoken = [each for each in past if each.get("role") in ("user", "assistant")][-_MAX_SHOWN_MESSAGES:]
    lines = [
        f"{each['role'].capitalize()}: {shorten(text_of(each.get('content')), _MAX_SHOWN_TOKENS, count_tokens)}"
        for each in spoken
    ]
    asked = "\n".join([*lines, "", f"Last question: {question}"])
    shown = [
        {"role": role, "content": text}
        for example in _EXAMPLES
        for role, text in zip(("user", "assistant"), example, strict=True)
    ]
    return [{"role": "system", "content": INSTRUCTIONS}, *shown, {"role": "user", "content": asked}]


def take_restatement(written: str, question: str, past: Sequence[Json]) -> str | None:
    """The restated question out of what the model wrote; None if that is of no use.

    It must hold something of the question and something of what came before, and be neither an answer nor a question
    of before.
    """
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    restated = lines[0].removeprefix("Last question:").strip(" \"'“”") if lines else ""
    words, asked = units(restated), units(question)
    if len(words) < 2 or words == asked or len(words) > len(asked) + MAX_WORDS_BEFORE:
        return None
    telling = telling_words(asked)
    if telling and not telling & set(words):
        return None
    spoken = {word for message in past for word in units(text_of(message.get("content")))}
    if not (telling_words(words) - set(asked)) & spoken:
        return None
    for message in past:
        said = units(text_of(message.get("content")))
        if words == said or (message.get("role") == "assistant" and is_copy(words, said, least_share=0.0, copied=0.5)):
            return None
    return restated
