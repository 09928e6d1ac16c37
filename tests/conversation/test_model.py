"""Whatever is done to conversations in whatever order, by whichever process: they are what a simple model says."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from serve_app.conversation.log import ConversationLog
from serve_app.errors import NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import metadata
from serve_app.types import Json, PageQuery
from serve_app.types.conversation import AppendItems, CloseTurn, ForkConversation, OpenTurn
from tests.conversation.messages import count_items, message, seqs_of

PROCESSES = 2
CHOICE = st.integers(0, 10**6)


@dataclass
class Item:
    """Shared by all conversations that have it in their past."""

    text: str
    is_deleted: bool = False


@dataclass
class Model:
    """Each conversation is simply the list of its items."""

    conversations: dict[str, list[Item]] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)

    def pick(self, choice: int) -> str:
        return sorted(self.conversations)[choice % len(self.conversations)]

    def texts(self, conversation_id: str) -> list[str]:
        return [item.text for item in self.conversations[conversation_id] if not item.is_deleted]

    def kept_items(self) -> int:
        """Every item that some conversation can still show, or that marks a place before one."""
        return len({id(item) for items in self.conversations.values() for item in items})


class Conversations(RuleBasedStateMachine):
    """Two processes, each with a memory of its own, over one database. Each rule is done by one of them."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.numbers = itertools.count()
        self.logs = [self.start() for _ in range(PROCESSES)]
        with self.database.write() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())

    def start(self) -> ConversationLog:
        return ConversationLog(self.database, max_cached=2)

    def new_text(self) -> str:
        return f"m{next(self.numbers)}"

    @initialize()
    def begin(self) -> None:
        self.create(0)

    @rule(process=st.integers(0, PROCESSES - 1))
    def create(self, process: int) -> None:
        conversation_id, text = f"conv_{next(self.numbers)}", self.new_text()
        self.logs[process].create_conversation(conversation_id, {}, (_item(text),))
        self.model.conversations[conversation_id] = [Item(text)]

    @rule(process=st.integers(0, PROCESSES - 1), choice=CHOICE, count=st.integers(1, 3), again=st.booleans())
    def append(self, process: int, choice: int, count: int, again: bool) -> None:
        conversation_id = self.model.pick(choice)
        added = [self.new_text() for _ in range(count)]
        append = AppendItems(conversation_id, tuple(map(_item, added)), added[0])
        self.logs[process].append_items(append)
        if again:
            self.logs[1 - process].append_items(append)
        self.model.conversations[conversation_id] += map(Item, added)

    @rule(asks=st.integers(0, PROCESSES - 1), answers=st.integers(0, PROCESSES - 1), choice=CHOICE, window=CHOICE)
    def turn(self, asks: int, answers: int, choice: int, window: int) -> None:
        conversation_id, window = self.model.pick(choice), window % 8
        asked, answered = self.new_text(), self.new_text()
        response: Json = {"id": f"resp_{asked}", "status": "in_progress", "output": [], "incomplete_details": None}
        before = self.model.texts(conversation_id)
        turn = OpenTurn(response, (_item(asked),), conversation_id=conversation_id, max_history_items=window)
        opened = self.logs[asks].open_turn(turn)
        assert [item["content"] for item in opened.history] == before[max(0, len(before) - window) :]
        assert opened.log_id == conversation_id
        final = {**response, "status": "completed", "output": [_item(answered)]}
        self.logs[answers].close_turn(CloseTurn(conversation_id, final))
        self.model.conversations[conversation_id] += [Item(asked), Item(answered)]

    @rule(process=st.integers(0, PROCESSES - 1), choice=CHOICE, at=CHOICE)
    def fork(self, process: int, choice: int, at: int) -> None:
        source, fork_id = self.model.pick(choice), f"conv_{next(self.numbers)}"
        items = self.model.conversations[source]
        places = [place for place, item in enumerate(items) if not item.is_deleted]
        item_id, end = None, len(items)
        if places and at % 4:
            place = places[at % len(places)]
            item_id, end = items[place].text, place + 1
        self.logs[process].fork_conversation(ForkConversation(source, fork_id, item_id))
        self.model.conversations[fork_id] = items[:end]

    @rule(process=st.integers(0, PROCESSES - 1), choice=CHOICE, at=CHOICE)
    def delete_item(self, process: int, choice: int, at: int) -> None:
        conversation_id = self.model.pick(choice)
        there = [item for item in self.model.conversations[conversation_id] if not item.is_deleted]
        if there:
            item = there[at % len(there)]
            self.logs[process].delete_item(conversation_id, item.text)
            item.is_deleted = True

    @rule(process=st.integers(0, PROCESSES - 1), choice=CHOICE)
    def delete_conversation(self, process: int, choice: int) -> None:
        if len(self.model.conversations) > 1:
            conversation_id = self.model.pick(choice)
            self.logs[process].delete_conversation(conversation_id)
            del self.model.conversations[conversation_id]
            self.model.deleted.append(conversation_id)

    @rule(process=st.integers(0, PROCESSES - 1))
    def crash(self, process: int) -> None:
        """All that the process knew is gone; the next one starts with the database."""
        self.logs[process] = self.start()

    @rule(process=st.integers(0, PROCESSES - 1), choice=CHOICE)
    def use_what_is_deleted(self, process: int, choice: int) -> None:
        if self.model.deleted:
            gone = self.model.deleted[choice % len(self.model.deleted)]
            log = self.logs[process]
            calls: list[Callable[[], object]] = [
                lambda: log.append_items(AppendItems(gone, (_item("late"),), "late")),
                lambda: log.list_items(gone, PageQuery()),
                lambda: log.fork_conversation(ForkConversation(gone, "conv_late")),
            ]
            for call in calls:
                with pytest.raises(NotFound):
                    call()

    @rule(process=st.integers(0, PROCESSES - 1), one=CHOICE, other=CHOICE)
    def compare(self, process: int, one: int, other: int) -> None:
        one_id, other_id = self.model.pick(one), self.model.pick(other)
        items, other_items = self.model.conversations[one_id], self.model.conversations[other_id]
        pairs = zip(items, other_items, strict=False)
        common = list(itertools.takewhile(lambda pair: pair[0] is pair[1], pairs))
        shared = [item.text for item, _ in common if not item.is_deleted]
        compared = self.logs[process].compare_conversations(one_id, other_id)
        assert compared["last_common_item_id"] == (shared[-1] if shared else None)
        only = [item.text for item in items[len(common) :] if not item.is_deleted]
        assert (compared["only_here"]["count"], compared["only_here"]["item_ids"]) == (len(only), only[:100])

    @rule(process=st.integers(0, PROCESSES - 1), choice=CHOICE, at=CHOICE, limit=st.integers(1, 5))
    def read_a_page(self, process: int, choice: int, at: int, limit: int) -> None:
        conversation_id = self.model.pick(choice)
        items = self.model.conversations[conversation_id]
        place = at % len(items)
        page = self.logs[process].list_items(conversation_id, PageQuery(items[place].text, None, limit, "asc"))
        rest = [item.text for item in items[place + 1 :] if not item.is_deleted]
        assert ([item["content"] for item in page.data], page.has_more) == (rest[:limit], len(rest) > limit)

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        for log in self.logs:
            for conversation_id in self.model.conversations:
                page = log.list_items(conversation_id, PageQuery(limit=10_000, order="asc"))
                assert [item["content"] for item in page.data] == self.model.texts(conversation_id)

    @invariant()
    def nothing_is_stored_twice_or_for_nobody(self) -> None:
        assert count_items(self.database) == self.model.kept_items()

    @invariant()
    def seqs_have_no_gaps(self) -> None:
        for conversation_id in self.model.conversations:
            seqs = seqs_of(self.database, conversation_id)
            end = len(self.model.conversations[conversation_id])
            assert seqs == list(range(end - len(seqs) + 1, end + 1))


def _item(text: str) -> Json:
    return {**message(text), "id": text}


def test_conversations_are_what_a_simple_model_says(database: Database) -> None:
    class OverThisDatabase(Conversations):
        pass

    OverThisDatabase.database = database
    # PostgreSQL takes five times as long, and differs only in its SQL.
    examples, steps = (30, 30) if database.dialect == "sqlite" else (5, 30)
    run_state_machine_as_test(
        OverThisDatabase,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            # Shrinking takes minutes, and 30 steps can be read.
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
