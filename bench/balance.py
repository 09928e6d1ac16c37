"""From how many requests on a warm replica is a cold one the better choice? `python -m bench.balance`

A request whose prompt is in the cache of its replica, while that works on so many others, against the same request at
an idle replica that has to compute its prompt first. `max_lead` (`deployments/prefix_router.py`) should be the largest
number of others with which the first is sooner done.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

import aiohttp

from bench.figures import found, parse_arguments
from bench.load import Sample, ask
from bench.servers import served_model
from tests.served.application import serving

WORDS = "the keeper of the lighthouse writes down the wind and every ship that passes before he lights the lamp "
"""About 20 tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt-tokens", type=int, default=1500, help="the beginning that is cached, or is not")
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-balance-") as folder, serving(Path(folder)) as application:
        application.wait_until_ready()
        asyncio.run(measure(application.url, chosen))


async def measure(url: str, chosen: argparse.Namespace) -> None:
    model, beginning = served_model(url), WORDS * (chosen.prompt_tokens // 20)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=900)) as session:

        async def one(name: str) -> Sample:
            return await ask(session, url, model, f"{name} {beginning}", chosen.answer_tokens)

        await one("warm")
        cold = [await one(f"cold {number}") for number in range(chosen.rounds)]
        print("| other requests | prompt | first token ms | whole answer ms |\n|---|---|---|---|")
        print(row(0, "computed", cold))
        found("balance: an answer whose prompt is computed, at an idle replica", whole_ms(cold), "ms")
        for busy in chosen.busy:
            # Short prompts and answers that outlast the measurement.
            others = [
                asyncio.create_task(ask(session, url, model, f"Other {busy} {number}: tell a story.", 400))
                for number in range(busy)
            ]
            await asyncio.sleep(3 if busy else 0)
            warm = [await one("warm") for _ in range(chosen.rounds)]
            print(row(busy, "cached", warm), flush=True)
            found(f"balance: the same with its prompt in the cache, beside {busy} others", whole_ms(warm), "ms")
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)


def row(busy: int, prompt: str, samples: list[Sample]) -> str:
    first_ms = statistics.median(each.first_token_s for each in samples) * 1e3
    return f"| {busy} | {prompt} | {first_ms:.0f} | {whole_ms(samples):.0f} |"


def whole_ms(samples: list[Sample]) -> float:
    return statistics.median(each.total_s for each in samples) * 1e3


if __name__ == "__main__":
    main()
