import pytest

from serve_app.conversation.insights.sentiment import TurningPoint, measure_sentiment
from tests.conversation.insights.facts import says


def test_a_message_in_another_language_has_no_known_sentiment() -> None:
    messages = [says(english_sentiment=0.5), says(english_sentiment=-0.3, language="es"), says(english_sentiment=0.1)]

    assert measure_sentiment(messages).scores == (0.5, None, 0.1)


def test_a_message_too_short_for_a_language_counts_as_the_conversation_s() -> None:
    no = says(english_sentiment=-0.3, language=None)

    assert measure_sentiment([says(language="en"), no]).scores[1] == -0.3
    assert measure_sentiment([says(language="es"), no]).scores[1] is None
    assert measure_sentiment([no]).scores == (None,)


@pytest.mark.parametrize(
    ("scores", "trend"),
    [
        ((-0.5, 0.0, 0.5), "improving"),
        ((0.5, 0.0, -0.5), "worsening"),
        ((0.1, 0.0, 0.1), "steady"),
        ((0.5,), None),
        ((), None),
    ],
)
def test_the_trend_is_that_of_the_user(scores: tuple[float, ...], trend: str | None) -> None:
    messages = [
        message
        for score in scores
        for message in (says(english_sentiment=score), says("assistant", english_sentiment=0.9))
    ]

    assert measure_sentiment(messages).trend == trend


def test_the_user_s_mood_turns_where_the_mean_of_three_messages_changes_sign() -> None:
    messages = [says(english_sentiment=score) for score in (0.6, 0.6, 0.6, -0.8, -0.8, -0.8, 0.0)]

    # 0.6, then 0.13, then -0.33: the third of these is the first that is negative.
    assert measure_sentiment(messages).turning_points == (TurningPoint(4, "positive", "negative"),)


def test_one_bad_word_is_no_turning_point() -> None:
    messages = [says(english_sentiment=score) for score in (0.6, 0.6, 0.6, -0.6, 0.6, 0.6)]

    assert measure_sentiment(messages).turning_points == ()
