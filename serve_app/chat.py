"""One question and its answer, from the first commit to the last. Read `reply` first: its lines are the steps.

What a turn begins it finishes. The question is committed before anything is computed, the answer before the final
event. If the client leaves, or the model fails in mid-answer, the turn is closed with what there is; if the question
was refused before the model had begun, it is taken back.
"""

import asyncio
import contextvars
import logging
import math
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from serve_app.config import AppConfig
from serve_app.errors import InternalError, Overloaded, RayconteurError, Timeout, Unavailable
from serve_app.events import (
    AnswerStarted,
    Citation,
    Event,
    Finished,
    Opened,
    SearchCompleted,
    SearchStarted,
    TextDelta,
    record,
    replay,
)
from serve_app.generation.answer import Answer
from serve_app.generation.continuation import generate
from serve_app.generation.prompt import (
    add_sources,
    build_messages,
    fit_passages,
    newest_user_text,
    prefix_key,
    question_texts,
    text_of,
)
from serve_app.generation.settings import DEFAULT_MAX_TOKENS
from serve_app.generation.stream import before, parse_chunks
from serve_app.memory import Session, fit, fit_input, fold, grown, is_full, kept_summary, token_limit
from serve_app.parts import Parts, Sessions
from serve_app.search import Search, build_queries, find_passages
from serve_app.types import Json
from serve_app.types.conversation import CloseTurn, OpenedTurn, OpenTurn, Window, WithdrawTurn
from serve_app.types.generation import CacheUse, GenerationRequest

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn:
    """A checked request."""

    opening: OpenTurn
    sampling: Json
    """What goes to the model beside the messages: `model`, `temperature`, `max_completion_tokens`, …"""
    request_id: str
    search: Search | None = None
    priority: int = 0
    caller: str = ""
    timeout_s: float | None = None
    """The client's own."""
    job_fence: int | None = None
    """Of a background response: what its job is held under. It has no client that could leave it."""
    cache: CacheUse = "off"

    @property
    def cites(self) -> bool:
        """Numbers in brackets are citations. In JSON they are not."""
        return "response_format" not in self.sampling


