"""Two API keys, one sending ten times as much as the other, together twice what the server can do.

    python -m bench.fairness

Starts an application of its own, with two keys in `RAYCONTEUR_API_KEYS`. The quiet key's requests, the same at the
same times, come first alone and then beside the loud one's. Asked: the quiet one's p95 to the first token rises at
most 1.5 times. How long the whole answers take is shown as well.
"""

import argparse
import asyncio
import os
import sys

import aiohttp

from bench.figures import found, parse_arguments
from bench.openloop import (
    Arrival,
    Attempt,
    Chats,
    in_ms,
    measure_capacity,
    open_session,
    percentile,
    poisson,
    reasons,
    run_open_loop,
    summarize,
)
from bench.servers import served, served_model
from serve_app.config import API_KEYS_ENV

QUIET, LOUD = "quiet", "loud"
TIMES_AS_MUCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=2, help="of both together, as a multiple of the capacity")
    parser.add_argument("--seconds", type=float, default=120, help="of each of the two runs, that are counted")
    parser.add_argument("--warm", type=float, default=10, help="seconds before them")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    os.environ[API_KEYS_ENV] = f"{QUIET},{LOUD}"
    with served(None) as url:
        asyncio.run(measure(url, arguments))


async def measure(url: str, arguments: argparse.Namespace) -> None:
    async with open_session() as session:
        model = served_model(url, QUIET)
        capacity_per_s = await measure_capacity(chats_of(LOUD, session, url, model, "capacity").ask)
        quiet_per_s = arguments.load * capacity_per_s / (1 + TIMES_AS_MUCH)
        print(f"capacity {capacity_per_s:.2f} answers/s; the quiet key sends {quiet_per_s:.2f}/s")
        rates = {QUIET: quiet_per_s, LOUD: TIMES_AS_MUCH * quiet_per_s}
        print("\n| key | requests | answered | refused | failed | first token p50 / p95 ms | answer p95 ms |")
        print("|---|---|---|---|---|---|---|")
        quiet_p95_s = []
        for name, keys in (("alone", [QUIET]), ("beside", [QUIET, LOUD])):
            seconds = arguments.warm + arguments.seconds
            arrivals = [
                Arrival(at_s, key, chats.ask)
                for key in keys
                for chats in [chats_of(key, session, url, model, name)]
                for at_s in poisson(rates[key], seconds, arguments.seed + keys.index(key))
            ]
            attempts = await run_open_loop(arrivals, seconds)
            counted = [each for each in attempts if each.due_s >= arguments.warm]
            for key in keys:
                show(f"{key}, {name}", [each for each in counted if each.label == key], arguments.seconds)
            quiet = summarize([each for each in counted if each.label == QUIET], arguments.seconds)
            quiet_p95_s.append(quiet.first_token_p95_s)
    risen = quiet_p95_s[1] / quiet_p95_s[0]
    found("quiet key: p95 to the first token beside a loud one, of that alone", risen, at_most=1.5)
    found("quiet key: refused or failed beside a loud one", quiet.refused + quiet.failed, at_most=0)


def chats_of(key: str, session: aiohttp.ClientSession, url: str, model: str, salt: str) -> Chats:
    return Chats(session, url, model, f"{salt} {key}", headers={"authorization": f"Bearer {key}"})


def show(name: str, attempts: list[Attempt], seconds: float) -> None:
    summary = summarize(attempts, seconds)
    answer_p95_s = percentile([each.total_s for each in attempts if each.ending == "answered"], 95)
    print(
        f"| {name} | {summary.offered} | {summary.answered} | {summary.refused} | {summary.failed}"
        f" | {in_ms(summary.first_token_p50_s)} / {in_ms(summary.first_token_p95_s)} | {in_ms(answer_p95_s)} |"
    )
    if why := reasons(attempts):
        print(f"{name}, failed: {why}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
