"""A gateway as a program that a test can kill: the app over a database, with fakes that write WORDS words of an answer.

python -m tests.api.gateway_process FOLDER WORDS SOCKET

If those are not all, the model stalls after them.
"""

import sys
from contextlib import closing
from pathlib import Path

from serve_app.api.app import create_app
from serve_app.config import AppConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from tests.fakes import FakeParts, build_passage
from tests.server import run

ALL = [f"word {number}, " for number in range(50)]
TEXT = "".join(ALL)


async def check_parts() -> dict[str, str]:
    return {}


def main() -> None:
    folder, words = Path(sys.argv[1]), int(sys.argv[2])
    config = AppConfig(storage=StorageConfig(folder=folder))
    with closing(open_database(config.storage.resolved_database_url)) as database:
        log = ConversationLog(database, max_cached=100)
        fakes = FakeParts(log, [build_passage(1, "The Rhine flows through Basel.")])
        fakes.generator.deltas = ALL[:words]
        fakes.generator.stalls = words < len(ALL)
        run(create_app(config, fakes.parts, database, check_parts), int(sys.argv[3]))


if __name__ == "__main__":
    main()
