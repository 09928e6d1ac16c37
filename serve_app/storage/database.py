"""The SQL database of every process: a SQLite file on one node, PostgreSQL on more.

Synchronous on purpose: a deployment calls it in threads. Safe to share between threads.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Literal, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from serve_app.errors import Overloaded, Unavailable
from serve_app.storage import migrations

Dialect = Literal["sqlite", "postgresql"]

LOCK_TIMEOUT_S = 30
"""How long a transaction waits for another process's, or for a free connection."""

_READ_OPTIONS: dict[Dialect, dict[str, object]] = {
    "sqlite": {"begin": "BEGIN"},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}
_WRITE_OPTIONS: dict[Dialect, dict[str, object]] = {
    "sqlite": {"begin": "BEGIN IMMEDIATE"},
    "postgresql": {},
}


def open_database(url: str) -> "Database":
    """Open the database at `url`, created and brought to the newest schema if need be.

    Safe when many processes do it at once. Raises `ValueError` for a URL that is neither a SQLite file nor PostgreSQL,
    `Unavailable` if the database does not answer, `InternalError` if its schema is newer than this program.
    """
    parsed = _supported(url)
    engine = _sqlite_engine(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql_engine(parsed)
    database = Database(engine)
    try:
        with database.read() as connection:
            is_current = migrations.is_current(connection)
        if not is_current:
            migrations.upgrade(engine)
    except BaseException:
        database.close()
        raise
    return database


class Database:
    """Transactions on the database, for any number of threads. Made by `open_database`; `close` it at the end.

    Both kinds of transaction raise `Unavailable` if the database cannot be reached or stays locked, and `Overloaded` if
    no connection gets free. After `Unavailable` out of a write it is unknown whether it was committed.
    """

    def __init__(self, engine: Engine) -> None:
        self.dialect: Dialect = cast(Dialect, engine.dialect.name)
        self._engine = engine
        self._reader = engine.execution_options(**_READ_OPTIONS[self.dialect])
        self._writer = engine.execution_options(**_WRITE_OPTIONS[self.dialect])
        self._sqlite_turn = threading.Lock()
        self._running = 0
        self._has_ended = threading.Condition()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, durable when the block has ended, undone if it raises. SQLite runs one at a time."""
        with ExitStack() as stack:
            if self.dialect == "sqlite":
                # SQLite's own wait is a poll with sleeps: threads of one process hand over faster, and fairly.
                stack.enter_context(self._wait_for_turn())
            yield stack.enter_context(self._transaction(self._writer))

    def read(self) -> AbstractContextManager[Connection]:
        """One consistent view of what is committed. Takes no lock that a writer would wait for."""
        return self._transaction(self._reader)

    def close(self) -> None:
        """Waits for the transactions that other threads are in: whoever cancels a request leaves its thread behind."""
        with self._has_ended:
            self._has_ended.wait_for(lambda: self._running == 0, LOCK_TIMEOUT_S)
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        with self._has_ended:
            self._running += 1
        try:
            with _transaction(engine) as connection:
                yield connection
        finally:
            with self._has_ended:
                self._running -= 1
                self._has_ended.notify_all()

    @contextmanager
    def _wait_for_turn(self) -> Iterator[None]:
        if not self._sqlite_turn.acquire(timeout=LOCK_TIMEOUT_S):
            raise Overloaded("Too many writes are waiting for the database: try again.", retry_after_s=1)
        try:
            yield
        finally:
            self._sqlite_turn.release()


@contextmanager
def _transaction(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except PoolTimeout as error:
        raise Overloaded("No database connection got free in time: try again.", retry_after_s=1) from error
    # The last is what PostgreSQL answers to a write while it is a standby, as in a failover.
    except (OperationalError, InterfaceError, InternalError) as error:
        raise Unavailable("The database does not answer, or is locked: try again.", retry_after_s=1) from error


# --- opening ------------------------------------------------------------------------------------


def _supported(url: str) -> URL:
    scheme, _, rest = url.partition(":")
    if scheme in ("postgres", "postgresql"):
        return make_url(f"postgresql+psycopg:{rest}")
    parsed = make_url(url)
    if parsed.drivername == "postgresql+psycopg":
        return parsed
    if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise ValueError(f"unsupported database {parsed!r}: use sqlite:////folder/file.db or postgresql://…")


def _sqlite_engine(url: URL) -> Engine:
    path = Path(cast(str, url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    _create_private(path)
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S}, pool_timeout=LOCK_TIMEOUT_S)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _create_private(path: Path) -> None:
    # Never opens a file that is there: closing a second descriptor of a live SQLite file drops this process's locks.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return


def _prepare_sqlite(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN IMMEDIATE"))


def _postgresql_engine(url: URL) -> Engine:
    return create_engine(url, pool_pre_ping=True, pool_timeout=LOCK_TIMEOUT_S)
