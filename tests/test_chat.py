"""`chat.reply`: the order of commits, and what becomes of a turn that does not end well."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from serve_app.api.response_events import EventEncoder
from serve_app.chat import Turn, reply
from serve_app.config import ApiConfig, AppConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.errors import Conflict, InternalError, InvalidRequest, NotFound, Overloaded, Timeout, Unavailable
from serve_app.events import (
    AnswerStarted,
    Citation,
    Event,
    Finished,
    Opened,
    SearchCompleted,
    SearchStarted,
    TextDelta,
)
from serve_app.generation.citations import build_citation
from serve_app.search import Search
from serve_app.types import Json, PageQuery, new_id
from serve_app.types.conversation import CloseTurn, OpenedTurn, OpenTurn
from serve_app.types.knowledge import Ranking, StoreTable
from tests.databases import opened
from tests.fakes import FakeParts, Hold, LocalSessions, build_passage

T = TypeVar("T", bound=Event)

TIMEOUT_S = 600

RHINE = build_passage(1, "The Rhine flows through Basel.", topic="rivers")
SEARCH = Search(
    {"vs_1": StoreTable("all-minilm-l6-v2")}, max_passages=5, filter=None, ranking=Ranking(), with_results=True
)


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[FakeParts]:
    with opened(f"sqlite:///{tmp_path / 'log.db'}") as database:
        yield FakeParts(ConversationLog(database, max_cached=10), [RHINE])


def config(request_timeout_s: float = 60) -> AppConfig:
    return AppConfig(storage=StorageConfig(folder=Path("unused")), api=ApiConfig(request_timeout_s=request_timeout_s))


def ask(
    text: str = "Where does the Rhine flow?",
    *,
    search: Search | None = None,
    previous: str | None = None,
    conversation: str | None = None,
    store: bool = True,
    key: str | None = None,
    sampling: Json | None = None,
) -> Turn:
    item = {"type": "message", "id": new_id("msg"), "status": "completed", "role": "user"}
    response = {"id": new_id("resp"), "object": "response", "status": "in_progress", "created_at": 1}
    response |= {"completed_at": None, "background": False, "usage": None}
    return Turn(
        opening=OpenTurn(
            response={**response, "instructions": "Be brief.", "output": [], "error": None, "incomplete_details": None},
            input_items=({**item, "content": [{"type": "input_text", "text": text}]},),
            conversation_id=conversation,
            previous_response_id=previous,
            store=store,
            idempotency_key=key,
        ),
        sampling={"model": "m", "max_completion_tokens": 512, **(sampling or {})},
        request_id="req_1",
        search=search,
        priority=10,
    )


async def run(turn: Turn, fakes: FakeParts, configured: AppConfig | None = None) -> list[Event]:
    return [event async for event in reply(turn, fakes.parts, configured or config())]


async def finish(turn: Turn, fakes: FakeParts, configured: AppConfig | None = None) -> Finished:
    last = (await run(turn, fakes, configured))[-1]
    assert isinstance(last, Finished)
    return last


def only(kind: type[T], events: list[Event]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def text_of(response: Json) -> str:
    text: str = response["output"][-1]["content"][0]["text"]
    return text


def encode(events: list[Event]) -> bytes:
    encoder = EventEncoder()
    return b"".join(map(encoder.encode, events))


def prompt(fakes: FakeParts) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in fakes.generator.requests[-1].payload["messages"]]


# --- the order ----------------------------------------------------------------------------------


async def test_question_is_committed_before_anything_is_computed(fakes: FakeParts) -> None:
    await run(ask(search=SEARCH), fakes)

    assert fakes.journal.entries[:4] == ["question committed", "embed", "search", "generate"]


async def test_answer_is_committed_before_the_final_event(fakes: FakeParts) -> None:
    turn = ask()
    async with aclosing(reply(turn, fakes.parts, config())) as events:
        async for event in events:
            if isinstance(event, Finished):
                assert fakes.journal.entries[-1] == "answer committed as completed"
                stored = await fakes.sessions.get_response(turn.opening.response["id"])
                assert stored == event.response
                break
            assert "answer committed as completed" not in fakes.journal.entries
    assert isinstance(event, Finished)


async def test_events_come_in_the_order_of_the_work(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["Through", " Basel [1", "]."]

    events = await run(ask(search=SEARCH), fakes)

    assert [type(event) for event in events] == [
        Opened,
        SearchStarted,
        SearchCompleted,
        AnswerStarted,
        TextDelta,
        TextDelta,
        TextDelta,
        Citation,
        Finished,
    ]
    assert [event.text for event in only(TextDelta, events)] == ["Through", " Basel", "."]


# --- the answer ---------------------------------------------------------------------------------


async def test_response_holds_the_search_the_answer_and_the_usage(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["Through Basel [1]."]

    response = (await finish(ask(search=SEARCH), fakes)).response

    call, message = response["output"]
    assert call == {
        "type": "file_search_call",
        "id": call["id"],
        "status": "completed",
        "queries": ["Where does the Rhine flow?"],
        "results": [
            {
                "file_id": "file_1",
                "filename": "1.txt",
                "score": 0.99,
                "text": "The Rhine flows through Basel.",
                "attributes": {"topic": "rivers"},
                "vector_store_id": "vs_1",
                "place": RHINE.place_to_json(),
            }
        ],
    }
    assert message["status"] == "completed"
    assert message["content"] == [
        {
            "type": "output_text",
            "text": "Through Basel.",
            "annotations": [build_citation(RHINE, 13)],
            "logprobs": [],
        }
    ]
    assert response["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 14,
    }


async def test_model_gets_the_sampling_the_sources_and_the_priority(fakes: FakeParts) -> None:
    await run(ask(search=SEARCH, sampling={"model": "m", "temperature": 0.5}), fakes)

    request = fakes.generator.requests[-1]
    assert (request.payload["model"], request.payload["temperature"], request.priority) == ("m", 0.5, 10)
    assert request.payload["stream_options"] == {"include_usage": True}
    assert prompt(fakes)[-1] == (
        "user",
        "Sources:\n[1] (1.txt) The Rhine flows through Basel.\n\nQuestion: Where does the Rhine flow?",
    )


async def test_brackets_stay_without_a_search(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["a[1] = b[", "2]"]

    assert text_of((await finish(ask(), fakes)).response) == "a[1] = b[2]"


async def test_brackets_stay_in_json(fakes: FakeParts) -> None:
    fakes.generator.deltas = ['{"a": [1]}']

    turn = ask(search=SEARCH, sampling={"model": "m", "response_format": {"type": "json_object"}})

    assert text_of((await finish(turn, fakes)).response) == '{"a": [1]}'


async def test_answer_cut_by_its_limit_is_incomplete(fakes: FakeParts) -> None:
    fakes.generator.finish_reason = "length"

    response = (await finish(ask(), fakes)).response

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"


async def test_answer_without_text_is_still_an_answer(fakes: FakeParts) -> None:
    fakes.generator.deltas = []

    response = (await finish(ask(), fakes)).response

    assert (response["status"], text_of(response)) == ("completed", "")


# --- the conversation ---------------------------------------------------------------------------


async def test_follow_up_has_the_history(fakes: FakeParts) -> None:
    first = (await finish(ask("Hi"), fakes)).response

    await run(ask("And?", previous=first["id"]), fakes)

    assert prompt(fakes) == [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello there."), ("user", "And?")]


async def test_branch_from_an_older_response_does_not_see_the_newer(fakes: FakeParts) -> None:
    first = (await finish(ask("Hi"), fakes)).response
    await finish(ask("Left?", previous=first["id"]), fakes)

    await run(ask("Right?", previous=first["id"]), fakes)

    assert [content for _, content in prompt(fakes)] == ["Be brief.", "Hi", "Hello there.", "Right?"]


async def test_nothing_is_kept_without_store(fakes: FakeParts) -> None:
    response = (await finish(ask(store=False), fakes)).response

    assert response["status"] == "completed"
    with pytest.raises(NotFound):
        await fakes.sessions.get_response(response["id"])


async def test_the_same_key_again_gives_the_same_stream_without_the_model(fakes: FakeParts) -> None:
    fakes.generator.deltas = ["Through", " Basel", " [1", "]", "."]
    first = await run(ask(search=SEARCH, key="k"), fakes)

    again = await run(ask(search=SEARCH, key="k"), fakes)

    assert len(fakes.generator.requests) == 1
    assert again[-1] == first[-1]
    assert encode(again) == encode(first)


async def test_the_same_key_while_it_is_being_answered_is_a_conflict(fakes: FakeParts) -> None:
    async with aclosing(reply(ask(key="k"), fakes.parts, config())) as events:
        assert isinstance(await anext(events), Opened)
        with pytest.raises(Conflict):
            await run(ask(key="k"), fakes)


async def test_unknown_past_raises_and_nothing_is_computed(fakes: FakeParts) -> None:
    with pytest.raises(NotFound):
        await run(ask(previous=new_id("resp"), search=SEARCH), fakes)

    assert fakes.journal.entries == []


# --- what does not end well ---------------------------------------------------------------------


async def test_leaving_client_stops_the_engine_and_the_partial_answer_is_committed(fakes: FakeParts) -> None:
    turn = ask()
    events = reply(turn, fakes.parts, config())
    while not isinstance(await anext(events), TextDelta):
        pass

    await events.aclose()

    assert fakes.journal.entries[-2:] == ["generator closed", "answer committed as incomplete"]
    stored = await fakes.sessions.get_response(turn.opening.response["id"])
    assert (stored["status"], stored["incomplete_details"]) == ("incomplete", {"reason": "client_disconnected"})
    assert text_of(stored) == "Hello"


async def test_cancelled_request_is_committed_and_stays_cancelled(fakes: FakeParts) -> None:
    fakes.generator.stalls = True
    turn = ask()
    task = asyncio.create_task(run(turn, fakes))
    await asyncio.to_thread(fakes.generator.stalled.wait, 10)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert fakes.journal.entries[-2:] == ["generator closed", "answer committed as incomplete"]
    assert text_of(await fakes.sessions.get_response(turn.opening.response["id"])) == "Hello there."


async def test_commit_survives_a_scope_that_goes_on_cancelling(fakes: FakeParts) -> None:
    """As anyio's scopes do, which Starlette uses: every await in them is cancelled again."""
    fakes.generator.stalls = True
    turn = ask()
    async with anyio.create_task_group() as group:
        group.start_soon(run, turn, fakes)
        await asyncio.to_thread(fakes.generator.stalled.wait, 10)
        group.cancel_scope.cancel()

    stored = await fakes.sessions.get_response(turn.opening.response["id"])
    assert (stored["status"], text_of(stored)) == ("incomplete", "Hello there.")


