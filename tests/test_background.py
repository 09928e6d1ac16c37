"""Background responses: run without a client, read again as they came, and gone on with by whoever is left."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import update

from serve_app import chat
from serve_app.api.response_events import EventEncoder
from serve_app.background import MAX_ATTEMPTS, BackgroundResponses
from serve_app.chat import Turn
from serve_app.config import AppConfig, StorageConfig
from serve_app.conversation.jobs import ResponseJobs
from serve_app.conversation.log import ConversationLog
from serve_app.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from serve_app.events import Event, Finished, TextDelta
from serve_app.storage.database import Database
from serve_app.storage.schema import response_jobs
from serve_app.types import Json, new_id
from tests.fakes import FakeParts
from tests.test_chat import RHINE, SEARCH, ask, text_of

TIMEOUT_S = 20


@dataclass
class Gateway:
    """One process that can work on background responses."""

    background: BackgroundResponses
    fakes: FakeParts

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Until the block ends: then it lets go of what it has claimed, as at a shutdown."""
        task = asyncio.create_task(self.background.work())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await chat.drain()

    async def read(self, response_id: str) -> list[Event]:
        async with asyncio.timeout(TIMEOUT_S):
            return [event async for event in self.background.follow(response_id)]

    async def until_text(self, response_id: str, text: str) -> None:
        """Returns once a reader has seen so much."""
        seen = ""
        async with asyncio.timeout(TIMEOUT_S):
            async for event in self.background.follow(response_id):
                seen += event.text if isinstance(event, TextDelta) else ""
                if seen == text:
                    return
        raise AssertionError(f"the stream ended after {seen!r}")


@pytest.fixture
def start(database: Database) -> Callable[[], Gateway]:
    def start() -> Gateway:
        fakes = FakeParts(ConversationLog(database, max_cached=10), [RHINE])
        config = AppConfig(storage=StorageConfig(folder=Path("unused")))
        return Gateway(BackgroundResponses(fakes.parts, config, database), fakes)

    return start


@pytest.fixture
def gateway(start: Callable[[], Gateway]) -> Gateway:
    return start()


def in_background(turn: Turn) -> Turn:
    response = {**turn.opening.response, "background": True}
    return replace(turn, opening=replace(turn.opening, response=response))


def encode(events: list[Event], starting_after: int = -1) -> bytes:
    encoder = EventEncoder(starting_after)
    return b"".join(map(encoder.encode, events))


def response_of(events: list[Event]) -> Json:
    assert isinstance(events[-1], Finished)
    return events[-1].response


async def test_question_is_answered_without_a_client(gateway: Gateway) -> None:
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        events = await gateway.read(queued["id"])

    assert (queued["status"], queued["output"]) == ("queued", [])
    assert text_of(response_of(events)) == "Hello there."
    assert (await gateway.fakes.sessions.get_response(queued["id"])) == response_of(events)


async def test_stream_is_the_same_while_it_comes_and_afterwards(gateway: Gateway) -> None:
    gateway.fakes.generator.deltas = ["Through", " Basel", " [1", "]", ", and on", " [2]."]
    turn = in_background(ask(search=SEARCH))
    async with gateway.working():
        queued = await gateway.background.queue(turn)
        live = await gateway.read(queued["id"])

    again = await gateway.read(queued["id"])

    assert encode(again) == encode(live)
    names = [line for line in encode(live).decode().splitlines() if line.startswith("event: ")]
    assert names[:3] == ["event: response.created", "event: response.queued", "event: response.in_progress"]


async def test_it_is_queued_until_somebody_works(gateway: Gateway) -> None:
    queued = await gateway.background.queue(in_background(ask()))

    assert (await gateway.fakes.sessions.get_response(queued["id"]))["status"] == "queued"


async def test_same_key_finds_the_response_at_any_time(gateway: Gateway) -> None:
    first = await gateway.background.queue(in_background(ask(key="k")))
    again = await gateway.background.queue(in_background(ask(key="k")))
    async with gateway.working():
        await gateway.read(first["id"])

    assert again == first
    assert (await gateway.background.queue(in_background(ask(key="k"))))["status"] == "completed"
    assert len(gateway.fakes.generator.requests) == 1


