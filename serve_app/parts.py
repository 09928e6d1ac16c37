"""The roles of the graph as Protocols: what the request path asks of each deployment.

`deployments/adapters.py` implements them over Ray Serve handles, `tests/fakes.py` in memory. All methods raise
the leaves of `errors.py`, and `Overloaded`, `Unavailable` or `Timeout` if the part cannot be reached.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from serve_app.admission.admissions import Admissions
from serve_app.conversation.checks import check_turn
from serve_app.metrics import NO_METRICS, Metrics, Tally
from serve_app.types import FloatMatrix, Json, Page, PageQuery, Scores
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
from serve_app.types.generation import Capacity, GenerationRequest
from serve_app.types.knowledge import (
    AttributeChange,
    Optimization,
    Passage,
    RerankRequest,
    SearchQuery,
    StoreFileRef,
    StoreVersionRef,
    TableState,
)
from serve_app.vitals import Released, ReplicaVitals, Silence


class Embedder(Protocol):
    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        """One unit vector per text, in order. A text longer than the model's window is cut there.

        `model` is a configured encoder; None: the one of new stores.
        """
        ...

    async def count_tokens(self, texts: Sequence[str], model: str | None = None) -> int:
        """Of all the texts together, whole, as that encoder counts them."""
        ...


class QueryEmbedder(Protocol):
    async def embed(self, texts: Sequence[str], store_ids: Sequence[str], model: str) -> FloatMatrix:
        """As `Embedder.embed`, for searches of these stores. What was asked before need not be computed again."""


class Reranker(Protocol):
    async def rerank(self, request: RerankRequest) -> Scores:
        """The relevance of each passage to its question, in order. A text over the model's window is cut there."""
        ...


class Retriever(Protocol):
    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        """Best first, at most `max_results`. Raises `InvalidRequest` for a filter on a key that no file has."""
        ...


class Indexer(Protocol):
    """The one writer of every vector store. What it is to ingest it finds in the database."""

    async def wake(self) -> None:
        """There is work in the database: look now."""
        ...

    async def update_attributes(self, change: AttributeChange) -> None: ...

    async def remove_file(self, ref: StoreFileRef) -> None:
        """After the return no search finds the file."""
        ...

    async def drop_store(self, store_id: str) -> None: ...

    async def roll_back(self, ref: StoreVersionRef) -> int:
        """Make a store what it was at a version, and return the number of the version that this is."""
        ...

    async def optimize(self, store_id: str) -> Optimization:
        """Searches and changes go on meanwhile. Seconds, for a million passages minutes."""
        ...

    async def describe(self, store_id: str) -> TableState:
        """All zero for a store without passages."""
        ...


class Generator(Protocol):
    """Every model that writes: a request's `payload["model"]` says which. `NotFound` for one that is not here."""

    async def complete(self, request: GenerationRequest) -> Json:
        """The whole chat completion object. Raises `InvalidRequest` for what the engine refuses."""
        ...

    def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        """Server-sent events as vLLM writes them: `data: {chunk}\\n\\n`, last `data: [DONE]\\n\\n`.

        A string holds one or more whole events. Raises like `complete`, before the first item. Closing the iterator
        stops the engine.
        """
        ...


ANY_LOG = ""
"""For methods that are about no log, or about many."""


class Run(Protocol):
    # What comes back has the type of the log's method.
    async def __call__(self, log_id: str, method: str, *arguments: object) -> Any:
        """Run this method of `ConversationLog`, in a process that is likely to have the log in memory."""
        ...


