"""The window and its summary: nothing is ever outside both, and what was deleted is in neither."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, select

from serve_app.conversation.log import ConversationLog
from serve_app.errors import NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import prompt_texts, summaries
from serve_app.types import Json, new_id
from serve_app.types.conversation import AppendItems, CloseTurn, KeepSummary, OpenTurn, Summary, Window
from tests.conversation.messages import answer, ask, message, question, texts


def summary_of(window: Window, count: int, text: str = "They talked.") -> KeepSummary:
    """A summary of the oldest `count` items of the window and of what came before."""
    last = window.items[count - 1]
    summary = Summary(last.log_id, last.seq, last.body["id"], text, 2, "m", 1)
    return KeepSummary(summary, window.summary, tuple((item.log_id, item.seq) for item in window.items[:count]))


def window_texts(window: Window) -> list[str]:
    return texts([item.body for item in window.items])


def conversation_with(log: ConversationLog, *questions: str) -> str:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    for each in questions:
        ask(log, each, f"a{each[1:]}", conversation_id=conversation_id)
    return conversation_id


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


def test_the_window_is_all_that_the_summary_does_not_cover(log: ConversationLog) -> None:
    conversation_id = conversation_with(log, "q1", "q2", "q3")
    window = log.read_window(conversation_id, 40)
    assert (window_texts(window), window.summary) == (["q1", "a1", "q2", "a2", "q3", "a3"], None)

    assert log.keep_summary(summary_of(window, 4))
    window = log.open_turn(question("q4", conversation_id=conversation_id)).window

    assert window_texts(window) == ["q3", "a3"]
    assert window.summary is not None
    assert window.summary.text == "They talked."
    assert window.summary.last_item_id == log.get_item(conversation_id, window.summary.last_item_id)["id"]


def test_of_two_folds_at_once_the_one_that_reaches_further_stays(log: ConversationLog) -> None:
    conversation_id = conversation_with(log, "q1", "q2", "q3")
    window = log.read_window(conversation_id, 40)

    assert log.keep_summary(summary_of(window, 4, "The first."))
    assert not log.keep_summary(summary_of(window, 4, "The same again."))
    assert not log.keep_summary(summary_of(window, 2, "Less."))

    kept = log.read_window(conversation_id, 40).summary
    assert kept is not None
    assert kept.text == "The first."


def test_a_window_that_is_longer_than_was_asked_for_says_so(log: ConversationLog) -> None:
    conversation_id = conversation_with(log, "q1", "q2", "q3")

    assert log.read_window(conversation_id, 6).is_cut is False
    cut = log.read_window(conversation_id, 5)

    assert (window_texts(cut), cut.is_cut) == (["a1", "q2", "a2", "q3", "a3"], True)


def test_a_branch_uses_the_summary_of_the_past_that_it_shares(log: ConversationLog) -> None:
    first = ask(log, "q1", "a1")
    second = ask(log, "q2", "a2", previous_response_id=first)
    third = ask(log, "q3", "a3", previous_response_id=second)
    window = log.open_turn(question("q4", previous_response_id=third, store=False)).window
    assert log.keep_summary(summary_of(window, 4))

    after = log.open_turn(question("q3 otherwise", previous_response_id=second, store=False)).window
    before = log.open_turn(question("q2 otherwise", previous_response_id=first, store=False)).window

    assert (window_texts(after), after.summary is None) == ([], False)
    assert (window_texts(before), before.summary) == (["q1", "a1"], None)


def test_a_branch_that_leaves_before_the_newest_summary_uses_an_older_one(log: ConversationLog) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    ids = [ask(log, f"q{n}", f"a{n}", conversation_id=conversation_id) for n in range(1, 5)]
    for text in ("Older.", "Newer."):
        assert log.keep_summary(summary_of(log.read_window(conversation_id, 40), 4, text))

    window = log.open_turn(question("q4 otherwise", previous_response_id=ids[2], store=False)).window

    assert window.summary is not None
    assert (window.summary.text, window_texts(window)) == ("Older.", ["q3", "a3"])


def test_what_the_model_read_and_wrote_comes_back_with_its_item(log: ConversationLog, database: Database) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    turn = question("q1", conversation_id=conversation_id)
    opened = log.open_turn(turn)
    asked = turn.input_items[0]["id"]
    closed = answer(turn, "a1", opened.log_id)
    texts = {asked: "Sources: x\n\nQuestion: q1"}
    log.close_turn(CloseTurn(closed.log_id, closed.response, prompt_texts=texts))

    window = log.read_window(conversation_id, 40)
    assert [item.prompt_text for item in window.items] == ["Sources: x\n\nQuestion: q1", None]

    log.delete_item(conversation_id, asked)
    assert count(database, prompt_texts) == 0


def test_a_deleted_item_is_in_no_summary_of_any_branch(log: ConversationLog, database: Database) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    last = [ask(log, f"q{n}", f"a{n}", conversation_id=conversation_id) for n in range(1, 5)][-1]
    assert log.keep_summary(summary_of(log.read_window(conversation_id, 40), 2, "Before it."))
    assert log.keep_summary(summary_of(log.read_window(conversation_id, 40), 2, "With it."))
    branch = ask(log, "q5", "a5", previous_response_id=last)
    assert log.keep_summary(summary_of(log.read_window(branch, 40), 6, "With it, in a branch."))
    second_question = log.open_turn(question("?", previous_response_id=last, store=False))
    assert second_question.window.summary is not None

    log.delete_item(conversation_id, second_question.window.summary.last_item_id)

    for log_id in (conversation_id, branch):
        summary = log.read_window(log_id, 40).summary
        assert summary is not None
        assert summary.text == "Before it."
    assert count(database, summaries) == 1


def test_a_summary_of_what_was_deleted_meanwhile_is_not_stored(log: ConversationLog, database: Database) -> None:
    conversation_id = conversation_with(log, "q1", "q2")
    window = log.read_window(conversation_id, 40)
    log.delete_item(conversation_id, window.items[0].body["id"])

    assert not log.keep_summary(summary_of(window, 2))
    assert count(database, summaries) == 0


def test_a_summary_that_goes_on_from_a_deleted_one_is_not_stored(log: ConversationLog, database: Database) -> None:
    conversation_id = conversation_with(log, "q1", "q2", "q3")
    window = log.read_window(conversation_id, 40)
    assert log.keep_summary(summary_of(window, 2))
    second = log.read_window(conversation_id, 40)
    log.delete_item(conversation_id, window.items[0].body["id"])

    assert not log.keep_summary(summary_of(second, 2))
    assert count(database, summaries) == 0


def test_a_deleted_conversation_leaves_only_summaries_of_what_a_branch_shares(
    log: ConversationLog, database: Database
) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    last = [ask(log, f"q{n}", f"a{n}", conversation_id=conversation_id) for n in range(1, 4)][-1]
    window = log.read_window(conversation_id, 40)
    assert log.keep_summary(summary_of(window, 2))
    branch = ask(log, "q5", "a5", previous_response_id=last)
    assert log.keep_summary(summary_of(log.read_window(branch, 40), 2, "Of the branch."))
    ask(log, "q4", "a4", conversation_id=conversation_id)
    assert log.keep_summary(summary_of(log.read_window(conversation_id, 40), 4))

    log.delete_conversation(conversation_id)

    kept = log.read_window(branch, 40).summary
    assert kept is not None
    assert kept.text == "Of the branch."
    assert count(database, summaries) == 2  # of q1 and a1, too, which the branch shares
    assert not log.keep_summary(summary_of(window, 4))
    with pytest.raises(NotFound):
        log.read_window(conversation_id, 40)

    log.delete_response(branch)
    assert count(database, summaries) == 0


def test_a_long_log_is_read_by_two_queries(log: ConversationLog, database: Database) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, tuple(message(f"m{n}") for n in range(2000))).id
    for _ in range(3):
        assert log.keep_summary(summary_of(log.read_window(conversation_id, 2000), 600))
    statements: list[str] = []
    with database.read() as connection:
        event.listen(connection.engine, "before_cursor_execute", lambda *each: statements.append(each[2]))

    window = log.read_window(conversation_id, 400)

    assert len(window.items) == 200
    assert sum("FROM items" in each or "FROM logs" in each for each in statements) == 3  # with that of its head


# A turn after the tip with that number, a fold of so many items as one saw that tip before, a deletion, an append.
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 9), st.integers(0, 0)),
        st.tuples(st.just("fold"), st.integers(0, 9), st.integers(1, 9)),
        st.tuples(st.just("delete"), st.integers(0, 99), st.integers(0, 0)),
        st.tuples(st.just("append"), st.integers(0, 0), st.integers(1, 3)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_nothing_is_outside_both_window_and_summary(
    log: ConversationLog, steps: Sequence[tuple[str, int, int]]
) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    in_conversation: list[str] = []
    deleted: set[str] = set()
    paths: dict[str, list[str]] = {}  # by response id: all items up to its last
    seen: list[Window] = []

    def windows() -> list[tuple[list[str], Window]]:
        tips: list[tuple[list[str], Window]] = [(in_conversation, log.read_window(conversation_id, 1000))]
        for tip, path in paths.items():
            tips.append((path, log.open_turn(question("?", previous_response_id=tip, store=False)).window))
        return tips

    for step, which, size in steps:
        if step == "append":
            added: list[Json] = [message("m") for _ in range(size)]
            _append(log, conversation_id, added)
            in_conversation += [each["id"] for each in added]
        elif step == "ask" and which < len(paths):
            tip = list(paths)[which]
            turn = question("q", previous_response_id=tip)
            paths[turn.response["id"]] = [*paths[tip], *_finish(log, turn)]
        elif step == "ask":
            turn = question("q", conversation_id=conversation_id)
            in_conversation += _finish(log, turn)
            paths[turn.response["id"]] = list(in_conversation)
        elif step == "fold" and seen:
            window = seen[which % len(seen)]
            if window.items:
                log.keep_summary(summary_of(window, min(size, len(window.items))))
        elif step == "delete" and (left := [each for each in in_conversation if each not in deleted]):
            deleted.add(left[which % len(left)])
            log.delete_item(conversation_id, left[which % len(left)])
        for path, window in windows():
            covered = path.index(window.summary.last_item_id) + 1 if window.summary else 0
            assert [item.body["id"] for item in window.items] == [
                each for each in path[covered:] if each not in deleted
            ]
            seen.append(window)


def _append(log: ConversationLog, conversation_id: str, added: list[Json]) -> None:
    log.append_items(AppendItems(conversation_id, tuple(added), new_id("key")))


def _finish(log: ConversationLog, turn: OpenTurn) -> list[str]:
    closed = answer(turn, "a", log.open_turn(turn).log_id)
    log.close_turn(closed)
    return [each["id"] for each in (*turn.input_items, *closed.response["output"])]