async def test_reader_in_another_process_follows(gateway: Gateway, start: Callable[[], Gateway]) -> None:
    other = start()
    queued = await other.background.queue(in_background(ask()))
    reading = asyncio.create_task(other.read(queued["id"]))
    async with gateway.working():
        events = await reading

    assert text_of(response_of(events)) == "Hello there."


# --- who works on it goes away ------------------------------------------------------------------


@pytest.mark.parametrize("deltas", [["One ", "two ", "three"], ["Through", " Basel [1", "]", " and", " on"]])
async def test_another_goes_on_where_one_was_shut_down(
    gateway: Gateway, start: Callable[[], Gateway], deltas: list[str]
) -> None:
    gateway.fakes.generator.deltas = deltas[:2]
    gateway.fakes.generator.stalls = True
    seen = "One two" if deltas[0] == "One " else "Through Basel"
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask(search=SEARCH)))
        reading = asyncio.create_task(gateway.read(queued["id"]))
        await gateway.until_text(queued["id"], seen)
    other = start()
    other.fakes.generator.deltas = deltas
    async with other.working():
        live = await reading

    again = await other.read(queued["id"])
    assert encode(live) == encode(again)
    assert text_of(response_of(live)) == "".join(deltas).replace(" [1]", "")
    assert other.fakes.generator.requests[0].payload["messages"][-1]["content"] == "".join(deltas[:2]).rstrip()
    assert other.fakes.retriever.queries == []
    assert len(response_of(live)["output"][1]["content"][0]["annotations"]) == (1 if "[1" in deltas[1] else 0)


async def test_who_has_lost_its_job_stops_and_commits_nothing(gateway: Gateway, database: Database) -> None:
    gateway.fakes.generator.stalls = True
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        await gateway.until_text(queued["id"], "Hello there.")

        ResponseJobs(database).take_over(queued["id"])

        assert await asyncio.to_thread(gateway.fakes.generator.closed.wait, TIMEOUT_S)
    assert (await gateway.fakes.sessions.get_response(queued["id"]))["status"] == "in_progress"
    assert not gateway.fakes.sessions.closed.is_set()


async def test_json_that_was_begun_ends_as_incomplete(gateway: Gateway, start: Callable[[], Gateway]) -> None:
    turn = in_background(ask(sampling={"response_format": {"type": "json_object"}}))
    gateway.fakes.generator.deltas, gateway.fakes.generator.stalls = ['{"a":'], True
    async with gateway.working():
        queued = await gateway.background.queue(turn)
        await gateway.until_text(queued["id"], '{"a":')
    other = start()
    async with other.working():
        response = response_of(await other.read(queued["id"]))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "generator_lost"})
    assert text_of(response) == '{"a":'


@pytest.mark.parametrize("refusal", [Overloaded("full", retry_after_s=0.1), Unavailable("down", retry_after_s=0.1)])
async def test_it_waits_while_there_is_no_room(gateway: Gateway, refusal: Exception) -> None:
    gateway.fakes.generator.refusal = refusal
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        reading = asyncio.create_task(gateway.read(queued["id"]))
        await gateway.fakes.generator.asked_again.wait()
        gateway.fakes.generator.refusal = None
        response = response_of(await reading)

    assert text_of(response) == "Hello there."


async def test_room_is_waited_for_however_often_there_is_none(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.background.MAX_ATTEMPTS", 2)
    generator = gateway.fakes.generator
    generator.refusal = Overloaded("full", retry_after_s=0.01)
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(4):
                await generator.asked_again.wait()
                generator.asked_again.clear()
        generator.refusal = None
        response = response_of(await gateway.read(queued["id"]))

    assert text_of(response) == "Hello there."


async def test_what_kills_its_workers_comes_to_an_end(gateway: Gateway, database: Database) -> None:
    queued = await gateway.background.queue(in_background(ask()))
    jobs = ResponseJobs(database)
    for _ in range(MAX_ATTEMPTS):
        assert jobs.claim()
        with database.write() as connection:
            connection.execute(update(response_jobs).values(lease_until=1.0))

    async with gateway.working():
        response = response_of(await gateway.read(queued["id"]))

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "interrupted"})
    assert not gateway.fakes.generator.requests


