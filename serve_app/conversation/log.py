"""`ConversationLog`: the durable log of conversations and responses, as `parts.Sessions` asks for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import IntegrityError

from serve_app.conversation.checks import check_items, check_json, check_key, is_id
from serve_app.conversation.fence import Fence, Fenced, Fences, OwnedLog, keep_log, new_log, take_over
from serve_app.conversation.items import (
    Point,
    erase_item,
    find_appended,
    find_head,
    find_item,
    read_appended,
    read_page,
    withdraw_items,
)
from serve_app.conversation.memory import add_prompt_texts, add_summary, forget, read_window
from serve_app.conversation.responses import (
    IN_PROGRESS,
    INTERRUPTED,
    ResponseRow,
    delete_response,
    drop_unused_logs,
    find_asked,
    find_response,
    finish_response,
    insert_response,
    interrupted,
    is_running,
)
from serve_app.errors import Conflict, NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import logs, responses
from serve_app.types import (
    AppendItems,
    CloseTurn,
    Conversation,
    Json,
    KeepSummary,
    OpenedTurn,
    OpenTurn,
    Page,
    PageQuery,
    Window,
    WithdrawTurn,
    now_s,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Asked:
    """Where the question of a turn was written."""

    log_id: str
    first_seq: int
    finished: Json | None = None


class ConversationLog:
    """The log in the database, for one process. Blocks: call it in threads, as many as you like.

    What a method has returned is committed. Any number of processes may use the same conversation at once: the fence
    (`fence.py`) keeps their writes apart, without leases. Beside the leaves named at each method all raise
    `Unavailable` and `Overloaded` as the database does, and `InvalidRequest` for content that cannot be stored.
    """

    def __init__(self, database: Database, max_cached: int, stale_after_s: float = 600) -> None:
        """`max_cached` logs are written to without taking them over again.

        A response still in progress after `stale_after_s` seconds is taken as interrupted: its process has died.
        """
        self._database = database
        self._fences = Fences(max_cached)
        self._stale_after_s = stale_after_s

    @property
    def fenced_writes(self) -> int:
        """Writes of this process that the fence refused, and that were done again."""
        return self._fences.rejected

    # --- conversations --------------------------------------------------------------------------

    def create_conversation(
        self, conversation_id: str, metadata: dict[str, str], items: tuple[Json, ...]
    ) -> Conversation:
        """Asked again with the same id, it changes nothing and returns what is there."""
        check_json(metadata, "metadata")
        check_items(items, "items")
        conversation = Conversation(conversation_id, now_s(), metadata)
        with self._database.write() as connection:
            if existing := _find_conversation(connection, conversation_id):
                return existing
            log = new_log(connection, conversation.id, conversation.created_at, metadata, past=None)
            log.append("create", items)
        self._fences.keep(log)
        return conversation

    def get_conversation(self, conversation_id: str) -> Conversation:
        """Raises `NotFound`, as all that take a conversation's id do."""
        with self._database.read() as connection:
            return _require_conversation(connection, conversation_id)

    def update_conversation(self, conversation_id: str, metadata: dict[str, str]) -> Conversation:
        """Replace its metadata."""
        check_json(metadata, "metadata")
        with self._database.write() as connection:
            conversation = _require_conversation(connection, conversation_id)
            connection.execute(update(logs).where(logs.c.id == conversation_id).values(metadata=metadata))
        return Conversation(conversation.id, conversation.created_at, metadata)

    def delete_conversation(self, conversation_id: str) -> None:
        """Delete it with its items and its responses. Responses that branched off it keep only what they added."""
        with self._database.write() as connection:
            _require_conversation(connection, conversation_id)
            # Responses before their log, in the order in which `close_turn` locks them.
            connection.execute(delete(responses).where(responses.c.log_id == conversation_id))
            connection.execute(delete(logs).where(logs.c.id == conversation_id))
            # After the log, which whoever adds a summary locks first.
            forget(connection, conversation_id)

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
            return read_page(connection, conversation_id, page)

    def get_item(self, conversation_id: str, item_id: str) -> Json:
        with self._database.read() as connection:
            _require_conversation(connection, conversation_id)
            item = find_item(connection, conversation_id, item_id)
        if item is None:
            raise _not_found("Item", item_id)
        return item

    def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        with self._database.write() as connection:
            conversation = _require_conversation(connection, conversation_id)
            if not erase_item(connection, conversation_id, item_id):
                raise _not_found("Item", item_id)
            forget(connection, conversation_id, item_id)
        return conversation

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
            return OpenedTurn(Window(), asked.log_id, asked.finished)
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

        Raises `Conflict` if it was given up as interrupted before: clients may have seen that, so it stays.
        """
        output: list[Json] = turn.response["output"]
        check_items(output, "output")
        check_json(turn.response)
        response_id = turn.response["id"]
        key = f"output:{response_id}"

        def write(log: OwnedLog) -> bool:
            if turn.store:
                if not finish_response(log.connection, turn.response, log.fence.head + len(output)):
                    return False
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
        self._fences.keep(log)
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
        with self._database.read() as connection:
            row = _require_response(connection, response_id)
        if row.status != IN_PROGRESS or is_running(row, self._stale_after_s):
            body: Json = row.body
            return body
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
            return read_page(connection, row.log_id, page, seqs)

    def _finished(self, connection: Connection, row: ResponseRow) -> Json:
        """The body of a response that nobody works on any more, stored as interrupted if it is still in progress."""
        if row.status == IN_PROGRESS:
            body = interrupted(row.body)
            if finish_response(connection, body):
                return body
            row = _require_response(connection, row.id)  # it has ended since the row was read
        return dict(row.body)

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
            return self._owning(log_id, write, missing, self._fences.get)
        except Fenced:
            self._fences.count_rejected()
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
        self._fences.keep(log)
        return result


def _no_fence(_log_id: str) -> None:
    return None


def _input_key(turn: OpenTurn) -> str:
    return f"input:{turn.idempotency_key or turn.response['id']}"


def _find_conversation(connection: Connection, conversation_id: str) -> Conversation | None:
    query = select(logs).where(logs.c.id == conversation_id, logs.c.is_conversation)
    row = connection.execute(query).one_or_none() if is_id(conversation_id) else None
    return None if row is None else Conversation(row.id, row.created_at, row.metadata)


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
