"""Parts without Ray or a model. Each honours its Protocol, and can be told to stall or to fail."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import orjson

from serve_app.conversation.log import ConversationLog
from serve_app.counts import Counts
from serve_app.errors import Unavailable
from serve_app.generation.counted import CountedGenerator
from serve_app.knowledge.query_cache import CachedEmbedder
from serve_app.knowledge.statistics import CountedRetriever
from serve_app.metrics import CATALOGUE, Metric, Tally
from serve_app.parts import Parts, Sessions
from serve_app.types import FloatMatrix, Json
from serve_app.types.conversation import CloseTurn, OpenedTurn, OpenTurn, WithdrawTurn
from serve_app.types.generation import GenerationRequest
from serve_app.types.knowledge import (
    AttributeChange,
    Optimization,
    Passage,
    SearchQuery,
    StoreFileRef,
    StoreVersionRef,
    TableState,
)
from serve_app.vitals import Garbage, NodeMemory, Releasable, Released, ReplicaVitals, Silence, release

USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 8}}


class Journal:
    """What the parts were asked, in order, for tests that ask about order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def note(self, entry: str) -> None:
        self.entries.append(entry)


class FakeEmbedder:
    def __init__(self, journal: Journal | None = None) -> None:
        self.texts: list[str] = []
        self._journal = journal or Journal()

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        self._journal.note("embed")
        self.texts.extend(texts)
        return np.tile(np.array([1, 0], dtype=np.float32), (len(texts), 1))

    async def count_tokens(self, texts: Sequence[str], model: str | None = None) -> int:
        return sum(len(text.split()) for text in texts)


class FakeRetriever:
    """Finds the same passages for every question."""

    def __init__(self, passages: Sequence[Passage] = (), journal: Journal | None = None) -> None:
        self.passages = tuple(passages)
        self.queries: list[SearchQuery] = []
        self.failure: Exception | None = None
        self._journal = journal or Journal()

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        self._journal.note("search")
        self.queries.append(query)
        if self.failure:
            raise self.failure
        return self.passages[: query.max_results]


class FakeIndexer:
    async def wake(self) -> None: ...
    async def update_attributes(self, change: AttributeChange) -> None: ...
    async def remove_file(self, ref: StoreFileRef) -> None: ...
    async def drop_store(self, store_id: str) -> None: ...
    async def roll_back(self, ref: StoreVersionRef) -> int:
        return ref.version + 1

    async def optimize(self, store_id: str) -> Optimization:
        return Optimization()

    async def describe(self, store_id: str) -> TableState:
        return TableState()


