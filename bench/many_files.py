"""An upload of many small files: how long each thousand takes, and what searches and lists take meanwhile.

    python -m bench.many_files [--files 10000] [--ingest 1000]

Notes of one or two sentences go into one store through the API, uploaded side by side and attached in batches of 2,000;
then as many as `--ingest` says through `rayconteur ingest`, from a folder. Starts an application of its own. Prints a
Markdown table for each.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import openai

from bench.figures import found, parse_arguments
from tests.served.application import ROOT, serving

UPLOADS_AT_ONCE = 8
FILES_PER_BATCH = 2_000
PART = 1_000
POLL_S = 0.25
PLACES = ("Brest", "Ushant", "Molene", "Sein", "Groix", "Houat", "Batz", "Brehat", "Belle-Ile", "Ouessant")


@dataclass
class Asked:
    """Milliseconds of what a user asks while files come in, since the last part."""

    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def take(self) -> dict[str, tuple[float, float]]:
        """The median and the longest of each, and begin anew."""
        taken = {what: (median(times), max(times)) for what, times in self.times_ms.items() if times}
        self.times_ms = {}
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--ingest", type=int, default=1_000)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-many-") as folder, serving(Path(folder)) as application:
        asyncio.run(through_the_api(application.url, arguments.files))
        if arguments.ingest:
            through_the_command(application.url, Path(folder) / "notes", arguments.ingest)


def note(number: int) -> str:
    place = PLACES[number % len(PLACES)]
    return f"Note {number}: the ferry to {place} sails at {number % 24}:{number % 60:02}. Ask keeper {number}."


async def through_the_api(url: str, count: int) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0) as client:
        store_id = (await client.vector_stores.create(name="notes")).id
        asked = Asked()
        asking = asyncio.create_task(ask_meanwhile(client, store_id, asked))
        print("| files | done after s | files/s | store p50, max ms | list p50, max ms | search p50, max ms |")
        print("|---|---|---|---|---|---|")
        file_ids = await upload(client, count, asked)
        began = time.monotonic()
        for start in range(0, count, FILES_PER_BATCH):
            await client.vector_stores.file_batches.create(store_id, file_ids=file_ids[start : start + FILES_PER_BATCH])
        print(f"| attached {count:,} | {time.monotonic() - began:.1f} | | {cells(asked.take())} |", flush=True)
        await until_searchable(client, store_id, count, asked)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        (best,) = (await client.vector_stores.search(store_id, query=note(count - 1), max_num_results=1)).data
        assert best.content[0].text == note(count - 1), best


async def upload(client: openai.AsyncOpenAI, count: int, asked: Asked) -> list[str]:
    began = time.monotonic()
    numbers = iter(range(count))
    file_ids = [""] * count
    done = 0

    async def upload_some() -> None:
        nonlocal began, done
        for number in numbers:
            file = (f"note-{number}.txt", note(number).encode())
            file_ids[number] = (await client.files.create(file=file, purpose="assistants")).id
            done += 1
            if done % PART == 0:
                elapsed_s = time.monotonic() - began
                report(f"uploaded {done:,}", elapsed_s, PART, asked)
                began = time.monotonic()

    await asyncio.gather(*(upload_some() for _ in range(UPLOADS_AT_ONCE)))
    return file_ids


async def until_searchable(client: openai.AsyncOpenAI, store_id: str, count: int, asked: Asked) -> None:
    began, reported = time.monotonic(), 0
    rates = []
    while True:
        store = await client.vector_stores.retrieve(store_id)
        done = store.file_counts.completed
        assert store.file_counts.failed == 0, store
        if done - reported >= PART or done == count:
            elapsed_s = time.monotonic() - began
            rates.append((done - reported) / elapsed_s)
            report(f"searchable {done:,}", elapsed_s, done - reported, asked)
            began, reported = time.monotonic(), done
        if done == count:
            found(f"{count:,} small files: files/s of the last part, of the first", rates[-1] / rates[0])
            return
        await asyncio.sleep(POLL_S)


async def ask_meanwhile(client: openai.AsyncOpenAI, store_id: str, asked: Asked) -> None:
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "store": lambda: client.vector_stores.retrieve(store_id),
        "list": lambda: client.vector_stores.files.list(store_id, limit=100),
        "search": lambda: client.vector_stores.search(store_id, query="When does the ferry to Sein sail?"),
    }
    while True:
        for what, ask in questions.items():
            began = time.perf_counter()
            await ask()
            asked.times_ms.setdefault(what, []).append(1e3 * (time.perf_counter() - began))
            await asyncio.sleep(POLL_S)


def report(what: str, elapsed_s: float, files: int, asked: Asked) -> None:
    print(f"| {what} | {elapsed_s:.1f} | {files / elapsed_s:.0f} | {cells(asked.take())} |", flush=True)


def cells(taken: dict[str, tuple[float, float]]) -> str:
    return " | ".join(
        f"{taken[what][0]:.0f}, {taken[what][1]:.0f}" if what in taken else "" for what in ("store", "list", "search")
    )


def through_the_command(url: str, folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        (folder / f"note-{number}.txt").write_text(note(number))
    command = [sys.executable, "-m", "serve_app.cli", "ingest", str(folder), "--store", "from-a-folder", "--url", url]
    print("\n| `rayconteur ingest` | s | files/s |\n|---|---|---|")
    for what in (f"{count:,} files", "the same again"):
        began = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True)
        elapsed_s = time.monotonic() - began
        print(f"| {what} | {elapsed_s:.1f} | {count / elapsed_s:.0f} |", flush=True)


if __name__ == "__main__":
    main()
