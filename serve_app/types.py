"""The plain frozen values that cross processes, and nothing else that is shared.

JSON bodies (`Json`) are OpenAI's objects as plain dicts: they are stored and sent as they are.
Times are Unix seconds, as OpenAI's are.
"""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# JSON from and to the wire has no narrower type that helps a reader.
Json = dict[str, Any]

FloatMatrix = npt.NDArray[np.float32]
"""[n, dimensions], rows of unit length."""

FloatVector = npt.NDArray[np.float32]
"""[dimensions], of unit length."""

Scores = npt.NDArray[np.float32]
"""[n], each in [0, 1]."""

AttributeValue = str | float | bool


def new_id(prefix: str) -> str:
    """A new unguessable id, e.g. `resp_3f…` (24 random bytes in hex after the prefix)."""
    return f"{prefix}_{secrets.token_hex(24)}"


def now_s() -> int:
    return int(time.time())


# --- generation ---------------------------------------------------------------------------------


CacheUse = Literal["use", "refresh", "off"]
"""What a request lets the response cache do: answer it and keep the answer, only keep the answer, nothing."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of the model: an OpenAI chat completion request, already checked, with its place in the queue."""

    payload: Json
    request_id: str
    priority: int = 0
    """vLLM's: lower is earlier."""
    session_id: str = ""
    """Requests with the same one go to the same replica, which has the beginning of their prompts in its cache."""
    caller: str = ""
    """Whose it is, as `ApiKeys` names callers. Empty: the server's own."""
    timeout_s: float | None = None
    """So long its client waits for all of it."""
    cache: CacheUse = "off"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine, or several together, can have under way."""

    sequences: float
    tokens: float
    """Of the cache."""
    step_tokens: float
    """Of prompts and answers, that go through the model at once."""
    block_tokens: int = 1
    """The cache is given out in blocks of so many."""

    def __add__(self, other: "Capacity") -> "Capacity":
        """Of replicas of one model."""
        return Capacity(
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.step_tokens + other.step_tokens,
            self.block_tokens,
        )


# --- knowledge ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """`key` compared with `value`. A file without the key satisfies only `ne` and `nin`."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str
    value: AttributeValue | tuple[AttributeValue, ...]


@dataclass(frozen=True, slots=True)
class Compound:
    type: Literal["and", "or"]
    filters: tuple["Filter", ...]


Filter = Comparison | Compound


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a search weighs its halves. With a weight of 0 that half is not run; with both, ranks are fused."""

    embedding_weight: float = 1.0
    text_weight: float = 1.0
    score_threshold: float = 0.0
    """Passages with a lower score are left out; scores are in [0, 1]."""
    reranked: int = 0
    """At least so many of the best are ranked anew by the cross-encoder; 0: none."""
    mmr_lambda: float | None = None
    """Maximal marginal relevance: 1 is relevance alone, 0 is unlikeness to better results alone. None: not done."""

    @property
    def is_hybrid(self) -> bool:
        return self.embedding_weight > 0 and self.text_weight > 0


@dataclass(frozen=True, slots=True)
class StoreTable:
    """What a search of a store reads: one of its tables, as it is or as it was."""

    encoder: str
    """The model that made its vectors."""
    suffix: str = ""
    """Of the table's name, after the store's id: each table is of one encoder."""
    version: int | None = None
    """LanceDB's, of a version of the store that is kept; None: the newest. 0: before the first passage."""
    content: str | None = None
    """The same for no two contents that the store ever has. None: what is found is not to be kept in a cache."""


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search of one store."""

    store_id: str
    text: str
    vector: FloatVector | None
    """None if `ranking.embedding_weight` is 0."""
    max_results: int = 10
    filter: Filter | None = None
    ranking: Ranking = Ranking()
    table_version: int | None = None
    """As in `StoreTable`."""
    with_vectors: bool = False
    table_suffix: str = ""
    """As in `StoreTable`."""
    content: str | None = None
    """As in `StoreTable`."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file that a search found."""

    passage_id: str
    store_id: str
    file_id: str
    filename: str
    text: str
    score: float
    """Relevance in [0, 1]."""
    start: int
    """Index of its first character in the file's extracted text."""
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    key: str = ""
    """The document that the file is a version of."""
    version: int = 1
    """Of the document."""
    pages: tuple[int, int] | None = None
    """The first and the last page that it is on, counted from 1; None where there are no pages."""
    heading: tuple[str, ...] = ()
    """The headings that it is under, the highest first."""
    cosine: float | None = None
    """Of its vector and the question's; None if the search by vectors did not find it."""
    bm25: float | None = None
    """None if the search by words did not find it."""
    vector: FloatVector | None = field(default=None, compare=False, repr=False)
    """Only if the query asked for it."""

    def place_to_json(self) -> Json:
        """Where it stands in the text that `…/files/{id}/content` returns: `text[start:end]` is the passage."""
        first_page, last_page = self.pages or (None, None)
        return {
            "start": self.start,
            "end": self.start + len(self.text),
            "page": first_page,
            "last_page": last_page,
            "heading": list(self.heading),
        }


@dataclass(frozen=True, slots=True)
class RerankRequest:
    pairs: tuple[tuple[str, str], ...]
    """Questions, each with the passage to be judged by it."""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    store_id: str
    file_id: str
    attributes: dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class StoreFileRef:
    store_id: str
    file_id: str


@dataclass(frozen=True, slots=True)
class StoreVersionRef:
    store_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Optimization:
    """What optimising a store did. Pairs are before and after."""

    duplicates_removed: int = 0
    fragments: tuple[int, int] = (0, 0)
    size_bytes: tuple[int, int] = (0, 0)
    """On disk. Versions of the last two minutes stay, so that this can grow at first."""
    search_ms: tuple[float, float] = (0.0, 0.0)
    """Median of a vector search for the 10 nearest."""
    elapsed_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class IndexState:
    kind: str | None = None
    """As LanceDB names it. None: there is none, and a search compares every row."""
    indexed_rows: int = 0
    unindexed_rows: int = 0
    """Searched one by one, until the next maintenance."""


@dataclass(frozen=True, slots=True)
class TableState:
    """A store as it lies on the disk."""

    passages: int = 0
    fragments: int = 0
    size_bytes: int = 0
    """With its indices, and the versions that are kept."""
    vector: IndexState = IndexState()
    text: IndexState = IndexState()


# --- conversations ------------------------------------------------------------------------------


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
class Page:
    """One page of a list, in the order asked for. `data` are OpenAI objects, each with an `id`."""

    data: tuple[Json, ...]
    has_more: bool

    def to_json(self) -> Json:
        return {
            "object": "list",
            "data": list(self.data),
            "first_id": self.data[0]["id"] if self.data else None,
            "last_id": self.data[-1]["id"] if self.data else None,
            "has_more": self.has_more,
        }


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which page: those after (or before) an id, newest first unless `order` is asc."""

    after: str | None = None
    before: str | None = None
    limit: int = 20
    order: Literal["asc", "desc"] = "desc"


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
