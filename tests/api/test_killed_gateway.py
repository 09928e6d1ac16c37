"""A gateway killed with -9 in mid-answer, and another that comes after it."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from serve_app.config import StorageConfig
from serve_app.storage.database import open_database
from serve_app.storage.schema import response_jobs, runners
from serve_app.types import Json
from tests.api.gateway_process import ALL, TEXT
from tests.server import running

Start = Callable[[int], tuple[subprocess.Popen[bytes], httpx.Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a gateway in a process of its own, over the same database as those before. It stalls after the words."""
    with ExitStack() as stack:

        def start(words: int) -> tuple[subprocess.Popen[bytes], httpx.Client]:
            process, url = stack.enter_context(running("tests.api.gateway_process", str(tmp_path), str(words)))
            return process, stack.enter_context(httpx.Client(base_url=url, timeout=60))

        yield start


def read(answer: httpx.Response, events: list[Json], victim: subprocess.Popen[bytes] | None = None) -> None:
    """Adds the events, as far as they come. The victim is killed after five words, before its client leaves it."""
    with suppress(httpx.TransportError):
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
            if victim and len([each for each in events if "delta" in each]) == 5:
                victim.kill()


def forget_the_dead(folder: Path) -> None:
    """As if the time had passed after which who is silent is taken for dead."""
    url = StorageConfig(folder=folder).resolved_database_url
    with closing(open_database(url)) as database, database.write() as connection:
        connection.execute(update(runners).values(heartbeat_at=0.0))
        connection.execute(update(response_jobs).values(lease_until=0.0))


def ask_and_go_on_elsewhere(start: Start, folder: Path, body: Json) -> tuple[list[Json], httpx.Client]:
    """The events of an answer whose gateway is killed after five words and that another one goes on with."""
    process, http = start(10)
    events: list[Json] = []
    with http.stream("POST", "/v1/responses", json={"input": "Hi", "stream": True, **body}) as answer:
        read(answer, events, victim=process)
    process.wait()
    forget_the_dead(folder)

    _, http = start(len(ALL))
    place = {"stream": "true", "starting_after": events[-1]["sequence_number"]}
    with http.stream("GET", f"/v1/responses/{events[0]['response']['id']}", params=place) as answer:
        read(answer, events)
    return events, http


def test_background_response_goes_on_in_another_gateway(start: Start, tmp_path: Path) -> None:
    events, http = ask_and_go_on_elsewhere(start, tmp_path, {"background": True})

    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert "".join(each.get("delta", "") for each in events) == TEXT
    with http.stream("GET", f"/v1/responses/{events[0]['response']['id']}", params={"stream": "true"}) as answer:
        again: list[Json] = []
        read(answer, again)
    assert again == events


def test_response_with_a_client_ends_as_interrupted(start: Start, tmp_path: Path) -> None:
    events, http = ask_and_go_on_elsewhere(start, tmp_path, {})
    follow_up = {"input": "And?", "previous_response_id": events[0]["response"]["id"]}

    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "interrupted"}
    assert http.post("/v1/responses", json=follow_up).json()["status"] == "completed"
