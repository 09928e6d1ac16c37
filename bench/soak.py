"""A store under writers, readers, backups and kill -9: afterwards it holds exactly what was acknowledged.

    python -m bench.soak [--seconds 300] [--kill-every 20] [--back-up-every 10]

Three writers add, replace and delete documents of their own; four readers search. Every so often the indexer or a
retriever is killed, or a backup is taken. Each backup is restored into an empty system, and must be the store as it was
at one moment while it was being made. Starts an application of its own; ends with an error if anything was lost,
doubled, or is in a backup at the wrong time.
"""

import argparse
import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import openai
from sqlalchemy import select

from bench.figures import found, parse_arguments
from serve_app.knowledge.history import is_found
from serve_app.storage.database import open_database
from serve_app.storage.schema import vector_store_files
from tests.backup.system import System
from tests.served.application import Application, serving

WRITERS, READERS = 3, 4
KEYS_PER_WRITER = 40
MAX_OPERATION_S = 180
VICTIMS = ("Indexer", "Retriever")


@dataclass
class State:
    """What a document was asked to be, and when; on the clock of `time.monotonic`."""

    text: str | None
    """None: it is not there."""
    began: float
    acknowledged: float = inf


def never_there() -> list[State]:
    return [State(None, -inf, -inf)]


@dataclass
class Writer:
    """Its documents, by key. Each text has a word that no other text ever has."""

    number: int
    random: random.Random
    documents: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Acknowledged: file id and word."""
    states: dict[str, list[State]] = field(default_factory=dict)
    """In the order in which they were asked for, by key."""
    done: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def ask(self, key: str, text: str | None) -> None:
        self.states.setdefault(key, never_there()).append(State(text, time.monotonic()))

    def acknowledge(self, key: str) -> None:
        """What was asked for last, and with it what was asked for before and never answered."""
        for state in self.states[key]:
            state.acknowledged = min(state.acknowledged, time.monotonic())


@dataclass(frozen=True, slots=True)
class Backup:
    """Made between two moments."""

    id: str
    asked: float
    completed: float


@dataclass
class Searches:
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    times_s: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--kill-every", type=float, default=20)
    parser.add_argument("--back-up-every", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-soak-") as folder, serving(Path(folder)) as application:
        asyncio.run(soak(application, arguments.seconds, arguments.kill_every, arguments.back_up_every, arguments.seed))


async def soak(
    application: Application, seconds: float, kill_every_s: float, back_up_every_s: float, seed: int
) -> None:
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
            backing_up = group.create_task(back_up(client, store_id, back_up_every_s, until))
        await check(client, store_id, writers)
    states = {key: each for writer in writers for key, each in writer.states.items()}
    backups = backing_up.result()
    restored = [check_backup(application, store_id, backup, states) for backup in backups]

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
    # `check_backup` raises otherwise.
    found("backups meanwhile, each the store of one moment", len(backups), at_least=1)
    took = [backup.completed - backup.asked for backup in backups]
    print(f"| backups | {len(backups)}, p50 {median(took):.1f} s, the slowest {max(took):.1f} s |")
    print(f"| documents restored elsewhere | {restored}: each backup is the store of one moment of its making |")


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
    writer.ask(key, text)
    added = await client.vector_stores.files.create(store_id, file_id=file.id, extra_body={"key": key})
    while added.status == "in_progress":
        await asyncio.sleep(0.1)
        added = await client.vector_stores.files.retrieve(file.id, vector_store_id=store_id)
    assert added.status == "completed", added
    writer.acknowledge(key)
    writer.done["replaced" if key in writer.documents else "added"] += 1
    writer.documents[key] = (file.id, word)


async def remove(client: openai.AsyncOpenAI, store_id: str, writer: Writer, key: str) -> None:
    file_id, _ = writer.documents[key]
    writer.ask(key, None)
    try:
        await client.vector_stores.files.delete(file_id, vector_store_id=store_id)
    except openai.NotFoundError:
        # The call before has done it, and its answer was lost.
        writer.done["removed before the answer was lost"] += 1
    writer.acknowledge(key)
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


async def back_up(client: openai.AsyncOpenAI, store_id: str, every_s: float, until: float) -> list[Backup]:
    """Of the store, again and again. Raises `AssertionError` for one that fails."""
    patient = client.with_options(max_retries=10)
    backups = []
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        asked = time.monotonic()
        made = await patient.post("/backups", body={"vector_store_ids": [store_id]}, cast_to=dict[str, Any])
        while made["status"] == "in_progress":
            await asyncio.sleep(0.1)
            made = await patient.get(f"/backups/{made['id']}", cast_to=dict[str, Any])
        assert made["status"] == "completed", made
        backups.append(Backup(made["id"], asked, time.monotonic()))
    return backups


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


def check_backup(application: Application, store_id: str, backup: Backup, states: Mapping[str, Sequence[State]]) -> int:
    """Restore it where there is nothing else. Table, rows and uploads must agree, and the documents in them be those of
    one moment while the backup was being made. Returns how many they are."""
    with (
        tempfile.TemporaryDirectory(prefix="rayconteur-restored-") as name,
        closing(open_database(f"sqlite:///{name}/rayconteur.db")) as database,
    ):
        elsewhere = System(Path(name), database, str(application.folder / "backups"))
        restored = elsewhere.restore(backup.id)
        assert restored["status"] == "completed", restored
        uploads = elsewhere.uploads()
        passages = elsewhere.passages(store_id)
        with database.read() as connection:
            listed = connection.execute(select(vector_store_files.c.file_id).where(is_found())).scalars().all()
    assert sorted(listed) == sorted(row["file_id"] for row in passages), "rows and table differ"
    texts = {row["key"]: row["text"] for row in passages}
    assert len(texts) == len(passages), "a document is there in two versions"
    assert texts.keys() <= states.keys(), "a document is there that nobody asked for"
    for row in passages:
        assert uploads[row["file_id"]].decode() == row["text"], "a passage is not what was uploaded"
    began = [state.began for each in states.values() for state in each]
    moments = [backup.asked, *(moment for moment in began if backup.asked <= moment <= backup.completed)]
    assert any(all(was_possible(each, texts.get(key), moment) for key, each in states.items()) for moment in moments), (
        f"{backup} is the store of no moment between"
    )
    return len(texts)


def was_possible(states: Sequence[State], text: str | None, moment: float) -> bool:
    """Whether a document can have been this: it was asked for, and what came after it was not acknowledged yet."""
    return any(
        state.text == text and state.began <= moment <= following.acknowledged
        for state, following in pairwise([*states, State(None, inf)])
    )


if __name__ == "__main__":
    main()
