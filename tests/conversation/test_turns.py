"""Turns and the responses they leave: opened, closed, branched, retried, interrupted, deleted."""

import threading

import pytest

from serve_app.conversation.log import ConversationLog
from serve_app.errors import Conflict, InvalidRequest, NotFound
from serve_app.storage.database import Database
from serve_app.types import PageQuery, new_id
from serve_app.types.conversation import OpenedTurn, Window
from tests.conversation.messages import all_items, answer, ask, count_items, message, question, seqs_of, texts

INTERRUPTED = {"reason": "interrupted"}


@pytest.fixture
def late(database: Database) -> ConversationLog:
    """The log as somebody sees it who comes long after whoever was working is dead."""
    return ConversationLog(database, max_cached=100, stale_after_s=0)


# --- in a conversation --------------------------------------------------------------------------


def test_a_turn_of_a_conversation_adds_question_and_answer(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, (message("before"),))
    turn = question("why?", conversation_id=conversation.id)
    opened = log.open_turn(turn)
    assert (texts(opened.history), opened.log_id, opened.finished) == (["before"], conversation.id, None)
    assert texts(all_items(log, conversation.id)) == ["before", "why?"]
    assert log.get_response(turn.response["id"]) == turn.response

    closing = answer(turn, "because", opened.log_id)
    log.close_turn(closing)
    assert texts(all_items(log, conversation.id)) == ["before", "why?", "because"]
    assert log.get_response(turn.response["id"]) == closing.response


def test_without_store_a_conversation_goes_on_but_there_is_no_response(
    log: ConversationLog, database: Database
) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    turn = question("q", conversation_id=conversation.id, store=False)
    opened = log.open_turn(turn)
    assert log.open_turn(turn) == opened
    closing = answer(turn, "a", opened.log_id)
    log.close_turn(closing)
    log.close_turn(closing)
    assert texts(all_items(log, conversation.id)) == ["q", "a"]
    assert seqs_of(database, conversation.id) == [1, 2]
    with pytest.raises(NotFound):
        log.get_response(turn.response["id"])


def test_a_turn_in_an_unknown_conversation_names_the_field(log: ConversationLog) -> None:
    with pytest.raises(NotFound) as caught:
        log.open_turn(question("q", conversation_id="conv_unknown"))
    assert caught.value.param == "conversation"
    assert "conv_unknown" in caught.value.message


# --- the past -----------------------------------------------------------------------------------


def test_a_response_goes_on_from_the_previous_one(log: ConversationLog) -> None:
    first = ask(log, "q1", "a1")
    second = ask(log, "q2", "a2", previous_response_id=first)
    opened = log.open_turn(question("q3", previous_response_id=second))
    assert texts(opened.history) == ["q1", "a1", "q2", "a2"]


def test_a_branch_shares_its_past_and_copies_nothing(log: ConversationLog, database: Database) -> None:
    first = ask(log, "q1", "a1")
    second = ask(log, "q2", "a2", previous_response_id=first)
    stored = count_items(database)
    turn = question("q2 otherwise", previous_response_id=first)
    opened = log.open_turn(turn)
    assert texts(opened.history) == ["q1", "a1"]
    assert count_items(database) == stored + len(turn.input_items)
    log.close_turn(answer(turn, "a2 otherwise", opened.log_id))

    on_main = log.open_turn(question("q3", previous_response_id=second))
    on_branch = log.open_turn(question("q3", previous_response_id=turn.response["id"]))
    assert texts(on_main.history) == ["q1", "a1", "q2", "a2"]
    assert texts(on_branch.history) == ["q1", "a1", "q2 otherwise", "a2 otherwise"]


def test_a_branch_off_a_conversation_does_not_see_what_came_later(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, (message("hello"),))
    first = ask(log, "q1", "a1", conversation_id=conversation.id)
    ask(log, "q2", "a2", conversation_id=conversation.id)
    opened = log.open_turn(question("q2 otherwise", previous_response_id=first))
    assert texts(opened.history) == ["hello", "q1", "a1"]
    assert texts(all_items(log, conversation.id)) == ["hello", "q1", "a1", "q2", "a2"]


@pytest.mark.parametrize(
    ("max_items", "expected"),
    [(0, []), (1, ["a3"]), (3, ["a2", "q3", "a3"]), (100, ["q1", "a1", "q2", "a2", "q3", "a3"])],
)
def test_history_is_the_newest_items_across_logs(log: ConversationLog, max_items: int, expected: list[str]) -> None:
    response_id = None
    for number in (1, 2, 3):
        response_id = ask(log, f"q{number}", f"a{number}", previous_response_id=response_id)
    turn = question("q4", previous_response_id=response_id, max_history_items=max_items)
    assert texts(log.open_turn(turn).history) == expected


