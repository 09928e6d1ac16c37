"""A priority request among four times as many others as the server can do: how soon its first token comes.

    python -m bench.priorities [--url ADDRESS]

Default-tier requests arrive at four times the capacity, open loop, and beside them now and then one with
`service_tier: "priority"`. Asked: their p95 to the first token is at most twice the unloaded one, which is the p95 of
priority requests one after the other on an idle server.
"""

import argparse
import asyncio
import sys
from dataclasses import replace
from statistics import median

from bench.figures import found, parse_arguments
from bench.openloop import (
    Arrival,
    Chats,
    in_ms,
    measure_capacity,
    measure_unloaded,
    open_session,
    percentile,
    poisson,
    reasons,
    run_open_loop,
    summarize,
)
from bench.servers import served, served_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a served application, e.g. http://127.0.0.1:8000; default: start one")
    parser.add_argument("--load", type=float, default=4, help="of the default tier, as a multiple of the capacity")
    parser.add_argument("--rate", type=float, default=0.7, help="priority requests per second")
    parser.add_argument("--seconds", type=float, default=90, help="that are counted")
    parser.add_argument("--warm", type=float, default=10, help="seconds before them")
    parser.add_argument("--unloaded", type=int, default=40, metavar="N", help="requests to the idle server")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    with served(arguments.url) as url:
        asyncio.run(measure(url, arguments))


async def measure(url: str, arguments: argparse.Namespace) -> None:
    async with open_session() as session:
        default = Chats(session, url, served_model(url), "Default")
        priority = replace(default, salt="Priority", fields={"service_tier": "priority"})
        # Not after priority requests: for a while they hold others back.
        capacity_per_s = await measure_capacity(default.ask)
        unloaded_s = await measure_unloaded(priority.ask, arguments.unloaded)
        print(
            f"capacity {capacity_per_s:.2f} answers/s; {arguments.load:g} times that arrive, and {arguments.rate:g}/s"
        )
        seconds = arguments.warm + arguments.seconds
        arrivals = [
            Arrival(at_s, chats.salt, chats.ask)
            for seed, (chats, rate) in enumerate(
                ((default, arguments.load * capacity_per_s), (priority, arguments.rate)), arguments.seed
            )
            for at_s in poisson(rate, seconds, seed)
        ]
        attempts = await run_open_loop(arrivals, seconds)
    counted = [each for each in attempts if each.due_s >= arguments.warm]
    tiers = {
        tier: summarize([each for each in counted if each.label == tier], arguments.seconds)
        for tier in (default.salt, priority.salt)
    }
    print("\n| tier | requests | answered | refused | failed | first token p50 / p95 ms |\n|---|---|---|---|---|---|")
    p95_s = percentile(unloaded_s, 95)
    print(f"| Priority, unloaded | {len(unloaded_s)} | | | | {in_ms(median(unloaded_s))} / {in_ms(p95_s)} |")
    for tier, summary in tiers.items():
        print(
            f"| {tier} | {summary.offered} | {summary.answered} | {summary.refused} | {summary.failed}"
            f" | {in_ms(summary.first_token_p50_s)} / {in_ms(summary.first_token_p95_s)} |"
        )
    if why := reasons(attempts):
        print(f"failed: {why}", file=sys.stderr, flush=True)
    ours = tiers[priority.salt]
    found("priority tier: p95 to the first token, of the unloaded one", ours.first_token_p95_s / p95_s, at_most=2)
    found("priority tier: refused or failed", ours.refused + ours.failed, at_most=0)


if __name__ == "__main__":
    main()
