"""What an operator can watch: the catalogue of metrics, and `Metrics`, which is told the figures.

Labels have few values. One for each store would have no bound, so what became of a single store's searches is counted
in `Tally`s instead, which the gateways add to the database (see `knowledge/statistics.py`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

_SEARCH_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_WAIT_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MAINTENANCE_BUCKETS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    """What, and in which unit. A counter only grows, as long as its process lives."""
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Of a histogram's buckets."""


SEARCH_SECONDS = Metric(
    "rayconteur_search_seconds",
    "histogram",
    "One search of one store as the gateway sees it, without the embedding of the query. Failed ones are not in it",
    ("mode",),
    _SEARCH_BUCKETS_S,
)
SEARCH_FAILURES = Metric(
    "rayconteur_search_failures", "counter", "Searches of one store that ended with an error", ("error",)
)
QUERY_CACHE_HITS = Metric("rayconteur_query_cache_hits", "counter", "Queries whose vector a gateway had or awaited")
QUERY_CACHE_MISSES = Metric("rayconteur_query_cache_misses", "counter", "Queries that a gateway had embedded")
INGESTED_FILES = Metric("rayconteur_ingested_files", "counter", "Files that were read, split, encoded and written")
INGESTED_PASSAGES = Metric("rayconteur_ingested_passages", "counter", "Their passages")
INGESTION_FAILURES = Metric("rayconteur_ingestion_failures", "counter", "Files that could not be ingested", ("code",))
INGESTION_QUEUE_FILES = Metric(
    "rayconteur_ingestion_queue_files", "gauge", "Files that wait for their ingestion, or are in it"
)
INGESTION_OLDEST_SECONDS = Metric(
    "rayconteur_ingestion_oldest_seconds", "gauge", "For how long the oldest of them has waited; 0 if there is none"
)
UNINDEXED_ROWS = Metric(
    "rayconteur_unindexed_rows",
    "gauge",
    "Passages that an index does not hold yet, in the store that has most of them",
    ("index",),
)
MAINTENANCE_SECONDS = Metric(
    "rayconteur_maintenance_seconds",
    "histogram",
    "One round of indexing, merging and cleaning up a store",
    ("trigger",),
    _MAINTENANCE_BUCKETS_S,
)

SUMMARIES = Metric(
    "rayconteur_summaries", "counter", "Summaries of conversations that were stored, by who wrote them", ("writer",)
)
SUMMARY_REFUSALS = Metric(
    "rayconteur_summary_refusals", "counter", "Summaries of the model that were not taken", ("reason",)
)
SUMMARY_SECONDS = Metric(
    "rayconteur_summary_seconds",
    "histogram",
    "One fold in the background, from reading the window until the summary is stored",
    (),
    _MAINTENANCE_BUCKETS_S,
)

GENERATIONS = Metric("rayconteur_generations", "counter", "Answers that a model was asked for", ("model",))
GENERATION_FAILURES = Metric(
    "rayconteur_generation_failures", "counter", "Answers that ended with an error", ("model", "error")
)
FIRST_TOKEN_SECONDS = Metric(
    "rayconteur_first_token_seconds",
    "histogram",
    "From asking a model for a streamed answer until its first token is in the gateway",
    ("model",),
    _TOKEN_BUCKETS_S,
)
BETWEEN_TOKENS_SECONDS = Metric(
    "rayconteur_between_tokens_seconds",
    "histogram",
    "Between two tokens of a streamed answer as the gateway sees them: one mean for each answer",
    ("model",),
    _TOKEN_BUCKETS_S,
)

