"""Conversations and responses: what is appended, opened, closed, forked, folded and read of their logs."""

from dataclasses import dataclass, field
from typing import Literal

from serve_app.types import Json


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a conversation left another: this item is the last that they share."""

    conversation_id: str | None
    """None: that one has been deleted."""
    item_id: str

    def to_json(self) -> Json:
        return {"conversation_id": self.conversation_id, "item_id": self.item_id}


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    created_at: int
    metadata: dict[str, str]
    last_active_at: int
    """When something was last added or changed."""
    expires_after_s: int | None = None
    """It is deleted when nothing has been added for so long. None: as the configuration says."""
    forked_from: ForkPoint | None = None

    def to_json(self) -> Json:
        expires_after = {"anchor": "last_active_at", "seconds": self.expires_after_s}
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": self.metadata,
            "last_active_at": self.last_active_at,
            "expires_after": None if self.expires_after_s is None else expires_after,
            "forked_from": self.forked_from and self.forked_from.to_json(),
        }


@dataclass(frozen=True, slots=True)
class ForkConversation:
    """A new conversation that shares the past of another, up to and with an item."""

    conversation_id: str
    fork_id: str
    """The id of the new conversation. The same again changes nothing, and returns what is there."""
    item_id: str | None = None
    """None: the newest."""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoggedItem:
    """An item with its place in the log."""

    seq: int
    created_at: int
    body: Json


@dataclass(frozen=True, slots=True)
class ItemSearch:
    """Messages that hold all words of the query, newest first: of one conversation, or of all with this metadata."""

    query: str
    conversation_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    created_after: int | None = None
    """Unix seconds, this one included."""
    created_before: int | None = None
    """This one not included."""
    limit: int = 20
    page: str | None = None
    """The `next_page` of the answer before."""


@dataclass(frozen=True, slots=True)
class FoundItems:
    data: tuple[Json, ...]
    next_page: str | None

    def to_json(self) -> Json:
        return {
            "object": "conversation.search_results.page",
            "data": list(self.data),
            "has_more": self.next_page is not None,
            "next_page": self.next_page,
        }


@dataclass(frozen=True, slots=True)
class MessageFacts:
    """What the insights need of a message beside its time: computed once, and kept."""

    role: Literal["user", "assistant"]
    status: str
    """The item's: `completed`, or `incomplete` if its response was cut off or failed."""
    characters: int
    words: int
    language: str | None
    """ISO 639-1. None if it cannot be told, as in a message of few words."""
    english_sentiment: float
    """From -1 to 1, if it is English."""
    is_question: bool
    is_evasive: bool
    """It says that it does not answer."""
    continues: bool
    """It begins with a word that points back, as "that" or "yes" does."""
    terms: tuple[str, ...]
    """Its words that carry meaning, and pairs of them that stand together, in order, in lower case."""
    opening: str
    """Its first words, for where there are no terms."""
    vector: bytes = field(repr=False)
    """float16, little-endian: half the size of the encoder's, and a cosine changes by less than 0.001."""


@dataclass(frozen=True, slots=True)
class LoggedMessage:
    """A message of a conversation, where it is in the log, with its facts or else with what they are made from."""

    log_id: str
    """The conversation's, or that of one that it was forked from."""
    seq: int
    item_id: str
    created_at: int
    facts: MessageFacts | None
    body: Json | None
    """The OpenAI item. None if there are facts."""


@dataclass(frozen=True, slots=True)
class RecentMessages:
    """The newest messages of a conversation, as many as are looked at."""

    messages: tuple[LoggedMessage, ...]
    """Oldest first."""
    is_truncated: bool
    """There are older ones."""


@dataclass(frozen=True, slots=True)
class SaveFacts:
    """Facts to be kept with their messages, in place of older ones."""

    conversation_id: str
    """Whose insights they are for; the messages may be of one that it was forked from."""
    encoder: str
    """The model that made the vectors."""
    version: int
    """Of the code that made the rest."""
    messages: tuple[LoggedMessage, ...]
    """All with facts."""


