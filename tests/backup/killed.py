"""A worker killed after its n-th step of a kind: `python -m tests.backup.killed FOLDER BACKUPS put|commit|… N`."""

import os
import signal
import sys
from itertools import count as count_from
from pathlib import Path
from typing import Any

from serve_app.backup import restore
from serve_app.backup.repository import Repository
from serve_app.storage.database import open_database
from tests.backup.system import System


def main(folder: str, backups: str, step: str, count: str) -> None:
    calls = count_from(1)
    place: Any = restore if step == "_insert" else Repository
    done = getattr(place, step)

    def die(*arguments: Any) -> Any:
        # Several threads come here.
        call = next(calls)
        result = done(*arguments)
        if call == int(count):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, step, die)
    System(Path(folder), open_database(f"sqlite:///{folder}/rayconteur.db"), backups).worker.run_once()


if __name__ == "__main__":
    main(*sys.argv[1:])
