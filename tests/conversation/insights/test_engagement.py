import pytest

from serve_app.conversation.insights.engagement import Engagement, Question, measure_engagement
from serve_app.types.conversation import MessageFacts
from tests.conversation.insights.facts import logged, says


def engagement_of(*messages: MessageFacts, every_s: int = 10) -> Engagement:
    return measure_engagement(logged(*messages, every_s=every_s), messages)


def test_times_are_those_between_the_two_sides() -> None:
    talk = engagement_of(says(), says(), says("assistant"), says(), says("assistant"), every_s=7)

    assert talk.response_times.seconds == (7, 7)
    assert talk.pauses.seconds == (7,)
    assert talk.duration_s == 28


def test_a_clock_that_was_set_back_makes_no_negative_times() -> None:
    assert engagement_of(says(), says("assistant"), every_s=-5).response_times.seconds == (0,)


def test_lengths_and_questions_are_counted_for_each_side() -> None:
    talk = engagement_of(
        says(words=4, is_question=True), says("assistant", words=30), says(words=6), says("assistant", is_question=True)
    )

    assert (talk.user.messages, talk.user.mean_words, talk.user.longest_words, talk.user.questions) == (2, 5, 6, 1)
    assert talk.assistant.questions == 1


def test_nobody_has_spoken_yet() -> None:
    talk = engagement_of()

    assert (talk.duration_s, talk.questions, talk.user.mean_words, talk.pauses.median_s) == (0, (), None, None)


def test_an_answered_question_is_not_open() -> None:
    talk = engagement_of(says(degrees=0, is_question=True), says("assistant", degrees=60))

    (question,) = talk.questions
    assert (question.answer, question.open_reason) == (1, None)
    assert question.relatedness == pytest.approx(0.5)
    assert talk.open_questions == []


def test_the_last_question_may_be_without_an_answer() -> None:
    assert engagement_of(says(is_question=True)).open_questions == [Question(0, None, None, "no_answer")]


def test_a_question_that_the_user_went_on_from_has_no_answer() -> None:
    talk = engagement_of(says(is_question=True), says(is_question=True), says("assistant"))

    assert [question.open_reason for question in talk.questions] == ["no_answer", None]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says("assistant", status="incomplete"), "incomplete"),
        (says("assistant", characters=0), "no_answer"),
        (says("assistant", is_evasive=True), "evasive"),
        (says("assistant", degrees=90), "unrelated"),
    ],
)
def test_what_does_not_answer_leaves_a_question_open(answer: MessageFacts, reason: str) -> None:
    (question,) = engagement_of(says(is_question=True), answer).open_questions

    assert question.open_reason == reason
