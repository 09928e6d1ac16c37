"""Replicas killed with -9 in mid-answer: nothing acknowledged is lost or doubled, nothing hangs, service comes back."""

import os
import signal
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.served.application import Application, wait_until
from tests.served.conftest import MODEL

HANG_S = 120


def items_of(client: openai.OpenAI, conversation_id: str) -> list[tuple[str, str]]:
    return [
        (item.role, item.content[0].text)  # type: ignore[union-attr]
        for item in client.conversations.items.list(conversation_id, order="asc")
        if item.type == "message"
    ]


def kill_during_an_answer(application: Application, client: openai.OpenAI, deployment: str) -> tuple[str, list[str]]:
    """Ask for a long streamed answer, kill the replica after a few words, read on. The conversation, and the events."""
    conversation = client.conversations.create()
    victim = application.replica_pid(deployment)
    seen: list[str] = []
    deadline = time.monotonic() + HANG_S

    def read(events: Iterator[str]) -> None:
        for line in events:
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
            if seen.count("response.output_text.delta") == 3 and "killed" not in seen:
                os.kill(victim, signal.SIGKILL)
                seen.append("killed")
            assert time.monotonic() < deadline, f"the stream hangs after {seen[-3:]}"

    body = {
        "model": MODEL,
        "input": "Count from one to one hundred in words.",
        "conversation": conversation.id,
        "max_output_tokens": 120,
        "temperature": 0,
        "stream": True,
    }
    with (
        httpx.Client(timeout=HANG_S) as http,
        http.stream("POST", f"{application.url}/v1/responses", json=body) as response,
    ):
        assert response.status_code == 200
        try:
            read(response.iter_lines())
        except httpx.TransportError:
            seen.append("closed")
    assert "killed" in seen
    wait_until(
        lambda: victim not in application.replica_pids(deployment) and bool(application.replica_pids(deployment)),
        HANG_S * 3,
        f"a new {deployment}",
    )
    application.wait_until_ready()
    return conversation.id, seen


@pytest.mark.parametrize("deployment", ["Sessions", "Gateway", "Generator"])
def test_kill_during_a_streamed_answer(application: Application, client: openai.OpenAI, deployment: str) -> None:
    conversation_id, seen = kill_during_an_answer(application, client, deployment)

    # The client saw an end: the stream closed under it (gateway), or a last event that tells the truth.
    assert seen[-1] in ("closed", "response.completed", "response.incomplete", "response.failed", "error")
    asked = ("user", "Count from one to one hundred in words.")
    kept = items_of(client, conversation_id)
    assert kept[0] == asked
    assert kept.count(asked) == 1
    assert len(kept) <= 2
    if seen[-1] in ("response.completed", "response.incomplete"):
        assert [role for role, _ in kept] == ["user", "assistant"]

    # And the conversation goes on.
    response = client.responses.create(
        model=MODEL, input="Thank you.", conversation=conversation_id, max_output_tokens=8, temperature=0
    )
    assert response.status in ("completed", "incomplete")
    assert items_of(client, conversation_id)[: len(kept)] == kept
    assert len(items_of(client, conversation_id)) == len(kept) + 2
