"""Settings that change under load, by the API and by `serve deploy`, in front of the real engine."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.served.application import DASHBOARD_PORT, Application, wait_until
from tests.served.conftest import MODEL

PATH = f"/v1/models/{MODEL}/settings"
LENGTHS = {1: 6, 0: 11}
"""Of an answer, by whether the revision's number is odd."""


@pytest.fixture
def http(application: Application) -> Iterator[httpx.Client]:
    application.wait_until_ready()
    with httpx.Client(base_url=application.url, timeout=180) as http:
        before = http.get(PATH).json()["settings"]
        yield http
        http.patch(PATH, json=before).raise_for_status()


def test_the_yamls_settings_are_in_force(http: httpx.Client) -> None:
    settings = http.get(PATH).json()["settings"]

    assert (settings["max_tokens"], settings["temperature"], settings["top_p"]) == (512, 0.2, 0.9)


def test_a_change_under_load_fails_no_request_and_mixes_in_none(http: httpx.Client) -> None:
    ended = threading.Event()
    answers: list[tuple[int, int]] = []

    def ask(number: int) -> tuple[int, int]:
        body = {
            "messages": [{"role": "user", "content": f"Tell me a story about the number {number}."}],
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = http.post("/v1/chat/completions", json=body, headers={"cache-control": "no-store"})
        answer.raise_for_status()
        revision = int(answer.headers["x-settings"].removeprefix("revision="))
        return revision, answer.json()["usage"]["completion_tokens"]

    def keep_asking(thread: int) -> None:
        while not ended.is_set():
            answers.append(ask(thread))

    def change() -> int:
        number = http.get(PATH).json()["revision"] + 1
        changed = http.patch(PATH, json={"max_tokens": LENGTHS[number % 2]}).json()
        return int(changed["revision"])

    def wait_for_an_answer() -> None:
        wait_until(lambda: revisions[-1] in {revision for revision, _ in answers.copy()}, 120, "one of the newest")

    revisions = [change()]
    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(keep_asking, thread) for thread in range(8)]
        try:
            wait_for_an_answer()
            for _ in range(4):
                revisions.append(change())
                wait_for_an_answer()
        finally:
            ended.set()
    for thread in asking:
        thread.result()

    assert {length for _, length in answers} == set(LENGTHS.values())
    assert all(length == LENGTHS[revision % 2] for revision, length in answers)
    assert {revision for revision, _ in answers} == set(revisions)


def test_serve_deploy_changes_them_and_restarts_nothing(
    application: Application, http: httpx.Client, tmp_path: Path
) -> None:
    path = application.folder.parent / "serve_config.yaml"
    config = yaml.safe_load(path.read_text())
    gateway = config["applications"][0]["deployments"][0]

    def pids() -> dict[str, list[int]]:
        names = [each["name"] for each in config["applications"][0]["deployments"]]
        return {name: application.replica_pids(name) for name in names}

    before = pids()
    gateway["user_config"]["settings"][MODEL] = {"max_tokens": 21}
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(config))
    try:
        deploy(tmp_path / "changed.yaml")
        wait_until(lambda: bool(http.get(PATH).json()["settings"]["max_tokens"] == 21), 120, "the new settings")
        wait_until(lambda: pids() == before, 120, "the same replicas, running")
        history = http.get(f"{PATH}/history").json()["data"]
    finally:
        deploy(path)
        wait_until(lambda: bool(http.get(PATH).json()["settings"]["max_tokens"] == 512), 120, "the old settings")

    assert history[0]["author"] == "serve deploy"
    assert history[0]["settings"]["temperature"] is None


def deploy(path: Path) -> None:
    serve = Path(sys.executable).with_name("serve")
    subprocess.run(
        [serve, "deploy", str(path), "--address", f"http://127.0.0.1:{DASHBOARD_PORT}"],
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        check=True,
        capture_output=True,
    )


def token_ids(client: openai.OpenAI, **extra: Any) -> list[int]:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Write the word hello forty times."}],
        temperature=0,
        max_completion_tokens=30,
        extra_body={"ignore_eos": True, "return_token_ids": True, **extra},
    )
    ids: list[int] = completion.choices[0].model_dump()["token_ids"]
    return ids


def test_no_sequence_of_two_tokens_comes_twice_if_so_asked(client: openai.OpenAI) -> None:
    as_it_likes = Counter(pairwise(token_ids(client)))
    forbidden = Counter(pairwise(token_ids(client, no_repeat_ngram_size=2)))

    assert max(as_it_likes.values()) > 1
    assert max(forbidden.values()) == 1


def test_a_size_that_makes_no_sense_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no_repeat_ngram_size"):
        token_ids(client, vllm_xargs={"no_repeat_ngram_size": "two"})


def test_of_the_settings_beams_only_the_best_comes_out(http: httpx.Client, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Name a river."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    both = client.chat.completions.create(**asked, n=2, extra_body={"use_beam_search": True})
    http.patch(PATH, json={"beams": 2}).raise_for_status()

    best = client.chat.completions.create(**asked)

    assert len(both.choices) == 2
    assert [choice.message.content for choice in best.choices] == [both.choices[0].message.content]
