"""What Rayconteur costs over the bare engine: the same load on vLLM's own server, on Ray's app, and on Rayconteur.

One after the other on this machine, with the same model and engine arguments (those of the YAML), each started fresh.
Prints a Markdown table, with figures as ratios to those of vLLM's own server in the same run. That one runs once more
beside a Ray that has nothing to do: what the processes of Ray take from the processors is in each application on it.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median

from bench.figures import found, parse_arguments
from bench.load import Figures, run_load
from bench.servers import OURS, VLLM, Server, idle_ray, served_model, servers, started

BESIDE_RAY = f"{VLLM}, beside an idle Ray"
STREAMS = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often the three are run; medians are printed")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="so many at once")
    parser.add_argument("--max-tokens", type=int, help="of each answer (default: 16 of one stream, 48 of several)")
    parser.add_argument("--only", help="run only servers whose name holds this")
    arguments = parse_arguments(parser)
    chosen = [each for each in servers() if not arguments.only or arguments.only.lower() in each.name.lower()]
    rows: list[tuple[str, Server, Callable[[], AbstractContextManager[None]]]]
    rows = [(server.name, server, nullcontext) for server in chosen]
    rows[1:1] = [(BESIDE_RAY, server, idle_ray) for server in chosen if server.name == VLLM]
    results: dict[str, dict[int, list[Figures]]] = {}
    for round_number in range(arguments.rounds):
        for name, server, surroundings in rows:
            with surroundings(), started(server):
                for streams in arguments.streams:
                    max_tokens = arguments.max_tokens or (16 if streams == 1 else 48)
                    figures = measure(server, streams, max_tokens, f"round {round_number}")
                    print(f"{name}, {streams} streams: {figures}", file=sys.stderr, flush=True)
                    results.setdefault(name, {}).setdefault(streams, []).append(figures)
    print_table(results)


def measure(server: Server, streams: int, max_tokens: int, salt: str) -> Figures:
    """After as many answers that do not count: what a server does for the first time it is not judged by."""
    load = partial(run_load, server.url, served_model(server.url), streams=streams)
    asyncio.run(load(requests=streams, max_tokens=16, salt=f"{salt} {streams} warm"))
    return asyncio.run(load(requests=max(24, 2 * streams), max_tokens=max_tokens, salt=f"{salt} {streams}"))


def print_table(results: dict[str, dict[int, list[Figures]]]) -> None:
    print("| server | streams | requests/s | output tokens/s | ratio | first token p50 / p95 ms | more | between ms |")
    print("|---|---|---|---|---|---|---|---|")
    reference = next(iter(results.values()))
    for name, by_streams in results.items():
        for streams, rounds in by_streams.items():
            tokens_per_s = median(each.output_tokens_per_s for each in rounds)
            first_token_ms = median(each.first_token_p50_ms for each in rounds)
            ratio = tokens_per_s / median(each.output_tokens_per_s for each in reference[streams])
            more_ms = first_token_ms - median(each.first_token_p50_ms for each in reference[streams])
            if VLLM in results and name != VLLM:
                tell(name, streams, ratio, more_ms)
            print(
                f"| {name} | {streams} | {median(each.requests_per_s for each in rounds):.2f} | {tokens_per_s:.1f} "
                f"| {ratio:.3f} | {first_token_ms:.0f} / {median(each.first_token_p95_ms for each in rounds):.0f} "
                f"| {more_ms:+.0f} ms | {median(each.between_tokens_p50_ms for each in rounds):.1f} |"
            )


def tell(server: str, streams: int, ratio: float, more_ms: float) -> None:
    is_asked = server == OURS
    if streams == 1:
        what = f"{server}, 1 stream: time to the first token, over vLLM's own server"
        found(what, more_ms, "ms", at_most=15 if is_asked else None)
    else:
        what = f"{server}, {streams} streams: output tokens/s, as a share of vLLM's own server"
        found(what, ratio, at_least=0.95 if is_asked else None)


if __name__ == "__main__":
    main()
