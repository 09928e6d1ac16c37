"""A client that leaves takes its work with it: the engine stops in the midst of an answer that nobody waits for."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.served.application import Application, wait_until
from tests.served.conftest import MODEL

LONG_ANSWER = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count to a thousand."}],
    "temperature": 0,
    "max_tokens": 6000,
    "ignore_eos": True,
}
"""Minutes, on any machine that runs these tests."""
STOP_TIMEOUT_S = 20


async def wait_until_running(application: Application, count: int, timeout_s: float) -> None:
    """So many answers are written by the model that requests get which name none."""

    def is_so() -> bool:
        replicas = httpx.get(f"{application.url}/v1/stats", timeout=30).json()["replicas"]
        (generator,) = (each for each in replicas if each["deployment"] == "Generator")
        return bool(generator["engine"]["running"] == count)

    await asyncio.to_thread(wait_until, is_so, timeout_s, f"{count} running")


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({}, {}), ({}, {"cache-control": "no-store"}), ({"stream": True}, {})],
    ids=["completion", "no-store", "stream"],
)
async def test_the_engine_stops_when_its_client_leaves(
    application: Application, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    await asyncio.to_thread(application.wait_until_ready)
    await wait_until_running(application, 0, 60)
    async with httpx.AsyncClient(base_url=application.url, timeout=None) as client:
        asked = client.post("/v1/chat/completions", json={**LONG_ANSWER, **fields}, headers=headers)
        asking = asyncio.create_task(asked)
        await wait_until_running(application, 1, 60)

        asking.cancel()

        await wait_until_running(application, 0, STOP_TIMEOUT_S)
