"""The fixtures that all tests share."""

import signal
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.databases"]


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> Iterator[None]:
    """Ctrl-C reaches what tests start, even if a shell has started this suite in the background, without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