@dataclass(frozen=True, slots=True)
class ConversationFilter:
    """Which conversations an overview is about."""

    created_after: int | None = None
    created_before: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    """What a conversation's metadata must hold, if not alone."""


@dataclass(frozen=True, slots=True)
class AppendItems:
    """Items for the end of a conversation. The same `idempotency_key` again changes nothing, and returns the same."""

    conversation_id: str
    items: tuple[Json, ...]
    """OpenAI conversation items, each already with its `id`."""
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A question that must be durable before anything is computed for it.

    It continues `conversation_id`, or the past of `previous_response_id`, or nothing; never both.
    With `store` off and no conversation nothing is written, and only the history is read.
    """

    response: Json
    """The response object as it stands now (`in_progress`); its `id` names the turn."""
    input_items: tuple[Json, ...]
    conversation_id: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    idempotency_key: str | None = None
    max_history_items: int = 40
    """At most so many items are read of what is not in the summary."""
    runner_id: str | None = None
    """The process that answers; once it is not heard of any more, the turn counts as interrupted."""
    job: Json | None = None
    """Of a background response: the request, as whoever answers it will find it. It is queued with the question."""

    @property
    def is_alone(self) -> bool:
        """Whether nothing came before it and nothing of it is kept, so that it has nothing to do with a log."""
        return not self.store and self.conversation_id is None and self.previous_response_id is None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a past comes to, from its beginning up to and with one item."""

    log_id: str
    """Of that last item; it may be a parent of the log that is read."""
    seq: int
    last_item_id: str
    text: str
    tokens: int
    model: str
    """Who wrote it: a model's id, or `extract`."""
    created_at: int


@dataclass(frozen=True, slots=True)
class PastItem:
    log_id: str
    seq: int
    body: Json
    prompt_text: str | None = None
    """What the model read or wrote in its place: a question with its sources, an answer with their numbers."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the model sees of a past: a summary, and every item after what that covers, oldest first."""

    items: tuple[PastItem, ...] = ()
    summary: Summary | None = None
    is_cut: bool = False
    """There are more items between the two than were asked for: the oldest are missing here."""


@dataclass(frozen=True, slots=True)
class KeepSummary:
    summary: Summary
    before: Summary | None
    """The one that it goes on from."""
    folded: tuple[tuple[str, int], ...]
    """Log and seq of the items that went into it. If one of them has been deleted since, nothing is kept."""


@dataclass(frozen=True, slots=True)
class OpenedTurn:
    window: Window
    """What came before this question."""
    log_id: str | None
    """Where the answer will be appended; None if nothing is stored."""
    finished: Json | None = None
    """The stored response, if the same idempotency key has been answered before, or is a background response."""
    recording: Json | None = None
    """Of `finished`: what the events of its stream need beside it."""

    @property
    def history(self) -> tuple[Json, ...]:
        """The items of the window, oldest first."""
        return tuple(item.body for item in self.window.items)


@dataclass(frozen=True, slots=True)
class WithdrawTurn:
    """A question that was refused before the model had begun: it is taken back, as if it had never been asked."""

    log_id: str
    response_id: str
    input_item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CloseTurn:
    """The answer, in its final state (`completed`, `incomplete` or `failed`), durable once the call returns."""

    log_id: str
    response: Json
    """The final response object; its `output` items are appended to the log. Closing twice changes nothing."""
    store: bool = True
    recording: Json | None = None
    """What the events of its stream need beside the response: see `events.record`."""
    job_fence: int | None = None
    """Of a background response: only who holds its job under this fence may close it."""
    prompt_texts: dict[str, str] = field(default_factory=dict)
    """By item id, of the question's items and the output's: see `PastItem`."""


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """A stored response as it stands."""

    response: Json
    recording: Json | None
    """None if it has not ended, or has not been recorded."""
    has_ended: bool
    has_job: bool
    """It is a background response that is queued or in progress."""
