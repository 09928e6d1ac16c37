"""What of a conversation the model sees, and how the rest of it is folded into a running summary.

The window is everything after what the summary covers. When it outgrows its budget, the model folds its oldest turns
into the summary, down to `FOLD_TO` of the budget, in the background and after all other work. So the prompt changes at
its beginning in a step every few turns, and in between only at its end. If folding cannot keep up, the window grows to
`MAX_BEHIND` budgets, or to what the model's context can hold; then `fit` folds at once, without the model.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from serve_app.admission.tiers import BACKGROUND
from serve_app.config import AppConfig
from serve_app.errors import InvalidRequest, RayconteurError
from serve_app.generation.prompt import MAX_CHARACTERS_PER_TOKEN, add_guidance, build_messages, text_of
from serve_app.generation.summary import CountTokens, build_request, extract, refusal, whole_sentences
from serve_app.metrics import SUMMARIES, SUMMARY_REFUSALS, SUMMARY_SECONDS, timed
from serve_app.parts import Parts
from serve_app.types import Json, new_id, now_s
from serve_app.types.conversation import KeepSummary, PastItem, Summary, Window
from serve_app.types.generation import GenerationRequest

logger = logging.getLogger(__name__)

FOLD_TO = 0.6
"""Share of the budget that a fold leaves. Less folds more at a time, and forgets more words. With 0.8 the last of ten
long turns with searches found 3 % of its prompt in the cache, not 81 (`bench.memory` on two cores): folds come more
often then, and that one was not done in time.
"""

MAX_BEHIND = 2
"""So many budgets of tokens a window may hold while its summary is behind."""

EXTRACT = "extract"
"""Who wrote a summary that no model wrote."""

TEMPERATURES = (0.0, 0.4)
"""The most likely summary, and if that is refused one more."""

FREQUENCY_PENALTY = 0.3
"""A small model repeats itself without. A repetition penalty would keep it from the words of the conversation, too."""

_MARGIN_TOKENS = 64
"""For what the chat template puts between messages."""


@dataclass(frozen=True, slots=True)
class Session:
    """What must be the same as in the conversation's own requests, so that they find what is computed here."""

    log_id: str
    session_id: str
    model: str
    instructions: str | None
    has_search: bool


def token_limit(config: AppConfig, texts: Sequence[str], output_tokens: int, parts: Parts) -> int:
    """Tokens that a window may have beside a prompt's other `texts`, its passages and the answer."""
    limit = MAX_BEHIND * config.sessions.max_history_tokens
    room = _room(config, texts, output_tokens, parts)
    return limit if room is None else max(min(limit, room - config.sessions.max_summary_tokens), 0)


def fit_input(
    input_items: Sequence[Json], instructions: str, output_tokens: int, config: AppConfig, parts: Parts
) -> Sequence[Json]:
    """`truncation: auto`: the newest items that the model's context has room for, and in any case the last question."""
    room = _room(config, [instructions], output_tokens, parts)
    if room is None:
        return input_items
    questions = [index for index, item in enumerate(input_items) if item.get("role") == "user"]
    last = questions[-1] if questions else len(input_items)
    first = len(input_items)
    while first > 0:
        room -= _count(text_of(input_items[first - 1].get("content")), max(room, 0), parts.count_tokens)
        if room < 0 and first <= last:
            break
        first -= 1
    return input_items[first:]


def fit(window: Window, limit: int, config: AppConfig, parts: Parts) -> Window:
    """The window if it is whole and has at most `limit` tokens; else with its oldest turns folded without the model."""
    count_tokens = parts.count_tokens
    sizes = [_count(shown_text(item), limit, count_tokens) for item in window.items]
    if not window.is_cut and sum(sizes) <= limit:
        return window
    cut = choose_cut(window.items, sizes, config.sessions.max_history_items, min(limit, _budget(config)))
    if sum(sizes[cut:]) > limit:
        cut = len(sizes)
    if cut == 0:
        return window
    before = window.summary.text if window.summary else ""
    bodies = [item.body for item in window.items[:cut]]
    text = extract(before, bodies, config.sessions.max_summary_tokens, count_tokens)
    return Window(window.items[cut:], _summary(window.items[cut - 1], text, EXTRACT, count_tokens))