async def cancel_while(held: Hold, turn: Turn, fakes: FakeParts) -> None:
    """The client leaves while the log is held there. Returns when the turn has been closed."""
    task = asyncio.create_task(run(turn, fakes))
    await held.reached.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.release.set()
    await asyncio.to_thread(fakes.sessions.closed.wait, 10)


async def test_commit_survives_a_request_that_is_cancelled_meanwhile(fakes: FakeParts) -> None:
    turn = ask()
    await cancel_while(fakes.sessions.hold_close_turn(), turn, fakes)

    assert (await fakes.sessions.get_response(turn.opening.response["id"]))["status"] == "completed"


async def test_commits_are_not_part_of_the_request_for_ray(fakes: FakeParts) -> None:
    """Ray Serve finds what to cancel with a request by a context variable."""
    request: ContextVar[str | None] = ContextVar("request", default=None)
    seen: list[str | None] = []

    class Spy(LocalSessions):
        async def open_turn(self, turn: OpenTurn) -> OpenedTurn:
            seen.append(request.get())
            return await super().open_turn(turn)

        async def close_turn(self, turn: CloseTurn) -> None:
            seen.append(request.get())
            await super().close_turn(turn)

    request.set("req_1")
    parts = replace(fakes.parts, sessions=Spy(fakes.log))

    assert [type(event) async for event in reply(ask(), parts, config())][-1] is Finished
    assert seen == [None, None]


