"""`generation.summary`: what is asked of the model, what is taken of its answer, and what is made without it."""

import pytest

from serve_app.generation.summary import (
    INSTRUCTIONS,
    build_request,
    extract,
    refusal,
    repetition,
    shorten,
    units,
    whole_sentences,
)
from serve_app.types import Json
from tests.fakes import count_words

SOURCE = (
    "My name is Ana and I live in Basel. Which river flows through the city? The Rhine flows through Basel, and most of"
    " the old town lies on its left bank. When was the first bridge built? The first bridge was built in 1226."
)
GOOD = "Ana lives in Basel. The Rhine flows through the city, whose first bridge was built in 1226."


def item(role: str, text: str) -> Json:
    return {"type": "message", "id": "msg_1", "role": role, "content": [{"type": "input_text", "text": text}]}


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        (GOOD, None),
        ("", "empty"),
        ("The Rhine.", "empty"),
        (" ".join([GOOD] * 4), "too_long"),
        ("The Rhine flows through Basel. The Rhine flows through Basel. The Rhine flows through Basel.", "repetitive"),
        (SOURCE, "copy"),
        (INSTRUCTIONS, "copy"),
        (GOOD.replace("1226", "1966"), "invented"),
        ("They spoke of a river in a city.", "unchanged"),
        ("Ana wohnt seit langem am Rhein und fragt nach alten Brücken.", "unrelated"),
        ("Анна живёт в Базеле и спрашивает о старых мостах.", "unrelated"),
        ("Quantum chromodynamics predicts asymptotic freedom amid gluons.", "unrelated"),
    ],
)
def test_a_bad_summary_is_refused_with_the_reason(summary: str, reason: str | None) -> None:
    assert refusal(summary, "They spoke of a river in a city.", SOURCE, 60, count_words) == reason


def test_a_language_without_spaces_is_judged_by_its_letters() -> None:
    source = "私の名前は花子です。京都に住んでいます。鴨川はどこを流れていますか。鴨川は京都市を流れています。"

    assert refusal("花子は京都に住んでいる。鴨川は京都市を流れる。", "", source, 60, count_words) is None
    assert refusal("Hanako lives in the city of Kyoto.", "", source, 60, count_words) == "unrelated"


def test_the_request_holds_the_summary_so_far_and_what_leaves() -> None:
    system, user = build_request("They met.", [item("user", "Why?"), item("assistant", "So.")], 100, count_words)

    assert system == {"role": "system", "content": INSTRUCTIONS}
    assert user["content"].split("\n\n") == ["Before: They met.", "User: Why?", "Assistant: So."]


def test_long_messages_are_cut_to_what_the_short_ones_leave() -> None:
    items = [item("user", "one two"), item("assistant", "word " * 50), item("user", "word " * 50)]
    _, user = build_request("", items, 22, count_words)

    lines = user["content"].split("\n\n")
    assert [count_words(line) - 1 for line in lines[:3]] == [2, 10, 10]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two. And thr", "One. Two."),
        ("One. Two.", "One. Two."),
        ("No end", ""),
        ("京都です。鴨川は", "京都です。"),
        ("It costs 3.5 euros. Or mo", "It costs 3.5 euros."),
    ],
)
def test_the_sentence_in_which_a_text_breaks_off_is_left_out(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_an_extract_keeps_the_beginning_of_the_newest_messages_that_fit() -> None:
    items = [item("user", "Old question? More."), item("assistant", "Old answer."), item("user", "New question? More.")]

    assert extract("", items, 100, count_words) == "User: Old question?\nAssistant: Old answer.\nUser: New question?"
    assert extract("", items, 6, count_words) == "Assistant: Old answer.\nUser: New question?"


def test_an_extract_keeps_the_end_of_what_was_said_before_in_half_of_the_room() -> None:
    before = "This is old. This is newer. This is newest."

    assert extract(before, [item("user", "Why is it so?")], 12, count_words).splitlines() == [
        "This is newer.",
        "This is newest.",
        "User: Why is it so?",
    ]


def test_extracts_of_extracts_never_grow() -> None:
    text = ""
    for number in range(50):
        text = extract(text, [item("user", f"Question {number} about this?")], 40, count_words)
        assert count_words(text) <= 40
    assert "Question 49" in text


def test_shorten_takes_the_beginning() -> None:
    assert shorten("one two three four", 2, count_words) == "one two"
    assert shorten("one two", 2, count_words) == "one two"
    assert shorten("x" * 10_000, 5, len) == "xxxxx"


def test_repetition_is_the_share_of_what_came_before() -> None:
    assert repetition(units("a b c d e f"), 4) == 0
    assert repetition(units("a b c d a b c d a b c d"), 4) == pytest.approx(5 / 9)
    assert repetition(units("a"), 4) == 0
