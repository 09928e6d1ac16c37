"""An open-loop load: requests come when they come, whatever has become of those before. And what is measured of it.

A closed loop (`load.py`) asks again once it has been answered, so it slows down with its server and never shows it
overloaded. Here all times count from when a request was due, also if this client was late with it.
"""

import asyncio
import itertools
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

MIN_TOKENS, MAX_TOKENS = 32, 48
STREAMS = 32
"""As many as the default settings let the engine compute at once."""
ASK_AGAIN_AFTER_S = 0.05
RETRIES = 2
"""As many as OpenAI's client makes by default."""

_FIRST_TOKEN = re.compile(rb'"content":\s?"[^"]')
_ERROR = re.compile(rb'^data: \{"error"', re.MULTILINE)
_DONE = b"data: [DONE]"


class Refused(Exception):
    """The server answered 429, and when to come back."""

    def __init__(self, retry_after_s: float = 0.0) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s


class Failed(Exception):
    """The server answered anything else that is no answer."""


@dataclass(slots=True)
class Attempt:
    """One request, and what has become of it so far. Seconds count from when it was due."""

    label: str
    due_s: float
    """Since the load began."""
    began: float
    """When it was due, by `time.perf_counter`."""
    ending: Literal["running", "answered", "refused", "failed", "cut"] = "running"
    first_token_s: float | None = None
    total_s: float = 0.0
    reason: str = ""
    retries: int = 0
    """So often it was refused and asked again."""

    def mark_first_token(self) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.began

    def end(self, ending: Literal["answered", "refused", "failed", "cut"], reason: str = "") -> None:
        self.ending, self.reason, self.total_s = ending, reason, time.perf_counter() - self.began


Send = Callable[[Attempt], Awaitable[None]]
"""Sends a request, marks its first token, and returns once it is answered. Raises `Refused` or `Failed`."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    label: str
    send: Send


@dataclass
class Chats:
    """Streamed chat completions of 32 to 48 tokens: each with a prompt of its own, none from a cache."""

    session: aiohttp.ClientSession
    url: str
    model: str
    salt: str
    """Keeps the prompts of two of these apart."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the body holds beside, such as a `service_tier`."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._random = random.Random(self.salt)
        self._headers = {"content-type": "application/json", "cache-control": "no-store", **self.headers}

    async def ask(self, attempt: Attempt) -> None:
        body = {
            "model": self.model,
            "messages": [
                {"role": "user", "content": f"{self.salt} {next(self._numbers)}: tell me of a lighthouse keeper."}
            ],
            "max_tokens": self._random.randint(MIN_TOKENS, MAX_TOKENS),
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            **self.fields,
        }
        await stream(self.session, f"{self.url}/v1/chat/completions", body, self._headers, attempt)


async def stream(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], headers: Mapping[str, str], attempt: Attempt
) -> None:
    """Read a streamed chat completion, and look at no more of it than its first token and its end."""
    async with session.post(url, data=json.dumps(body).encode(), headers=headers) as response:
        await check(response)
        # Of what came before, enough for whatever the network has cut in two.
        tail = b""
        async for piece in response.content.iter_any():
            tail += piece
            if attempt.first_token_s is None and _FIRST_TOKEN.search(tail):
                attempt.mark_first_token()
            if _ERROR.search(tail):
                raise Failed(tail.decode(errors="replace")[-300:])
            tail = tail[-300:]
    if not tail.rstrip().endswith(_DONE):
        raise Failed("the stream ended before it was done")
    # The first token was no text, which no pattern sees.
    attempt.mark_first_token()


async def check(response: aiohttp.ClientResponse) -> None:
    """Raises `Refused` or `Failed` for what is no answer."""
    if response.status == 429:
        await response.read()
        raise Refused(float(response.headers.get("retry-after-ms", 0)) / 1e3)
    if response.status != 200:
        raise Failed(f"{response.status}: {(await response.text())[:300]}")


def with_retries(send: Send) -> Send:
    """As OpenAI's client sends it: refused, it asks again when it was told to, and gives up after the last retry."""

    async def send_again(attempt: Attempt) -> None:
        try:
            await send(attempt)
        except Refused as refusal:
            if attempt.retries == RETRIES:
                raise
            attempt.retries += 1
            await asyncio.sleep(refusal.retry_after_s)
            await send_again(attempt)

    return send_again


