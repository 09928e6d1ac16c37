"""A working day in a quarter of an hour: mixed work at 80 % of the capacity, without an error and without a leak.

    python -m bench.steady [--minutes 15]

Chats, turns of conversations with and without documents, searches, embeddings and uploads arrive at random times, open
loop. The capacity is what gets through of the same mix when more comes. Then long prompts are refused more often than
short ones, so it is the kind that gets through least that says how much of the mix does. How much is more, a closed
loop finds first: its clients wait as long as it takes, and so keep the engine fuller than requests at random times that
are not to wait long for their first word. Starts an application of its own. Asked: the RSS of all its processes grows
at most 5 % after the first fifth of the time (3 of 15 minutes; each later minute's median beside that of the minute
before), and no request fails, hangs, or is still refused when it has been made again as often as OpenAI's client makes
it by default.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp

from bench.figures import found, parse_arguments
from bench.openloop import (
    Arrival,
    Attempt,
    Chats,
    Refused,
    Send,
    check,
    in_ms,
    measure_capacity,
    open_session,
    percentile,
    poisson,
    reasons,
    run_open_loop,
    with_retries,
)
from bench.processes import rss_mb
from bench.servers import served_model
from tests.served.application import Application, serving

MIX = {"chat": 40, "conversation": 20, "with documents": 10, "search": 10, "embeddings": 15, "upload": 5}
"""In hundredths of all requests."""
OF_THE_MODEL = ("chat", "conversation", "with documents")
OVERLOADED_AFTER_S = 30
OVERLOADED_S = 150
CONVERSATIONS = 24
TURNS = 4
"""Then another conversation begins: or prompts would grow all the time, and the capacity would not be that of later."""
SAMPLE_EVERY_S = 5
SETTLED_AFTER = 0.2
"""Of the time."""
END_S = 180

Curve = Sequence[tuple[float, float]]
"""Seconds since the load began, and the RSS of all processes in MB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-steady-") as folder, serving(Path(folder)) as application:
        asyncio.run(measure(application, 60 * arguments.minutes, arguments.share, arguments.seed))


async def measure(application: Application, seconds: float, share: float, seed: int) -> None:
    async with open_session() as session:
        work = MixedWork(session, application.url, served_model(application.url), seed)
        await work.prepare()
        offered_per_s = await measure_capacity(work.send_until_answered, seconds=30)
        capacity_per_s = await what_gets_through(work, offered_per_s, seed)
        print(
            f"capacity {capacity_per_s:.2f} requests/s of this mix ({offered_per_s:.2f} in a closed loop),"
            f" of which {share:g} arrive\n"
        )
        arrivals = [work.arrival(at_s) for at_s in poisson(share * capacity_per_s, seconds, seed)]
        ended = asyncio.Event()
        watching = asyncio.create_task(watch(application, ended))
        attempts = await run_open_loop(arrivals, seconds, wait_s=END_S)
        ended.set()
        curve = [(at_s, rss) for at_s, rss in await watching if at_s <= seconds]
    show_requests(attempts)
    show_curve(curve, seconds)


async def what_gets_through(work: "MixedWork", offered_per_s: float, seed: int) -> float:
    """Requests of the mix per second, if so many arrive at random times: only those to the model are ever refused."""
    seconds = OVERLOADED_AFTER_S + OVERLOADED_S
    arrivals = [work.arrival(at_s) for at_s in poisson(offered_per_s, seconds, seed + 1)]
    attempts = await run_open_loop(arrivals, seconds, wait_s=END_S)
    counted = [each for each in attempts if each.due_s >= OVERLOADED_AFTER_S]
    return offered_per_s * min(share_answered(counted, kind) for kind in OF_THE_MODEL)


def share_answered(attempts: Sequence[Attempt], kind: str) -> float:
    """1 where none was asked."""
    asked = [each for each in attempts if each.label == kind]
    return mean(each.ending == "answered" for each in asked) if asked else 1


