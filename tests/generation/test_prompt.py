"""`generation.prompt`: what the model is shown, in which order, within which limits."""

from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.generation.prompt import (
    GUIDANCE,
    SUMMARY,
    add_sources,
    build_messages,
    fit_passages,
    newest_user_text,
    prefix_key,
    question_texts,
    text_of,
)
from serve_app.types import Json
from serve_app.types.conversation import PastItem, Summary, Window
from tests.fakes import build_passage, count_words


def item(role: str, text: str) -> Json:
    part = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "id": "msg_1", "role": role, "content": [{"type": part, "text": text}]}


HISTORY = [item("user", "one two"), item("assistant", "three"), item("user", "four five"), item("assistant", "six")]


def past(items: Sequence[Json], summary: str | None = None) -> Window:
    covered = Summary("conv_1", 1, "msg_0", summary, 3, "m", 1) if summary else None
    return Window(tuple(PastItem("conv_1", seq, each) for seq, each in enumerate(items, 2)), covered)


def build(
    instructions: str | None = "Be brief.", history: list[Json] = HISTORY, summary: str | None = None
) -> list[Json]:
    return build_messages(instructions, past(history, summary), [item("user", "Why?")])


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


def test_the_summary_comes_after_the_instructions() -> None:
    assert build(summary="They met.")[0] == {"role": "system", "content": f"Be brief.\n\n{SUMMARY}They met."}
    assert build(instructions=None, summary="They met.")[0] == {"role": "system", "content": f"{SUMMARY}They met."}


def test_the_past_is_shown_as_the_model_read_and_wrote_it() -> None:
    window = Window(
        (PastItem("conv_1", 1, HISTORY[0], "Sources: x\n\nQuestion: one two"), PastItem("conv_1", 2, HISTORY[1]))
    )

    assert contents(build_messages(None, window, ())) == ["Sources: x\n\nQuestion: one two", "three"]


def test_the_question_with_its_sources_is_kept_under_its_item() -> None:
    messages = add_sources([{"role": "user", "content": "Why?"}], [build_passage(1, "So.")])
    asked = {**item("user", "Why?"), "id": "msg_2"}

    assert question_texts(messages, [item("user", "x"), asked]) == {
        "msg_2": "Sources:\n[1] (1.txt) So.\n\nQuestion: Why?"
    }
    assert question_texts(messages, []) == {}


def test_prompts_that_begin_alike_have_the_same_key() -> None:
    assert prefix_key(build()) == prefix_key([*build(), {"role": "user", "content": "And?"}])
    assert prefix_key(build()) != prefix_key(build("Be long."))
    assert prefix_key(build(None)) == prefix_key(build(None)[:1])


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
