"""Conversations under kill -9: afterwards each holds exactly what was acknowledged, and every stream had an end.

    python -m bench.conversations [--seconds 600] [--clients 50] [--kill-every 15]

Each client talks in a conversation of its own: plain, streamed, in the background, over documents, and with connections
that it breaks itself and picks up again. Every so often a replica of any kind is killed. Starts an application of its
own; ends with exit code 1 if a message was lost, doubled or out of order, or if a stream had a gap or no end.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.figures import found, parse_arguments
from tests.served.application import Application, serving

VICTIMS = ("Gateway", "Sessions", "Embedder", "Retriever", "Generator", "Indexer")
KINDS = ("plain", "streamed", "streamed, broken", "background", "background, streamed", "background, broken")
END_S = 300
"""After the last kill: for a new generator, and for the turns that wait for it. What has no end then hangs. Before that
a turn may take as long as there are kills: whoever answers it, or the model, may be killed again and again.
"""

Json = dict[str, Any]

DOCUMENT = "The ferry to the island of Molene sails at 09:15 on weekdays. A return ticket costs 34 euros."


@dataclass
class Turn:
    """A question, and what its client was told about it."""

    question: str
    kind: str
    response_id: str | None = None
    newest_number: int = -1
    """Sequence number of the newest event that was read."""
    text: str = ""
    """Of the deltas that were read."""
    final: Json | None = None
    pick_ups: int = 0
    seconds: float = 0.0

    @property
    def ending(self) -> str:
        assert self.final
        reason = (self.final["incomplete_details"] or {}).get("reason")
        return f"{self.final['status']} ({reason})" if reason else str(self.final["status"])


@dataclass
class Client:
    number: int
    random: random.Random
    conversation_id: str = ""
    turns: list[Turn] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were made again, by why."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kill-every", type=float, default=15)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parse_arguments(parser)
    with tempfile.TemporaryDirectory(prefix="rayconteur-talk-") as folder, serving(Path(folder)) as application:
        asyncio.run(talk(application, arguments.seconds, arguments.clients, arguments.kill_every, arguments.seed))


async def talk(application: Application, seconds: float, count: int, kill_every_s: float, seed: int = 1) -> None:
    """Run it, print what happened. Raises `AssertionError` if anything that was acknowledged is not so."""
    clients = [Client(number, random.Random(seed + number)) for number in range(count)]
    limits = httpx.Limits(max_connections=2 * count)
    async with httpx.AsyncClient(base_url=application.url, timeout=seconds + END_S, limits=limits) as http:
        store_id = await make_store(http)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(converse(http, client, store_id, until))
            killed = group.create_task(kill(application, kill_every_s, random.Random(seed), until))
        await asyncio.to_thread(application.wait_until_ready)
        messages = sum([await check(http, client) for client in clients])
    report(clients, killed.result(), seconds, messages)


# --- the clients --------------------------------------------------------------------------------


async def converse(http: httpx.AsyncClient, client: Client, store_id: str, until: float) -> None:
    client.conversation_id = (await again_until_done(http, client, "POST", "/v1/conversations", {}))["id"]
    while time.monotonic() < until:
        turn = Turn(
            f"Question {client.number}-{len(client.turns)}: {client.random.choice(ASKED)}", client.random.choice(KINDS)
        )
        client.turns.append(turn)
        body: Json = {
            "input": turn.question,
            "conversation": client.conversation_id,
            "max_output_tokens": client.random.randint(8, 48),
            "background": turn.kind.startswith("background"),
        }
        if client.random.random() < 0.3:
            body["tools"] = [{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 1}]
        began = time.monotonic()
        try:
            async with asyncio.timeout(until + END_S - began):
                await take_turn(http, client, turn, body)
        except TimeoutError:
            raise AssertionError(f"{turn} has no end {END_S} s after the last kill") from None
        turn.seconds = time.monotonic() - began
        assert turn.final is not None
        text = text_of(turn.final)
        # The text of an interrupted answer died with its gateway.
        if turn.newest_number >= 0 and "interrupted" not in turn.ending:
            assert turn.text == text, f"the deltas do not make up the text of {turn}"


POLL_EVERY_S = 2
"""As in OpenAI's guide. Twice a second, fifty clients would take nearly one of two cores from the model."""

