import pytest

from serve_app.admission.pace import Pace


def write(pace: Pace, seconds: int, sequences: int, tokens_per_s: int, now: float) -> float:
    """Advances the pace by a second at a time."""
    for _ in range(seconds):
        now += 1
        pace.wrote(tokens_per_s)
        pace.advance(now, sequences)
    return now


def test_nothing_is_known_before_the_first_token() -> None:
    assert Pace().seconds_per_token is None


def test_it_is_of_one_sequence() -> None:
    pace = Pace()
    write(pace, 20, sequences=4, tokens_per_s=40, now=0)

    assert pace.seconds_per_token == pytest.approx(0.1)


def test_it_follows_an_engine_that_slows_down() -> None:
    pace = Pace()
    now = write(pace, 20, sequences=4, tokens_per_s=40, now=0)
    before = pace.seconds_per_token
    write(pace, 5, sequences=32, tokens_per_s=40, now=now)

    assert before == pytest.approx(0.1)
    assert pace.seconds_per_token == pytest.approx(0.8, rel=0.1)


def test_rest_changes_nothing() -> None:
    pace = Pace()
    now = write(pace, 5, sequences=4, tokens_per_s=40, now=0)
    before = pace.seconds_per_token
    pace.advance(now + 3600, 0)

    assert pace.seconds_per_token == before
