"""The open-loop load: who is waited for, what is read of a stream, and what is made of it all."""

import asyncio
import math
from collections.abc import Sequence

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.openloop import (
    RETRIES,
    Arrival,
    Attempt,
    Chats,
    Failed,
    Refused,
    measure_capacity,
    measure_unloaded,
    open_session,
    percentile,
    poisson,
    run,
    run_open_loop,
    summarize,
    with_retries,
)


def attempt(ending: str, *, total_s: float = 1.0, first_token_s: float | None = None) -> Attempt:
    made = Attempt("default", due_s=0, began=0)
    made.end(ending)  # type: ignore[arg-type]
    made.total_s, made.first_token_s = total_s, first_token_s
    return made


def test_arrivals_are_the_same_for_a_seed_and_as_many_as_asked() -> None:
    times = poisson(rate_per_s=20, seconds=100, seed=1)

    assert times == poisson(20, 100, 1) == sorted(times)
    assert times != poisson(20, 100, 2)
    assert 1_800 < len(times) < 2_200
    assert max(times) < 100


def test_goodput_counts_answers_whose_first_token_came_in_time() -> None:
    attempts = [
        attempt("answered", first_token_s=2.0),
        attempt("answered", first_token_s=2.1),
        attempt("refused", total_s=0.004),
        attempt("failed", first_token_s=0.1),
        attempt("cut", first_token_s=0.1),
        attempt("cut", total_s=9.0),
    ]

    summary = summarize(attempts, seconds=2, limit_s=2.0)

    assert (summary.answered, summary.refused, summary.failed, summary.cut) == (2, 1, 1, 2)
    assert (summary.offered_per_s, summary.goodput_per_s) == (3.0, 0.5)
    assert summary.refusal_p95_s == 0.004
    # Of those taken in: 0.1, 2.0, 2.1, and 9.0 without a token.
    assert (summary.first_token_p50_s, summary.first_token_p95_s) == (2.0, 9.0)


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (51, 3), (95, 4), (100, 4), (1, 1)])
def test_percentiles_are_values_that_were_measured(percent: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == expected


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 50))


async def test_each_request_ends_in_its_own_way() -> None:
    async def answer(attempt: Attempt) -> None:
        attempt.mark_first_token()

    async def refuse(attempt: Attempt) -> None:
        raise Refused

    async def fail(attempt: Attempt) -> None:
        raise Failed("500: no")

    async def hang(attempt: Attempt) -> None:
        await asyncio.Event().wait()

    sends = {"a": answer, "r": refuse, "f": fail, "h": hang}
    attempts = await run_open_loop([Arrival(0, name, send) for name, send in sends.items()], seconds=0, wait_s=0.01)

    endings = {each.label: (each.ending, each.reason) for each in attempts}
    assert endings == {"a": ("answered", ""), "r": ("refused", ""), "f": ("failed", "500: no"), "h": ("cut", "")}


@pytest.mark.parametrize(("refusals", "ending"), [(RETRIES, "answered"), (RETRIES + 1, "refused")])
async def test_refused_request_is_made_again_as_often_as_openais_client_does(refusals: int, ending: str) -> None:
    left = [0.01] * refusals

    async def refuse(attempt: Attempt) -> None:
        if left:
            raise Refused(left.pop())

    made = Attempt("a", due_s=0, began=0)
    await run(with_retries(refuse), made)

    assert (made.ending, made.retries, left) == (ending, RETRIES, [])


async def test_what_can_still_be_good_is_waited_for_and_nothing_else() -> None:
    started, may_end = asyncio.Event(), asyncio.Event()

    async def in_time(attempt: Attempt) -> None:
        attempt.first_token_s = 0.5
        started.set()
        await may_end.wait()

    async def too_late(attempt: Attempt) -> None:
        attempt.first_token_s = 1.5
        await asyncio.Event().wait()

    arrivals = [Arrival(0, "in time", in_time), Arrival(0, "too late", too_late)]
    load = asyncio.create_task(run_open_loop(arrivals, seconds=0, limit_s=1.0, wait_s=60))
    await started.wait()
    may_end.set()

    assert {each.label: each.ending for each in await load} == {"in time": "answered", "too late": "cut"}