async def test_client_that_leaves_while_its_question_is_committed_leaves_no_open_turn(fakes: FakeParts) -> None:
    turn = ask()
    await cancel_while(fakes.sessions.hold_open_turn(), turn, fakes)

    stored = await fakes.sessions.get_response(turn.opening.response["id"])
    assert (stored["status"], stored["output"]) == ("incomplete", [])
    assert "generate" not in fakes.journal.entries


async def test_failure_in_mid_stream_keeps_the_text_and_fails_the_response(fakes: FakeParts) -> None:
    fakes.generator.failure = InternalError("the model is gone")
    turn = ask()

    finished = await finish(turn, fakes)

    assert finished.error is fakes.generator.failure
    assert finished.response["status"] == "failed"
    assert finished.response["error"] == {"code": "server_error", "message": "the model is gone"}
    assert text_of(finished.response) == "Hello there."
    assert await fakes.sessions.get_response(turn.opening.response["id"]) == finished.response


@pytest.mark.parametrize("in_conversation", [False, True])
@pytest.mark.parametrize("refusal", [InvalidRequest("too long"), Overloaded("full")])
async def test_refused_question_is_taken_back_and_can_be_asked_again(
    fakes: FakeParts, refusal: Exception, in_conversation: bool
) -> None:
    conversation = await fakes.sessions.create_conversation(new_id("conv"), {}, ())
    where = conversation.id if in_conversation else None
    turn = ask(conversation=where, key="once")
    fakes.generator.refusal = refusal

    with pytest.raises(type(refusal)):
        await run(turn, fakes)

    with pytest.raises(NotFound):
        await fakes.sessions.get_response(turn.opening.response["id"])
    assert (await fakes.sessions.list_items(conversation.id, PageQuery())).data == ()
    fakes.generator.refusal = None
    assert (await finish(ask(conversation=where, key="once"), fakes)).response["status"] == "completed"
    items = (await fakes.sessions.list_items(conversation.id, PageQuery(order="asc"))).data
    assert [item["role"] for item in items] == (["user", "assistant"] if in_conversation else [])


