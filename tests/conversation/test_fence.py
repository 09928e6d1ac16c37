"""The fence: however owners race, stall or die, what was acknowledged is there once, in order."""

import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from select import select

import pytest

from serve_app.conversation.fence import Fence, Fenced, OwnedLog, take_over
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import Database, open_database
from serve_app.types import new_id
from serve_app.types.conversation import AppendItems
from tests.conversation.messages import all_items, message, seqs_of, texts

REPOSITORY = Path(__file__).parents[2]


def own(database: Database, log_id: str) -> Fence:
    with database.write() as connection:
        fence = take_over(connection, log_id)
    assert fence is not None
    return fence


def append_under(database: Database, log_id: str, fence: Fence, text: str) -> Fence:
    with database.write() as connection:
        log = OwnedLog(connection, log_id, fence)
        log.append(text, (message(text),))
    return log.fence


def test_a_stalled_owner_is_fenced_by_the_next(log: ConversationLog, database: Database) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    stalled = own(database, conversation_id)
    newest = own(database, conversation_id)
    assert newest.epoch == stalled.epoch + 1
    with pytest.raises(Fenced):
        append_under(database, conversation_id, stalled, "zombie")
    append_under(database, conversation_id, newest, "owner")
    with pytest.raises(Fenced):
        append_under(database, conversation_id, stalled, "zombie")
    assert texts(all_items(log, conversation_id)) == ["owner"]


def test_an_owner_cannot_write_twice_at_the_same_place(log: ConversationLog, database: Database) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    before = own(database, conversation_id)
    after = append_under(database, conversation_id, before, "first")
    with pytest.raises(Fenced):
        append_under(database, conversation_id, before, "lost update")
    append_under(database, conversation_id, after, "second")
    assert texts(all_items(log, conversation_id)) == ["first", "second"]


def test_owners_that_take_turns_fence_each_other_and_lose_nothing(database_url: str, database: Database) -> None:
    """In each round all four go on with what they knew before it, so at least three of them are fenced."""
    owners, rounds = 4, 15
    conversation_id = ConversationLog(database, max_cached=1).create_conversation(new_id("conv"), {}, ()).id
    acknowledged: list[list[str]] = [[] for _ in range(owners)]
    all_have_written = threading.Barrier(owners)

    def write(owner: int, log: ConversationLog) -> None:
        for number in range(rounds):
            all_have_written.wait()
            text = f"{owner}.{number}"
            log.append_items(AppendItems(conversation_id, (message(text),), idempotency_key=text))
            acknowledged[owner].append(text)

    databases = [open_database(database_url) for _ in range(owners)]
    logs = [ConversationLog(own_database, max_cached=10) for own_database in databases]
    threads = [threading.Thread(target=write, args=numbered) for numbered in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own_database in databases:
        own_database.close()

    stored = texts(all_items(ConversationLog(database, max_cached=1), conversation_id))
    assert acknowledged == [[f"{owner}.{number}" for number in range(rounds)] for owner in range(owners)]
    assert sorted(stored) == sorted(text for texts_of_owner in acknowledged for text in texts_of_owner)
    for texts_of_owner in acknowledged:
        assert [text for text in stored if text in texts_of_owner] == texts_of_owner
    assert seqs_of(database, conversation_id) == list(range(1, owners * rounds + 1))
    assert sum(log.fenced_writes for log in logs) >= (owners - 1) * (rounds - 1)


def test_threads_of_one_process_lose_nothing(log: ConversationLog, database: Database) -> None:
    threads_count, appends = 4, 15
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id

    def write(thread: int) -> None:
        for number in range(appends):
            log.append_items(AppendItems(conversation_id, (message(f"{thread}"),), f"{thread}.{number}"))

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts(all_items(log, conversation_id))) == sorted("0123" * appends)
    assert seqs_of(database, conversation_id) == list(range(1, threads_count * appends + 1))


def test_processes_that_are_stalled_anywhere_lose_nothing(
    log: ConversationLog, database: Database, database_url: str
) -> None:
    """In each round all four append, and one is stopped by the system wherever it is: in its transaction or beside it.

    All but one go on with what they knew before the round, and are fenced.
    """
    owners, rounds, stall_s = 4, 20, 0.02
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    command = [sys.executable, "-m", "tests.conversation.writer", database_url, conversation_id]
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(owner)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
                )
            )
            for owner in range(owners)
        ]
        inputs = [writer.stdin for writer in writers if writer.stdin]
        outputs = [writer.stdout for writer in writers if writer.stdout]
        for number in range(rounds):
            for each in inputs:
                each.write("append\n")
                each.flush()
            stalled = writers[number % owners]
            select([outputs[number % owners]], [], [], number / rounds * stall_s)
            stalled.send_signal(signal.SIGSTOP)
            select([], [], [], stall_s)
            stalled.send_signal(signal.SIGCONT)
            assert [output.readline() for output in outputs] == [f"{number}\n"] * owners
        fenced = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * owners

    stored = texts(all_items(log, conversation_id))
    assert stored[1::2] == ["+"] * owners * rounds
    assert sorted(stored[::2]) == sorted(f"{owner}.{number}" for owner in range(owners) for number in range(rounds))
    for owner in range(owners):
        assert [text for text in stored if text.startswith(f"{owner}.")] == [f"{owner}.{n}" for n in range(rounds)]
    assert seqs_of(database, conversation_id) == list(range(1, 2 * owners * rounds + 1))
    assert sum(int(line.removeprefix("fenced ")) for line in fenced) >= (owners - 1) * (rounds - 1)


def appended(count: int) -> list[str]:
    """What the first `count` appends of `writer.py` leave."""
    return [text for number in range(count) for text in (str(number), "+")]


def test_a_killed_writer_loses_nothing_that_it_acknowledged(log: ConversationLog, database_url: str) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, ()).id
    command = [sys.executable, "-m", "tests.conversation.writer", database_url, conversation_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(30)]
        writer.kill()
        acknowledged += writer.stdout.readlines()
    assert writer.returncode == -9

    numbers = [int(line) for line in acknowledged]
    stored = texts(all_items(log, conversation_id))
    # At most one more was committed and not yet acknowledged.
    assert numbers == list(range(len(numbers)))
    assert stored in (appended(len(numbers)), appended(len(numbers) + 1))

    for number in range(len(numbers) + 1):
        log.append_items(AppendItems(conversation_id, (message(str(number)), message("+")), str(number)))
    assert texts(all_items(log, conversation_id)) == appended(len(numbers) + 1)


def test_an_owner_that_has_lost_its_memory_takes_over(database_url: str, log: ConversationLog) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, (message("1"),)).id
    with closing(open_database(database_url)) as reopened:
        restarted = ConversationLog(reopened, max_cached=10)
        restarted.append_items(AppendItems(conversation_id, (message("2"),), "2"))
    log.append_items(AppendItems(conversation_id, (message("3"),), "3"))
    assert (restarted.fenced_writes, log.fenced_writes) == (0, 1)
    assert texts(all_items(log, conversation_id)) == ["1", "2", "3"]