ASKED = ("What does a return ticket cost?", "Tell me about a lighthouse.", "Count to ten.", "And why is that?")


async def take_turn(http: httpx.AsyncClient, client: Client, turn: Turn, body: Json) -> None:
    # The same key with each try: whatever became of the last one, the question is asked once.
    key = f"{client.conversation_id}-{len(client.turns)}"
    if turn.kind == "plain":
        turn.final = await again_until_done(http, client, "POST", "/v1/responses", body, key)
    elif turn.kind == "background":
        queued = await again_until_done(http, client, "POST", "/v1/responses", body, key)
        while queued["status"] in ("queued", "in_progress"):
            await asyncio.sleep(POLL_EVERY_S)
            queued = await again_until_done(http, client, "GET", f"/v1/responses/{queued['id']}")
        turn.final = queued
    else:
        await read_to_the_end(http, client, turn, {**body, "stream": True}, key)


async def read_to_the_end(http: httpx.AsyncClient, client: Client, turn: Turn, body: Json, key: str) -> None:
    """Read a stream; wherever it breaks, go on after the last event that came."""
    # -1: as far as the server lets us. A client that breaks its connection does so two times at most.
    breaks = [client.random.randint(1, 12), client.random.randint(1, 6)] if "broken" in turn.kind else []
    while turn.final is None:
        if turn.response_id is None:
            request = http.stream("POST", "/v1/responses", json=body, headers={"idempotency-key": key})
        else:
            turn.pick_ups += 1
            place: dict[str, str | int] = {"stream": "true", "starting_after": turn.newest_number}
            request = http.stream("GET", f"/v1/responses/{turn.response_id}", params=place)
        try:
            async with request as answer:
                if not is_accepted(client, answer):
                    await asyncio.sleep(0.5)
                    continue
                left = breaks.pop() if breaks else None
                async for event in events_of(answer):
                    take_event(turn, event)
                    left = None if left is None else left - 1
                    if left == 0:
                        break
        except httpx.TransportError as error:
            client.refused[type(error).__name__] += 1
            await asyncio.sleep(0.2)


def take_event(turn: Turn, event: Json) -> None:
    number = event["sequence_number"]
    is_last = event["type"] in ("response.completed", "response.incomplete", "response.failed")
    is_interrupted = is_last and (event["response"]["incomplete_details"] or {}).get("reason") == "interrupted"
    assert number == turn.newest_number + 1 or is_interrupted, f"event {number} came after those of {turn}"
    turn.newest_number = number
    if event["type"] == "response.created":
        turn.response_id = event["response"]["id"]
    elif event["type"] == "response.output_text.delta":
        turn.text += event["delta"]
    elif is_last:
        turn.final = event["response"]


async def events_of(answer: httpx.Response) -> AsyncIterator[Json]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def again_until_done(
    http: httpx.AsyncClient, client: Client, method: str, path: str, body: Json | None = None, key: str | None = None
) -> Json:
    headers = {"idempotency-key": key} if key else {}
    while True:
        try:
            answer = await http.request(method, path, json=body, headers=headers)
        except httpx.TransportError as error:
            client.refused[type(error).__name__] += 1
        else:
            if is_accepted(client, answer):
                done: Json = answer.json()
                return done
        await asyncio.sleep(0.5)


def is_accepted(client: Client, answer: httpx.Response) -> bool:
    """False for what is to be tried again: no room, a part that is restarted, the same request still at work."""
    if answer.status_code == 200:
        return True
    assert answer.status_code in (409, 429) or answer.status_code >= 500, f"{answer.request.url}: {answer}"
    client.refused[str(answer.status_code)] += 1
    return False