async def reply(
    turn: Turn, parts: Parts, config: AppConfig, answer: Answer | None = None
) -> AsyncGenerator[Event, None]:
    """Answer one question. Raises if nothing has come of it: then the question is taken back, so that it can be asked
    again. Once the model has begun there is a response, and a failure is in `Finished`.

    Closing the generator, or cancelling it, stops the engine at once and commits the answer so far as `incomplete`. A
    background response is neither committed then nor ever taken back: its job stays, and somebody else goes on from
    its `answer`, with the events that are missing.
    """
    model_id = turn.sampling.get("model", "")
    parts, config = parts.of(model_id), config.of(model_id)
    began = asyncio.get_running_loop().time()
    deadline = began + min(config.api.request_timeout_s, turn.timeout_s or math.inf)
    call_timeout_s = config.api.call_timeout_s
    question = turn.opening.input_items
    answer = answer or Answer(turn.opening.response)
    error: RayconteurError | None = None
    session: Session | None = None

    opened = await _open(turn, parts.sessions, call_timeout_s)
    if opened.finished:
        for event in replay(opened.finished, opened.recording):
            yield event
        return

    try:
        if not answer.is_opened:
            yield Opened(answer.open())

        window, shown_input = _recall(opened, turn, parts, config)
        messages = build_messages(turn.opening.response["instructions"], window, shown_input)
        if turn.search and answer.shown is None:
            asked, past = newest_user_text(question), [item.body for item in window.items]
            building = build_queries(
                turn.search, asked, past, turn.sampling["model"], turn.priority, turn.caller, parts
            )
            queries = await before(deadline, building)
            yield SearchStarted(answer.start_search(queries))
            found = await before(deadline, find_passages(turn.search, queries, parts))
            shown = fit_passages(found, config.retrieval.max_passage_tokens, parts.count_tokens)
            call = answer.complete_search(found, shown, with_results=turn.search.with_results, cites=turn.cites)
            yield SearchCompleted(call, shown)
        if answer.shown is not None:
            messages = add_sources(messages, answer.shown)
            answer.question_texts = question_texts(messages, question)

        session = _session(opened, turn, messages)
        payload = {**turn.sampling, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        timeout_s = deadline - asyncio.get_running_loop().time()
        request = GenerationRequest(
            payload, turn.request_id, turn.priority, session.session_id, turn.caller, timeout_s, turn.cache
        )
        async with aclosing(generate(parts.generator, request, answer, deadline, parts.count_tokens)) as stream:
            async for events in stream:
                for chunk in parse_chunks(events):
                    if not answer.has_started:
                        yield AnswerStarted(answer.start())
                    if text := answer.add(chunk):
                        yield TextDelta(text)
        if text := answer.end():
            yield TextDelta(text)
        response = answer.finished()
    except RayconteurError as failure:
        error = failure
    except (asyncio.CancelledError, GeneratorExit):
        if turn.job_fence is None:
            # If this commit fails too, it is logged, and the cancellation matters more.
            with suppress(RayconteurError):
                response = answer.incomplete("client_disconnected")
                await _close(opened, response, answer, None, turn, parts.sessions, call_timeout_s)
        raise
    except Exception:
        # Whatever it was, the turn must not stay open.
        logger.exception("request %s: the answer failed", turn.request_id)
        error = InternalError("an internal error occurred: the server's log has the details")

    if error and not answer.has_started:
        if turn.job_fence is None:
            await _withdraw(opened, turn, parts.sessions, call_timeout_s)
        raise error
    if isinstance(error, Timeout) and answer.text:
        response, error = answer.incomplete("timeout"), None
    elif isinstance(error, Unavailable | Overloaded):
        response, error = answer.incomplete("generator_lost"), None
    elif error:
        response = answer.failed(error)
    try:
        await _close(opened, response, answer, error, turn, parts.sessions, call_timeout_s)
    except RayconteurError as failure:
        # An answer that is not durable is not shown as one that is.
        error = error or failure
        response = answer.failed(error)
    if session and session.log_id:
        turned = grown(window, [*question, *response["output"]], answer.prompt_texts)
        if is_full(turned, config, parts):
            _keep(fold(session, parts, config), config.api.request_timeout_s)
    seconds = asyncio.get_running_loop().time() - began
    logger.info("request %s: %s is %s after %.3f s", turn.request_id, response["id"], response["status"], seconds)
    for annotation in answer.annotations:
        yield Citation(annotation)
    yield Finished(response, error)


def _recall(opened: OpenedTurn, turn: Turn, parts: Parts, config: AppConfig) -> tuple[Window, Sequence[Json]]:
    """What the model is shown of the past, and of the input.

    If the past has to be folded at once, its summary is stored behind.
    """
    asked, instructions = turn.opening.input_items, turn.opening.response["instructions"] or ""
    output_tokens = turn.sampling.get("max_completion_tokens", DEFAULT_MAX_TOKENS)
    shown: Sequence[Json] = asked
    if turn.opening.response.get("truncation") == "auto":
        shown = fit_input(asked, instructions, output_tokens, config, parts)
    texts = [instructions, *(text_of(item.get("content")) for item in shown)]
    usual_limit = token_limit(config, (), DEFAULT_MAX_TOKENS, parts)
    window = fit(opened.window, usual_limit, config, parts)
    if opened.log_id and window is not opened.window:
        _keep(parts.sessions.keep_summary(kept_summary(opened.window, window)), config.api.call_timeout_s)
    # What only this question leaves no room for is there again at the next.
    return fit(window, token_limit(config, texts, output_tokens, parts), config, parts), shown


def _session(opened: OpenedTurn, turn: Turn, messages: list[Json]) -> Session:
    response = turn.opening.response
    key = response.get("prompt_cache_key") or turn.opening.conversation_id or prefix_key(messages)
    return Session(
        opened.log_id or "", key, turn.sampling.get("model", ""), response["instructions"], turn.search is not None
    )


# --- what outlives the client -------------------------------------------------------------------


async def _open(turn: Turn, sessions: Sessions, timeout_s: float) -> OpenedTurn:
    opening = _keep(sessions.open_turn(turn.opening), timeout_s)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        _keep(_abandon(opening, turn, sessions, timeout_s), 2 * timeout_s)
        raise


async def _abandon(opening: asyncio.Task[OpenedTurn], turn: Turn, sessions: Sessions, timeout_s: float) -> None:
    """The client left while its question was being committed."""
    opened = await opening
    if not opened.finished:
        answer = Answer(turn.opening.response)
        await _close(opened, answer.incomplete("client_disconnected"), answer, None, turn, sessions, timeout_s)


async def _withdraw(opened: OpenedTurn, turn: Turn, sessions: Sessions, timeout_s: float) -> None:
    if opened.log_id is None:
        return
    asked = turn.opening
    item_ids = tuple(item["id"] for item in asked.input_items)
    withdrawal = sessions.withdraw_turn(WithdrawTurn(opened.log_id, asked.response["id"], item_ids))
    # If this fails too, the question stays as one that was never answered; its own error matters more.
    with anyio.CancelScope(shield=True), suppress(RayconteurError):
        await asyncio.shield(_keep(withdrawal, timeout_s))


async def _close(
    opened: OpenedTurn,
    response: Json,
    answer: Answer,
    error: RayconteurError | None,
    turn: Turn,
    sessions: Sessions,
    timeout_s: float,
) -> None:
    if opened.log_id is None:
        return
    recording = record(answer.delta_lengths, error)
    close = CloseTurn(
        opened.log_id, response, turn.opening.store, recording, turn.job_fence, prompt_texts=answer.prompt_texts
    )
    closing = _keep(sessions.close_turn(close), timeout_s)
    try:
        with anyio.CancelScope(shield=True):
            await asyncio.shield(closing)
    except RayconteurError as error:
        logger.warning("request %s: response %s is not committed: %s", turn.request_id, response["id"], error)
        raise


_kept: set[asyncio.Task[Any]] = set()


async def drain() -> None:
    """Wait for the commits that go on although nobody waits for them: before the process ends."""
    while _kept:
        await asyncio.wait(set(_kept))


def _keep(work: Coroutine[Any, Any, T], timeout_s: float) -> asyncio.Task[T]:
    """Run this to its end, or its deadline, whatever becomes of the request."""

    async def bounded() -> T:
        return await before(asyncio.get_running_loop().time() + timeout_s, work)

    # In an empty context Ray Serve takes its calls for nobody's, and does not cancel them with the request's.
    task = asyncio.create_task(bounded(), context=contextvars.Context())
    _kept.add(task)
    task.add_done_callback(_forget)
    return task


def _forget(task: asyncio.Task[Any]) -> None:
    _kept.discard(task)
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not report an error that nobody waited for
