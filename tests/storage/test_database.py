"""Opening a database, and its transactions."""

import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from serve_app.errors import Overloaded, Unavailable
from serve_app.storage import database as database_module
from serve_app.storage.database import Database, open_database
from serve_app.storage.schema import file_batches, vector_stores


def add_store(database: Database, name: str = "store", active_at: int = 0) -> None:
    with database.write() as connection:
        connection.execute(
            insert(vector_stores).values(
                id=name,
                metadata={},
                encoder="",
                chunking_strategy={},
                created_at=0,
                last_active_at=active_at,
            )
        )


def store_ids(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(vector_stores.c.id)))


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """The same database, opened by somebody else."""
    with closing(open_database(database_url)) as database:
        yield database


def test_a_new_sqlite_file_gets_its_folder_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "rayconteur.db"
    with closing(open_database(f"sqlite:///{path}")) as database:
        add_store(database)
        files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert files == {"rayconteur.db": 0o600, "rayconteur.db-wal": 0o600, "rayconteur.db-shm": 0o600}


def test_sqlite_commits_to_the_disk_and_checks_references(tmp_path: Path) -> None:
    full, wait_ms = 2, 30_000
    with closing(open_database(f"sqlite:///{tmp_path}/a.db")) as database, database.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == full
        assert connection.scalar(text("PRAGMA busy_timeout")) == wait_ms
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_sqlite_copy_in_another_journal_mode_is_switched_back(tmp_path: Path) -> None:
    with closing(open_database(f"sqlite:///{tmp_path}/a.db")) as database, database._engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    with closing(open_database(f"sqlite:///{tmp_path}/copy.db")) as copy, copy.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


@pytest.mark.parametrize("url", ["mysql://localhost/a", "sqlite://", "sqlite:///:memory:", "postgresql+psycopg2:///a"])
def test_what_is_no_sqlite_file_and_no_postgresql_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="unsupported database"):
        open_database(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_that_is_not_there_is_unavailable(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        open_database(f"{scheme}://somebody@/nothing?host={tmp_path}")


def test_a_write_that_raises_leaves_nothing(database: Database) -> None:
    add_store(database)
    with pytest.raises(KeyError), database.write() as connection:  # noqa: PT012
        connection.execute(vector_stores.delete())
        raise KeyError
    assert store_ids(database) == ["store"]


def test_deleting_a_row_deletes_what_belongs_to_it(database: Database) -> None:
    add_store(database)
    with database.write() as connection:
        connection.execute(insert(file_batches).values(id="batch", store_id="store", created_at=0))
        connection.execute(vector_stores.delete())
    with database.read() as connection:
        assert connection.execute(select(file_batches)).all() == []


def test_a_read_sees_one_moment(database: Database, other: Database) -> None:
    query = select(vector_stores.c.id)
    with database.read() as connection:
        before = connection.scalars(query).all()
        add_store(other)
        assert connection.scalars(query).all() == before == []
    assert store_ids(database) == ["store"]


def test_a_read_does_not_wait_for_a_writer(database: Database, other: Database) -> None:
    add_store(database)
    with database.write() as connection:
        connection.execute(vector_stores.delete())
        assert store_ids(other) == ["store"]
    assert store_ids(other) == []


def test_a_read_cannot_write_on_postgresql(postgresql_url: str) -> None:
    with closing(open_database(postgresql_url)) as database, database.read() as connection:
        assert connection.scalar(text("SHOW transaction_read_only")) == "on"


def test_a_standby_is_unavailable(postgresql_url: str) -> None:
    """As PostgreSQL refuses a write in a failover."""

    def write() -> None:
        with closing(open_database(postgresql_url)) as database, database.write() as connection:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            connection.execute(vector_stores.delete())

    with pytest.raises(Unavailable):
        write()


def test_read_then_write_loses_no_update(database: Database, other: Database) -> None:
    add_store(database, active_at=0)
    turns, owners = 25, (database, database, other, other)

    def count_up(owner: Database) -> None:
        for _ in range(turns):
            with owner.write() as connection:
                count = connection.scalars(select(vector_stores.c.last_active_at).with_for_update()).one()
                connection.execute(update(vector_stores).values(last_active_at=count + 1))

    threads = [threading.Thread(target=count_up, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.scalar(select(vector_stores.c.last_active_at)) == turns * len(owners)


def test_a_writer_that_waits_too_long_is_told_to_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_S", 0)
    url = f"sqlite:///{tmp_path}/a.db"
    with closing(open_database(url)) as database, closing(open_database(url)) as other, database.write():
        with pytest.raises(Overloaded), database.write():
            pass
        with pytest.raises(Unavailable), other.write():
            pass


def test_when_all_connections_are_taken_the_next_is_told_to_come_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_S", 0)
    connections = 15
    with closing(open_database(database_url)) as database, ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(database.read())
        with pytest.raises(Overloaded), database.read():
            pass
