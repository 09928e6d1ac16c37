"""Background responses: `chat.reply` without a client, and what its readers see, whichever process they ask.

A worker in each gateway claims jobs and runs them. The events go to the job's journal in the database, a few times a
second; readers follow the journal. Whatever is killed, the job is claimed again and goes on from the journal.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn
from weakref import WeakValueDictionary

from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from serve_app.chat import Turn, reply
from serve_app.config import AppConfig
from serve_app.conversation.jobs import LEASE_S, Batch, ResponseJob, ResponseJobs
from serve_app.errors import Conflict, InternalError, InvalidRequest, Overloaded, RayconteurError, Unavailable
from serve_app.events import (
    AnswerStarted,
    Event,
    Opened,
    Queued,
    SearchCompleted,
    SearchStarted,
    TextDelta,
    from_json,
    record,
    replay,
    to_json,
)
from serve_app.generation.answer import Answer
from serve_app.parts import Parts
from serve_app.storage.database import Database
from serve_app.types import Json
from serve_app.types.conversation import CloseTurn

logger = logging.getLogger(__name__)

JOURNAL_EVERY_S = 0.25
"""What the model writes is seen this much later at most: few enough commits for any database."""

MAX_ATTEMPTS = 20
"""So often in a row it was begun and nothing came of it: it cannot be answered, and may be what kills its workers. With
the growing pauses that takes a quarter of an hour. Waiting for room is no attempt.
"""

_RENEW_EVERY_S = LEASE_S / 5
_LOOK_EVERY_S = 1.0
_LOOK_AT_REST_S = 2.0
"""Where nothing is written, a reader looks for what another process writes less and less often, to so seldom."""
_MAX_RETRY_AFTER_S = 60.0

# A checked request as JSON and back. It is made of dataclasses, which pydantic knows how to read.
_TURN = TypeAdapter(Turn)


class BackgroundResponses:
    """The background responses, as seen from one gateway."""

    def __init__(self, parts: Parts, config: AppConfig, database: Database) -> None:
        self.parts, self._config = parts, config
        self._jobs = ResponseJobs(database)
        self._has_work = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._news: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def queue(self, turn: Turn) -> Json:
        """Commit the question with its job. Returns the response as it stands; asked again, as it stands by then."""
        job: Json = _TURN.dump_python(turn, mode="json")
        opened = await self.parts.sessions.open_turn(replace(turn.opening, job=job))
        self._has_work.set()
        return opened.finished or {**turn.opening.response, "status": "queued"}

    async def follow(self, response_id: str) -> AsyncGenerator[Event, None]:
        """The events of any stored response, the past ones first. Raises `NotFound` if it is deleted meanwhile."""
        recorded = await self.parts.sessions.get_recorded(response_id)
        given = 0
        if recorded.has_job:
            async with aclosing(self._follow_journal(response_id, recorded.response)) as events:
                async for event in events:
                    given += 1
                    yield event
            recorded = await self.parts.sessions.get_recorded(response_id)
        while not recorded.has_ended:
            # Another request's client still gets it, or has just left it.
            await asyncio.sleep(JOURNAL_EVERY_S)
            recorded = await self.parts.sessions.get_recorded(response_id)
        whole = list(replay(recorded.response, recorded.recording))
        for event in whole[given:] or whole[-1:]:
            yield event

    async def cancel(self, response_id: str) -> Json:
        """The response, which has ended then. Raises `InvalidRequest` if it is none of the background."""
        while True:
            recorded = await self.parts.sessions.get_recorded(response_id)
            if not recorded.response.get("background"):
                raise InvalidRequest(
                    "Only a response made with 'background' can be cancelled; to end another one, close its connection",
                    param="response_id",
                )
            if recorded.has_ended:
                return recorded.response
            # Whoever works on it can write no more from here on, so that what its readers have seen is what is kept.
            job = await run_in_threadpool(self._jobs.take_over, response_id)
            if job:
                self.stop(response_id)
                turn = _turn_of(job)
                answer = Answer(turn.opening.response)
                _restore(answer, turn, await self._read(job))
                # If somebody else cancels it, too, one of us does it.
                with suppress(Conflict):
                    await self._close(job, answer.cancelled(), answer)

    def stop(self, response_id: str) -> None:
        """Its job is no longer ours: what of it runs here is for nothing."""
        if task := self._running.get(response_id):
            task.cancel()

    # --- the worker -----------------------------------------------------------------------------

    async def work(self) -> NoReturn:
        """Claim jobs and run them, a bounded number at once. Cancelled, it leaves them to others."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._has_work.clear()
                while job := await self._claim():
                    task = group.create_task(self._run(job))
                    self._running[job.response_id] = task
                    task.add_done_callback(self._forget)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._has_work.wait()

    async def _claim(self) -> ResponseJob | None:
        # A client's request goes first; and what the model has no place for is left to who has.
        has_room = self.parts.admissions.has_room("background")
        if not has_room or len(self._running) >= self._config.api.max_background_responses:
            return None
        try:
            return await run_in_threadpool(self._jobs.claim)
        except RayconteurError as error:
            logger.warning("no background response can be claimed: %s", error)
            return None

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._running = {name: running for name, running in self._running.items() if running is not task}
        self._has_work.set()

    async def _run(self, job: ResponseJob) -> None:
        answer = Answer(job.request["opening"]["response"])
        error: RayconteurError
        try:
            turn = _turn_of(job)
            _restore(answer, turn, past := await self._read(job))
            if past:
                logger.info("response %s: going on after %d characters", job.response_id, len(answer.raw_text))
            if job.attempts > MAX_ATTEMPTS:
                await self._close(job, answer.incomplete("interrupted"), answer)
            else:
                await self._answer(turn, job, answer, _Journal(answer, past))
            return
        except Overloaded as failure:
            await self._release(job, failure.retry_after_s or 0.0, has_failed=False)
            logger.info("response %s waits for room: %s", job.response_id, failure)
            return
        except Unavailable as failure:
            pause_s = min(0.5 * 2**job.attempts, _MAX_RETRY_AFTER_S)
            await self._release(job, max(failure.retry_after_s or 0.0, pause_s), has_failed=True)
            logger.info("response %s waits: %s", job.response_id, failure)
            return
        except asyncio.CancelledError:
            await asyncio.shield(self._release(job, 0, has_failed=False))
            raise
        except RayconteurError as failure:
            error = failure
        except Exception:
            logger.exception("the background response %s failed", job.response_id)
            error = InternalError("an internal error occurred: the server's log has the details")
        with suppress(RayconteurError):
            await self._close(job, answer.failed(error), answer, error)

    async def _answer(self, turn: Turn, job: ResponseJob, answer: Answer, journal: "_Journal") -> None:
        """Run it to its end, or until the job is not ours any more."""
        answering = asyncio.create_task(journal.collect(reply(turn, self.parts, self._config, answer)))
        writing = asyncio.create_task(self._write(job, journal))
        try:
            done, _ = await asyncio.wait((answering, writing), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            answering.cancel()
            writing.cancel()
            await asyncio.wait((answering, writing))
            self._tell(job.response_id)

    async def _write(self, job: ResponseJob, journal: "_Journal") -> None:
        """Journal what has happened, and renew the lease, until the job is not ours any more."""
        now = asyncio.get_running_loop().time
        renewed_at = now()
        is_ours = True
        while is_ours:
            await asyncio.sleep(JOURNAL_EVERY_S)
            batch = journal.next_batch()
            if batch is None and now() - renewed_at < _RENEW_EVERY_S:
                continue
            try:
                is_ours = await run_in_threadpool(self._jobs.write, job, batch)
            except RayconteurError as error:
                logger.warning("response %s is not journalled: %s", job.response_id, error)
                continue
            renewed_at = now()
            journal.acknowledge(batch)
            self._tell(job.response_id)

    async def _read(self, job: ResponseJob) -> tuple[Batch, ...]:
        return await run_in_threadpool(self._jobs.read, job.response_id, 0) or ()

    async def _release(self, job: ResponseJob, after_s: float, *, has_failed: bool) -> None:
        # If this fails, too, the lease runs out.
        with suppress(RayconteurError):
            await run_in_threadpool(partial(self._jobs.release, job, after_s, has_failed=has_failed))

    async def _close(
        self, job: ResponseJob, response: Json, answer: Answer, error: RayconteurError | None = None
    ) -> None:
        recording = record(answer.delta_lengths, error)
        await self.parts.sessions.close_turn(CloseTurn(job.log_id, response, True, recording, job.fence))
        self._tell(job.response_id)

    # --- the readers ----------------------------------------------------------------------------

    async def _follow_journal(self, response_id: str, response: Json) -> AsyncGenerator[Event, None]:
        """What has been journalled and what will be, until there is no job any more."""
        yield Queued({**response, "status": "queued"})
        news = self._news.setdefault(response_id, asyncio.Event())
        number, wait_s = 0, JOURNAL_EVERY_S
        while (batches := await run_in_threadpool(self._jobs.read, response_id, number)) is not None:
            for batch in batches:
                number = batch.number
                for event in batch.events:
                    yield from_json(event)
            # It may be written in another process: then nobody tells.
            wait_s = JOURNAL_EVERY_S if batches else min(2 * wait_s, _LOOK_AT_REST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await news.wait()

    def _tell(self, response_id: str) -> None:
        if news := self._news.get(response_id):
            news.set()
            news.clear()


class _Journal:
    """What has happened here and is not in the database yet."""

    def __init__(self, answer: Answer, past: Sequence[Batch]) -> None:
        self._answer = answer
        self._number = len(past)
        self._raw_length = len(answer.raw_text)
        self._pending: list[Event] = []
        self._batch: Batch | None = None

    async def collect(self, events: AsyncGenerator[Event, None]) -> None:
        async with aclosing(events):
            async for event in events:
                self._pending.append(event)

    def next_batch(self) -> Batch | None:
        """What is to be written now: again the same until it is acknowledged.

        After the model's last word nothing is: the rest is seen once it is committed, which is now. And a search is
        seen with its end, so that who goes on here makes either all of it or nothing.
        """
        is_searching = bool(self._pending) and isinstance(self._pending[-1], SearchStarted)
        if self._batch is None and self._pending and not is_searching and not self._answer.has_ended:
            raw_text = self._answer.raw_text[self._raw_length :]
            self._batch = Batch(self._number + 1, tuple(map(to_json, self._pending)), raw_text)
            self._number += 1
            self._raw_length += len(raw_text)
            self._pending.clear()
        return self._batch

    def acknowledge(self, batch: Batch | None) -> None:
        if batch is self._batch:
            self._batch = None


def _turn_of(job: ResponseJob) -> Turn:
    return replace(_TURN.validate_python(job.request), job_fence=job.fence)


def _restore(answer: Answer, turn: Turn, past: Sequence[Batch]) -> None:
    """Make it what it was when its journal was last written."""
    deltas: list[str] = []
    message_id = None
    for event in (from_json(data) for batch in past for data in batch.events):
        match event:
            case Opened():
                answer.open()
            case SearchCompleted(call, shown):
                answer.restore_search(call, shown, cites=turn.cites)
            case AnswerStarted(started):
                message_id = started
            case TextDelta(text):
                deltas.append(text)
    if message_id:
        answer.restore_text(message_id, "".join(batch.raw_text for batch in past), deltas)
