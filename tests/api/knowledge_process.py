"""The whole knowledge base as a program that a test can kill: its HTTP API, and what indexes and searches.

python -m tests.api.knowledge_process FOLDER SOCKET

Only the encoder is a toy. Old versions of tables may be removed at once, as if their two minutes had passed.
"""

import sys
from datetime import timedelta
from pathlib import Path

from serve_app.knowledge import maintenance
from tests.api.conftest import build_app, open_test_database
from tests.api.parts import knowledge_parts
from tests.api.test_knowledge import LocalIndex
from tests.server import run


def main() -> None:
    folder = Path(sys.argv[1])
    maintenance.KEEP_VERSIONS_FOR = timedelta(0)
    with open_test_database(folder) as database:
        index = LocalIndex(database, folder)
        index.take_over()
        run(build_app(folder, database, knowledge_parts(index, index, index), {}), int(sys.argv[2]))


if __name__ == "__main__":
    main()
