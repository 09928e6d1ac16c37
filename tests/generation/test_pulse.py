import asyncio

import pytest

from serve_app.generation import pulse
from serve_app.generation.pulse import Pulse


class Engine:
    """Answers unless it hangs."""

    def __init__(self) -> None:
        self.asked = 0
        self.moves = asyncio.Event()
        self.moves.set()

    async def ask(self) -> None:
        self.asked += 1
        await self.moves.wait()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "_WAIT_S", 0.01)


async def test_an_engine_that_answers_is_asked_each_time() -> None:
    engine = Engine()
    watched = Pulse(engine.ask, hang_timeout_s=60)

    await watched.check()
    await watched.check()

    assert engine.asked == 2


async def test_one_that_does_not_is_asked_once_and_hangs_after_the_timeout() -> None:
    engine = Engine()
    engine.moves.clear()
    patient, hasty = Pulse(engine.ask, hang_timeout_s=60), Pulse(engine.ask, hang_timeout_s=0.001)

    await patient.check()
    await patient.check()
    with pytest.raises(TimeoutError, match="hangs"):
        await hasty.check()

    assert engine.asked == 2


async def test_an_answer_that_came_late_is_one() -> None:
    engine = Engine()
    engine.moves.clear()
    watched = Pulse(engine.ask, hang_timeout_s=60)
    await watched.check()
    engine.moves.set()

    await watched.check()
    await watched.check()

    assert engine.asked == 2


async def test_what_the_question_raises_is_raised() -> None:
    async def ask() -> None:
        raise RuntimeError("the engine is dead")

    with pytest.raises(RuntimeError, match="dead"):
        await Pulse(ask, hang_timeout_s=60).check()
