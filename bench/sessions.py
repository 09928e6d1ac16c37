"""What conversations cost: forks, length, appends, memory, search. On SQLite, with `synchronous=FULL` as it is served.

    python -m bench.sessions [FOLDER]

The folder says which disk; by default that of temporary files. Times are medians, of short and long in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import insert, text

from bench.figures import found, parse_arguments
from serve_app.conversation.log import ConversationLog
from serve_app.conversation.transfer import import_conversation
from serve_app.storage.database import Database, open_database
from serve_app.storage.schema import items, logs
from serve_app.types import Json, PageQuery, new_id, now_s
from serve_app.types.conversation import AppendItems, CloseTurn, ForkConversation, ItemSearch, OpenTurn

LONG = 10_000
WORDS = "the ferry sails at noon from the old harbour and carries forty people two cars and the post " * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(dir=parse_arguments(parser).folder) as root:
        url = f"sqlite:///{root}/bench.db"
        print(f"fsync of 4 kB: {_fsync_ms(Path(root)):.2f} ms")
        with closing(open_database(url)) as database:
            log = ConversationLog(database, max_cached=10_000)
            bench_forks(database, log)
            bench_length(database, log)
            bench_search(database, log)
            bench_appends(log)
            fill(database, 100_000)
            bench_many(log)
        bench_memory(url)


# --- each figure --------------------------------------------------------------------------------


def bench_forks(database: Database, log: ConversationLog) -> None:
    short, long = (make(database, count) for count in (10, LONG))
    compare("fork", 10, 200, lambda: fork(log, short), lambda: fork(log, long), at_most=5)
    bytes_each = []
    for source in (short, long):
        before = _size(database)
        for _ in range(1000):
            fork(log, source)
        bytes_each.append((_size(database) - before) / 1000)
    found(f"disk of a fork of {LONG} items, times that of 10", bytes_each[1] / bytes_each[0], at_most=5)
    print(f"{'disk of a fork':32} 10 items {bytes_each[0]:7.0f} B   {LONG} items {bytes_each[1]:7.0f} B")
    log.delete_conversation(short)
    began = time.perf_counter()
    log.delete_conversation(long)
    print(f"{'delete what forks need':32} {LONG} items {1000 * (time.perf_counter() - began):7.1f} ms")


def bench_length(database: Database, log: ConversationLog) -> None:
    short, long = (make(database, count) for count in (20, LONG))
    compare("open: it and its newest items", 20, 300, lambda: look(log, short), lambda: look(log, long))
    compare("next turn: question and answer", 20, 300, lambda: turn(log, short), lambda: turn(log, long))
    short, long = fork(log, short), fork(log, long)
    compare("open a fork", 20, 300, lambda: look(log, short), lambda: look(log, long))
    compare("next turn in a fork", 20, 300, lambda: turn(log, short), lambda: turn(log, long))


def bench_search(database: Database, log: ConversationLog) -> None:
    conversation_id = make(database, LONG)
    for what, query in (
        ("a word of each item", "harbour"),
        ("a word of none", "aeroplane"),
        ("of every JSON", "message"),
    ):
        found_ms = median_ms(20, lambda query=query: log.search_items(ItemSearch(query, conversation_id)))  # type: ignore[misc]
        print(f"{f'search {LONG} items: {what}':48} {found_ms:7.1f} ms")


def bench_appends(log: ConversationLog) -> None:
    """50 conversations: one after the other, each twice a second, and each as fast as it can."""
    conversations = [log.create_conversation(new_id("conv"), {}, ()).id for _ in range(50)]
    for each in conversations:
        append(log, each)
    alone = [_ms(lambda each=each: append(log, each)) for each in conversations * 10]  # type: ignore[misc]
    report("append, one at a time", alone)
    report("append, 50 at 2/s each", _at_once(log, conversations, seconds=5, pause_s=0.5), at_most=5)
    report("append, 50 without a pause", _at_once(log, conversations, seconds=5, pause_s=0))


def bench_many(log: ConversationLog) -> None:
    print(f"{'list of 100,000':48} {median_ms(10, lambda: log.list_conversations(PageQuery(), {})):7.1f} ms")
    rare = ItemSearch("aeroplane")
    print(f"{'search 200,000 items of all: a word of none':48} {median_ms(3, lambda: log.search_items(rare)):7.1f} ms")
    common = ItemSearch("harbour")
    print(
        f"{'search 200,000 items of all: a word of each':48} {median_ms(3, lambda: log.search_items(common)):7.1f} ms"
    )
    print(f"{'look for what has expired':48} {median_ms(5, lambda: log.delete_expired(1e9)):7.1f} ms")


MEMORY = """
import sys, psutil
import deployments.sessions
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from bench.sessions import append, look
from serve_app.types import PageQuery
before = psutil.Process().memory_info().rss
log = ConversationLog(open_database(sys.argv[1]), max_cached=10_000)
ids = []
while len(ids) < 1000:
    page = log.list_conversations(PageQuery(after=ids[-1] if ids else None, limit=100), {})
    ids += [each["id"] for each in page.data]
for _ in range(3):
    for each in ids:
        append(log, each)
        look(log, each)
