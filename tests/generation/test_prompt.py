"""`generation.prompt`: what the model is shown, in which order, within which limits."""

from typing import Any

import pytest

from serve_app.generation.prompt import GUIDANCE, add_sources, build_messages, fit_passages, newest_user_text, text_of
from serve_app.types import Json
from tests.fakes import build_passage, count_words


def item(role: str, text: str) -> Json:
    part = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "id": "msg_1", "role": role, "content": [{"type": part, "text": text}]}


HISTORY = [item("user", "one two"), item("assistant", "three"), item("user", "four five"), item("assistant", "six")]


def build(instructions: str | None = "Be brief.", history: list[Json] = HISTORY, limit: int = 100) -> list[Json]:
    return build_messages(
        instructions, history, [item("user", "Why?")], max_history_tokens=limit, count_tokens=count_words
    )


def contents(messages: list[Json]) -> list[Any]:
    return [message["content"] for message in messages]


def test_instructions_then_history_then_question() -> None:
    assert build() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four five"},
        {"role": "assistant", "content": "six"},
        {"role": "user", "content": "Why?"},
    ]


def test_the_prompt_begins_alike_from_turn_to_turn() -> None:
    first = add_sources(build(history=HISTORY[:2]), [build_passage(1, "Because.")])
    second = add_sources(build(history=HISTORY), [build_passage(2, "Something else.")])

    assert first[:3] == second[:3]
    assert first[0] == {"role": "system", "content": f"Be brief.\n\n{GUIDANCE}"}


def test_the_guidance_is_there_without_instructions_and_without_passages() -> None:
    messages = add_sources(build(instructions=None, history=[]), [])

    assert messages == [
        {"role": "system", "content": GUIDANCE},
        {"role": "user", "content": "Sources:\n(nothing was found)\n\nQuestion: Why?"},
    ]


def test_sources_are_numbered_before_the_question() -> None:
    messages = add_sources(build(), [build_passage(1, " It rains. "), build_passage(2, "It snows.", filename="b.md")])

    assert messages[-1]["content"] == "Sources:\n[1] (1.txt) It rains.\n[2] (b.md) It snows.\n\nQuestion: Why?"
    assert messages[1:-1] == build()[1:-1]


def test_sources_precede_a_question_made_of_parts() -> None:
    messages = add_sources([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], [build_passage(1, "So.")])

    assert messages[1]["content"] == [
        {"type": "text", "text": "Sources:\n[1] (1.txt) So.\n\nQuestion: "},
        {"type": "text", "text": "Why?"},
    ]


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (6, ["one two", "three", "four five", "six"]),
        (5, ["four five", "six"]),  # "three" would fit, but not its question
        (3, ["four five", "six"]),
        (2, []),
        (0, []),
    ],
)
def test_the_oldest_messages_are_left_out(limit: int, kept: list[str]) -> None:
    assert contents(build(instructions=None, limit=limit))[:-1] == kept


def test_a_message_far_too_long_is_not_tokenised() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return 1

    messages = build_messages(
        None, [item("user", "x" * 10_000)], [item("user", "Why?")], max_history_tokens=100, count_tokens=count
    )

    assert contents(messages) == ["Why?"]
    assert counted == []


def test_what_is_no_message_is_left_out() -> None:
    call = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["x"], "results": None}

    assert contents(build(None, [HISTORY[0], call, HISTORY[1]])) == ["one two", "three", "Why?"]


def test_a_developer_is_a_system_to_the_model() -> None:
    assert build(None, [item("developer", "Rhyme.")])[0] == {"role": "system", "content": "Rhyme."}


@pytest.mark.parametrize(("limit", "kept"), [(6, 3), (5, 2), (4, 2), (3, 1), (1, 1)])
def test_passages_that_rank_last_are_left_out_but_the_best_never(limit: int, kept: int) -> None:
    passages = [build_passage(1, "one two"), build_passage(2, "three four"), build_passage(3, "five six")]

    assert fit_passages(passages, limit, count_words) == tuple(passages[:kept])


def test_the_question_is_the_last_user_message() -> None:
    assert newest_user_text([*HISTORY, item("user", "Why?"), item("assistant", "Well")]) == "Why?"
    assert newest_user_text([item("system", "x")]) == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [("a", "a"), ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"), (None, ""), ([1, {}], "")],
)
def test_text_of_content(content: object, text: str) -> None:
    assert text_of(content) == text
