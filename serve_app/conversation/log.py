"""`ConversationLog`: the durable log of conversations and responses, as `parts.Sessions` asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, RowMapping, and_, bindparam, exists, func, select, update
from sqlalchemy.exc import IntegrityError

from serve_app.conversation.checks import check_items, check_json, check_key, is_id
from serve_app.conversation.facts import MAX_MESSAGES, MAX_SEQ, read_messages, save_facts
from serve_app.conversation.fence import Fence, Fenced, Fences, OwnedLog, keep_log, new_log, take_over
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
from serve_app.conversation.jobs import end_job
from serve_app.conversation.memory import add_prompt_texts, add_summary, forget, read_window
from serve_app.conversation.past import Segment, read_past
from serve_app.conversation.responses import (
    IN_PROGRESS,
    INTERRUPTED,
    ResponseRow,
    as_it_stands,
    delete_response,
    drop_unused_logs,
    find_asked,
    find_response,
    finish_response,
    insert_response,
    interrupted,
    is_running,
)
from serve_app.conversation.search import has_metadata, search_all, search_past
from serve_app.errors import Conflict, NotFound
from serve_app.storage.database import Database
from serve_app.storage.paging import select_page
from serve_app.storage.schema import items as items_table
from serve_app.storage.schema import logs, responses
from serve_app.types import (
    AppendItems,
    CloseTurn,
    Conversation,
    ForkConversation,
    ForkPoint,
    FoundItems,
    ItemSearch,
    Json,
    KeepSummary,
    LoggedItem,
    OpenedTurn,
    OpenTurn,
    Page,
    PageQuery,
    RecentMessages,
    RecordedResponse,
    SaveFacts,
    Window,
    WithdrawTurn,
    now_s,
)

T = TypeVar("T")

EXPIRED_AT_ONCE = 100
"""Conversations, and responses, that one call of `delete_expired` deletes."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Where the question of a turn was written."""

    log_id: str
    first_seq: int
    finished: RecordedResponse | None = None


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
        self.fences = Fences(max_cached)
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
            if existing := _find_conversation(connection, conversation_id):
                return existing
            created_at = now_s()
            log = new_log(connection, conversation_id, created_at, metadata, None, expires_after_s)
            log.append("create", items)
        self.fences.keep(log)
        return Conversation(conversation_id, created_at, metadata, created_at, expires_after_s)

    def list_conversations(self, page: PageQuery, metadata: dict[str, str]) -> Page:
        """Those that have all this metadata. Raises `InvalidRequest` for an unknown cursor."""
        has_all = and_(logs.c.is_conversation, *has_metadata(metadata))
        with self._database.read() as connection:
            key = (logs.c.created_at, logs.c.id)
            rows, has_more = select_page(connection, _CONVERSATIONS, key, page, only=has_all)
        return Page(tuple(_conversation(row).to_json() for row in rows), has_more)

    def get_conversation(self, conversation_id: str) -> Conversation:
        """Raises `NotFound`, as all that take a conversation's id do."""
        with self._database.read() as connection:
            return _require_conversation(connection, conversation_id)

    def update_conversation(self, conversation_id: str, changes: Json) -> Conversation:
        """`changes` may hold `metadata` and `expires_after_s`. What it does not hold stays."""
        check_json(changes.get("metadata"), "metadata")
        with self._database.write() as connection:
            _require_conversation(connection, conversation_id)
            values = {**changes, "last_active_at": now_s()}
            connection.execute(update(logs).where(logs.c.id == conversation_id).values(values))
            return _require_conversation(connection, conversation_id)

    def delete_conversation(self, conversation_id: str) -> None:
        """Delete it with its items and its responses. What branches share with it stays in them."""
        with self._database.write() as connection:
            _require_conversation(connection, conversation_id)
            if not drop_conversation(connection, conversation_id):
                raise _not_found("Conversation", conversation_id)

    def delete_expired(self, default_after_s: float | None) -> bool:
        """Delete some of what has been idle for too long, as if each were deleted by its id. True if more may be left.

        `default_after_s` is for conversations without an expiry of their own, and for responses outside of any. With
        None those stay.
        """
        idle_s = now_s() - logs.c.last_active_at
        has_expired = func.coalesce(logs.c.expires_after_s, default_after_s) <= idle_s
        has_response = exists().where(responses.c.id == logs.c.id)
        query = select(logs.c.id).where(has_expired, logs.c.is_conversation | has_response).limit(EXPIRED_AT_ONCE)
        with self._database.read() as connection:
            expired = connection.scalars(query).all()
        for log_id in expired:
            with self._database.write() as connection:
                # It may have been used meanwhile.
                if connection.scalar(query.where(logs.c.id == log_id).with_for_update(of=logs)) is not None:
                    self._delete_log(connection, log_id)
        return len(expired) == EXPIRED_AT_ONCE

    def _delete_log(self, connection: Connection, log_id: str) -> None:
        if not drop_conversation(connection, log_id):
            delete_response(connection, log_id)
            drop_unused_logs(connection, log_id)

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
            _require_conversation(connection, fork.conversation_id)
            if existing := _find_conversation(connection, fork.fork_id):
                return existing
            point = find_fork_point(connection, read_past(connection, fork.conversation_id), fork.item_id)
            if point is None and fork.item_id is not None:
                raise _not_found("Item", fork.item_id, "item_id")
            if point is None:
                raise _not_found("Conversation", fork.conversation_id)
            log = new_log(connection, fork.fork_id, now_s(), fork.metadata, point if point.seq else None)
            forked = _require_conversation(connection, fork.fork_id)
        self.fences.keep(log)
        return forked

    def list_branches(self, conversation_id: str) -> Json:
        """The tree of all branches that share a past with it, its root first, at most `forks.MAX_BRANCHES` of them."""
        with self._database.read() as connection:
            _require_conversation(connection, conversation_id)
            return read_branches(connection, read_past(connection, conversation_id))

    def compare_conversations(self, conversation_id: str, other_id: str) -> Json:
        """What only one of the two has, after their last common item."""
        with self._database.read() as connection:
            _require_conversation(connection, conversation_id)
            if _find_conversation(connection, other_id) is None:
                raise _not_found("Conversation", other_id, "with")
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
            _require_conversation(connection, conversation_id)
            return read_page(connection, read_past(connection, conversation_id), page)

    def export_items(self, conversation_id: str, after_seq: int, max_items: int) -> tuple[LoggedItem, ...]:
        """The first items after that place, oldest first. None once there are no more."""
        with self._database.read() as connection:
            _require_conversation(connection, conversation_id)
            past = read_past(connection, conversation_id)
            return tuple(read_items(connection, past, range(after_seq + 1, _SEQ_END), max_items))

    def search_items(self, search: ItemSearch) -> FoundItems:
        """Raises `InvalidRequest` for a query without words, or with too many, and for an unknown page."""
        with self._database.read() as connection:
            if search.conversation_id is None:
                return search_all(connection, search)
            _require_conversation(connection, search.conversation_id)
            return search_past(connection, read_past(connection, search.conversation_id), search)

    def get_item(self, conversation_id: str, item_id: str) -> Json:
        with self._database.read() as connection:
            _require_conversation(connection, conversation_id)
            place = find_place(connection, read_past(connection, conversation_id), item_id)
            item = None if place is None else read_item(connection, place)
        if item is None:
            raise _not_found("Item", item_id)
        return item

    def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        """Delete what it holds, in every branch that shares it."""
        with self._database.write() as connection:
            conversation = _require_conversation(connection, conversation_id)
            place = find_place(connection, read_past(connection, conversation_id), item_id)
            if place is None or not erase_item(connection, place):
                raise _not_found("Item", item_id)
            forget(connection, place, item_id)
        return conversation

    # --- what the insights are made from --------------------------------------------------------

    def read_messages(self, conversation_id: str, encoder: str, version: int) -> RecentMessages:
        """The newest messages with their facts, those that it was forked from among them."""
        with self._database.read() as connection:
            _require_conversation(connection, conversation_id)
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
        check_items(turn.input_items, "input")
        check_json(turn.response)
        if turn.idempotency_key is not None:
            check_key(turn.idempotency_key)
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
                raise _not_found("Conversation", log_id)
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
        output: list[Json] = turn.response["output"]
        check_items(output, "output")
        check_json(turn.response)
        response_id = turn.response["id"]
        key = f"output:{response_id}"

        def write(log: OwnedLog) -> bool:
            if turn.store:
                if not finish_response(log.connection, turn.response, log.fence.head + len(output), turn.recording):
                    return False
                if turn.job_fence is not None and not end_job(log.connection, response_id, turn.job_fence):
                    raise Conflict(f"Response with id {response_id!r} is being answered by another process.")
            elif find_appended(log.connection, log.id, key) is not None:
                return True
            log.append(key, output)
            add_prompt_texts(log.connection, log.id, turn.prompt_texts)
            return True

        if not self._in_log(turn.log_id, write, _not_found("Response", response_id)):
            self._check_closed_alike(turn.response)

    def withdraw_turn(self, turn: WithdrawTurn) -> None:
        """Take a question back that was not answered: its items and its response. Twice changes nothing."""
        with self._database.write() as connection:
            delete_response(connection, turn.response_id)
            withdraw_items(connection, turn.log_id, turn.input_item_ids)
            drop_unused_logs(connection, turn.log_id)

    def _open_unstored(self, turn: OpenTurn) -> OpenedTurn:
        with self._database.read() as connection:
            past = self._find_past(connection, turn.previous_response_id)
            return OpenedTurn(read_window(connection, past, turn.max_history_items), None)

    def _ask(self, turn: OpenTurn) -> _Asked:
        """Write the question, once. `IntegrityError` if another process does the same at the same moment."""
        if turn.conversation_id is not None:
            return self._in_conversation(turn.conversation_id, lambda log: self._ask_in(log, turn), "conversation")
        with self._database.write() as connection:
            row = find_asked(connection, turn)
            if row is not None:
                return self._asked_before(connection, turn, row)
            log = self._branch(connection, turn)
            first_seq = log.append(_input_key(turn), turn.input_items)
            insert_response(connection, turn, log.id, first_seq)
        self.fences.keep(log)
        return _Asked(log.id, first_seq)

    def _ask_in(self, log: OwnedLog, turn: OpenTurn) -> _Asked:
        row = find_asked(log.connection, turn)
        if row is not None:
            return self._asked_before(log.connection, turn, row)
        key = _input_key(turn)
        # Without `store` there is no response to find, but the question may be there.
        first_seq = None if turn.store else find_appended(log.connection, log.id, key)
        if first_seq is None:
            first_seq = log.append(key, turn.input_items)
        if turn.store:
            insert_response(log.connection, turn, log.id, first_seq)
        return _Asked(log.id, first_seq)

    def _asked_before(self, connection: Connection, turn: OpenTurn, row: ResponseRow) -> _Asked:
        if not is_running(row, self._stale_after_s):
            return _Asked(row.log_id, row.first_seq, finished=self._finished(connection, row))
        if row.job_fence is not None and turn.job is not None:
            return _Asked(row.log_id, row.first_seq, finished=as_it_stands(row))
        if row.id != turn.response["id"]:
            raise Conflict(
                f"The request with idempotency key {turn.idempotency_key!r} is still in progress: try again later.",
                code="idempotent_request_in_progress",
                retry_after_s=1,
            )
        return _Asked(row.log_id, row.first_seq)

    def _branch(self, connection: Connection, turn: OpenTurn) -> OwnedLog:
        """A new log for the response, whose past is that of the previous response."""
        past = self._find_past(connection, turn.previous_response_id)
        if past is not None and not keep_log(connection, past.log_id):
            raise _previous_not_found(turn.previous_response_id)
        return new_log(connection, turn.response["id"], now_s(), None, past)

    def _find_past(self, connection: Connection, previous_response_id: str | None) -> Point | None:
        """The last item of the previous response; of one that was interrupted, of its input."""
        if previous_response_id is None:
            return None
        row = find_response(connection, previous_response_id)
        if row is None:
            raise _previous_not_found(previous_response_id)
        if is_running(row, self._stale_after_s):
            raise Conflict(
                f"Previous response with id {previous_response_id!r} is still in progress: wait until it has ended.",
                param="previous_response_id",
            )
        return Point(row.log_id, row.last_seq)

    def _check_closed_alike(self, response: Json) -> None:
        stored = self.get_response(response["id"])
        if stored.get("incomplete_details") == INTERRUPTED != response.get("incomplete_details"):
            raise Conflict(f"Response with id {response['id']!r} took too long, and was given up as interrupted.")

    # --- responses ------------------------------------------------------------------------------

    def get_response(self, response_id: str) -> Json:
        """The response as it stands. Raises `NotFound`, as all that take a response's id do.

        One that its process left in progress is stored as incomplete, with reason `interrupted`.
        """
        return self.get_recorded(response_id).response

    def get_recorded(self, response_id: str) -> RecordedResponse:
        """As `get_response`, with what its stream was."""
        with self._database.read() as connection:
            row = _require_response(connection, response_id)
        if row.status != IN_PROGRESS or is_running(row, self._stale_after_s):
            return as_it_stands(row)
        with self._database.write() as connection:
            return self._finished(connection, row)

    def delete_response(self, response_id: str) -> None:
        """Delete it, and its items if they are in no conversation and in no other response's past."""
        with self._database.write() as connection:
            row = _require_response(connection, response_id)
            delete_response(connection, response_id)
            drop_unused_logs(connection, row.log_id)

    def list_input_items(self, response_id: str, page: PageQuery) -> Page:
        """Of its own input, not of its past. Raises `InvalidRequest` for an unknown cursor."""
        with self._database.read() as connection:
            row = _require_response(connection, response_id)
            seqs = range(row.first_seq, row.first_seq + row.input_count)
            return read_page(connection, (Segment(row.log_id, seqs),), page)

    def _finished(self, connection: Connection, row: ResponseRow) -> RecordedResponse:
        """A response that nobody works on any more, stored as interrupted if it is still in progress."""
        if row.status == IN_PROGRESS:
            body = interrupted(row.body)
            if finish_response(connection, body):
                return RecordedResponse(body, None, has_ended=True, has_job=False)
            row = _require_response(connection, row.id)  # it has ended since the row was read
        return as_it_stands(row)

    # --- writing under the fence ----------------------------------------------------------------

    def _in_conversation(self, conversation_id: str, write: Callable[[OwnedLog], T], param: str | None = None) -> T:
        missing = _not_found("Conversation", conversation_id, param)

        def write_if_conversation(log: OwnedLog) -> T:
            if not log.fence.is_conversation:
                raise missing
            return write(log)

        return self._in_log(conversation_id, write_if_conversation, missing)

    def _in_log(self, log_id: str, write: Callable[[OwnedLog], T], missing: NotFound) -> T:
        """Run `write` in one transaction that owns the log, and once more, from its start, if it was fenced.

        The second time the log is taken over in that same transaction, so nobody can fence it again: they wait.
        """
        if not is_id(log_id):
            raise missing
        try:
            return self._owning(log_id, write, missing, self.fences.get)
        except Fenced:
            self.fences.count_rejected()
            return self._owning(log_id, write, missing, _no_fence)

    def _owning(
        self, log_id: str, write: Callable[[OwnedLog], T], missing: NotFound, known: Callable[[str], Fence | None]
    ) -> T:
        with self._database.write() as connection:
            fence = known(log_id) or take_over(connection, log_id)
            if fence is None:
                raise missing
            log = OwnedLog(connection, log_id, fence)
            result = write(log)
        self.fences.keep(log)
        return result


