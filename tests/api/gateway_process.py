"""A gateway as a program that a test can kill: the app over a database, with fakes that write a word every 20 ms.

python -m tests.api.gateway_process FOLDER LISTENER

LISTENER is the file descriptor of a socket that listens already, so that no other can take its port.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import uvicorn

from serve_app.api.app import create_app
from serve_app.config import AppConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from serve_app.types import GenerationRequest
from tests.fakes import FakeGenerator, FakeParts, build_passage

WORDS = [f"word {number}, " for number in range(50)]
TEXT = "".join(WORDS)


class SlowGenerator(FakeGenerator):
    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        async for event in super().stream(request):
            await asyncio.sleep(0.02)
            yield event


async def check_parts() -> dict[str, str]:
    return {}


def main() -> None:
    folder, listener = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    config = AppConfig(storage=StorageConfig(folder=folder))
    with closing(open_database(config.storage.resolved_database_url)) as database:
        log = ConversationLog(database, max_cached=100)
        fakes = FakeParts(log, [build_passage(1, "The Rhine flows through Basel.")], generator=SlowGenerator())
        fakes.generator.deltas = WORDS
        app = create_app(config, fakes.parts, database, check_parts)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