def choose_cut(items: Sequence[PastItem], sizes: Sequence[int], max_messages: int, max_tokens: int) -> int:
    """How many of the oldest items to fold, so that what is left begins with a question and is `FOLD_TO` of the budget.

    The last turn is left whole if it can be.
    """
    most_messages = int(FOLD_TO * max_messages)
    starts = [index for index, item in enumerate(items) if item.body.get("role") == "user"]
    for start in starts:
        messages = sum(item.body.get("type") == "message" for item in items[start:])
        if messages <= most_messages and sum(sizes[start:]) <= FOLD_TO * max_tokens:
            return start
    if starts and starts[-1] > 0:
        return starts[-1]
    # One turn of very many messages, or none with a question.
    return max(0, len(items) - most_messages) if len(items) > max_messages else 0


def grown(window: Window, bodies: Sequence[Json], prompt_texts: Mapping[str, str]) -> Window:
    """The window with the items of a turn that has just been closed."""
    items = (PastItem("", 0, body, prompt_texts.get(body["id"])) for body in bodies)
    return replace(window, items=(*window.items, *items))


def is_full(window: Window, config: AppConfig, parts: Parts) -> bool:
    """Whether it is time to fold."""
    messages = [item for item in window.items if item.body.get("type") == "message"]
    if len(messages) > config.sessions.max_history_items:
        return True
    budget = _budget(config)
    return sum(_count(shown_text(item), budget, parts.count_tokens) for item in messages) > budget


def kept_summary(before: Window, after: Window) -> KeepSummary:
    """What is to be stored of a fold that made `after` of `before`."""
    assert after.summary is not None
    folded = before.items[: len(before.items) - len(after.items)]
    return KeepSummary(after.summary, before.summary, tuple((item.log_id, item.seq) for item in folded))


async def fold(session: Session, parts: Parts, config: AppConfig) -> None:
    """Fold what has left the window into the summary, if it is time. A turn later it is done anyway if this fails."""
    if not parts.folds.begin(session.session_id):
        return
    try:
        window = await parts.sessions.read_window(session.log_id, max_read_items(config))
        if not window.is_cut and is_full(window, config, parts):
            with timed(parts.metrics, SUMMARY_SECONDS):
                await _fold(window, session, parts, config)
    except RayconteurError as error:
        logger.info("log %s: its summary stays behind for now: %s", session.log_id, error)
    finally:
        parts.folds.end(session.session_id)


async def _fold(window: Window, session: Session, parts: Parts, config: AppConfig) -> None:
    budget = _budget(config)
    sizes = [_count(shown_text(item), budget, parts.count_tokens) for item in window.items]
    cut = choose_cut(window.items, sizes, config.sessions.max_history_items, budget)
    if cut == 0:
        return
    text, writer = await _write_summary(window, cut, session, parts, config)
    summary = _summary(window.items[cut - 1], text, writer, parts.count_tokens)
    # A slow model has written for several turns.
    latest = await parts.sessions.read_window(session.log_id, max_read_items(config))
    await _warm(Window(_left(latest.items, window.items[:cut]), summary), session, parts)
    folded = Window(window.items[cut:], summary)
    if await parts.sessions.keep_summary(kept_summary(window, folded)):
        parts.metrics.add(SUMMARIES, writer=EXTRACT if writer == EXTRACT else "model")


def _left(items: Sequence[PastItem], folded: Sequence[PastItem]) -> tuple[PastItem, ...]:
    gone = {(item.log_id, item.seq) for item in folded}
    return tuple(item for item in items if (item.log_id, item.seq) not in gone)


