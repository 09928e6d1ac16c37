"""How a database comes from any older schema to that of `schema.py`: one file a step, in `versions/`.

A new step is written by hand: change `schema.py`, add `versions/NNNN_what.py` (its `down_revision` is the step before
it), and set `NEWEST`. `tests/storage/test_migrations.py` fails with the difference until the two agree.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine.interfaces import DBAPIConnection

from serve_app.errors import InternalError

NEWEST = "0012"
"""The revision that `schema.py` describes. Here so that a current database is recognised without importing Alembic."""

LOCK_KEY = 0x52_41_59_43  # PostgreSQL's advisory lock: any number, the same in every process
_upgrading = threading.Lock()  # Alembic keeps what it works on in module globals


def is_current(connection: Connection) -> bool:
    """Whether there is nothing to do: the newest schema, and on SQLite a write-ahead log."""
    if connection.dialect.name == "sqlite" and connection.scalar(text("PRAGMA journal_mode")) != "wal":
        return False
    return _has_newest_schema(connection)


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to the newest schema, in one transaction, while other processes that want to do the same wait.

    Or an empty one to an older `revision`, for rows of that time.

    Raises `InternalError` if the database has a revision that is not known here.
    """
    with _upgrading:
        if engine.dialect.name == "sqlite":
            _upgrade_sqlite(engine, revision)
        else:
            _upgrade_postgresql(engine, revision)


def _upgrade_sqlite(engine: Engine, revision: str) -> None:
    folder = Path(cast(str, engine.url.database)).parent
    with _folder_lock(folder), engine.connect() as connection:
        driver = connection.connection
        _pragma(driver, "journal_mode=WAL")
        # With foreign keys on, a step that rebuilds a table would cascade to the rows that refer to it.
        _pragma(driver, "foreign_keys=OFF")
        try:
            with connection.begin():
                _run_missing_steps(connection, revision)
        finally:
            _pragma(driver, "foreign_keys=ON")


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time. SQLite's own locks do not do: the switch to WAL cannot be in a transaction."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _pragma(driver: DBAPIConnection, setting: str) -> None:
    cursor = driver.cursor()
    cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _upgrade_postgresql(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        _run_missing_steps(connection, revision)


def _run_missing_steps(connection: Connection, revision: str) -> None:
    if _has_newest_schema(connection):
        return
    # Imported only where there is something to do, because of the memory it takes.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise InternalError("The database was written by a newer version of Rayconteur: run that one.") from error


def _has_newest_schema(connection: Connection) -> bool:
    if not inspect(connection).has_table("alembic_version"):
        return False
    return bool(connection.scalar(text("SELECT version_num FROM alembic_version")) == NEWEST)