REPLICA_MEMORY_BYTES = Metric(
    "rayconteur_replica_memory_bytes", "gauge", "RSS of a replica, and of the processes that it has started"
)
GPU_MEMORY_BYTES = Metric(
    "rayconteur_gpu_memory_bytes", "gauge", "Memory that a replica has allocated on its GPUs", ("kind",)
)
CACHE_BYTES = Metric("rayconteur_cache_bytes", "gauge", "What a replica's cache takes", ("cache",))
CACHE_ENTRIES = Metric("rayconteur_cache_entries", "gauge", "What a replica's cache holds", ("cache",))
RESPONSE_CACHE_REQUESTS = Metric(
    "rayconteur_response_cache_requests",
    "counter",
    "Answers that may come from the response cache, by whether they did",
    ("outcome",),
)
SAVED_TOKENS = Metric(
    "rayconteur_response_cache_saved_tokens", "counter", "Tokens of answers that were not generated again"
)
SEARCH_CACHE_REQUESTS = Metric(
    "rayconteur_search_cache_requests",
    "counter",
    "Searches of one store that may come from the response cache, by whether they did",
    ("outcome",),
)
ADMITTED = Metric("rayconteur_admitted", "counter", "Requests that were given to a model", ("model", "tier"))
REFUSED = Metric("rayconteur_refused", "counter", "Requests that were answered with a 429", ("model", "tier", "reason"))
ADMISSION_WAIT_SECONDS = Metric(
    "rayconteur_admission_wait_seconds",
    "histogram",
    "How long the admitted requests had waited for that, mostly not at all",
    ("model", "tier"),
    _WAIT_BUCKETS_S,
)
WAITING = Metric("rayconteur_waiting", "gauge", "Requests that wait for a place in a model", ("model", "tier"))
IN_FLIGHT = Metric("rayconteur_in_flight", "gauge", "Answers that a model is writing for this gateway", ("model",))
IN_FLIGHT_TOKENS = Metric(
    "rayconteur_in_flight_tokens", "gauge", "Tokens of the cache that they will take, as is expected", ("model",)
)

CATALOGUE = (
    SEARCH_SECONDS,
    SEARCH_FAILURES,
    QUERY_CACHE_HITS,
    QUERY_CACHE_MISSES,
    INGESTED_FILES,
    INGESTED_PASSAGES,
    INGESTION_FAILURES,
    INGESTION_QUEUE_FILES,
    INGESTION_OLDEST_SECONDS,
    UNINDEXED_ROWS,
    MAINTENANCE_SECONDS,
    SUMMARIES,
    SUMMARY_REFUSALS,
    SUMMARY_SECONDS,
    GENERATIONS,
    GENERATION_FAILURES,
    FIRST_TOKEN_SECONDS,
    BETWEEN_TOKENS_SECONDS,
    REPLICA_MEMORY_BYTES,
    GPU_MEMORY_BYTES,
    CACHE_BYTES,
    CACHE_ENTRIES,
    RESPONSE_CACHE_REQUESTS,
    SAVED_TOKENS,
    SEARCH_CACHE_REQUESTS,
    ADMITTED,
    REFUSED,
    ADMISSION_WAIT_SECONDS,
    WAITING,
    IN_FLIGHT,
    IN_FLIGHT_TOKENS,
)


class Metrics(Protocol):
    """Takes the figures; from any thread, in microseconds. Every label of a metric is given a value each time."""

    def add(self, counter: Metric, amount: float = 1, **labels: str) -> None:
        """0 is allowed, and adds nothing."""
        ...

    def set(self, gauge: Metric, value: float, **labels: str) -> None: ...
    def observe(self, histogram: Metric, value: float, **labels: str) -> None: ...


class NoMetrics:
    """For who does not ask."""

    def add(self, counter: Metric, amount: float = 1, **labels: str) -> None: ...
    def set(self, gauge: Metric, value: float, **labels: str) -> None: ...
    def observe(self, histogram: Metric, value: float, **labels: str) -> None: ...


NO_METRICS = NoMetrics()


@contextmanager
def timed(metrics: Metrics, histogram: Metric, **labels: str) -> Iterator[None]:
    """Observe the seconds that the block takes, unless it raises."""
    began = time.perf_counter()
    yield
    metrics.observe(histogram, time.perf_counter() - began, **labels)


@dataclass(frozen=True, slots=True)
class Tally:
    """What is counted of one store's searches."""

    store_id: str
    kind: Literal["search", "failed_search", "query_cache_hit", "query_cache_miss"]
    bucket: int = 0
    """Of a search: which of the logarithmic buckets of time it fell into. Else 0."""
