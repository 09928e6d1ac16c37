from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.config import EncoderConfig
from serve_app.knowledge.encode import TextEncoder, load_encoder
from serve_app.storage.database import Database
from tests.databases import opened


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    return load_encoder(EncoderConfig(backend="openvino"))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(f"sqlite:///{tmp_path / 'rayconteur.db'}") as database:
        yield database