def test_without_store_nothing_is_written_and_the_past_is_read(log: ConversationLog, database: Database) -> None:
    first = ask(log, "q1", "a1")
    stored = count_items(database)
    turn = question("q2", previous_response_id=first, store=False)
    opened = log.open_turn(turn)
    assert (texts(opened.history), opened.log_id) == (["q1", "a1"], None)
    assert log.open_turn(question("q", store=False)) == OpenedTurn(Window(), None)
    assert count_items(database) == stored
    with pytest.raises(NotFound):
        log.get_response(turn.response["id"])


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("unknown", ["resp_unknown", "", "resp\0"])
def test_an_unknown_previous_response_is_named(log: ConversationLog, store: bool, unknown: str) -> None:
    with pytest.raises(NotFound) as caught:
        log.open_turn(question("q", previous_response_id=unknown, store=store))
    assert caught.value.message == f"Previous response with id {unknown!r} not found."
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


@pytest.mark.parametrize("store", [True, False])
def test_a_previous_response_in_progress_is_a_conflict(log: ConversationLog, store: bool) -> None:
    running = question("q1")
    log.open_turn(running)
    with pytest.raises(Conflict) as caught:
        log.open_turn(question("q2", previous_response_id=running.response["id"], store=store))
    assert caught.value.param == "previous_response_id"


# --- retries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_conversation", [True, False])
def test_the_same_key_again_gets_the_stored_response(
    log: ConversationLog, database: Database, in_conversation: bool
) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id if in_conversation else None
    turn = question("q", conversation_id=conversation_id, idempotency_key="key")
    opened = log.open_turn(turn)
    retry = question("q", conversation_id=conversation_id, idempotency_key="key")
    with pytest.raises(Conflict) as caught:
        log.open_turn(retry)
    assert caught.value.code == "idempotent_request_in_progress"

    closing = answer(turn, "a", opened.log_id)
    log.close_turn(closing)
    assert log.open_turn(retry).finished == closing.response
    assert count_items(database) == 2
    with pytest.raises(NotFound):
        log.get_response(retry.response["id"])


@pytest.mark.parametrize("in_conversation", [True, False])
def test_opening_the_same_turn_twice_opens_it_once(
    log: ConversationLog, database: Database, in_conversation: bool
) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, (message("before"),)).id if in_conversation else None
    turn = question("q", conversation_id=conversation_id, idempotency_key="key")
    stored = count_items(database)
    assert log.open_turn(turn) == log.open_turn(turn)
    assert count_items(database) == stored + 1


