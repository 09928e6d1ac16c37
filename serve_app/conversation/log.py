"""`ConversationLog`: the durable log of conversations and responses, as `parts.Sessions` asks for it."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import IntegrityError

from serve_app.conversation.checks import check_items, check_json, check_key, check_turn, not_found
from serve_app.conversation.conversations import (
    EXPIRED_AT_ONCE,
    change_conversation,
    drop_log,
    find_conversation,
    read_conversations,
    require_conversation,
    select_expired,
)
from serve_app.conversation.facts import MAX_MESSAGES, MAX_SEQ, read_messages, save_facts
from serve_app.conversation.fence import Fences, OwnedLog, new_log
from serve_app.conversation.forks import compare, drop_conversation, find_fork_point, read_branches
from serve_app.conversation.items import (
    Point,
    erase_item,
    find_appended,
    find_head,
    find_place,
    read_appended,
    read_item,
    read_items,
    read_page,
    withdraw_items,
)
from serve_app.conversation.memory import add_summary, forget, read_window
from serve_app.conversation.past import Segment, read_past
from serve_app.conversation.responses import (
    IN_PROGRESS,
    as_it_ended,
    as_it_stands,
    delete_response,
    drop_unused_logs,
    find_asked,
    insert_response,
    is_running,
    require_response,
)
from serve_app.conversation.search import search_all, search_past
from serve_app.conversation.turns import (
    Asked,
    answer_in,
    ask_in,
    asked_before,
    branch,
    check_ended_alike,
    find_previous,
    input_key,
)
from serve_app.storage.database import Database
from serve_app.storage.schema import logs
from serve_app.types import Json, Page, PageQuery, now_s
from serve_app.types.conversation import (
    AppendItems,
    CloseTurn,
    Conversation,
    ForkConversation,
    FoundItems,
    ItemSearch,
    KeepSummary,
    LoggedItem,
    OpenedTurn,
    OpenTurn,
    RecentMessages,
    RecordedResponse,
    SaveFacts,
    Window,
    WithdrawTurn,
)

T = TypeVar("T")

_SEQ_END = 2**31
"""After every seq."""


class ConversationLog:
    """The log in the database, for one process. Blocks: call it in threads, as many as you like.

    What a method has returned is committed. Any number of processes may use the same conversation at once: the fence
    (`fence.py`) keeps their writes apart, without leases. Beside the leaves named at each method all raise
    `Unavailable` and `Overloaded` as the database does, and `InvalidRequest` for content that cannot be stored.
    """

    def __init__(self, database: Database, max_cached: int, stale_after_s: float = 600) -> None:
        """`max_cached` logs are written to without taking them over again.

        A response still in progress after `stale_after_s` seconds is taken as interrupted, and one whose process is
        not heard of any more (`runners.py`) after as many seconds as that takes.
        """
        self._database = database
        self.fences = Fences(database, max_cached)
        self._stale_after_s = stale_after_s

    @property
    def fenced_writes(self) -> int:
        """Writes of this process that the fence refused, and that were done again."""
        return self.fences.rejected

    # --- conversations --------------------------------------------------------------------------

    def create_conversation(
        self,
        conversation_id: str,
        metadata: dict[str, str],
        items: tuple[Json, ...],
        expires_after_s: int | None = None,
    ) -> Conversation:
        """Asked again with the same id, it changes nothing and returns what is there."""
        check_json(metadata, "metadata")
        check_items(items, "items")
        with self._database.write() as connection:
            if existing := find_conversation(connection, conversation_id):
                return existing
            log = new_log(connection, conversation_id, now_s(), metadata, None, expires_after_s)
            log.append("create", items)
            # Not from what was just written: a second may have passed between the two.
            created = require_conversation(connection, conversation_id)
        self.fences.keep(log)
        return created

    def list_conversations(self, page: PageQuery, metadata: dict[str, str]) -> Page:
        """Those that have all this metadata. Raises `InvalidRequest` for an unknown cursor."""
        with self._database.read() as connection:
            return read_conversations(connection, page, metadata)

    def get_conversation(self, conversation_id: str) -> Conversation:
        """Raises `NotFound`, as all that take a conversation's id do."""
        with self._database.read() as connection:
            return require_conversation(connection, conversation_id)

    def update_conversation(self, conversation_id: str, changes: Json) -> Conversation:
        """`changes` may hold `metadata` and `expires_after_s`. What it does not hold stays."""
        check_json(changes.get("metadata"), "metadata")
        with self._database.write() as connection:
            require_conversation(connection, conversation_id)
            change_conversation(connection, conversation_id, changes)
            return require_conversation(connection, conversation_id)

    def delete_conversation(self, conversation_id: str) -> None:
        """Delete it with its items and its responses. What branches share with it stays in them."""
        with self._database.write() as connection:
            require_conversation(connection, conversation_id)
            if not drop_conversation(connection, conversation_id):
                raise not_found("Conversation", conversation_id)

    def delete_expired(self, default_after_s: float | None) -> bool:
        """Delete some of what has been idle for too long, as if each were deleted by its id. True if more may be left.

        `default_after_s` is for conversations without an expiry of their own, and for responses outside of any. With
        None those stay.
        """
        query = select_expired(default_after_s)
        with self._database.read() as connection:
            expired = connection.scalars(query).all()
        for log_id in expired:
            with self._database.write() as connection:
                # It may have been used meanwhile.
                if connection.scalar(query.where(logs.c.id == log_id).with_for_update(of=logs)) is not None:
                    drop_log(connection, log_id)
        return len(expired) == EXPIRED_AT_ONCE

    # --- forks ----------------------------------------------------------------------------------

    def fork_conversation(self, fork: ForkConversation) -> Conversation:
        """A new conversation with the same past, of which nothing is copied."""
        check_json(fork.metadata, "metadata")
        try:
            return self._fork(fork)
        except IntegrityError:
            # Another process has just made the same one. It has committed, so now we find it.
            return self._fork(fork)

    def _fork(self, fork: ForkConversation) -> Conversation:
        with self._database.write() as connection:
            require_conversation(connection, fork.conversation_id)
            if existing := find_conversation(connection, fork.fork_id):
                return existing
            point = find_fork_point(connection, read_past(connection, fork.conversation_id), fork.item_id)
            if point is None and fork.item_id is not None:
                raise not_found("Item", fork.item_id, "item_id")
            if point is None:
                raise not_found("Conversation", fork.conversation_id)
            log = new_log(connection, fork.fork_id, now_s(), fork.metadata, point if point.seq else None)
            forked = require_conversation(connection, fork.fork_id)
        self.fences.keep(log)
        return forked

    def list_branches(self, conversation_id: str) -> Json:
        """The tree of all branches that share a past with it, its root first, at most `forks.MAX_BRANCHES` of them."""
        with self._database.read() as connection:
            require_conversation(connection, conversation_id)
            return read_branches(connection, read_past(connection, conversation_id))

    def compare_conversations(self, conversation_id: str, other_id: str) -> Json:
        """What only one of the two has, after their last common item."""
        with self._database.read() as connection:
            require_conversation(connection, conversation_id)
            if find_conversation(connection, other_id) is None:
                raise not_found("Conversation", other_id, "with")
            return compare(connection, conversation_id, other_id)

    # --- items ----------------------------------------------------------------------------------

    def append_items(self, append: AppendItems) -> tuple[Json, ...]:
        """Returns the items as stored: those of the first append with this key, without what was deleted since."""
        check_key(append.idempotency_key)
        check_items(append.items, "items")
        key = f"append:{append.idempotency_key}"

        def write(log: OwnedLog) -> tuple[Json, ...]:
            first_seq = find_appended(log.connection, log.id, key)
            if first_seq is not None:
                return read_appended(log.connection, Point(log.id, first_seq), key, len(append.items))
            log.append(key, append.items)
            return append.items

        return self._in_conversation(append.conversation_id, write)

    def list_items(self, conversation_id: str, page: PageQuery) -> Page:
        """Without deleted items. Raises `InvalidRequest` if `after` or `before` is not an item of the conversation."""
        with self._database.read() as connection:
            require_conversation(connection, conversation_id)
            return read_page(connection, read_past(connection, conversation_id), page)

    def export_items(self, conversation_id: str, after_seq: int, max_items: int) -> tuple[LoggedItem, ...]:
        """The first items after that place, oldest first. None once there are no more."""
        with self._database.read() as connection:
            require_conversation(connection, conversation_id)
            past = read_past(connection, conversation_id)
            return tuple(read_items(connection, past, range(after_seq + 1, _SEQ_END), max_items))

    def search_items(self, search: ItemSearch) -> FoundItems:
        """Raises `InvalidRequest` for a query without words, or with too many, and for an unknown page."""
        with self._database.read() as connection:
            if search.conversation_id is None:
                return search_all(connection, search)
            require_conversation(connection, search.conversation_id)
            return search_past(connection, read_past(connection, search.conversation_id), search)

    def get_item(self, conversation_id: str, item_id: str) -> Json:
        with self._database.read() as connection:
            require_conversation(connection, conversation_id)
            place = find_place(connection, read_past(connection, conversation_id), item_id)
            item = None if place is None else read_item(connection, place)
        if item is None:
            raise not_found("Item", item_id)
        return item

    def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        """Delete what it holds, in every branch that shares it."""
        with self._database.write() as connection:
            conversation = require_conversation(connection, conversation_id)
            place = find_place(connection, read_past(connection, conversation_id), item_id)
            if place is None or not erase_item(connection, place):
                raise not_found("Item", item_id)
            forget(connection, place, item_id)
        return conversation

    # --- what the insights are made from --------------------------------------------------------

    def read_messages(self, conversation_id: str, encoder: str, version: int) -> RecentMessages:
        """The newest messages with their facts, those that it was forked from among them."""
        with self._database.read() as connection:
            require_conversation(connection, conversation_id)
            found = read_messages(connection, Point(conversation_id, MAX_SEQ), encoder, version, MAX_MESSAGES + 1)
        return RecentMessages(tuple(found[-MAX_MESSAGES:]), is_truncated=len(found) > MAX_MESSAGES)

    def save_facts(self, facts: SaveFacts) -> None:
        """Twice changes nothing. The facts of what was deleted meanwhile are left out."""
        with self._database.write() as connection:
            save_facts(connection, facts)

    # --- turns ----------------------------------------------------------------------------------

    def open_turn(self, turn: OpenTurn) -> OpenedTurn:
        """Commit the question, and read what came before it.

        Raises `NotFound` for an unknown conversation or previous response, and `Conflict` if the previous response, or
        another request with the same idempotency key, is still in progress.
        """
        check_turn(turn)
        if turn.conversation_id is None and not turn.store:
            return self._open_unstored(turn)
        try:
            asked = self._ask(turn)
        except IntegrityError:
            # Another process has just inserted the same response or key. It has committed, so now we find it.
            asked = self._ask(turn)
        if asked.finished is not None:
            return OpenedTurn(Window(), asked.log_id, asked.finished.response, asked.finished.recording)
        with self._database.read() as connection:
            window = read_window(connection, Point(asked.log_id, asked.first_seq - 1), turn.max_history_items)
        return OpenedTurn(window, asked.log_id)

    def read_window(self, log_id: str, max_items: int) -> Window:
        """What the next turn would be shown of a conversation, or after a response in a log of its own."""
        with self._database.read() as connection:
            head = find_head(connection, log_id)
            if head is None:
                raise not_found("Conversation", log_id)
            return read_window(connection, head, max_items)

    def keep_summary(self, kept: KeepSummary) -> bool:
        """Store a summary. False if what it was made of is no longer so, or another reaches as far: it is of no use."""
        try:
            with self._database.write() as connection:
                return add_summary(connection, kept)
        except IntegrityError:
            # Another process has just stored one that ends there, or the log has been deleted.
            return False

    def close_turn(self, turn: CloseTurn) -> None:
        """Commit the answer. Raises `NotFound` if the response, or its conversation, has been deleted meanwhile.

        Raises `Conflict` if it was given up as interrupted before: clients may have seen that, so it stays. And if its
        job was taken over by somebody else, who will close it.
        """
        check_items(turn.response["output"], "output")
        check_json(turn.response)
        response_id = turn.response["id"]
        missing = not_found("Response", response_id)
        if not self.fences.own(turn.log_id, lambda log: answer_in(log, turn), missing):
            check_ended_alike(turn.response, self.get_response(response_id))

    def withdraw_turn(self, turn: WithdrawTurn) -> None:
        """Take a question back that was not answered: its items and its response. Twice changes nothing."""
        with self._database.write() as connection:
            delete_response(connection, turn.response_id)
            withdraw_items(connection, turn.log_id, turn.input_item_ids)
            drop_unused_logs(connection, turn.log_id)

    def _open_unstored(self, turn: OpenTurn) -> OpenedTurn:
        with self._database.read() as connection:
            past = find_previous(connection, turn.previous_response_id, self._stale_after_s)
            return OpenedTurn(read_window(connection, past, turn.max_history_items), None)

    def _ask(self, turn: OpenTurn) -> Asked:
        """Write the question, once. `IntegrityError` if another process does the same at the same moment."""
        if turn.conversation_id is not None:
            return self._in_conversation(
                turn.conversation_id, lambda log: ask_in(log, turn, self._stale_after_s), "conversation"
            )
        with self._database.write() as connection:
            row = find_asked(connection, turn)
            if row is not None:
                return asked_before(connection, turn, row, self._stale_after_s)
            log = branch(connection, turn, self._stale_after_s)
            first_seq = log.append(input_key(turn), turn.input_items)
            insert_response(connection, turn, log.id, first_seq)
        self.fences.keep(log)
        return Asked(log.id, first_seq)

    # --- responses ------------------------------------------------------------------------------

    def get_response(self, response_id: str) -> Json:
        """The response as it stands. Raises `NotFound`, as all that take a response's id do.

        One that its process left in progress is stored as incomplete, with reason `interrupted`.
        """
        return self.get_recorded(response_id).response

    def get_recorded(self, response_id: str) -> RecordedResponse:
        """As `get_response`, with what its stream was."""
        with self._database.read() as connection:
            row = require_response(connection, response_id)
        if row.status != IN_PROGRESS or is_running(row, self._stale_after_s):
            return as_it_stands(row)
        with self._database.write() as connection:
            return as_it_ended(connection, row)

    def delete_response(self, response_id: str) -> None:
        """Delete it, and its items if they are in no conversation and in no other response's past."""
        with self._database.write() as connection:
            row = require_response(connection, response_id)
            delete_response(connection, response_id)
            drop_unused_logs(connection, row.log_id)

    def list_input_items(self, response_id: str, page: PageQuery) -> Page:
        """Of its own input, not of its past. Raises `InvalidRequest` for an unknown cursor."""
        with self._database.read() as connection:
            row = require_response(connection, response_id)
            seqs = range(row.first_seq, row.first_seq + row.input_count)
            return read_page(connection, (Segment(row.log_id, seqs),), page)

    # --- writing under the fence ----------------------------------------------------------------

    def _in_conversation(self, conversation_id: str, write: Callable[[OwnedLog], T], param: str | None = None) -> T:
        missing = not_found("Conversation", conversation_id, param)

        def write_if_conversation(log: OwnedLog) -> T:
            if not log.fence.is_conversation:
                raise missing
            return write(log)

        return self.fences.own(conversation_id, write_if_conversation, missing)
