"""What a server is still worth when more is asked of it than it can do: 1, 2, 4 and 8 times its capacity, open loop.

An answer is good if its first token came within 2 s and five times the unloaded time to the first token, together;
goodput is good answers per second. (The issue: "first token within 2 s of the unloaded time times five".) The first
server of a run, Rayconteur, sets the load and this limit, by its own capacity (a closed loop of 32 streams) and
unloaded time: the others get the same requests at the same times, and are held to the same limit. They are vLLM's own
server and Ray's app, with the same model and engine arguments, each started fresh.

Requests arrive at random times (Poisson, from a fixed seed) whatever has become of those before. Those of the first
seconds of a phase only fill the server and are not counted: as long as it is not full, more of them are answered than
it can keep up. When a phase is over, those that can still become good are waited for; what runs after that is cut, and
counts as not answered. Each load has its phase in each round, in turns upwards and downwards, so that a machine that
becomes slower meanwhile is no slower at one load than at another. Prints Markdown.
"""

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import psutil

from bench.figures import add_point, found, parse_arguments
from bench.openloop import (
    Arrival,
    Attempt,
    Chats,
    Summary,
    in_ms,
    measure_capacity,
    measure_unloaded,
    open_session,
    poisson,
    reasons,
    run_open_loop,
    summarize,
)
from bench.processes import rss_mb
from bench.servers import OURS, Server, served_model, servers, started