async def test_search_that_fails_is_not_answered_from_nothing(fakes: FakeParts) -> None:
    fakes.retriever.failure = Unavailable("no index")

    with pytest.raises(Unavailable, match="no index"):
        await run(ask(search=SEARCH), fakes)

    assert fakes.generator.requests == []


@pytest.mark.parametrize("reason", [None, "abort"])
async def test_model_that_stops_without_finishing_has_failed(fakes: FakeParts, reason: str | None) -> None:
    fakes.generator.finish_reason = reason

    assert (await finish(ask(), fakes)).response["status"] == "failed"


async def test_bug_is_logged_and_closes_the_turn(fakes: FakeParts, caplog: pytest.LogCaptureFixture) -> None:
    fakes.generator.failure = KeyError("a bug")
    turn = ask()

    finished = await finish(turn, fakes)

    assert "a bug" in caplog.text
    assert "a bug" not in str(finished.response)
    assert (await fakes.sessions.get_response(turn.opening.response["id"]))["status"] == "failed"


async def finish_late(fakes: FakeParts, reached: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """How an answer ends whose time is over at that event: then the event loop's clock is put forward."""
    finishing = asyncio.create_task(finish(ask(), fakes, config(request_timeout_s=TIMEOUT_S)))
    assert await asyncio.to_thread(reached.wait, 60)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + TIMEOUT_S)
    return await finishing


async def test_deadline_keeps_the_text_as_incomplete(fakes: FakeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.generator.stalls = True

    finished = await finish_late(fakes, fakes.generator.stalled, monkeypatch)

    assert finished.error is None
    assert finished.response["incomplete_details"] == {"reason": "timeout"}
    assert text_of(finished.response) == "Hello there."
    assert fakes.generator.closed.is_set()


async def test_deadline_before_any_text_is_a_timeout(fakes: FakeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.generator.deltas = []
    fakes.generator.stalls = True

    finished = await finish_late(fakes, fakes.generator.stalled, monkeypatch)

    assert isinstance(finished.error, Timeout)
    assert finished.response["status"] == "failed"


async def test_answer_that_cannot_be_committed_is_not_called_completed(fakes: FakeParts) -> None:
    fakes.sessions.failure = Unavailable("no database")

    finished = await finish(ask(), fakes)

    assert finished.error is fakes.sessions.failure
    assert finished.response["status"] == "failed"
