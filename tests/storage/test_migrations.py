"""The migrations: they make what schema.py says, once, whoever comes first."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from serve_app.errors import InternalError
from serve_app.storage import migrations
from serve_app.storage.database import Database, open_database
from serve_app.storage.schema import metadata

OPEN_AT_A_SIGNAL = """
import sys
from serve_app.storage.database import open_database
print("ready", flush=True)
sys.stdin.readline()
open_database(sys.argv[1]).close()
print("alembic" in sys.modules)
"""


def table_names(database: Database) -> set[str]:
    with database.read() as connection:
        return set(inspect(connection).get_table_names())


def test_migrations_make_exactly_the_schema(database: Database) -> None:
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    assert differences == []


def test_newest_is_the_last_migration() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_current_head() == migrations.NEWEST


def can_lock(url: str) -> bool:
    """Whether another process could begin to migrate now."""
    if url.startswith("postgresql"):
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [migrations.LOCK_KEY]).fetchone()
            return row == (True,)
    folder = os.open(Path(url.removeprefix("sqlite:///")).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(folder)
    return True


def test_while_one_migrates_no_other_can(new_database_url: Callable[[], str]) -> None:
    url = new_database_url()
    others_could: list[bool] = []

    def try_to_lock(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "CREATE TABLE logs" in statement:
            others_could.append(can_lock(url))

    event.listen(Engine, "before_cursor_execute", try_to_lock)
    try:
        open_database(url).close()
    finally:
        event.remove(Engine, "before_cursor_execute", try_to_lock)
    assert others_could == [False]
    assert can_lock(url)


def test_processes_that_start_at_once_migrate_once(new_database_url: Callable[[], str]) -> None:
    url = new_database_url()
    command = [sys.executable, "-c", OPEN_AT_A_SIGNAL, url]
    starting = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in starting:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in starting:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in starting]
    assert [process.returncode for process in starting] == [0, 0, 0]
    assert "True\n" in outputs
    with closing(open_database(url)) as database:
        assert table_names(database) == {*metadata.tables, "alembic_version"}


def test_a_current_database_is_opened_without_alembic(database_url: str) -> None:
    opened = subprocess.run(
        [sys.executable, "-c", OPEN_AT_A_SIGNAL, database_url],
        input="go\n",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert opened.stdout == "ready\nFalse\n"


def test_a_migration_that_fails_leaves_nothing(new_database_url: Callable[[], str]) -> None:
    url = new_database_url()
    other_program = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with other_program.begin() as connection:
        connection.execute(text("CREATE TABLE vector_stores (id INTEGER)"))
    with pytest.raises(SQLAlchemyError, match="vector_stores"):
        open_database(url)
    with other_program.connect() as connection:
        assert inspect(connection).get_table_names() == ["vector_stores"]
    other_program.dispose()


def test_a_database_of_a_newer_version_is_refused(new_database_url: Callable[[], str]) -> None:
    url = new_database_url()
    with closing(open_database(url)) as database, database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'future'"))
    with pytest.raises(InternalError, match="newer version"):
        open_database(url)


def test_branches_are_numbered_on_from_what_they_share(new_database_url: Callable[[], str]) -> None:
    """Up to 0004 each log counted from 1. Here: a conversation, a branch of it, one of that, and one without parent."""
    url = new_database_url()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    migrations.upgrade(engine, "0004")
    branches = [("twig", "branch", 2, 2), ("branch", "root", 3, 4), ("root", None, None, 5), ("orphan", "gone", 7, 2)]
    with engine.begin() as connection:
        for log_id, parent_id, parent_seq, head in branches:
            log = {"id": log_id, "is_conversation": log_id == "root", "head": head}
            connection.execute(
                text("INSERT INTO logs VALUES (:id, :is_conversation, '{}', 1, 1, :head, :parent_id, :parent_seq)"),
                {**log, "parent_id": parent_id, "parent_seq": parent_seq},
            )
            connection.execute(
                text("INSERT INTO responses VALUES (:id, :log_id, 1, 1, 2, 'completed', '{}', NULL, 1)"),
                {"id": f"resp_{log_id}", "log_id": log_id},
            )
            for seq in range(1, head + 1):
                name = f"{log_id} {seq}"
                connection.execute(
                    text("INSERT INTO items VALUES (:log_id, :seq, :name, :key, 1, '{}', 1)"),
                    {"log_id": log_id, "seq": seq, "name": name, "key": name},
                )
    engine.dispose()

    with closing(open_database(url)) as database, database.read() as connection:
        logs = connection.execute(text("SELECT id, parent_id, parent_seq, head FROM logs")).all()
        items = connection.execute(text("SELECT log_id, seq, item_id FROM items ORDER BY log_id, seq")).all()
        responses = connection.execute(text("SELECT log_id, first_seq, last_seq FROM responses")).all()
    assert {row.id: tuple(row)[1:] for row in logs} == {
        "root": (None, None, 5),
        "branch": ("root", 3, 7),
        "twig": ("branch", 5, 7),
        "orphan": (None, None, 2),
    }
    offsets = {"root": 0, "branch": 3, "twig": 5, "orphan": 0}
    assert [tuple(row) for row in items] == [
        (log_id, seq + offsets[log_id], f"{log_id} {seq}")
        for log_id, _, _, head in sorted(branches)
        for seq in range(1, head + 1)
    ]
    assert {row.log_id: tuple(row)[1:] for row in responses} == {
        log_id: (1 + offset, 2 + offset) for log_id, offset in offsets.items()
    }
