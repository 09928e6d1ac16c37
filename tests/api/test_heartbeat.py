import asyncio
from dataclasses import replace

import pytest
from anyio import to_thread

from serve_app.api import heartbeat
from serve_app.conversation.runners import count_living
from serve_app.storage.database import Database
from tests.api.conftest import Api, running_api


async def test_a_gateway_beats_while_its_requests_have_all_the_threads(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, beaten = asyncio.get_running_loop(), asyncio.Event()

    def beat(_database: Database, runner_id: str) -> None:
        # The fixture's own server beats as well.
        if runner_id == "run_here":
            loop.call_soon_threadsafe(beaten.set)

    monkeypatch.setattr(heartbeat, "HEARTBEAT_EVERY_S", 0)
    monkeypatch.setattr(heartbeat, "beat", beat)
    threads = to_thread.current_default_thread_limiter()
    for request in range(int(threads.total_tokens)):
        threads.acquire_on_behalf_of_nowait(request)

    beating = asyncio.create_task(heartbeat.keep_beating(replace(api.context, runner_id="run_here")))
    try:
        await asyncio.wait_for(beaten.wait(), 10)
    finally:
        beating.cancel()
        await asyncio.wait([beating])
        for request in range(int(threads.total_tokens)):
            threads.release_on_behalf_of(request)


def test_a_gateway_that_has_ended_leaves_its_share_to_the_others(api: Api) -> None:
    with running_api(api.folder):
        assert count_living(api.database) == 2

    assert count_living(api.database) == 1