def open_session() -> aiohttp.ClientSession:
    """Without a limit of connections or of time: neither may make the load a closed one."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**16
    )


# --- loads --------------------------------------------------------------------------------------


def poisson(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """When requests arrive that know nothing of each other, in seconds from the beginning."""
    generator = random.Random(seed)
    times = itertools.accumulate(iter(lambda: generator.expovariate(rate_per_s), None))
    return list(itertools.takewhile(lambda at_s: at_s < seconds, times))


async def run_open_loop(
    arrivals: Iterable[Arrival], seconds: float, *, limit_s: float = math.inf, wait_s: float = 30
) -> list[Attempt]:
    """Send each request when it is due, and wait at the end of the `seconds` for those that still run.

    Waited for, `wait_s` at most, are those that have or can still have their first token within `limit_s`. What
    runs after that is cut, and its connection closed.
    """
    began = time.perf_counter()
    attempts: dict[asyncio.Task[None], Attempt] = {}
    for arrival in sorted(arrivals, key=lambda each: each.at_s):
        await asyncio.sleep(began + arrival.at_s - time.perf_counter())
        attempt = Attempt(arrival.label, arrival.at_s, began + arrival.at_s)
        attempts[asyncio.create_task(run(arrival.send, attempt))] = attempt
    await asyncio.sleep(began + seconds - time.perf_counter())
    deadline = time.perf_counter() + wait_s
    while time.perf_counter() < deadline:
        awaited = [task for task, attempt in attempts.items() if may_be_in_time(attempt, limit_s)]
        if not awaited:
            break
        await asyncio.wait(awaited, timeout=0.1)
    for task in attempts:
        task.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)
    return list(attempts.values())


async def run(send: Send, attempt: Attempt) -> None:
    try:
        await send(attempt)
    except Refused:
        attempt.end("refused")
    except (Failed, aiohttp.ClientError, TimeoutError) as error:
        attempt.end("failed", str(error) or type(error).__name__)
    except asyncio.CancelledError:
        attempt.end("cut")
        raise
    else:
        attempt.end("answered")


def may_be_in_time(attempt: Attempt, limit_s: float) -> bool:
    if attempt.ending != "running":
        return False
    so_far_s = time.perf_counter() - attempt.began
    return (so_far_s if attempt.first_token_s is None else attempt.first_token_s) <= limit_s


async def measure_unloaded(send: Send, count: int = 6) -> list[float]:
    """Seconds to the first token of requests one after the other, after one to warm up. Raises `Failed`."""
    attempts = []
    for _ in range(count + 1):
        attempt = Attempt("unloaded", 0, time.perf_counter())
        await run(send, attempt)
        if attempt.first_token_s is None:
            raise Failed(f"an unloaded server does not answer: {attempt.ending} {attempt.reason}")
        attempts.append(attempt)
    return [each.first_token_s for each in attempts[1:] if each.first_token_s is not None]


async def measure_capacity(send: Send, *, streams: int = STREAMS, warm_s: float = 10, seconds: float = 22) -> float:
    """Answers per second of a closed loop that keeps `streams` requests running. Raises `Failed`.

    The streams begin one by one while it warms up, or they would also end together. One that is refused asks again.
    """
    attempts: list[Attempt] = []
    began = time.perf_counter()

    async def ask_again_and_again(number: int) -> None:
        await asyncio.sleep(number * warm_s / streams)
        while time.perf_counter() < began + warm_s + seconds:
            attempt = Attempt("capacity", time.perf_counter() - began, time.perf_counter())
            await run(send, attempt)
            attempts.append(attempt)
            if attempt.ending == "failed":
                raise Failed(attempt.reason)
            if attempt.ending == "refused":
                await asyncio.sleep(ASK_AGAIN_AFTER_S)

    tasks = [asyncio.create_task(ask_again_and_again(number)) for number in range(streams)]
    done, _ = await asyncio.wait(tasks, timeout=warm_s + seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled() and (error := task.exception()):
            raise error
    ended_s = [each.due_s + each.total_s for each in attempts if each.ending == "answered"]
    return sum(warm_s <= at_s < warm_s + seconds for at_s in ended_s) / seconds


# --- what was measured --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the requests that arrived within so many seconds. Percentiles are in seconds, NaN where there was none."""

    seconds: float
    offered: int
    answered: int
    refused: int
    failed: int
    cut: int
    """Still running when the load was over; they count in no goodput."""
    good: int
    """Answers whose first token came within the limit."""
    first_token_p50_s: float
    """Of all that were taken in. One that was cut before its first token counts with the time that it had waited."""
    first_token_p95_s: float
    refusal_p50_s: float
    refusal_p95_s: float

    @property
    def offered_per_s(self) -> float:
        return self.offered / self.seconds

    @property
    def goodput_per_s(self) -> float:
        return self.good / self.seconds


def summarize(attempts: Sequence[Attempt], seconds: float, limit_s: float = math.inf) -> Summary:
    ended = Counter(each.ending for each in attempts)
    taken_in = [each for each in attempts if each.ending in ("answered", "cut")]
    first_tokens = [each.total_s if each.first_token_s is None else each.first_token_s for each in taken_in]
    refusals = [each.total_s for each in attempts if each.ending == "refused"]
    answers = [each for each in attempts if each.ending == "answered"]
    return Summary(
        seconds=seconds,
        offered=len(attempts),
        answered=ended["answered"],
        refused=ended["refused"],
        failed=ended["failed"],
        cut=ended["cut"],
        good=sum(each.first_token_s is not None and each.first_token_s <= limit_s for each in answers),
        first_token_p50_s=percentile(first_tokens, 50),
        first_token_p95_s=percentile(first_tokens, 95),
        refusal_p50_s=percentile(refusals, 50),
        refusal_p95_s=percentile(refusals, 95),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed; NaN if there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def in_ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1e3 * seconds:.0f}"


def reasons(attempts: Sequence[Attempt]) -> str:
    """Why requests failed, each reason once."""
    return "; ".join(sorted({each.reason for each in attempts if each.ending == "failed"}))
