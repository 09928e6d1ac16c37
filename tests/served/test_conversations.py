"""Half a minute of conversations under kill -9; `python -m bench.conversations` is the longer run of the same."""

from bench.conversations import talk
from tests.served.application import Application


async def test_conversations_hold_what_was_acknowledged(application: Application) -> None:
    application.wait_until_ready()

    # With this seed one of each part, but no generator: that one is killed in test_kill, and takes a minute to return.
    await talk(application, seconds=30, count=12, kill_every_s=5, seed=18)