def test_of_requests_with_one_key_at_once_one_is_opened(database: Database) -> None:
    owners, rounds = 4, 5
    start = threading.Barrier(owners)
    opened: list[OpenedTurn] = []
    refused: list[Conflict] = []

    def open_turns() -> None:
        log = ConversationLog(database, max_cached=10)
        for number in range(rounds):
            start.wait()
            try:
                opened.append(log.open_turn(question("q", idempotency_key=f"key {number}")))
            except Conflict as conflict:
                refused.append(conflict)

    threads = [threading.Thread(target=open_turns) for _ in range(owners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == rounds
    assert len(refused) == rounds * (owners - 1)
    assert count_items(database) == rounds


@pytest.mark.parametrize("in_conversation", [True, False])
def test_closing_twice_changes_nothing(log: ConversationLog, database: Database, in_conversation: bool) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id if in_conversation else None
    turn = question("q", conversation_id=conversation_id)
    opened = log.open_turn(turn)
    closing = answer(turn, "a", opened.log_id)
    log.close_turn(closing)
    log.close_turn(answer(turn, "another", opened.log_id))
    ConversationLog(database, max_cached=1).close_turn(answer(turn, "another", opened.log_id))
    assert log.get_response(turn.response["id"]) == closing.response
    assert count_items(database) == 2


def test_a_turn_may_be_closed_by_another_process(log: ConversationLog, database: Database) -> None:
    turn = question("q")
    opened = log.open_turn(turn)
    ConversationLog(database, max_cached=10).close_turn(answer(turn, "a", opened.log_id))
    assert log.get_response(turn.response["id"])["status"] == "completed"


def test_two_questions_with_one_item_id_are_refused(log: ConversationLog, database: Database) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    turn = question("q", conversation_id=conversation.id)
    log.open_turn(turn)
    again = question("q", conversation_id=conversation.id)
    with pytest.raises(InvalidRequest, match=turn.input_items[0]["id"]):
        log.open_turn(type(turn)(again.response, turn.input_items, conversation_id=conversation.id))
    with pytest.raises(NotFound):
        log.get_response(again.response["id"])
    assert seqs_of(database, conversation.id) == [1]


# --- interrupted --------------------------------------------------------------------------------


def test_a_response_that_nobody_finished_is_interrupted_for_good(log: ConversationLog, late: ConversationLog) -> None:
    turn = question("q")
    opened = log.open_turn(turn)
    assert log.get_response(turn.response["id"])["status"] == "in_progress"
    seen = late.get_response(turn.response["id"])
    assert seen == {**turn.response, "status": "incomplete", "incomplete_details": INTERRUPTED}
    assert log.get_response(turn.response["id"]) == seen
    with pytest.raises(Conflict, match="interrupted"):
        log.close_turn(answer(turn, "too late", opened.log_id))
    assert log.get_response(turn.response["id"]) == seen


def test_after_an_interrupted_response_one_goes_on_from_its_question(
    log: ConversationLog, late: ConversationLog
) -> None:
    first = ask(log, "q1", "a1")
    turn = question("q2", previous_response_id=first)
    log.open_turn(turn)
    opened = late.open_turn(question("q2 again", previous_response_id=turn.response["id"]))
    assert texts(opened.history) == ["q1", "a1", "q2"]


def test_the_same_key_after_an_interruption_gets_what_there_is(log: ConversationLog, late: ConversationLog) -> None:
    turn = question("q", idempotency_key="key")
    log.open_turn(turn)
    finished = late.open_turn(question("q", idempotency_key="key")).finished
    assert finished == log.get_response(turn.response["id"])
    assert finished is not None
    assert finished["incomplete_details"] == INTERRUPTED


# --- deleting -----------------------------------------------------------------------------------


def test_a_deleted_response_takes_its_items_along(log: ConversationLog, database: Database) -> None:
    response_id = ask(log, "q", "a")
    log.delete_response(response_id)
    assert count_items(database) == 0
    for call in (log.get_response, log.delete_response):
        with pytest.raises(NotFound) as caught:
            call(response_id)
        assert caught.value.message == f"Response with id {response_id!r} not found."


def test_items_stay_while_a_branch_has_them_in_its_past(log: ConversationLog, database: Database) -> None:
    first = ask(log, "q1", "a1")
    second = ask(log, "q2", "a2", previous_response_id=first)
    third = ask(log, "q3", "a3", previous_response_id=second)
    log.delete_response(first)
    log.delete_response(second)
    with pytest.raises(NotFound):
        log.get_response(first)
    assert texts(log.open_turn(question("q", previous_response_id=third, store=False)).history) == [
        "q1", "a1", "q2", "a2", "q3", "a3"
    ]  # fmt: skip
    log.delete_response(third)
    assert count_items(database) == 0


def test_a_past_that_another_branch_needs_stays(log: ConversationLog, database: Database) -> None:
    first = ask(log, "q1", "a1")
    second = ask(log, "q2", "a2", previous_response_id=first)
    other = ask(log, "q2 otherwise", "a2", previous_response_id=first)
    log.delete_response(first)
    log.delete_response(second)
    assert texts(log.open_turn(question("q", previous_response_id=other, store=False)).history)[:2] == ["q1", "a1"]
    assert count_items(database) == 4


def test_a_deleted_response_leaves_its_items_in_the_conversation(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    response_id = ask(log, "q", "a", conversation_id=conversation.id)
    log.delete_response(response_id)
    assert texts(all_items(log, conversation.id)) == ["q", "a"]


def test_what_was_deleted_meanwhile_cannot_be_closed(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    alone, in_conversation = question("q"), question("q", conversation_id=conversation.id)
    for turn in (alone, in_conversation):
        opened = log.open_turn(turn)
        log.delete_response(turn.response["id"])
        with pytest.raises(NotFound, match=turn.response["id"]):
            log.close_turn(answer(turn, "a", opened.log_id))
    assert in_conversation.conversation_id is not None
    assert texts(all_items(log, in_conversation.conversation_id)) == ["q"]


def test_a_branch_outlives_the_conversation_it_left(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, (message("hello"),))
    first = ask(log, "q1", "a1", conversation_id=conversation.id)
    branch = ask(log, "q2", "a2", previous_response_id=first)
    log.delete_conversation(conversation.id)
    assert texts(log.open_turn(question("q", previous_response_id=branch)).history) == [
        "hello", "q1", "a1", "q2", "a2"
    ]  # fmt: skip


# --- input items --------------------------------------------------------------------------------


def test_input_items_are_those_of_the_response_alone(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, (message("before"),))
    turn = question("q", conversation_id=conversation.id)
    three = tuple(message(text) for text in ("x", "y", "z"))
    opened = log.open_turn(type(turn)(turn.response, three, conversation_id=conversation.id))
    log.close_turn(answer(turn, "a", opened.log_id))
    response_id = turn.response["id"]
    assert texts(log.list_input_items(response_id, PageQuery()).data) == ["z", "y", "x"]
    page = log.list_input_items(response_id, PageQuery(after=three[0]["id"], limit=1, order="asc"))
    assert (texts(page.data), page.has_more) == (["y"], True)
    with pytest.raises(NotFound):
        log.list_input_items("resp_unknown", PageQuery())
    with pytest.raises(InvalidRequest):
        log.list_input_items(response_id, PageQuery(after="msg_unknown"))