def _no_fence(_log_id: str) -> None:
    return None


def _input_key(turn: OpenTurn) -> str:
    return f"input:{turn.idempotency_key or turn.response['id']}"


_SEQ_END = 2**31
"""After every seq."""

_parent = logs.alias("parent")
_CONVERSATIONS = (
    select(logs, items_table.c.item_id.label("fork_item_id"), _parent.c.is_conversation.label("parent_is_conversation"))
    .outerjoin(_parent, _parent.c.id == logs.c.parent_id)
    .outerjoin(items_table, and_(items_table.c.log_id == logs.c.parent_id, items_table.c.seq == logs.c.parent_seq))
)
_FIND_CONVERSATION = _CONVERSATIONS.where(logs.c.id == bindparam("log"), logs.c.is_conversation)


def _find_conversation(connection: Connection, conversation_id: str) -> Conversation | None:
    if not is_id(conversation_id):
        return None
    row = connection.execute(_FIND_CONVERSATION, {"log": conversation_id}).mappings().one_or_none()
    return None if row is None else _conversation(row)


def _conversation(row: RowMapping) -> Conversation:
    forked_from = None
    if row["fork_item_id"] is not None:
        parent_id = row["parent_id"] if row["parent_is_conversation"] else None
        forked_from = ForkPoint(parent_id, row["fork_item_id"])
    return Conversation(
        id=row["id"],
        created_at=row["created_at"],
        metadata=row["metadata"],
        last_active_at=row["last_active_at"],
        expires_after_s=row["expires_after_s"],
        forked_from=forked_from,
    )


def _require_conversation(connection: Connection, conversation_id: str) -> Conversation:
    conversation = _find_conversation(connection, conversation_id)
    if conversation is None:
        raise _not_found("Conversation", conversation_id)
    return conversation


def _require_response(connection: Connection, response_id: str) -> ResponseRow:
    row = find_response(connection, response_id)
    if row is None:
        raise _not_found("Response", response_id)
    return row


def _not_found(kind: str, missing_id: str, param: str | None = None) -> NotFound:
    return NotFound(f"{kind} with id {missing_id!r} not found.", param=param)


def _previous_not_found(response_id: str | None) -> NotFound:
    return NotFound(
        f"Previous response with id {response_id!r} not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
