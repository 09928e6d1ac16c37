"""Settings with their history, on SQLite and PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.errors import InvalidRequest, NotFound
from serve_app.generation.settings import Settings, UserConfig
from serve_app.generation.settings_log import SettingsInForce, SettingsLog
from serve_app.storage.database import Database

MODEL = "a-model"


@pytest.fixture
def log(database: Database) -> SettingsLog:
    return SettingsLog(database)


def test_a_change_keeps_what_it_does_not_name(log: SettingsLog) -> None:
    log.change(MODEL, {"temperature": 0.1, "top_k": 5}, "key a")
    changed = log.change(MODEL, {"temperature": 0.2, "top_k": None}, "key b")

    assert changed.settings == Settings(temperature=0.2)
    assert [(each.number, each.author) for each in log.history(MODEL, None, 10)] == [(2, "key b"), (1, "key a")]


def test_a_change_that_is_refused_leaves_no_trace(log: SettingsLog) -> None:
    with pytest.raises(ValueError, match="temperature"):
        log.change(MODEL, {"temperature": 7}, "key a")

    assert log.newest() == {}


def test_the_history_pages(log: SettingsLog) -> None:
    for top_k in range(1, 6):
        log.change(MODEL, {"top_k": top_k}, "key a")

    assert [each.number for each in log.history(MODEL, None, 2)] == [5, 4]
    assert [each.number for each in log.history(MODEL, 4, 2)] == [3, 2]


def test_a_rollback_is_a_new_revision(log: SettingsLog) -> None:
    log.change(MODEL, {"top_k": 1}, "key a")
    log.change(MODEL, {"top_k": 2}, "key a")

    assert log.roll_back(MODEL, 1, "key b").settings == Settings(top_k=1)
    assert log.newest()[MODEL].number == 3


def test_a_rollback_to_nothing_is_refused(log: SettingsLog) -> None:
    with pytest.raises(NotFound, match="revision 4"):
        log.roll_back(MODEL, 4, "key a")


def test_what_the_yaml_says_counts_when_it_changes(log: SettingsLog) -> None:
    log.declare(MODEL, Settings(top_k=1, stop=("END",)))
    log.change(MODEL, {"top_k": 2}, "key a")
    log.declare(MODEL, Settings(top_k=1, stop=("END",)))  # a restart with the same YAML
    assert log.newest()[MODEL].settings == Settings(top_k=2, stop=("END",))

    log.declare(MODEL, Settings(top_k=3))
    assert log.newest()[MODEL].settings == Settings(top_k=3)


def test_a_yaml_that_says_nothing_any_more_counts_too(log: SettingsLog) -> None:
    log.declare(MODEL, Settings(top_k=1))
    log.declare(MODEL, Settings())

    assert log.newest()[MODEL].settings == Settings()


def test_many_changes_at_once_are_all_there(log: SettingsLog) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda top_k: log.change(MODEL, {"top_k": top_k}, "key a"), range(1, 9)))

    history = log.history(MODEL, None, 100)
    assert [each.number for each in history] == list(range(8, 0, -1))
    assert {each.settings.top_k for each in history} == set(range(1, 9))


def test_another_gateways_change_is_seen_after_a_refresh(log: SettingsLog, database: Database) -> None:
    here, there = SettingsInForce(log), SettingsInForce(SettingsLog(database))
    there.log.change(MODEL, {"top_k": 2}, "key a")
    assert here.of(MODEL).number == 0

    here.refresh()
    assert here.of(MODEL).settings == Settings(top_k=2)


def test_without_a_profile_the_prompt_is_not_counted(log: SettingsLog) -> None:
    def count() -> int:
        raise AssertionError("counted")

    assert SettingsInForce(log).apply(MODEL, None, None, count).to_json() == {
        "revision": 0,
        "profile": None,
        "rules": [],
    }


def test_the_requests_profile_wins_over_that_of_the_settings(log: SettingsLog) -> None:
    in_force = SettingsInForce(log)
    rule = {"name": "always", "settings": {"top_k": 9}}
    config = {"settings": {MODEL: {"profile": "lesson"}}, "profiles": {"mine": [rule]}}
    in_force.declare(UserConfig.model_validate(config))

    assert (
        in_force.apply(MODEL, None, None, lambda: 2000).to_header() == "revision=1, profile=lesson, rules=long-prompt"
    )
    applied = in_force.apply(MODEL, "mine", None, lambda: 2000)
    assert (applied.settings.top_k, applied.rules) == (9, ("always",))


def test_a_profile_that_is_not_there_is_refused(log: SettingsLog) -> None:
    with pytest.raises(InvalidRequest, match="'nine', only 'lesson'"):
        SettingsInForce(log).apply(MODEL, "nine", None, lambda: 1)


def test_no_request_fails_for_a_profile_that_the_settings_name_and_the_yaml_has_no_more(
    log: SettingsLog, caplog: pytest.LogCaptureFixture
) -> None:
    in_force = SettingsInForce(log)
    rule = {"name": "always", "settings": {"top_k": 9}}
    settings = {MODEL: {"profile": "mine", "top_k": 5}}
    in_force.declare(UserConfig.model_validate({"settings": settings, "profiles": {"mine": [rule]}}))

    in_force.declare(UserConfig.model_validate({"settings": settings}))

    applied = in_force.apply(MODEL, None, None, lambda: 1)
    assert (applied.profile, applied.settings.top_k) == (None, 5)
    assert "'mine' is not there" in caplog.text