async def test_what_the_model_refuses_has_failed_and_is_not_taken_back(gateway: Gateway) -> None:
    gateway.fakes.generator.refusal = InvalidRequest("the prompt is too long")
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        events = await gateway.read(queued["id"])

    assert response_of(events)["error"] == {"code": "invalid_prompt", "message": "the prompt is too long"}
    assert encode(events) == encode(await gateway.read(queued["id"]))
    assert b"event: error" in encode(events)


async def test_bug_fails_one_response_and_the_worker_goes_on(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.fakes.retriever.failure = KeyError("a bug")
    async with gateway.working():
        first = await gateway.background.queue(in_background(ask(search=SEARCH)))
        second = await gateway.background.queue(in_background(ask()))
        failed, completed = [response_of(await gateway.read(each["id"])) for each in (first, second)]

    assert (failed["status"], completed["status"]) == ("failed", "completed")
    assert "a bug" in caplog.text


# --- cancelled and deleted ----------------------------------------------------------------------


async def test_cancelling_stops_the_engine_and_keeps_what_was_seen(gateway: Gateway) -> None:
    gateway.fakes.generator.stalls = True
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        reading = asyncio.create_task(gateway.read(queued["id"]))
        await gateway.until_text(queued["id"], "Hello there.")

        cancelled = await gateway.background.cancel(queued["id"])

        assert await asyncio.to_thread(gateway.fakes.generator.closed.wait, TIMEOUT_S)
        live = await reading
    assert (cancelled["status"], text_of(cancelled)) == ("cancelled", "Hello there.")
    assert response_of(live) == cancelled
    assert encode(live) == encode(await gateway.read(queued["id"]))
    assert await gateway.background.cancel(queued["id"]) == cancelled


async def test_cancelled_in_another_process(gateway: Gateway, start: Callable[[], Gateway]) -> None:
    gateway.fakes.generator.stalls = True
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        await gateway.until_text(queued["id"], "Hello there.")
        both = await asyncio.gather(*(start().background.cancel(queued["id"]) for _ in range(2)))
        assert await asyncio.to_thread(gateway.fakes.generator.closed.wait, TIMEOUT_S)

    assert [each["status"] for each in both] == ["cancelled", "cancelled"]


async def test_what_is_queued_can_be_cancelled(gateway: Gateway) -> None:
    queued = await gateway.background.queue(in_background(ask()))

    assert (await gateway.background.cancel(queued["id"]))["status"] == "cancelled"
    async with gateway.working():
        assert response_of(await gateway.read(queued["id"]))["output"] == []
    assert gateway.fakes.generator.requests == []


async def test_what_has_ended_stays_as_it_is_and_others_cannot_be_cancelled(gateway: Gateway) -> None:
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        completed = response_of(await gateway.read(queued["id"]))

    assert await gateway.background.cancel(queued["id"]) == completed
    turn = ask()
    await gateway.fakes.sessions.open_turn(turn.opening)
    with pytest.raises(InvalidRequest, match="background"):
        await gateway.background.cancel(turn.opening.response["id"])
    with pytest.raises(NotFound):
        await gateway.background.cancel(new_id("resp"))


async def test_deleting_stops_the_engine_and_ends_the_readers(gateway: Gateway, start: Callable[[], Gateway]) -> None:
    gateway.fakes.generator.stalls = True
    async with gateway.working():
        queued = await gateway.background.queue(in_background(ask()))
        reading = asyncio.create_task(start().read(queued["id"]))
        await gateway.until_text(queued["id"], "Hello there.")

        await gateway.fakes.sessions.delete_response(queued["id"])

        assert await asyncio.to_thread(gateway.fakes.generator.closed.wait, TIMEOUT_S)
        with pytest.raises(NotFound):
            await reading