async def _write_summary(
    window: Window, cut: int, session: Session, parts: Parts, config: AppConfig
) -> tuple[str, str]:
    """The summary and who wrote it. What the model writes is refused at most twice: then it is made without it."""
    max_tokens = config.sessions.max_summary_tokens
    before = window.summary.text if window.summary else ""
    leaving = [item.body for item in window.items[:cut]]
    source = "\n".join(text_of(item["content"]) for item in leaving if item.get("type") == "message")
    payload = {
        "model": session.model,
        "messages": build_request(before, leaving, _max_input_tokens(config), parts.count_tokens),
        "max_completion_tokens": max_tokens,
        "frequency_penalty": FREQUENCY_PENALTY,
    }
    for temperature in TEMPERATURES:
        request = GenerationRequest(
            payload | {"temperature": temperature}, new_id("fold"), BACKGROUND, session.session_id
        )
        try:
            completion = await parts.generator.complete(request)
        except InvalidRequest as error:
            logger.warning("log %s: the model refuses to sum it up: %s", session.log_id, error)
            break
        choice = completion["choices"][0]
        text = (choice["message"].get("content") or "").replace("\x00", "").strip()
        if choice.get("finish_reason") == "length":
            text = whole_sentences(text)
        reason = refusal(text, before, source, max_tokens, parts.count_tokens)
        if reason is None:
            return text, session.model
        parts.metrics.add(SUMMARY_REFUSALS, reason=reason)
        logger.info("log %s: a summary is refused as %s", session.log_id, reason)
    return extract(before, leaving, max_tokens, parts.count_tokens), EXTRACT


async def _warm(window: Window, session: Session, parts: Parts) -> None:
    """Have the engine compute the new beginning of the prompt before a question needs it."""
    messages = build_messages(session.instructions, window, ())
    if session.has_search:
        messages = add_guidance(messages)
    payload = {"model": session.model, "messages": messages, "max_completion_tokens": 1, "temperature": 0.0}
    try:
        await parts.generator.complete(GenerationRequest(payload, new_id("warm"), BACKGROUND, session.session_id))
    except RayconteurError as error:
        logger.info("log %s: the next prompt is not computed ahead: %s", session.log_id, error)


def shown_text(item: PastItem) -> str:
    """What the prompt holds of it."""
    if item.body.get("type") != "message":
        return ""
    return item.prompt_text or text_of(item.body["content"])


def max_read_items(config: AppConfig) -> int:
    """More items than a window has while folding keeps up: a turn with a search has three."""
    return 4 * config.sessions.max_history_items


def _room(config: AppConfig, texts: Sequence[str], output_tokens: int, parts: Parts) -> int | None:
    """Tokens of the model's context that are left; None if the configuration does not say how many it has."""
    context = config.generator.engine.get("max_model_len")
    if not isinstance(context, int):
        return None
    left = context - config.retrieval.max_passage_tokens - output_tokens - _MARGIN_TOKENS
    for text in texts:
        if left < 0:
            break
        left -= _count(text, left, parts.count_tokens)
    return left


def _budget(config: AppConfig) -> int:
    return config.sessions.max_history_tokens


def _max_input_tokens(config: AppConfig) -> int:
    context = config.generator.engine.get("max_model_len")
    if not isinstance(context, int):
        return _budget(config)
    # Beside the summary so far, the new one, and what is asked.
    return max(min(_budget(config), context - 2 * config.sessions.max_summary_tokens - 2 * _MARGIN_TOKENS), 64)


def _summary(last: PastItem, text: str, writer: str, count_tokens: CountTokens) -> Summary:
    return Summary(last.log_id, last.seq, last.body["id"], text, count_tokens(text), writer, now_s())


def _count(text: str, limit: int, count_tokens: CountTokens) -> int:
    # A text far too long is known as such without being tokenised.
    return limit + 1 if len(text) > max(limit, 1) * MAX_CHARACTERS_PER_TOKEN else count_tokens(text)
