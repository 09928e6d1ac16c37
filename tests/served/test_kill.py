"""Replicas killed with -9 in mid-answer, and an engine that stops: nothing acknowledged is lost or doubled, nothing
hangs, service comes back.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import openai
import psutil
import pytest

from tests.served.application import RESTART_TIMEOUT_S, Application, wait_until
from tests.served.conftest import MODEL

HANG_S = RESTART_TIMEOUT_S
"""Nothing is silent for longer: an answer may wait for a new generator."""


def items_of(client: openai.OpenAI, conversation_id: str) -> list[tuple[str, str]]:
    return [
        (item.role, item.content[0].text)  # type: ignore[union-attr]
        for item in client.conversations.items.list(conversation_id, order="asc")
        if item.type == "message"
    ]


WRITTEN_ANEW = {"cache-control": "no-cache"}
"""Or an answer that has been given before would be over before anything is killed."""


def kill_during_an_answer(
    application: Application, client: openai.OpenAI, deployment: str
) -> tuple[str, list[str], str]:
    """Ask for a long streamed answer, kill the replica after a few words, read on.

    The conversation, the events' names, and the data of the last one.

    Of the generator it is the engine's process that is stopped and never goes on: the replica has to find that out.
    """
    conversation = client.conversations.create()
    victim = application.replica_pid(deployment)
    struck, blow = (application.engine_pid(), signal.SIGSTOP) if deployment == "Generator" else (victim, signal.SIGKILL)
    seen: list[str] = []
    newest = ""
    deadline = time.monotonic() + HANG_S

    def read(events: Iterator[str]) -> None:
        nonlocal newest
        for line in events:
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
            elif line:
                newest = line
            if seen.count("response.output_text.delta") == 3 and "killed" not in seen:
                os.kill(struck, blow)
                seen.append("killed")
            assert time.monotonic() < deadline, f"the stream hangs after {seen[-3:]}"

    body = {
        "model": MODEL,
        "input": "Count from one to one hundred in words.",
        "conversation": conversation.id,
        "max_output_tokens": 60,
        "temperature": 0,
        "stream": True,
    }
    with (
        httpx.Client(timeout=HANG_S) as http,
        http.stream("POST", f"{application.url}/v1/responses", json=body, headers=WRITTEN_ANEW) as response,
    ):
        assert response.status_code == 200
        try:
            read(response.iter_lines())
        except httpx.TransportError:
            seen.append("closed")
    assert "killed" in seen
    application.wait_until_replaced(deployment, victim)
    application.wait_until_ready()
    return conversation.id, seen, newest


@pytest.mark.parametrize("deployment", ["Sessions", "Gateway", "Generator"])
def test_kill_during_a_streamed_answer(application: Application, client: openai.OpenAI, deployment: str) -> None:
    conversation_id, seen, newest = kill_during_an_answer(application, client, deployment)

    # The client saw an end: the stream closed under it (gateway), or a last event that tells the truth.
    assert seen[-1] in ("closed", "response.completed", "response.incomplete", "response.failed", "error")
    if deployment == "Generator":
        assert seen[-1] in ("response.completed", "response.incomplete"), newest
        assert "generator_lost" not in newest, "the answer goes on"
    asked = ("user", "Count from one to one hundred in words.")
    kept = items_of(client, conversation_id)
    assert kept[0] == asked
    assert kept.count(asked) == 1
    assert len(kept) <= 2
    if seen[-1] in ("response.completed", "response.incomplete"):
        assert [role for role, _ in kept] == ["user", "assistant"]

    check_it_goes_on(client, conversation_id, kept)


def check_it_goes_on(client: openai.OpenAI, conversation_id: str, kept: list[tuple[str, str]]) -> None:
    response = client.responses.create(
        model=MODEL, input="Thank you.", conversation=conversation_id, max_output_tokens=8, temperature=0
    )
    assert response.status in ("completed", "incomplete")
    assert items_of(client, conversation_id)[: len(kept)] == kept
    assert len(items_of(client, conversation_id)) == len(kept) + 2


PROMPTS = [
    "Count from one to fifty in words.",
    "Explain what a lighthouse is.",
    "List ten animals, one per line.",
    "Tell a short story about a cat.",
]


def greedy_answers(
    client: openai.OpenAI, began: threading.Barrier | None = None
) -> list[openai.types.responses.Response]:
    """The streamed answers to all prompts, each in a conversation, asked at once.

    Those that have written a few words wait for the others.
    """

    def ask(prompt: str) -> openai.types.responses.Response:
        deltas = []
        with client.responses.create(
            model=MODEL,
            input=prompt,
            conversation=client.conversations.create().id,
            max_output_tokens=48,
            temperature=0,
            stream=True,
            extra_headers=WRITTEN_ANEW,
        ) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    deltas.append(event.delta)
                    if len(deltas) == 5 and began:
                        began.wait(HANG_S)
                elif event.type in ("response.completed", "response.incomplete"):
                    assert "".join(deltas) == event.response.output_text
                    return event.response
        raise AssertionError(f"no end came after {deltas}")

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        return list(threads.map(ask, PROMPTS))


def test_answers_go_on_where_their_generator_was_killed(application: Application, client: openai.OpenAI) -> None:
    unbroken = greedy_answers(client)
    began = threading.Barrier(len(PROMPTS) + 1)
    victim, engine = application.replica_pid("Generator"), application.engine_pid()

    with ThreadPoolExecutor(1) as thread:
        answering = thread.submit(greedy_answers, client.with_options(timeout=3 * HANG_S), began)
        began.wait(HANG_S)
        os.kill(victim, signal.SIGKILL)
        broken = answering.result()

    wait_until(lambda: not psutil.pid_exists(engine), 60, "the engine of the killed replica is gone too")
    reasons = [answer.incomplete_details and answer.incomplete_details.reason for answer in broken]
    assert set(reasons) <= {None, "max_output_tokens"}
    # Where the tokens at the seam can be read in two ways, the model may go on in another.
    same = [pair for pair in zip(broken, unbroken, strict=True) if pair[0].output_text == pair[1].output_text]
    assert len(same) >= len(PROMPTS) - 1
    for one, other in same:
        assert one.usage is not None
        assert other.usage is not None
        assert abs(one.usage.total_tokens - other.usage.total_tokens) <= 3
    for prompt, answer in zip(PROMPTS, broken, strict=True):
        assert answer.conversation is not None
        conversation_id, kept = answer.conversation.id, [("user", prompt), ("assistant", answer.output_text)]
        assert items_of(client, conversation_id) == kept
    check_it_goes_on(client, conversation_id, kept)


def test_a_background_response_outlives_its_gateway(application: Application, client: openai.OpenAI) -> None:
    victim = application.replica_pid("Gateway")
    body = {"input": PROMPTS[0], "max_output_tokens": 48, "temperature": 0, "background": True, "stream": True}
    events: list[tuple[int, str]] = []
    killed: list[int] = []

    def read(response: httpx.Response) -> None:
        for line in response.iter_lines():
            if line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                events.append((data["sequence_number"], data.get("delta", "")))
                if data["type"] == "response.created":
                    ids.append(data["response"]["id"])
                if data["type"] in ("response.completed", "response.incomplete", "response.failed"):
                    finals.append(data["response"])
                if len([delta for _, delta in events if delta]) == 3 and not killed:
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    ids: list[str] = []
    finals: list[dict[str, object]] = []
    with httpx.Client(base_url=application.url, timeout=HANG_S) as http:
        with suppress(httpx.TransportError), http.stream("POST", "/v1/responses", json=body) as response:
            read(response)
        application.wait_until_ready()
        deadline = time.monotonic() + HANG_S
        while not finals:
            assert time.monotonic() < deadline, f"the stream hangs after {events[-3:]}"
            place: dict[str, str | int] = {"stream": "true", "starting_after": events[-1][0]}
            with (
                suppress(httpx.TransportError),
                http.stream("GET", f"/v1/responses/{ids[0]}", params=place) as response,
            ):
                read(response)

    assert [number for number, _ in events] == list(range(len(events)))
    stored = client.responses.retrieve(ids[0])
    assert stored.status in ("completed", "incomplete")
    assert "".join(delta for _, delta in events) == stored.output_text
    assert victim not in application.replica_pids("Gateway")