after = psutil.Process().memory_info().rss
print(before / 1e6, after / 1e6)
"""


def bench_memory(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, url], capture_output=True, text=True, check=True)
    imports_mb, live_mb = map(float, done.stdout.split())
    found("sessions replica's code, 1,000 live of 100,000 conversations: RSS", live_mb, "MB", at_most=300)
    print(f"{'memory without Ray':32} imports {imports_mb:.0f} MB, with 1,000 live of 100,000 {live_mb:.0f} MB")


# --- what is measured ---------------------------------------------------------------------------


def make(database: Database, count: int) -> str:
    given = ((now_s(), _message(f"{number} {WORDS}")) for number in range(count))
    return import_conversation(database, new_id("conv"), {}, None, given).id


def fork(log: ConversationLog, conversation_id: str) -> str:
    return log.fork_conversation(ForkConversation(conversation_id, new_id("conv"))).id


def look(log: ConversationLog, conversation_id: str) -> None:
    log.get_conversation(conversation_id)
    log.list_items(conversation_id, PageQuery())


def turn(log: ConversationLog, conversation_id: str) -> None:
    response: Json = {"id": new_id("resp"), "status": "in_progress", "output": []}
    opened = log.open_turn(OpenTurn(response, (_message(WORDS),), conversation_id=conversation_id))
    assert opened.log_id is not None
    log.close_turn(CloseTurn(opened.log_id, {**response, "status": "completed", "output": [_message(WORDS)]}))


def append(log: ConversationLog, conversation_id: str) -> None:
    log.append_items(AppendItems(conversation_id, (_message(WORDS),), new_id("key")))


def fill(database: Database, count: int) -> None:
    """Conversations of two items each."""
    for start in range(0, count, 5_000):
        ids = [f"conv_{start + number:048x}" for number in range(5_000)]
        made = {"is_conversation": True, "metadata": {}, "epoch": 1, "head": 2, "last_active_at": now_s()}
        said = {"epoch": 1, "created_at": start}
        with database.write() as connection:
            connection.execute(insert(logs), [{**made, "id": each, "created_at": start} for each in ids])
            connection.execute(
                insert(items),
                [
                    {
                        **said,
                        "log_id": each,
                        "seq": seq,
                        "item_id": body["id"],
                        "idempotency_key": body["id"],
                        "body": body,
                    }
                    for each in ids
                    for seq, body in ((1, _message(WORDS)), (2, _message(WORDS)))
                ],
            )


def _message(said: str) -> Json:
    part = {"type": "input_text", "text": said}
    return {"type": "message", "id": new_id("msg"), "status": "completed", "role": "user", "content": [part]}


def _at_once(log: ConversationLog, conversations: Sequence[str], seconds: float, pause_s: float) -> list[float]:
    taken: list[float] = []
    start = threading.Barrier(len(conversations))

    def go_on(number: int, conversation_id: str) -> None:
        start.wait()
        next_at = time.perf_counter() + pause_s * number / len(conversations)
        end = next_at + seconds
        while next_at < end:
            time.sleep(max(0.0, next_at - time.perf_counter()))
            taken.append(_ms(lambda: append(log, conversation_id)))
            next_at = max(next_at + pause_s, time.perf_counter())

    threads = [threading.Thread(target=go_on, args=numbered) for numbered in enumerate(conversations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


# --- measuring ----------------------------------------------------------------------------------


def compare(
    what: str,
    count: int,
    rounds: int,
    short: Callable[[], object],
    long: Callable[[], object],
    at_most: float = 1.5,
) -> None:
    times = [(_ms(short), _ms(long)) for _ in range(rounds)]
    short_ms, long_ms = (statistics.median(each) for each in zip(*times, strict=True))
    print(f"{what:32} {count} items {short_ms:7.2f} ms  {LONG} items {long_ms:7.2f} ms  ratio {long_ms / short_ms:.2f}")
    found(f"{what}: of {LONG} items, times that of {count}", long_ms / short_ms, at_most=at_most)


def median_ms(rounds: int, run: Callable[[], object]) -> float:
    return statistics.median(_ms(run) for _ in range(rounds))


def report(what: str, taken_ms: Sequence[float], at_most: float | None = None) -> None:
    cuts = statistics.quantiles(taken_ms, n=100)
    found(f"{what}: p50", cuts[49], "ms", at_most=at_most)
    print(f"{what:32} p50 {cuts[49]:6.2f} ms  p95 {cuts[94]:6.2f} ms  p99 {cuts[98]:6.2f} ms  of {len(taken_ms)}")


def _ms(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def _fsync_ms(folder: Path) -> float:
    with (folder / "fsync").open("wb") as file:

        def write() -> None:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())

        return median_ms(200, write)


def _size(database: Database) -> int:
    with database.read() as connection:
        pages = connection.scalar(text("PRAGMA page_count")) or 0
        free = connection.scalar(text("PRAGMA freelist_count")) or 0
        page_bytes = connection.scalar(text("PRAGMA page_size")) or 0
    return (pages - free) * page_bytes


if __name__ == "__main__":
    main()