class RecordedMetrics:
    """Remembers the figures by the metric's name and its labels' values; refuses what is not in the catalogue."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, ...], float] = {}
        self.values: dict[tuple[str, ...], float] = {}
        self.observed: dict[tuple[str, ...], list[float]] = {}

    def add(self, counter: Metric, amount: float = 1, **labels: str) -> None:
        key = self._key(counter, "counter", labels)
        self.totals[key] = self.totals.get(key, 0) + amount

    def set(self, gauge: Metric, value: float, **labels: str) -> None:
        self.values[self._key(gauge, "gauge", labels)] = value

    def observe(self, histogram: Metric, value: float, **labels: str) -> None:
        self.observed.setdefault(self._key(histogram, "histogram", labels), []).append(value)

    def _key(self, metric: Metric, kind: str, labels: dict[str, str]) -> tuple[str, ...]:
        assert metric in CATALOGUE
        assert metric.kind == kind
        return (metric.name, *(labels.pop(label) for label in metric.labels), *labels)


class FakeGenerator:
    """Writes `deltas` as vLLM does, one chunk each; then stalls or fails if told to, else finishes."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.deltas: list[str] = ["Hello", " there", "."]
        self.finish_reason: str | None = "stop"
        self.refusal: Exception | None = None
        """Raised before the first item."""
        self.failure: Exception | None = None
        """Raised after the deltas."""
        self.deaths: list[int] = []
        """The replica of each stream dies after so many deltas, as long as there are entries."""
        self.stalls = False
        """Never ends once the deltas are out."""
        self.requests: list[GenerationRequest] = []
        self.asked = threading.Event()
        self.asked_again = asyncio.Event()
        self.stalled = threading.Event()
        self.closed = threading.Event()
        """The iterator has been closed or has ended."""
        self._held: threading.Event | None = None
        self._journal = journal or Journal()

    async def complete(self, request: GenerationRequest) -> Json:
        self._begin(request)
        await self._end()
        message = {"role": "assistant", "content": "".join(self.deltas)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return {**_head("chat.completion", request.request_id), "choices": [choice], "usage": USAGE}

    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        self._begin(request)
        try:
            deltas, usage = self._rest(request)
            events = self.events(deltas, usage, request.payload.get("n") or 1, request.request_id)
            if self.deaths:
                for event in events[: 1 + self.deaths.pop(0)]:
                    yield event
                raise Unavailable("the replica has died")
            for number, event in enumerate(events[: 1 + len(deltas)]):
                if number == 2 and self._held:
                    await asyncio.to_thread(self._held.wait)
                yield event
            await self._end()
            # vLLM's last events often come together in one string.
            yield "".join(events[1 + len(deltas) :])
        finally:
            self._journal.note("generator closed")
            self.closed.set()

    def _rest(self, request: GenerationRequest) -> tuple[list[str], Json]:
        """What is left to write, and the usage, where the request brings the beginning of the answer along."""
        if not request.payload.get("continue_final_message"):
            return self.deltas, USAGE
        written = request.payload["messages"][-1]["content"]
        assert written == written.rstrip(), "a chat template would strip it"
        assert "".join(self.deltas).startswith(written)
        at, rest = 0, []
        for delta in self.deltas:
            at += len(delta)
            if at > len(written):
                rest.append(delta[-(at - len(written)) :])
        carried = count_words(written)
        usage = {"prompt_tokens": 11 + carried, "completion_tokens": 3 - carried, "total_tokens": 14}
        return rest, {**usage, "prompt_tokens_details": {"cached_tokens": 8}}

    def hold(self) -> threading.Event:
        """Answers wait after their first delta until this is set."""
        self._held = threading.Event()
        return self._held

    def events(
        self, deltas: Sequence[str] | None = None, usage: Json = USAGE, n: int = 1, request_id: str = "1"
    ) -> list[str]:
        """Of an answer in these deltas, or in all; of `n` alike."""
        first = [self._choice({"role": "assistant", "content": ""})]
        middle = [[self._choice({"content": delta})] for delta in (self.deltas if deltas is None else deltas)]
        last = [{**self._choice({}), "finish_reason": self.finish_reason}]
        choices = [[{**each[0], "index": index} for index in range(n)] for each in (first, *middle, last)]
        choices.append([])
        chunks = [{**_head("chat.completion.chunk", request_id), "choices": each} for each in choices]
        chunks[-1]["usage"] = usage
        return [f"data: {orjson.dumps(chunk).decode()}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]

    def _begin(self, request: GenerationRequest) -> None:
        self._journal.note("generate")
        self.requests.append(request)
        self.asked.set()
        if len(self.requests) > 1:
            self.asked_again.set()
        if self.refusal:
            raise self.refusal

    async def _end(self) -> None:
        if self.failure:
            raise self.failure
        if self.stalls:
            self.stalled.set()
            await asyncio.Event().wait()

    def _choice(self, delta: Json) -> Json:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}


def _head(kind: str, request_id: str) -> Json:
    return {"id": f"chatcmpl-{request_id}", "object": kind, "created": 1, "model": "smollm2-135m-instruct"}


class Hold:
    """A call that has been made and waits to be let go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.release = asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.release.wait()


class LocalSessions(Sessions):
    """The real log, its blocking methods on threads, as the sessions deployment runs it."""

    def __init__(self, log: ConversationLog, journal: Journal | None = None) -> None:
        super().__init__(self._run_here)
        self.failure: Exception | None = None
        """Raised instead of closing a turn."""
        self.closed = threading.Event()
        """A turn has been closed."""
        self._open_hold: Hold | None = None
        self._close_hold: Hold | None = None
        self._log = log
        self._journal = journal or Journal()

    def hold_open_turn(self) -> Hold:
        """The next question waits before it is committed."""
        self._open_hold = Hold()
        return self._open_hold

    def hold_close_turn(self) -> Hold:
        """The next answer waits before it is committed."""
        self._close_hold = Hold()
        return self._close_hold

    async def open_turn(self, turn: OpenTurn) -> OpenedTurn:
        if self._open_hold:
            await self._open_hold.wait()
        opened = await super().open_turn(turn)
        self._journal.note("question committed")
        return opened

    async def close_turn(self, turn: CloseTurn) -> None:
        if self.failure:
            raise self.failure
        if self._close_hold:
            await self._close_hold.wait()
        await super().close_turn(turn)
        self._journal.note(f"answer committed as {turn.response['status']}")
        self.closed.set()

    async def withdraw_turn(self, turn: WithdrawTurn) -> None:
        await super().withdraw_turn(turn)
        self._journal.note("question withdrawn")

    # What comes back has the type of the log's method.
    async def _run_here(self, log_id: str, method: str, *arguments: object) -> Any:
        return await asyncio.to_thread(getattr(self._log, method), *arguments)


class FakeReplicas:
    """One gateway, with what is really counted and kept here; and whatever else a test puts beside it."""

    def __init__(self, counts: Counts, caches: Sequence[Releasable]) -> None:
        self.others: list[ReplicaVitals | Silence] = []
        self._counts = counts
        self._caches = caches

    async def vitals(self) -> Sequence[ReplicaVitals | Silence]:
        gateway = ReplicaVitals(
            deployment="Gateway",
            replica="gateway_1",
            node="node_1",
            pid=17,
            started_at=1_700_000_000.5,
            rss_bytes=100,
            node_memory=NodeMemory(total_bytes=1000, used_bytes=400),
            gpu=None,
            caches={cache.name: cache.size() for cache in self._caches},
            counted=self._counts.read(),
        )
        return [gateway, *self.others]

    async def release(self, caches: Sequence[str]) -> Sequence[Released | Silence]:
        done = await release(cache for cache in self._caches if cache.name in caches)
        silent = [each for each in self.others if isinstance(each, Silence)]
        return [Released("Gateway", "gateway_1", "node_1", 100, 90, done), *silent]


class FakeParts:
    """All parts, sharing one journal. `parts` is what the app is given."""

    def __init__(
        self, log: ConversationLog, passages: Sequence[Passage] = (), generator: FakeGenerator | None = None
    ) -> None:
        self.log = log
        self.journal = Journal()
        self.embedder = FakeEmbedder(self.journal)
        self.retriever = FakeRetriever(passages, self.journal)
        self.generator = generator or FakeGenerator(self.journal)
        self.sessions = LocalSessions(log, self.journal)
        tallies, counts = Counter[Tally](), Counts()
        query_embedder = CachedEmbedder(self.embedder, 100, tallies)
        self.replicas = FakeReplicas(counts, [query_embedder, Garbage()])
        self.parts = Parts(
            embedder=self.embedder,
            query_embedder=query_embedder,
            retriever=CountedRetriever(self.retriever, tallies),
            indexer=FakeIndexer(),
            generator=CountedGenerator(self.generator, counts),
            sessions=self.sessions,
            count_tokens=count_words,
            tallies=tallies,
            replicas=self.replicas,
        )


def count_words(text: str) -> int:
    return len(text.split())


def build_passage(number: int, text: str, filename: str | None = None, **attributes: str | float | bool) -> Passage:
    return Passage(
        passage_id=f"passage_{number}",
        store_id="vs_1",
        file_id=f"file_{number}",
        filename=filename or f"{number}.txt",
        text=text,
        score=1 - number / 100,
        start=0,
        attributes=attributes,
        key=filename or f"{number}.txt",
    )
