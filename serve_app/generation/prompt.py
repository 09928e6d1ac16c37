"""The messages for the model. What stays the same from turn to turn comes first, so that vLLM's prefix cache hits.

system     instructions, the summary, and how to use sources     the same bytes from one summary to the next
…          the window, oldest first                              grows at its end
user       sources, then the question                            new, and from the next turn on in the window as it is
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import orjson

from serve_app.types import Json
from serve_app.types.conversation import Window
from serve_app.types.knowledge import Passage

GUIDANCE = (
    "Answer the question from its numbered sources, briefly. After each statement write the number of its source in"
    " square brackets, like [1]. If the sources do not answer the question, say so."
)

NO_SOURCES = "(nothing was found)"

MAX_CHARACTERS_PER_TOKEN = 32
"""No text has more on average; so a text far too long is known as such without being tokenised."""

SUMMARY = "What was said before, in short:\n"


def build_messages(instructions: str | None, window: Window, input_items: Sequence[Json]) -> list[Json]:
    """Chat messages for OpenAI items. Items that are no messages (a search) are not for the model."""
    summary = SUMMARY + window.summary.text if window.summary else None
    system = "\n\n".join(text for text in (instructions, summary) if text)
    past = [message for item in window.items for message in _to_messages([item.body], item.prompt_text)]
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *past, *_to_messages(input_items)]


def add_sources(messages: Sequence[Json], passages: Sequence[Passage]) -> list[Json]:
    """The same messages, with the guidance in the first one and the numbered passages before the last question.

    The guidance is there even if nothing was found: the beginning of the prompt does not depend on the search.
    """
    sources = "\n".join(f"[{number}] ({each.filename}) {each.text.strip()}" for number, each in enumerate(passages, 1))
    before = f"Sources:\n{sources or NO_SOURCES}\n\nQuestion: "
    question = max((index for index, each in enumerate(messages) if each.get("role") == "user"), default=None)
    return add_guidance(
        [_add_text(each, before=before) if index == question else each for index, each in enumerate(messages)]
    )


def question_texts(messages: Sequence[Json], input_items: Iterable[Json]) -> dict[str, str]:
    """The question with its sources, under the id of its item."""
    asked = [item["id"] for item in input_items if item.get("role") == "user"]
    return {asked[-1]: newest_user_text(messages)} if asked else {}


def add_guidance(messages: Sequence[Json]) -> list[Json]:
    """The same messages, the first one with what the model is told about sources."""
    if messages and messages[0].get("role") == "system":
        return [_add_text(messages[0], after=f"\n\n{GUIDANCE}"), *messages[1:]]
    return [{"role": "system", "content": GUIDANCE}, *messages]


def prefix_key(messages: Sequence[Json]) -> str:
    """The same for all prompts of a conversation: of what it begins with, up to its first question.

    It keeps the conversation on the replica that has it in its cache.
    """
    first = next((index for index, each in enumerate(messages) if each.get("role") == "user"), len(messages))
    return hashlib.sha256(orjson.dumps(messages[: first + 1])).hexdigest()


def fit_passages(
    passages: Sequence[Passage], max_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[Passage, ...]:
    """The best passages that fit together. The very best always stays: an answer without it is worth less."""
    fitting: list[Passage] = []
    left = max_tokens
    for passage in passages:
        left -= count_tokens(passage.text)
        if left < 0 and fitting:
            break
        fitting.append(passage)
    return tuple(fitting)


def newest_user_text(messages: Iterable[Json]) -> str:
    """The text of the last user message, of OpenAI items or chat messages; empty if there is none."""
    texts = [text_of(each.get("content")) for each in messages if each.get("role") == "user"]
    return texts[-1] if texts else ""


# Content is a string or a list of parts in chat messages, and a list of parts in items.
def text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _to_messages(items: Iterable[Json], prompt_text: str | None = None) -> Iterator[Json]:
    for item in items:
        if item.get("type") == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            yield {"role": role, "content": prompt_text or text_of(item["content"])}


def _add_text(message: Json, *, before: str = "", after: str = "") -> Json:
    content = message.get("content")
    if isinstance(content, list):
        parts = [{"type": "text", "text": text} if text else None for text in (before, after)]
        content = [part for part in (parts[0], *content, parts[1]) if part]
    else:
        content = f"{before}{content or ''}{after}"
    return {**message, "content": content}