class MixedWork:
    """Requests as a day brings them, each with words of its own."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, seed: int) -> None:
        self._session = session
        self._url = f"{url}/v1"
        self._chats = Chats(session, url, model, "Steady")
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._store_id = ""
        self._conversations: deque[tuple[str, int]] = deque()
        """Each with the turns that it has left; the one whose turn is longest ago first."""
        self.sends: dict[str, Send] = {
            "chat": self._chats.ask,
            "conversation": self._turn,
            "with documents": self._ask_documents,
            "search": self._search,
            "embeddings": self._embed,
            "upload": self._upload,
        }

    async def prepare(self) -> None:
        """A store with a few documents, and conversations to go on with."""
        self._store_id = (await self._post("vector_stores", {"name": "steady"}))["id"]
        for number in range(CONVERSATIONS):
            past = number % TURNS
            self._conversations.append((await self._new_conversation(past), TURNS - past))
        for _ in range(10):
            await self._add_file()

    def arrival(self, at_s: float) -> Arrival:
        kind = self._any_kind()
        return Arrival(at_s, kind, with_retries(self.sends[kind]))

    async def send_until_answered(self, attempt: Attempt) -> None:
        send = self.sends[self._any_kind()]
        while True:
            try:
                return await send(attempt)
            except Refused as refusal:
                await asyncio.sleep(refusal.retry_after_s)

    def _any_kind(self) -> str:
        return self._random.choices(list(MIX), list(MIX.values()))[0]

    async def _turn(self, _attempt: Attempt, **more: Any) -> None:
        conversation_id, turns_left = self._conversations.popleft()
        if turns_left == 0:
            conversation_id, turns_left = await self._new_conversation(), TURNS
        self._conversations.append((conversation_id, turns_left - 1))
        asked = {"input": self._words(), "conversation": conversation_id, "max_output_tokens": 40}
        await self._post("responses", {**asked, **more})

    async def _new_conversation(self, turns: int = 0) -> str:
        past = [{"role": role, "content": self._words()} for _ in range(turns) for role in ("user", "assistant")]
        created = await self._post("conversations", {"items": past})
        return str(created["id"])

    async def _ask_documents(self, attempt: Attempt) -> None:
        tool = {"type": "file_search", "vector_store_ids": [self._store_id], "max_num_results": 2}
        await self._turn(attempt, tools=[tool])

    async def _search(self, _attempt: Attempt) -> None:
        await self._post(f"vector_stores/{self._store_id}/search", {"query": self._words(), "max_num_results": 5})

    async def _embed(self, _attempt: Attempt) -> None:
        await self._post("embeddings", {"model": "all-minilm-l6-v2", "input": [self._words() for _ in range(4)]})

    async def _upload(self, _attempt: Attempt) -> None:
        await self._add_file()

    async def _add_file(self) -> None:
        form = aiohttp.FormData({"purpose": "assistants"})
        text = "\n\n".join(self._words() for _ in range(10))
        form.add_field("file", text.encode(), filename=f"{next(self._numbers)}.txt")
        async with self._session.post(f"{self._url}/files", data=form) as response:
            await check(response)
            file_id = (await response.json())["id"]
        await self._post(f"vector_stores/{self._store_id}/files", {"file_id": file_id})

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._session.post(f"{self._url}/{path}", json=body) as response:
            await check(response)
            answer: dict[str, Any] = await response.json()
            return answer

    def _words(self) -> str:
        ferry, price = next(self._numbers), self._random.randint(10, 99)
        return f"Ferry {ferry} to the island of Molene sails at {price % 24}:15. A return ticket costs {price} euros."


async def watch(application: Application, ended: asyncio.Event) -> Curve:
    """The memory of all its processes, every few seconds until the load has ended."""
    began = time.monotonic()
    curve = []
    while not ended.is_set():
        curve.append((time.monotonic() - began, await asyncio.to_thread(rss_mb, application.process)))
        if len(curve) % (60 // SAMPLE_EVERY_S) == 1:
            print(f"{curve[-1][0] / 60:.0f} min: {curve[-1][1]:.0f} MB", file=sys.stderr, flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), SAMPLE_EVERY_S)
    return curve


def show_requests(attempts: Sequence[Attempt]) -> None:
    print("| what | requests | answered | made again | refused | failed | hung | p50 / p95 ms |")
    print(f"|{8 * '---|'}")
    for kind in MIX:
        chosen = [each for each in attempts if each.label == kind]
        ended = Counter(each.ending for each in chosen)
        times_s = [each.total_s for each in chosen if each.ending == "answered"]
        print(
            f"| {kind} | {len(chosen)} | {ended['answered']} | {sum(each.retries for each in chosen)}"
            f" | {ended['refused']} | {ended['failed']} | {ended['cut']}"
            f" | {in_ms(percentile(times_s, 50))} / {in_ms(percentile(times_s, 95))} |"
        )
    if why := reasons(attempts):
        print(f"failed: {why}", file=sys.stderr, flush=True)
    found("mixed work: requests", len(attempts))
    found("mixed work: failed, refused or hung", sum(each.ending != "answered" for each in attempts), at_most=0)


def show_curve(curve: Curve, seconds: float) -> None:
    print("\n| minute | RSS of all processes, MB |\n|---|---|")
    for minute, rss in enumerate(by_minute(curve), 1):
        print(f"| {minute} | {rss:.0f} |")
    grown = 100 * growth(curve, SETTLED_AFTER * seconds)
    print(f"\nafter {SETTLED_AFTER * seconds / 60:.1f} minutes it grew by {grown:.1f} % at most")
    found("mixed work: growth of RSS after the first fifth of the time", grown, "%", at_most=5)


def by_minute(curve: Curve) -> list[float]:
    """The median of each minute, in MB."""
    minutes = itertools.groupby(curve, key=lambda sample: int(sample[0] // 60))
    return [median(rss for _, rss in samples) for _, samples in minutes]


def growth(curve: Curve, settled_s: float) -> float:
    """Of the highest minute after `settled_s` over the minute before it, as a share."""
    settled = median(rss for at_s, rss in curve if settled_s - 60 <= at_s < settled_s)
    return max(by_minute([sample for sample in curve if sample[0] >= settled_s])) / settled - 1


if __name__ == "__main__":
    main()