async def test_a_closed_loop_counts_what_ended_after_it_was_warm() -> None:
    running = 0
    most = 0

    async def answer(attempt: Attempt) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.to_thread(lambda: None)
        running -= 1

    assert await measure_capacity(answer, streams=3, warm_s=0.01, seconds=0.2) > 3
    assert most == 3


async def test_a_closed_loop_ends_with_the_first_failure() -> None:
    async def fail(attempt: Attempt) -> None:
        raise Failed("500: no")

    with pytest.raises(Failed, match="500: no"):
        await measure_capacity(fail, streams=2, warm_s=0, seconds=60)


async def test_an_unloaded_server_that_refuses_is_no_measure() -> None:
    async def refuse(attempt: Attempt) -> None:
        raise Refused

    with pytest.raises(Failed, match="refused"):
        await measure_unloaded(refuse)


# --- what is read of a stream -------------------------------------------------------------------

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"The"}}]}\n\n'
ERROR = b'data: {"error":{"message":"the engine died"}}\n\n'
DONE = b"data: [DONE]\n\n"


class Answers:
    """A server that answers each request with the given pieces, and keeps what it was sent."""

    def __init__(self, pieces: Sequence[bytes], status: int = 200) -> None:
        self._pieces, self._status = pieces, status
        self.received: list[tuple[dict[str, object], str | None]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.received.append((await request.json(), request.headers.get("cache-control")))
        response = web.StreamResponse(status=self._status)
        await response.prepare(request)
        for piece in self._pieces:
            await response.write(piece)
        return response


async def ask(answers: Answers, times: int = 1) -> list[Attempt]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answers.answer)
    attempts = [Attempt("default", 0, 0) for _ in range(times)]
    async with TestServer(app) as server, open_session() as session:
        chats = Chats(session, str(server.make_url("")).rstrip("/"), "m", "Load", {"service_tier": "priority"})
        for each in attempts:
            await run(chats.ask, each)
    return attempts


@pytest.mark.parametrize(
    ("pieces", "ending", "reason"),
    [
        ([ROLE, TOKEN, DONE], "answered", ""),
        ([ROLE + TOKEN[:40], TOKEN[40:] + DONE[:9], DONE[9:]], "answered", ""),
        ([ROLE, TOKEN, ERROR, DONE], "failed", "the engine died"),
        ([ROLE, TOKEN, ERROR[:9], ERROR[9:], DONE], "failed", "the engine died"),
        ([ROLE, TOKEN], "failed", "ended before it was done"),
    ],
)
async def test_a_stream_is_read_to_its_end(pieces: list[bytes], ending: str, reason: str) -> None:
    (attempt,) = await ask(Answers(pieces))

    assert attempt.ending == ending
    assert reason in attempt.reason
    assert attempt.first_token_s is not None


async def test_the_role_is_no_token() -> None:
    (attempt,) = await ask(Answers([ROLE]))

    assert attempt.first_token_s is None


@pytest.mark.parametrize(("status", "ending"), [(429, "refused"), (503, "failed")])
async def test_what_is_no_answer_has_no_first_token(status: int, ending: str) -> None:
    (attempt,) = await ask(Answers([b"{}"], status))

    assert (attempt.ending, attempt.first_token_s) == (ending, None)


async def test_each_question_is_another_and_no_cache_may_answer_it() -> None:
    answers = Answers([TOKEN, DONE])

    await ask(answers, times=3)

    assert len({str(body["messages"]) for body, _ in answers.received}) == 3
    assert {control for _, control in answers.received} == {"no-store"}
    assert {body["service_tier"] for body, _ in answers.received} == {"priority"}
    assert all(32 <= int(str(body["max_tokens"])) <= 48 for body, _ in answers.received)
