"""Who answers says that it lives; what a dead one left in progress counts as interrupted within seconds."""

from sqlalchemy import select, update

from serve_app.conversation.log import ConversationLog
from serve_app.conversation.runners import RUNNER_TIMEOUT_S, beat, count_living, leave
from serve_app.storage.clock import database_time
from serve_app.storage.database import Database
from serve_app.storage.schema import runners
from serve_app.types import now_s
from tests.conversation.messages import question, texts


def fall_silent(database: Database, runner_id: str, seconds: float) -> None:
    with database.write() as connection:
        silent = update(runners).where(runners.c.id == runner_id)
        connection.execute(silent.values(heartbeat_at=database_time() - seconds))


def test_response_of_a_dead_runner_is_interrupted(log: ConversationLog, database: Database) -> None:
    beat(database, "run_1")
    turn = question("q", runner_id="run_1")
    log.open_turn(turn)
    assert log.get_response(turn.response["id"])["status"] == "in_progress"

    fall_silent(database, "run_1", RUNNER_TIMEOUT_S + 1)

    response = log.get_response(turn.response["id"])
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "interrupted"})
    follow_up = log.open_turn(question("and?", previous_response_id=turn.response["id"]))
    assert texts(follow_up.history) == ["q"]


def test_same_key_need_not_wait_for_a_dead_runner(log: ConversationLog, database: Database) -> None:
    beat(database, "run_1")
    log.open_turn(question("q", runner_id="run_1", idempotency_key="k"))
    fall_silent(database, "run_1", RUNNER_TIMEOUT_S + 1)

    opened = log.open_turn(question("q", runner_id="run_2", idempotency_key="k"))

    assert opened.finished is not None
    assert opened.finished["incomplete_details"] == {"reason": "interrupted"}


def test_runner_that_missed_some_beats_is_alive(log: ConversationLog, database: Database) -> None:
    beat(database, "run_1")
    fall_silent(database, "run_1", RUNNER_TIMEOUT_S / 2)
    turn = question("q", runner_id="run_1")
    log.open_turn(turn)

    assert log.get_response(turn.response["id"])["status"] == "in_progress"


def test_beat_brings_one_back_and_the_long_dead_are_forgotten(database: Database) -> None:
    for name in ("run_1", "run_2"):
        beat(database, name)
        fall_silent(database, name, 2 * 86_400)

    beat(database, "run_1")
    beat(database, "run_3")

    with database.read() as connection:
        silent = connection.execute(select(runners.c.id, database_time() - runners.c.heartbeat_at)).all()
    assert {name for name, _ in silent} == {"run_1", "run_3"}
    assert all(abs(seconds) < RUNNER_TIMEOUT_S for _, seconds in silent)


def test_only_the_living_are_counted(database: Database) -> None:
    for name in ("run_1", "run_2", "run_3"):
        beat(database, name)
    fall_silent(database, "run_2", RUNNER_TIMEOUT_S + 1)

    assert count_living(database) == 2
    leave(database, "run_3")
    assert count_living(database) == 1


def test_clock_of_the_database_gives_unix_seconds(database: Database) -> None:
    with database.read() as connection:
        assert abs((connection.scalar(select(database_time())) or 0) - now_s()) < 60
