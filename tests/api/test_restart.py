"""Everything killed with -9 and started again: what a version of a store answered it answers still."""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import openai
import pytest

from tests.api.test_versions import Documents
from tests.server import running

Start = Callable[[], tuple[subprocess.Popen[bytes], openai.OpenAI]]

WORDS = ("paris", "tokyo", "seine", "river", "mountain")
KEYS, KEPT_VERSIONS, PINNED = 3, 4, 2


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the whole knowledge base in a process of its own, over the folder and the database of those before."""
    with ExitStack() as stack:

        def start() -> tuple[subprocess.Popen[bytes], openai.OpenAI]:
            process, url = stack.enter_context(running("tests.api.knowledge_process", str(tmp_path)))
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60)
            return process, stack.enter_context(client)

        yield start


def put(documents: Documents, number: int) -> None:
    text = f"The {WORDS[number % len(WORDS)]} of document {number}. " + "The river seine is in paris. " * (number % 7)
    documents.put(f"{number % KEYS}.txt", text, attributes={"number": number})


def answers(documents: Documents, as_of: int | None = None) -> list[Any]:
    """All that the three kinds of search say, scores and places included."""
    body = {"query": "the river seine near paris", "as_of": as_of}
    weights = ((1, 0), (0, 1), (0.5, 0.5))
    rankings = [{"hybrid_search": {"embedding_weight": vector, "text_weight": text}} for vector, text in weights]
    return [documents.post("search", {**body, "ranking_options": each})["data"] for each in rankings]


def test_as_of_outlives_optimisation_retention_and_the_death_of_everything(start: Start) -> None:
    process, client = start()
    documents = Documents(client)
    client.vector_stores.update(documents.store_id, extra_body={"retention": {"keep_versions": KEPT_VERSIONS}})
    then: dict[int, list[Any]] = {}
    for number in range(2 * KEPT_VERSIONS):
        put(documents, number)
        then[documents.versions()[0]] = answers(documents)
        if documents.versions()[0] == PINNED:
            documents.post(f"versions/{PINNED}", {"pinned": True})
    documents.remove(sorted(documents.listed())[0])
    then[documents.versions()[0]] = answers(documents)
    assert len({str(answer) for answer in then.values()}) == len(then)

    def assert_unchanged(documents: Documents, kept: list[int]) -> None:
        for version in kept:
            assert answers(documents, version) == then[version]

    newest = max(then)
    kept = [*range(newest, newest - KEPT_VERSIONS, -1), PINNED]
    assert documents.versions() == kept
    assert_unchanged(documents, kept)
    documents.post("optimize", {})
    assert_unchanged(documents, kept)

    # Killed while documents come in: what was acknowledged until then is a version like the others.
    has_begun = Event()

    def go_on() -> None:
        for number in count(2 * KEPT_VERSIONS):
            put(documents, number)
            then[documents.versions()[0]] = answers(documents)
            if max(then) == newest + 2:
                has_begun.set()

    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(go_on)
        assert has_begun.wait(60)
        process.kill()
        assert isinstance(writing.exception(), openai.APIConnectionError | httpx.TransportError)

    _, client = start()
    documents = Documents(client, documents.store_id)
    acknowledged = max(then)
    kept = [version for version in documents.versions() if version <= acknowledged]
    assert kept[0] == acknowledged
    assert kept[-1] == PINNED
    assert_unchanged(documents, kept)

    documents.post("optimize", {})
    put(documents, 0)
    documents.post("optimize", {})
    still_kept = [version for version in documents.versions() if version in kept]
    assert PINNED in still_kept
    assert_unchanged(documents, still_kept)