# --- the world ----------------------------------------------------------------------------------


async def make_store(http: httpx.AsyncClient) -> str:
    document = {"file": ("ferry.txt", DOCUMENT.encode())}
    file_id = (await http.post("/v1/files", files=document, data={"purpose": "assistants"})).json()["id"]
    store_id: str = (await http.post("/v1/vector_stores", json={"file_ids": [file_id]})).json()["id"]
    while True:
        if (await http.get(f"/v1/vector_stores/{store_id}")).json()["status"] == "completed":
            return store_id
        await asyncio.sleep(0.1)


async def kill(application: Application, every_s: float, choice: random.Random, until: float) -> Counter[str]:
    killed: Counter[str] = Counter()
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        victim = choice.choice(VICTIMS)
        for pid in (await asyncio.to_thread(application.replica_pids, victim))[:1]:
            os.kill(pid, signal.SIGKILL)
            killed[victim] += 1
    return killed


# --- afterwards ---------------------------------------------------------------------------------


async def check(http: httpx.AsyncClient, client: Client) -> int:
    """The conversation holds what its client was told, each message once, in order, and nothing else. How many."""
    expected: list[tuple[str, str]] = []
    for turn in client.turns:
        assert turn.final is not None
        stored = (await http.get(f"/v1/responses/{turn.final['id']}")).json()
        # What could not be committed is told to have failed, and then only the log knows how far it came.
        assert turn.final["status"] == "failed" or stored == turn.final, f"{stored} is not what {turn} was told"
        expected.append(("user", turn.question))
        expected += [("assistant", each["content"][0]["text"]) for each in messages_of(stored)]
    found = [(item["role"], item["content"][0]["text"]) async for item in items_of(http, client.conversation_id)]
    assert found == expected, f"conversation {client.conversation_id} holds {found}, and not {expected}"
    return len(found)


async def items_of(http: httpx.AsyncClient, conversation_id: str) -> AsyncIterator[Json]:
    page: Json = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        path = f"/v1/conversations/{conversation_id}/items"
        page = (await http.get(path, params={"order": "asc", "limit": 100, **after})).json()
        for item in page["data"]:
            if item["type"] == "message":
                yield item


def messages_of(response: Json) -> list[Json]:
    return [item for item in response["output"] if item["type"] == "message"]


def text_of(response: Json) -> str:
    return "".join(message["content"][0]["text"] for message in messages_of(response))


def report(clients: list[Client], killed: Counter[str], seconds: float, messages: int) -> None:
    turns = [turn for client in clients for turn in client.turns]
    refused = sum((client.refused for client in clients), Counter())
    pick_ups = [turn.pick_ups for turn in turns if turn.pick_ups]
    print("| what | figure |\n|---|---|")
    print(f"| kills | {dict(killed)} in {seconds:.0f} s |")
    print(f"| conversations, turns | {len(clients)}, {len(turns)}: {dict(Counter(turn.kind for turn in turns))} |")
    print(f"| how they ended | {dict(Counter(turn.ending for turn in turns))} |")
    print(f"| streams picked up | {len(pick_ups)}, in all {sum(pick_ups)} times |")
    print(f"| requests made again | {dict(refused)} |")
    for what, chosen in (("a turn with a client", False), ("a turn in the background", True)):
        times = sorted(turn.seconds for turn in turns if turn.kind.startswith("background") is chosen)
        if times:
            print(f"| time of {what} | p50 {median(times):.1f} s, slowest {times[-1]:.1f} s |")
    # `check` raises otherwise.
    found("messages of conversations lost or doubled under kill -9", 0, at_most=0)
    found("kills of replicas meanwhile", sum(killed.values()))
    print(f"| messages at the end | {messages}, each once and in order, as acknowledged; none lost, none doubled |")


if __name__ == "__main__":
    main()
