"""What fills in a request, and what the rules of a profile change of it."""

import pytest
from pydantic import ValidationError

from serve_app.generation.settings import LESSON, Rule, Settings, UserConfig, adapt, fill_in, has_own_beams
from serve_app.types import Json


def filled(settings: Settings, **payload: object) -> Json:
    fill_in(payload, settings)
    return payload


def test_what_the_client_left_open_is_filled_in() -> None:
    settings = Settings(max_tokens=7, temperature=0.3, top_p=0.8, top_k=40, repetition_penalty=1.2, stop=("END",))

    assert filled(settings) == {
        "max_completion_tokens": 7,
        "temperature": 0.3,
        "top_p": 0.8,
        "top_k": 40,
        "repetition_penalty": 1.2,
        "stop": ["END"],
    }


def test_what_the_client_says_wins() -> None:
    settings = Settings(max_tokens=7, temperature=0.3, stop=("END",), no_repeat_ngram_size=4, beams=3)
    said: Json = {"max_tokens": 9, "temperature": 0.0, "stop": "\n", "n": 2, "no_repeat_ngram_size": 2}

    assert filled(settings, **said) == {
        "max_tokens": 9,
        "temperature": 0.0,
        "stop": "\n",
        "n": 2,
        "vllm_xargs": {"no_repeat_ngram_size": 2},
    }


def test_null_is_open() -> None:
    assert filled(Settings(temperature=0.3), temperature=None, max_tokens=None) == {
        "temperature": 0.3,
        "max_tokens": None,
        "max_completion_tokens": 512,
    }


def test_zero_takes_the_limit_on_repetition_off() -> None:
    assert "vllm_xargs" not in filled(Settings(no_repeat_ngram_size=4), no_repeat_ngram_size=0)


def test_other_extra_arguments_of_vllm_stay() -> None:
    payload = filled(Settings(no_repeat_ngram_size=4), vllm_xargs={"other": 1})

    assert payload["vllm_xargs"] == {"other": 1, "no_repeat_ngram_size": 4}


@pytest.mark.parametrize(
    ("settings", "payload", "own"),
    [
        (Settings(beams=4), {}, True),
        (Settings(beams=1), {}, False),
        (Settings(), {}, False),
        (Settings(beams=4), {"n": 1}, False),
        (Settings(beams=4), {"use_beam_search": True, "n": 2}, False),
    ],
)
def test_only_beams_that_the_client_did_not_ask_for_are_ours(settings: Settings, payload: Json, own: bool) -> None:
    assert has_own_beams(settings, payload) is own
    assert (filled(settings, **payload).get("n") == 4) is own


def test_a_rule_applies_where_all_its_conditions_hold() -> None:
    rule = Rule(name="r", prompt_tokens_over=10, prompt_tokens_up_to=20, max_tokens_over=5, settings=Settings())

    assert [rule.applies(prompt_tokens, 6) for prompt_tokens in (10, 11, 20, 21)] == [False, True, True, False]
    assert not rule.applies(15, 5)


def test_later_rules_win_and_what_they_leave_stays() -> None:
    profile = (
        Rule(name="first", settings=Settings(temperature=0.1, top_k=5)),
        Rule(name="never", prompt_tokens_over=99, settings=Settings(top_k=99)),
        Rule(name="second", settings=Settings(temperature=0.2)),
    )

    settings, rules = adapt(Settings(temperature=0.9, top_p=0.5), profile, 1, None)

    assert settings == Settings(temperature=0.2, top_p=0.5, top_k=5)
    assert rules == ("first", "second")


def test_the_wanted_length_is_the_requests_or_else_the_settings() -> None:
    profile = (Rule(name="long", max_tokens_over=100, settings=Settings()),)

    assert adapt(Settings(max_tokens=50), profile, 1, 101)[1] == ("long",)
    assert adapt(Settings(max_tokens=101), profile, 1, None)[1] == ("long",)
    assert adapt(Settings(max_tokens=101), profile, 1, 100)[1] == ()
    assert adapt(Settings(), profile, 1, None)[1] == ("long",)  # 512


def test_the_lesson_is_there_unless_the_yaml_has_its_own() -> None:
    own = {"name": "mine", "settings": {"top_k": 3}}

    assert UserConfig().all_profiles == {"lesson": LESSON}
    assert UserConfig.model_validate({"profiles": {"lesson": [own]}}).all_profiles["lesson"][0].name == "mine"


def test_a_setting_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="temprature"):
        UserConfig.model_validate({"settings": {"a-model": {"temprature": 0.1}}})
