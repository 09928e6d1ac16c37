"""`generation.question`: follow-up questions as ones that can be searched for."""

import pytest

from serve_app.generation.question import INSTRUCTIONS, build_restatement_request, take_restatement, widen
from serve_app.types import Json
from tests.fakes import count_words

PAST: list[Json] = [
    {"role": "user", "content": "How many people lived in Warsaw in 1901?"},
    {"role": "assistant", "content": "In 1901 the city of Warsaw had 711,988 inhabitants [1]."},
]


def test_the_question_before_is_put_in_front() -> None:
    assert widen("And in 1999?", PAST) == "How many people lived in Warsaw in 1901? And in 1999?"


def test_a_question_before_that_says_little_brings_the_one_before_it() -> None:
    past = [{"role": "user", "content": "What is old?"}, *PAST, {"role": "user", "content": "And in 1999?"}]

    assert widen("And now?", past) == "How many people lived in Warsaw in 1901? And in 1999? And now?"


def test_of_a_long_message_before_the_end_is_taken() -> None:
    past = [{"role": "user", "content": " ".join(f"w{number}" for number in range(100))}]

    assert widen("And?", past) == " ".join([*(f"w{number}" for number in range(60, 100)), "And?"])


def test_a_first_question_is_not_widened() -> None:
    assert widen("And?", []) is None
    assert widen("And?", [{"type": "file_search_call"}, {"role": "assistant", "content": "Hello."}]) is None


def test_the_model_is_shown_the_conversation_and_the_question() -> None:
    messages = build_restatement_request("And in 1999?", PAST, count_words)

    assert messages[0]["content"] == INSTRUCTIONS
    assert [each["role"] for each in messages[1:]] == ["user", "assistant", "user", "assistant", "user"]  # two examples
    assert messages[-1]["content"] == (
        "User: How many people lived in Warsaw in 1901?\n"
        "Assistant: In 1901 the city of Warsaw had 711,988 inhabitants [1].\n\n"
        "Last question: And in 1999?"
    )


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("How many people lived in Warsaw in 1999?", "How many people lived in Warsaw in 1999?"),
        ('Last question: "How many lived there in 1999?"\n\nNote: …', "How many lived there in 1999?"),
        ("", None),
        ("And in 1999?", None),
        ("And what was it in 1999?", None),  # nothing of what came before
        ("How many people lived in Warsaw in 1901?", None),  # the question before
        ("How many people lived in Warsaw?", None),  # without what was asked
        ("In 1901 the city of Warsaw had 711,988 inhabitants, and in 1999?", None),  # the answer, nearly
        ("1999 " * 80, None),
    ],
)
def test_only_a_restatement_is_taken(written: str, taken: str | None) -> None:
    assert take_restatement(written, "And in 1999?", PAST) == taken