class Sessions:
    """The durable log of conversations and responses, wherever it runs. What a method has returned is committed.

    Each method is that of the same name of `conversation.log.ConversationLog`, which says what it does and raises.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.changed: set[str] = set()
        """Conversations that were added to through here, until whoever keeps their facts takes them out."""

    async def create_conversation(
        self,
        conversation_id: str,
        metadata: dict[str, str],
        items: tuple[Json, ...],
        expires_after_s: int | None = None,
    ) -> Conversation:
        answered: Conversation = await self._run(
            conversation_id, "create_conversation", conversation_id, metadata, items, expires_after_s
        )
        if items:
            self.changed.add(conversation_id)
        return answered

    async def list_conversations(self, page: PageQuery, metadata: dict[str, str]) -> Page:
        answered: Page = await self._run(ANY_LOG, "list_conversations", page, metadata)
        return answered

    async def get_conversation(self, conversation_id: str) -> Conversation:
        answered: Conversation = await self._run(conversation_id, "get_conversation", conversation_id)
        return answered

    async def update_conversation(self, conversation_id: str, changes: Json) -> Conversation:
        answered: Conversation = await self._run(conversation_id, "update_conversation", conversation_id, changes)
        return answered

    async def delete_conversation(self, conversation_id: str) -> None:
        await self._run(conversation_id, "delete_conversation", conversation_id)

    async def delete_expired(self, default_after_s: float | None) -> bool:
        answered: bool = await self._run(ANY_LOG, "delete_expired", default_after_s)
        return answered

    async def fork_conversation(self, fork: ForkConversation) -> Conversation:
        answered: Conversation = await self._run(fork.conversation_id, "fork_conversation", fork)
        return answered

    async def list_branches(self, conversation_id: str) -> Json:
        answered: Json = await self._run(conversation_id, "list_branches", conversation_id)
        return answered

    async def compare_conversations(self, conversation_id: str, other_id: str) -> Json:
        answered: Json = await self._run(conversation_id, "compare_conversations", conversation_id, other_id)
        return answered

    async def append_items(self, append: AppendItems) -> tuple[Json, ...]:
        answered: tuple[Json, ...] = await self._run(append.conversation_id, "append_items", append)
        self.changed.add(append.conversation_id)
        return answered

    async def list_items(self, conversation_id: str, page: PageQuery) -> Page:
        answered: Page = await self._run(conversation_id, "list_items", conversation_id, page)
        return answered

    async def export_items(self, conversation_id: str, after_seq: int, max_items: int) -> tuple[LoggedItem, ...]:
        answered: tuple[LoggedItem, ...] = await self._run(
            conversation_id, "export_items", conversation_id, after_seq, max_items
        )
        return answered

    async def search_items(self, search: ItemSearch) -> FoundItems:
        answered: FoundItems = await self._run(search.conversation_id or ANY_LOG, "search_items", search)
        return answered

    async def get_item(self, conversation_id: str, item_id: str) -> Json:
        answered: Json = await self._run(conversation_id, "get_item", conversation_id, item_id)
        return answered

    async def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        answered: Conversation = await self._run(conversation_id, "delete_item", conversation_id, item_id)
        return answered

    async def open_turn(self, turn: OpenTurn) -> OpenedTurn:
        if turn.is_alone:
            check_turn(turn)
            return OpenedTurn(Window(), log_id=None)
        answered: OpenedTurn = await self._run(turn.conversation_id or turn.response["id"], "open_turn", turn)
        return answered

    async def read_window(self, log_id: str, max_items: int) -> Window:
        answered: Window = await self._run(log_id, "read_window", log_id, max_items)
        return answered

    async def keep_summary(self, kept: KeepSummary) -> bool:
        answered: bool = await self._run(kept.summary.log_id, "keep_summary", kept)
        return answered

    async def close_turn(self, turn: CloseTurn) -> None:
        await self._run(turn.log_id, "close_turn", turn)
        if turn.log_id != turn.response["id"]:  # which is the log of a response that is in no conversation
            self.changed.add(turn.log_id)

    async def withdraw_turn(self, turn: WithdrawTurn) -> None:
        await self._run(turn.log_id, "withdraw_turn", turn)

    async def get_response(self, response_id: str) -> Json:
        answered: Json = await self._run(response_id, "get_response", response_id)
        return answered

    async def get_recorded(self, response_id: str) -> RecordedResponse:
        answered: RecordedResponse = await self._run(response_id, "get_recorded", response_id)
        return answered

    async def delete_response(self, response_id: str) -> None:
        await self._run(response_id, "delete_response", response_id)

    async def read_messages(self, conversation_id: str, encoder: str, version: int) -> RecentMessages:
        answered: RecentMessages = await self._run(conversation_id, "read_messages", conversation_id, encoder, version)
        return answered

    async def save_facts(self, facts: SaveFacts) -> None:
        await self._run(facts.conversation_id, "save_facts", facts)

    async def list_input_items(self, response_id: str, page: PageQuery) -> Page:
        answered: Page = await self._run(response_id, "list_input_items", response_id, page)
        return answered


class Replicas(Protocol):
    """All replicas of all deployments, this one too. A deployment that does not answer in time is a `Silence`."""

    async def vitals(self) -> Sequence[ReplicaVitals | Silence]: ...

    async def release(self, caches: Sequence[str]) -> Sequence[Released | Silence]:
        """Let go of these caches, wherever they are."""
        ...


class NoReplicas:
    """For who has none."""

    async def vitals(self) -> Sequence[ReplicaVitals | Silence]:
        return ()

    async def release(self, caches: Sequence[str]) -> Sequence[Released | Silence]:
        return ()


class Folds:
    """The folds under way in this process: one at a time for a session, few at once."""

    def __init__(self, max_at_once: int = 4) -> None:
        self._max_at_once = max_at_once
        self._sessions: set[str] = set()

    def begin(self, session_id: str) -> bool:
        """False if it is not to be begun now: the next turn will ask again."""
        if session_id in self._sessions or len(self._sessions) >= self._max_at_once:
            return False
        self._sessions.add(session_id)
        return True

    def end(self, session_id: str) -> None:
        self._sessions.discard(session_id)


async def _no_news() -> dict[str, Capacity]:
    return {}


@dataclass(frozen=True, slots=True)
class Parts:
    """All that answering a request needs, each behind its Protocol."""

    embedder: Embedder
    query_embedder: QueryEmbedder
    retriever: Retriever
    indexer: Indexer
    generator: Generator
    sessions: Sessions
    count_tokens: Callable[[str], int]
    """Tokens of a text as the model counts them: the one that requests get which name none, until `of` is asked."""
    tallies: Counter[Tally]
    """What `query_embedder` and `retriever` have counted, until it is added to the database."""
    reranker: Reranker | None = None
    """None if `retrieval.reranker` is not configured."""
    metrics: Metrics = NO_METRICS
    replicas: Replicas = field(default_factory=NoReplicas)
    folds: Folds = field(default_factory=Folds)
    admissions: Admissions = field(default_factory=Admissions)
    """The doors of the models, which `generator` asks."""
    read_capacities: Callable[[], Awaitable[Mapping[str, Capacity]]] = _no_news
    """What the models can have under way, by model id, all replicas together. One that does not answer is left out."""
    token_counters: Mapping[str, Callable[[str], int]] = field(default_factory=dict)
    """Of the further models, by their ids."""

    def of(self, model_id: str) -> "Parts":
        """The same for a request that names this model: `count_tokens` is that model's."""
        return replace(self, count_tokens=self.token_counters.get(model_id, self.count_tokens))