BEFORE_NEXT_S = 3
HEADER = (
    "| server | load | offered/s | answered | refused | failed | cut | goodput/s | of its peak | refusal p50 / p95 ms"
    f" | first token p50 / p95 ms | RSS before / after, MB | client, % of a core |\n|{'---|' * 13}"
)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The load and the limit, the same for all servers of a run."""

    capacity_per_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Phase:
    load: float
    """As a multiple of the capacity."""
    attempts: list[Attempt]
    """That are counted, those of `seconds`."""
    seconds: float
    limit_s: float
    rss_mb: tuple[float, float]
    """Before and after."""
    client_share: float
    """What this client took of a core."""

    @property
    def summary(self) -> Summary:
        return summarize(self.attempts, self.seconds, self.limit_s)


def of_all_rounds(phases: Sequence[Phase]) -> list[Phase]:
    """One of each load."""
    by_load: dict[float, list[Phase]] = {}
    for phase in phases:
        by_load.setdefault(phase.load, []).append(phase)
    return [
        replace(
            same[0],
            attempts=[attempt for phase in same for attempt in phase.attempts],
            seconds=sum(phase.seconds for phase in same),
            rss_mb=(same[0].rss_mb[0], same[-1].rss_mb[1]),
            client_share=mean(phase.client_share for phase in same),
        )
        for same in by_load.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="run only servers whose name holds this")
    parser.add_argument("--loads", type=float, nargs="+", default=[1, 2, 4, 8], help="multiples of the capacity")
    parser.add_argument("--rounds", type=int, default=2, help="how often each load has its turn")
    parser.add_argument("--seconds", type=float, default=20, help="of each turn, that are counted")
    parser.add_argument("--warm", type=float, default=20, help="seconds before them: more than an answer takes")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    yardstick: Yardstick | None = None
    phases: dict[str, list[Phase]] = {}
    try:
        for server in reversed(servers()):
            if arguments.only and arguments.only.lower() not in server.name.lower():
                continue
            with started(server) as process:
                yardstick, measured = asyncio.run(measure(server, process, yardstick, arguments))
            phases[server.name] = measured
    finally:
        # Whoever of the others fails does not take with it what was measured before.
        show(phases)


async def measure(
    server: Server, process: psutil.Process, yardstick: Yardstick | None, arguments: argparse.Namespace
) -> tuple[Yardstick, list[Phase]]:
    async with open_session() as session:
        model = served_model(server.url)
        chats = Chats(session, server.url, model, "Before")
        unloaded_s = median(await measure_unloaded(chats.ask))
        print(f"{server.name}: unloaded, the first token comes after {1e3 * unloaded_s:.0f} ms")
        found(f"{server.name}: first token of an unloaded server", 1e3 * unloaded_s, "ms")
        if yardstick is None:
            capacity = await measure_capacity(chats.ask)
            yardstick = Yardstick(capacity, limit_s=2 + 5 * unloaded_s)
            print(
                f"{server.name}: capacity {capacity:.2f} answers/s; an answer is good within {yardstick.limit_s:.2f} s"
            )
            found(f"{server.name}: capacity", capacity, "answers/s")
        phases: list[Phase] = []
        seconds = arguments.warm + arguments.seconds
        for number in range(arguments.rounds):
            for load in arguments.loads[:: 1 if number % 2 == 0 else -1]:
                await asyncio.sleep(BEFORE_NEXT_S)
                chats = Chats(session, server.url, model, f"Round {number}, load {load:g}")
                times = poisson(load * yardstick.capacity_per_s, seconds, arguments.seed + number)
                phase = await run_phase(chats, times, load, process, yardstick.limit_s, arguments)
                print(f"{server.name}, {load:g} times: {phase.summary}", file=sys.stderr, flush=True)
                phases.append(phase)
    return yardstick, phases


async def run_phase(
    chats: Chats,
    times: Sequence[float],
    load: float,
    process: psutil.Process,
    limit_s: float,
    arguments: argparse.Namespace,
) -> Phase:
    before_mb = rss_mb(process)
    began, began_cpu = time.perf_counter(), time.process_time()
    arrivals = [Arrival(at_s, "default", chats.ask) for at_s in times]
    attempts = await run_open_loop(arrivals, arguments.warm + arguments.seconds, limit_s=limit_s)
    client_share = (time.process_time() - began_cpu) / (time.perf_counter() - began)
    if why := reasons(attempts):
        print(f"{chats.salt}, failed: {why}", file=sys.stderr, flush=True)
    counted = [each for each in attempts if each.due_s >= arguments.warm]
    return Phase(load, counted, arguments.seconds, limit_s, (before_mb, rss_mb(process)), client_share)


def show(phases: dict[str, list[Phase]]) -> None:
    print(f"\n{HEADER}")
    for server, measured in phases.items():
        by_load = of_all_rounds(measured)
        peak_per_s = max(each.summary.goodput_per_s for each in by_load)
        for phase in by_load:
            ratio = phase.summary.goodput_per_s / peak_per_s if peak_per_s else math.nan
            print(row(server, phase, ratio))
            if phase.load >= 4:
                asked = 0.9 if server == OURS else None
                found(f"{server}: goodput at {phase.load:g} times, of its peak", ratio, at_least=asked)
            add_point(
                server=server,
                offered_per_s=phase.summary.offered_per_s,
                goodput_per_s=phase.summary.goodput_per_s,
                first_token_p50_ms=1e3 * phase.summary.first_token_p50_s,
                first_token_p95_ms=1e3 * phase.summary.first_token_p95_s,
            )
        found(f"{server}: peak goodput", peak_per_s, "answers/s")
        if server == OURS:
            show_asked_of_ours(measured)


def show_asked_of_ours(phases: Sequence[Phase]) -> None:
    refusals_s = [each.summary.refusal_p95_s for each in phases if each.summary.refused]
    slowest_ms = 1e3 * max(refusals_s, default=math.nan)
    found(f"{OURS}: a refusal is answered within, p95 of the worst load", slowest_ms, "ms", at_most=100)
    settled_mb, last_mb = phases[0].rss_mb[1], phases[-1].rss_mb[1]
    found(f"{OURS}: growth of RSS from the first load to the last", 100 * (last_mb / settled_mb - 1), "%", at_most=5)
    found(f"{OURS}: failed requests, at all loads", sum(each.summary.failed for each in phases), at_most=0)


def row(server: str, phase: Phase, ratio: float) -> str:
    summary = phase.summary
    return (
        f"| {server} | {phase.load:g} | {summary.offered_per_s:.2f} | {summary.answered} | {summary.refused}"
        f" | {summary.failed} | {summary.cut} | {summary.goodput_per_s:.2f} | {ratio:.2f}"
        f" | {in_ms(summary.refusal_p50_s)} / {in_ms(summary.refusal_p95_s)}"
        f" | {in_ms(summary.first_token_p50_s)} / {in_ms(summary.first_token_p95_s)}"
        f" | {phase.rss_mb[0]:.0f} / {phase.rss_mb[1]:.0f} | {100 * phase.client_share:.0f} |"
    )


if __name__ == "__main__":
    main()
