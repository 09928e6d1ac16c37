"""The messages for the model. What stays the same from turn to turn comes first, so that vLLM's prefix cache hits.

system     instructions, and how to use sources     the same bytes in every turn
…          the history, oldest first                grows at its end
user       sources, then the question               new
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from serve_app.types import Json, Passage

GUIDANCE = (
    "Answer the question from its numbered sources, briefly. After each statement write the number of its source in"
    " square brackets, like [1]. If the sources do not answer the question, say so."
)

NO_SOURCES = "(nothing was found)"

MAX_CHARACTERS_PER_TOKEN = 32
"""No text has more on average; so a text far too long is known as such without being tokenised."""


def build_messages(
    instructions: str | None,
    history: Sequence[Json],
    input_items: Sequence[Json],
    *,
    max_history_tokens: int,
    count_tokens: Callable[[str], int],
) -> list[Json]:
    """Chat messages for OpenAI items. Items that are no messages (a search) are not for the model."""
    system = [{"role": "system", "content": instructions}] if instructions else []
    past = _limit_history(list(_to_messages(history)), max_history_tokens, count_tokens)
    return [*system, *past, *_to_messages(input_items)]


def add_sources(messages: Sequence[Json], passages: Sequence[Passage]) -> list[Json]:
    """The same messages, with the guidance in the first one and the numbered passages before the last question.

    The guidance is there even if nothing was found: the beginning of the prompt does not depend on the search.
    """
    sources = "\n".join(f"[{number}] ({each.filename}) {each.text.strip()}" for number, each in enumerate(passages, 1))
    before = f"Sources:\n{sources or NO_SOURCES}\n\nQuestion: "
    question = max((index for index, each in enumerate(messages) if each.get("role") == "user"), default=None)
    asked = [_add_text(each, before=before) if index == question else each for index, each in enumerate(messages)]
    if asked and asked[0].get("role") == "system":
        return [_add_text(asked[0], after=f"\n\n{GUIDANCE}"), *asked[1:]]
    return [{"role": "system", "content": GUIDANCE}, *asked]


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


def _to_messages(items: Iterable[Json]) -> Iterator[Json]:
    for item in items:
        if item.get("type") == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            yield {"role": role, "content": text_of(item["content"])}


def _limit_history(messages: list[Json], max_tokens: int, count_tokens: Callable[[str], int]) -> list[Json]:
    """The newest messages that fit, whole ones only. An answer whose question no longer fits is left out too."""
    first = len(messages)
    left = max_tokens
    while first > 0:
        content = messages[first - 1]["content"]
        if len(content) > left * MAX_CHARACTERS_PER_TOKEN:
            break
        left -= count_tokens(content)
        if left < 0:
            break
        first -= 1
    while first < len(messages) and messages[first]["role"] == "assistant":
        first += 1
    return messages[first:]


def _add_text(message: Json, *, before: str = "", after: str = "") -> Json:
    content = message.get("content")
    if isinstance(content, list):
        parts = [{"type": "text", "text": text} if text else None for text in (before, after)]
        content = [part for part in (parts[0], *content, parts[1]) if part]
    else:
        content = f"{before}{content or ''}{after}"
    return {**message, "content": content}
