"""A store under writers, readers and kill -9: afterwards it holds exactly what was acknowledged.

    python -m bench.soak [--seconds 300] [--kill-every 20]

Three writers add, replace and delete documents of their own; four readers search. Every so often the indexer or a
retriever is killed. Starts an application of its own; ends with an error if anything was lost or doubled.
"""

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import openai

from bench.figures import found, parse_arguments
from tests.served.application import Application, serving

WRITERS, READERS = 3, 4
KEYS_PER_WRITER = 40
MAX_OPERATION_S = 180
VICTIMS = ("Indexer", "Retriever")


@dataclass
class Writer:
    """Its documents, by key. Each text has a word that no other text ever has."""

    number: int
    random: random.Random
    documents: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Acknowledged: file id and word."""
    done: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


@dataclass
class Searches:
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    times_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--kill-every", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-soak-") as folder, serving(Path(folder)) as application:
        asyncio.run(soak(application, arguments.seconds, arguments.kill_every, arguments.seed))


async def soak(application: Application, seconds: float, kill_every_s: float, seed: int) -> None:
    """Run it, print what happened. Raises `AssertionError` if the store does not hold what was acknowledged."""
    async with openai.AsyncOpenAI(
        base_url=f"{application.url}/v1", api_key="none", timeout=60, max_retries=0
    ) as client:
        store_id = (await client.vector_stores.create(name="soak")).id
        until = time.monotonic() + seconds
        writers = [Writer(number, random.Random(seed + number)) for number in range(WRITERS)]
        searches = Searches()
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(write(client, store_id, writer, until))
            for number in range(READERS):
                group.create_task(read(client, store_id, searches, random.Random(-number), writers, until))
            killed = group.create_task(kill(application, kill_every_s, random.Random(seed), until))
        await check(client, store_id, writers)

    operations = sum((writer.done for writer in writers), Counter())
    times = sorted(searches.times_s)
    print("| what | figure |\n|---|---|")
    print(f"| kills | {dict(killed.result())} in {seconds:.0f} s |")
    print(f"| acknowledged | {dict(operations)}, the slowest after {max(each.slowest_s for each in writers):.1f} s |")
    print(f"| searches answered | {searches.answered}, p50 {1e3 * median(times):.0f} ms, slowest {times[-1]:.1f} s |")
    print(f"| searches failed, cleanly | {dict(searches.failed) or 0} |")
    # `check` raises otherwise.
    found("documents lost or doubled under kill -9", 0, at_most=0)
    found("kills of an indexer or a retriever meanwhile", sum(killed.result().values()))
    print(
        f"| documents at the end | {sum(len(each.documents) for each in writers)}, each found once, as acknowledged |"
    )


async def write(client: openai.AsyncOpenAI, store_id: str, writer: Writer, until: float) -> None:
    while time.monotonic() < until:
        key = f"document-{writer.number}-{writer.random.randrange(KEYS_PER_WRITER)}"
        began = time.monotonic()
        if key in writer.documents and writer.random.random() < 0.3:
            await until_acknowledged(remove, client, store_id, writer, key)
        else:
            await until_acknowledged(put, client, store_id, writer, key)
        writer.slowest_s = max(writer.slowest_s, time.monotonic() - began)


async def until_acknowledged(step, client, store_id, writer, key) -> None:  # type: ignore[no-untyped-def]
    """Again until it is: what has failed may have been done, or not, and both must be right afterwards."""
    deadline = time.monotonic() + MAX_OPERATION_S
    while True:
        try:
            await step(client, store_id, writer, key)
            return
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            if time.monotonic() > deadline:
                raise
            writer.done[f"asked again: {type(error).__name__}"] += 1
            await asyncio.sleep(0.5)


async def put(client: openai.AsyncOpenAI, store_id: str, writer: Writer, key: str) -> None:
    word = f"w{writer.random.getrandbits(64):016x}"
    text = f"{key}: this text is known by {word}."
    file = await client.files.create(file=(f"{key}.txt", text.encode()), purpose="assistants")
    added = await client.vector_stores.files.create(store_id, file_id=file.id, extra_body={"key": key})
    while added.status == "in_progress":
        await asyncio.sleep(0.1)
        added = await client.vector_stores.files.retrieve(file.id, vector_store_id=store_id)
    assert added.status == "completed", added
    writer.done["replaced" if key in writer.documents else "added"] += 1
    writer.documents[key] = (file.id, word)


async def remove(client: openai.AsyncOpenAI, store_id: str, writer: Writer, key: str) -> None:
    file_id, _ = writer.documents[key]
    try:
        await client.vector_stores.files.delete(file_id, vector_store_id=store_id)
    except openai.NotFoundError:
        # The call before has done it, and its answer was lost.
        writer.done["removed before the answer was lost"] += 1
    del writer.documents[key]
    writer.done["removed"] += 1


async def read(
    client: openai.AsyncOpenAI,
    store_id: str,
    searches: Searches,
    choice: random.Random,
    writers: list[Writer],
    until: float,
) -> None:
    while time.monotonic() < until:
        words = [word for writer in writers for _, word in writer.documents.values()] or ["nothing"]
        began = time.monotonic()
        try:
            await client.vector_stores.search(store_id, query=f"known by {choice.choice(words)}", max_num_results=5)
        except openai.APIStatusError as error:
            searches.failed[f"{error.status_code}"] += 1
        except openai.APITimeoutError:
            raise AssertionError("a search hung for 60 s") from None
        except openai.APIConnectionError:
            searches.failed["connection closed"] += 1
        else:
            searches.answered += 1
            searches.times_s.append(time.monotonic() - began)
        await asyncio.sleep(0.02)


async def kill(application: Application, every_s: float, choice: random.Random, until: float) -> Counter[str]:
    killed: Counter[str] = Counter()
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        victim = choice.choice(VICTIMS)
        for pid in (await asyncio.to_thread(application.replica_pids, victim))[:1]:
            os.kill(pid, signal.SIGKILL)
            killed[victim] += 1
    return killed


async def check(client: openai.AsyncOpenAI, store_id: str, writers: list[Writer]) -> None:
    """What is found is what was acknowledged: each document once, in its last version, and nothing else."""
    expected = {file_id: word for writer in writers for file_id, word in writer.documents.values()}
    deadline = time.monotonic() + MAX_OPERATION_S
    while (await client.vector_stores.retrieve(store_id)).status != "completed":
        assert time.monotonic() < deadline, "files stay in progress"
        await asyncio.sleep(0.5)
    listed = [file.id async for file in client.vector_stores.files.list(store_id, limit=100)]
    assert sorted(listed) == sorted(expected), "the list of files is not what was acknowledged"
    newest = (await client.get(f"/vector_stores/{store_id}/versions", cast_to=httpx.Response)).json()["data"][0]
    assert (newest["files"], newest["passages"]) == (len(expected), len(expected)), newest
    for file_id, word in expected.items():
        by_words = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}}
        page = await client.vector_stores.search(store_id, query=word, ranking_options=by_words)  # type: ignore[arg-type]
        found = [each.file_id for each in page.data if word in each.content[0].text]
        assert found == [file_id], f"{word} should be found once, in {file_id}, and is in {found}"


if __name__ == "__main__":
    main()
