"""Forks: a past that is shared and not copied, the tree of branches, comparing and deleting them."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, event, func, select

from serve_app.conversation.log import ConversationLog
from serve_app.errors import InvalidRequest, NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import items, logs
from serve_app.types import Json, PageQuery, new_id
from serve_app.types.conversation import AppendItems, ForkConversation, ForkPoint
from tests.conversation.messages import all_items, answer, ask, count_items, message, question, seqs_of, texts


def numbered(*texts: str) -> tuple[Json, ...]:
    """Messages whose id is their text."""
    return tuple({**message(text), "id": text} for text in texts)


def make(log: ConversationLog, *texts: str) -> str:
    return log.create_conversation(new_id("conv"), {}, numbered(*texts)).id


def fork(log: ConversationLog, conversation_id: str, item_id: str | None = None, *added: str) -> str:
    forked = log.fork_conversation(ForkConversation(conversation_id, new_id("conv"), item_id))
    if added:
        log.append_items(AppendItems(forked.id, numbered(*added), "key"))
    return forked.id


def said(log: ConversationLog, conversation_id: str) -> str:
    return "".join(texts(all_items(log, conversation_id)))


def history(log: ConversationLog, conversation_id: str, count: int = 100) -> str:
    turn = question("?", conversation_id=conversation_id, max_history_items=count, store=False)
    return "".join(texts(log.open_turn(turn).history))


def count_logs(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(logs)) or 0


# --- forking ------------------------------------------------------------------------------------


def test_a_fork_shares_the_past_and_copies_nothing(log: ConversationLog, database: Database) -> None:
    root = make(log, *"1234")
    branch = fork(log, root, "2", *"ab")
    assert (said(log, branch), said(log, root)) == ("12ab", "1234")
    assert count_items(database) == 6
    assert seqs_of(database, branch) == [3, 4]
    assert history(log, branch) == "12ab"


def test_a_fork_says_where_it_left(log: ConversationLog) -> None:
    root = make(log, *"123")
    forked = log.fork_conversation(ForkConversation(root, new_id("conv"), "2", {"why": "try"}))
    assert forked.forked_from == ForkPoint(root, "2")
    assert forked.metadata == {"why": "try"}
    assert log.get_conversation(forked.id) == forked
    assert log.get_conversation(root).forked_from is None


def test_without_an_item_the_fork_has_all_that_is_there_so_far(log: ConversationLog) -> None:
    root = make(log, *"12")
    branch = fork(log, root)
    log.append_items(AppendItems(root, numbered("3"), "later"))
    twig = fork(log, branch)
    assert (said(log, root), said(log, branch), said(log, twig)) == ("123", "12", "12")


def test_an_empty_conversation_can_be_forked(log: ConversationLog) -> None:
    branch = fork(log, make(log), None, "a")
    assert said(log, branch) == "a"


def test_a_fork_of_a_fork_reaches_back_to_the_root(log: ConversationLog) -> None:
    root = make(log, *"123")
    branch = fork(log, root, "2", *"abc")
    twig = fork(log, branch, "b", *"xy")
    assert said(log, twig) == "12abxy"
    assert history(log, twig, 3) == "bxy"
    assert history(log, twig, 6) == "2abxy?"
    assert log.get_conversation(twig).forked_from == ForkPoint(branch, "b")


def test_a_fork_within_the_shared_past_leaves_the_log_that_holds_it(log: ConversationLog) -> None:
    root = make(log, *"123")
    twig = fork(log, fork(log, root, "3", *"ab"), "1", "x")
    assert said(log, twig) == "1x"
    assert log.get_conversation(twig).forked_from == ForkPoint(root, "1")


def test_a_turn_in_a_fork_stays_in_it(log: ConversationLog, database: Database) -> None:
    root = make(log, *"12")
    branch = fork(log, root, "1")
    response_id = ask(log, "q", "a", conversation_id=branch)
    assert (said(log, branch), said(log, root)) == ("1qa", "12")
    assert seqs_of(database, branch) == [2, 3]
    assert texts(log.list_input_items(response_id, PageQuery()).data) == ["q"]
    assert texts(log.open_turn(question("?", previous_response_id=response_id)).history) == ["1", "q", "a"]


def test_the_same_fork_again_is_one_fork(log: ConversationLog, database: Database) -> None:
    root = make(log, *"12")
    wanted = ForkConversation(root, new_id("conv"), "1")
    first = log.fork_conversation(wanted)
    assert log.fork_conversation(wanted) == first
    assert count_logs(database) == 2


def test_of_the_same_fork_made_at_once_there_is_one(log: ConversationLog, database: Database) -> None:
    root, rounds, owners = make(log, *"12"), 5, 3
    start = threading.Barrier(owners)

    def fork_each() -> None:
        own = ConversationLog(database, max_cached=10)
        for number in range(rounds):
            start.wait()
            own.fork_conversation(ForkConversation(root, f"conv_{number}", "1"))

    threads = [threading.Thread(target=fork_each) for _ in range(owners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count_logs(database) == 1 + rounds
    assert [said(log, f"conv_{number}") for number in range(rounds)] == ["1"] * rounds


@pytest.mark.parametrize("unknown", ["msg_unknown", "msg\0", ""])
def test_a_fork_needs_an_item_that_is_there(log: ConversationLog, unknown: str) -> None:
    root = make(log, *"12")
    branch = fork(log, root, "1")
    log.delete_item(root, "1")
    for conversation_id, item_id in ((root, unknown), (branch, "2"), (root, "1")):
        with pytest.raises(NotFound) as caught:
            fork(log, conversation_id, item_id)
        assert (caught.value.message, caught.value.param) == (f"Item with id {item_id!r} not found.", "item_id")
    with pytest.raises(NotFound, match="conv_unknown"):
        fork(log, "conv_unknown")


# --- reading through the past -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "expected", "has_more"),
    [
        (PageQuery(limit=2), "yx", True),
        (PageQuery(limit=7), "yxba321", False),
        (PageQuery(limit=4, order="asc"), "123a", True),
        (PageQuery(limit=4, after="x"), "ba32", True),
        (PageQuery(limit=3, after="3", order="asc"), "abx", True),
        (PageQuery(limit=2, before="a"), "xb", True),
        (PageQuery(limit=2, before="b", order="asc"), "3a", True),
        (PageQuery(limit=9, after="2", before="y", order="asc"), "3abx", False),
    ],
)
def test_a_page_goes_through_the_whole_past(
    log: ConversationLog, page: PageQuery, expected: str, has_more: bool
) -> None:
    branch = fork(log, make(log, *"12345"), "3", *"abcd")
    twig = fork(log, branch, "b", *"xy")
    answer = log.list_items(twig, page)
    assert ("".join(texts(answer.data)), answer.has_more) == (expected, has_more)


def test_what_came_after_the_fork_point_is_not_in_the_fork(log: ConversationLog) -> None:
    root = make(log, *"123")
    branch = fork(log, root, "2", "a")
    calls: list[Callable[[], object]] = [
        lambda: log.get_item(branch, "3"),
        lambda: log.delete_item(branch, "3"),
        lambda: log.get_item(root, "a"),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()
    with pytest.raises(InvalidRequest):
        log.list_items(branch, PageQuery(after="3"))
    assert log.get_item(branch, "2")["content"] == "2"


def test_a_page_reads_no_more_logs_than_it_needs(log: ConversationLog, database: Database) -> None:
    deep = make(log, "0")
    for number in range(1, 40):
        deep = fork(log, deep, None, str(number))
    assert texts(all_items(log, deep)) == [str(number) for number in range(40)]
    reads: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "FROM items" in statement:
            reads.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert texts(log.list_items(deep, PageQuery(limit=2)).data) == ["39", "38"]
        assert texts(log.list_items(deep, PageQuery(limit=2, order="asc")).data) == ["0", "1"]
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    # Each page looks whether there is one more item.
    assert len(reads) == 3 + 3


def test_deleting_a_shared_item_deletes_it_in_all_that_share_it(log: ConversationLog) -> None:
    root = make(log, *"123")
    branch = fork(log, root, "2", "a")
    log.delete_item(branch, "1")
    assert (said(log, root), said(log, branch), history(log, branch)) == ("23", "2a", "2a")


# --- the tree -----------------------------------------------------------------------------------


def test_the_tree_is_the_same_from_every_branch(log: ConversationLog) -> None:
    root = make(log, *"123")
    first, second = fork(log, root, "1"), fork(log, root, "2", *"ab")
    twig = fork(log, second, "a", "x")
    tree = log.list_branches(root)
    assert log.list_branches(twig) == log.list_branches(first) == tree
    assert (tree["root"], tree["has_more"]) == (root, False)
    nodes = {node["id"]: (node["parent_id"], node["forked_after"], node["depth"]) for node in tree["data"]}
    assert nodes == {
        root: (None, None, 0),
        first: (root, "1", 1),
        second: (root, "2", 1),
        twig: (second, "a", 2),
    }
    assert tree["data"][0]["id"] == root
    assert tree["data"][-1]["id"] == twig
    assert {node["id"]: node["own_items"] for node in tree["data"]} == {root: 3, first: 0, second: 2, twig: 1}


def test_branches_of_responses_are_in_the_tree(log: ConversationLog) -> None:
    root = make(log)
    asked = ask(log, "q", "a", conversation_id=root)
    branch = ask(log, "q2", "a2", previous_response_id=asked)
    nodes = {node["id"]: (node["object"], node["parent_id"]) for node in log.list_branches(root)["data"]}
    assert nodes == {root: ("conversation", None), branch: ("response", root)}


def test_a_deleted_branch_that_others_need_stays_in_the_tree_without_its_name(log: ConversationLog) -> None:
    root = make(log, *"123")
    branch = fork(log, root, "2")
    log.delete_conversation(root)
    tree = log.list_branches(branch)
    gone, there = tree["data"]
    assert (gone["object"], gone["metadata"], there["id"]) == ("deleted", {}, branch)
    assert (gone["id"], there["parent_id"]) == (tree["root"], tree["root"])
    assert root not in str(tree)


# --- comparing ----------------------------------------------------------------------------------


def test_branches_are_compared_at_their_last_common_item(log: ConversationLog) -> None:
    root = make(log, *"123")
    one, other = fork(log, root, "2", *"abc"), fork(log, root, "2", "x")
    log.delete_item(one, "b")
    compared = log.compare_conversations(one, other)
    assert compared == {
        "object": "conversation.comparison",
        "last_common_item_id": "2",
        "only_here": {"conversation_id": one, "count": 2, "item_ids": ["a", "c"], "has_more": False},
        "only_there": {"conversation_id": other, "count": 1, "item_ids": ["x"], "has_more": False},
    }


@pytest.mark.parametrize(
    ("one_at", "other_at", "common", "only_one", "only_other"),
    [("1", "3", "1", "a", "23b"), ("3", "3", "3", "a", "b"), ("2", "1", "1", "2a", "b")],
)
def test_branches_that_left_at_different_items(
    log: ConversationLog, one_at: str, other_at: str, common: str, only_one: str, only_other: str
) -> None:
    root = make(log, *"1234")
    compared = log.compare_conversations(fork(log, root, one_at, "a"), fork(log, root, other_at, "b"))
    assert compared["last_common_item_id"] == common
    assert compared["only_here"]["item_ids"] == list(only_one)
    assert compared["only_there"]["item_ids"] == list(only_other)


def test_a_branch_compared_with_its_parent_and_with_itself(log: ConversationLog) -> None:
    root = make(log, *"123")
    twig = fork(log, fork(log, root, "2", "a"), "a", "x")
    with_root = log.compare_conversations(root, twig)
    assert with_root["last_common_item_id"] == "2"
    assert (with_root["only_here"]["item_ids"], with_root["only_there"]["item_ids"]) == (["3"], ["a", "x"])
    with_itself = log.compare_conversations(twig, twig)
    assert (with_itself["last_common_item_id"], with_itself["only_here"]["count"]) == ("x", 0)


def test_strangers_have_nothing_in_common(log: ConversationLog) -> None:
    compared = log.compare_conversations(make(log, "1"), make(log))
    assert (compared["last_common_item_id"], compared["only_here"]["count"]) == (None, 1)


def test_a_comparison_is_bounded(log: ConversationLog) -> None:
    one, other = make(log, *(f"m{number}" for number in range(150))), make(log)
    only = log.compare_conversations(one, other)["only_here"]
    assert (only["count"], len(only["item_ids"]), only["has_more"]) == (150, 100, True)


def test_what_to_compare_with_must_be_there(log: ConversationLog) -> None:
    with pytest.raises(NotFound) as caught:
        log.compare_conversations(make(log), "conv_unknown")
    assert (caught.value.message, caught.value.param) == ("Conversation with id 'conv_unknown' not found.", "with")


# --- deleting -----------------------------------------------------------------------------------


def test_deleting_a_fork_leaves_its_parent_and_its_siblings(log: ConversationLog, database: Database) -> None:
    root = make(log, *"123")
    doomed, sibling = fork(log, root, "2", *"ab"), fork(log, root, "3", "c")
    log.delete_conversation(doomed)
    assert (said(log, root), said(log, sibling)) == ("123", "123c")
    assert count_items(database) == 4


def test_a_deleted_parent_stays_readable_in_its_forks_alone(log: ConversationLog, database: Database) -> None:
    root = make(log, *"12345")
    response_id = ask(log, "q", "a", conversation_id=root)
    short, long = fork(log, root, "2", "x"), fork(log, root, "3", "y")
    log.delete_conversation(root)
    for call in (log.get_conversation, log.delete_conversation):
        with pytest.raises(NotFound):
            call(root)
    with pytest.raises(NotFound):
        log.get_response(response_id)
    with pytest.raises(NotFound):
        log.append_items(AppendItems(root, numbered("late"), "late"))
    assert (said(log, short), said(log, long)) == ("12x", "123y")
    assert history(log, short) == "12x"
    assert log.get_conversation(short).forked_from == ForkPoint(None, "2")
    # What came after the last fork point is gone.
    assert count_items(database) == 3 + 1 + 1 + 1

    log.delete_conversation(long)
    assert said(log, short) == "12x?"
    assert count_items(database) == 2 + 1 + 1
    log.delete_conversation(short)
    assert (count_items(database), count_logs(database)) == (0, 0)


def test_deleting_the_middle_of_a_chain(log: ConversationLog, database: Database) -> None:
    root = make(log, *"123")
    middle = fork(log, root, "2", *"ab")
    leaf = fork(log, middle, "a", "x")
    log.delete_conversation(middle)
    assert (said(log, root), said(log, leaf)) == ("123", "12ax")
    log.delete_conversation(root)
    assert said(log, leaf) == "12ax"
    assert log.compare_conversations(leaf, fork(log, leaf, "1"))["last_common_item_id"] == "1"
    log.delete_conversation(leaf)
    assert count_items(database) == 1


def test_a_process_that_still_owns_a_deleted_conversation_is_refused(log: ConversationLog, database: Database) -> None:
    root = make(log, *"12")
    owner = ConversationLog(database, max_cached=10)
    owner.append_items(AppendItems(root, numbered("3"), "key"))
    turn = question("q", conversation_id=root, store=False)
    opened = owner.open_turn(turn)
    branch = fork(log, root, "2")
    log.delete_conversation(root)
    with pytest.raises(NotFound):
        owner.append_items(AppendItems(root, numbered("4"), "next"))
    with pytest.raises(NotFound):
        owner.close_turn(answer(turn, "a", opened.log_id))
    assert said(log, branch) == "12"


def test_forks_made_while_their_parent_is_deleted_are_whole_or_refused(database: Database) -> None:
    log, rounds = ConversationLog(database, max_cached=10), 20
    roots = [make(log, *"12345") for _ in range(rounds)]
    start = threading.Barrier(2)
    forked: list[str] = []

    def fork_each() -> None:
        own = ConversationLog(database, max_cached=10)
        for root in roots:
            start.wait()
            try:
                forked.append(fork(own, root, "5"))
            except NotFound:
                continue

    forking = threading.Thread(target=fork_each)
    forking.start()
    for root in roots:
        start.wait()
        log.delete_conversation(root)
    forking.join()
    assert [said(log, each) for each in forked] == ["12345"] * len(forked)
    assert count_items(database) == 5 * len(forked)


def test_branches_deleted_at_once_all_go(database: Database) -> None:
    log, rounds = ConversationLog(database, max_cached=10), 20
    roots = [make(log, *"123") for _ in range(rounds)]
    branches = [fork(log, root, "2", "a") for root in roots]
    start = threading.Barrier(2)

    def delete_each(ids: list[str]) -> None:
        own = ConversationLog(database, max_cached=10)
        for conversation_id in ids:
            start.wait()
            own.delete_conversation(conversation_id)

    threads = [threading.Thread(target=delete_each, args=(ids,)) for ids in (roots, branches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (count_items(database), count_logs(database)) == (0, 0)


def test_what_belongs_to_a_deleted_conversation_goes_although_forks_need_its_past(
    log: ConversationLog, database: Database
) -> None:
    """Every table that names a log, those too that come later."""
    root = make(log, *"12")
    fork(log, root, "1")
    ask(log, "q", "a", conversation_id=root)
    log.delete_conversation(root)
    with database.read() as connection:
        for table in items.metadata.sorted_tables:
            if "log_id" in table.c:
                assert connection.scalar(select(func.count()).where(table.c.log_id == root)) == 0
