from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.storage.database import Database
from tests.backup.system import System
from tests.databases import opened


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with opened(f"sqlite:///{tmp_path}/here/rayconteur.db") as database:
        yield System(tmp_path / "here", database, str(tmp_path / "backups"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[System]:
    """Another system, with nothing in it, that knows where the first one keeps its backups."""
    with opened(f"sqlite:///{tmp_path}/elsewhere/rayconteur.db") as database:
        yield System(tmp_path / "elsewhere", database, str(tmp_path / "backups"))


@pytest.fixture
def any_system(tmp_path: Path, database: Database) -> System:
    """Like `system`, on each kind of database."""
    return System(tmp_path / "here", database, str(tmp_path / "backups"))


@pytest.fixture
def any_elsewhere(tmp_path: Path, other_database_url: str) -> Iterator[System]:
    with opened(other_database_url) as database:
        yield System(tmp_path / "elsewhere", database, str(tmp_path / "backups"))
