"""`/v1/stats` and `/v1/admin/memory/release` over HTTP: what the replicas say, put together."""

from collections import Counter
from collections.abc import Iterator

import pytest

from serve_app.counts import Count, Counted, bucket_of
from serve_app.errors import Unavailable
from serve_app.types import Json
from serve_app.vitals import CacheSize, EngineVitals, GpuMemory, NodeMemory, ReplicaVitals, Silence
from tests.api.chat_app import MODEL, ChatApp, running_chat

HI = {"messages": [{"role": "user", "content": "Hi"}]}
NONE = {"count": 0, "mean_ms": None, "p50_ms": None, "p95_ms": None, "p99_ms": None}
GENERATOR = ReplicaVitals(
    deployment="Generator",
    replica="generator_1",
    node="node_2",
    pid=18,
    started_at=1_700_000_001.0,
    rss_bytes=300,
    node_memory=NodeMemory(total_bytes=2000, used_bytes=500),
    gpu=GpuMemory(allocated_bytes=70, peak_bytes=90),
    caches={"prefix": CacheSize(), "index": CacheSize(2, 50)},
    engine=EngineVitals(MODEL, 3, 1, 0.25, 8000, prefix_cache_queries=300, prefix_cache_hits=100),
    counted=Counted(
        since_start=Counter({Count(MODEL, "output_token"): 900, Count(MODEL, "queue", bucket_of(0.1)): 2}),
        last_minute=Counter({Count(MODEL, "output_token"): 90}),
        minute_s=60.0,
    ),
)


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("stats")) as app:
        yield app


def stats(app: ChatApp) -> Json:
    answer = app.http.get("/v1/stats")
    answer.raise_for_status()
    shown: Json = answer.json()
    return shown


def test_every_replica_says_what_it_takes_and_keeps(app: ChatApp) -> None:
    app.fakes.replicas.others = [GENERATOR, Silence("Retriever", "not within 5 s")]

    shown = stats(app)

    assert [each["deployment"] for each in shown["replicas"]] == ["Gateway", "Generator"]
    assert shown["replicas"][1] == {
        "deployment": "Generator",
        "replica": "generator_1",
        "node": "node_2",
        "pid": 18,
        "started_at": 1_700_000_001,
        "rss_bytes": 300,
        "gpu_allocated_bytes": 70,
        "gpu_peak_bytes": 90,
        "caches": {"index": {"entries": 2, "bytes": 50}},
        "engine": {
            "model": MODEL,
            "running": 3,
            "waiting": 1,
            "kv_cache_usage": 0.25,
            "kv_cache_tokens": 8000,
            "prefix_cache_hit_rate": 0.3333,
        },
    }
    assert shown["silent"] == [{"deployment": "Retriever", "message": "not within 5 s"}]


def test_nodes_add_up_what_is_on_them(app: ChatApp) -> None:
    app.fakes.replicas.others = [GENERATOR, GENERATOR]

    assert stats(app)["nodes"] == [
        {
            "node": "node_1",
            "memory_total_bytes": 1000,
            "memory_used_bytes": 400,
            "rss_bytes": 100,
            "gpu_allocated_bytes": None,
        },
        {
            "node": "node_2",
            "memory_total_bytes": 2000,
            "memory_used_bytes": 500,
            "rss_bytes": 600,
            "gpu_allocated_bytes": 140,
        },
    ]


def test_a_model_that_nobody_has_asked_has_no_times(app: ChatApp) -> None:
    (model,) = stats(app)["models"]

    nothing = {"requests": 0, "cancelled": 0, "errors": {}, "output_tokens": 0}
    since_start = {**nothing, "first_token": NONE, "between_tokens": NONE, "queue": NONE}
    assert model == {
        "model": MODEL,
        "last_minute": {**since_start, "output_tokens_per_s": 0.0},
        "since_start": since_start,
    }


def test_answers_count_and_what_engines_say_is_added(app: ChatApp) -> None:
    app.fakes.replicas.others = [GENERATOR, GENERATOR]
    with app.openai.responses.create(model=MODEL, input="Hi", stream=True) as stream:
        assert list(stream)
    app.http.post("/v1/chat/completions", json=HI).raise_for_status()
    app.fakes.generator.refusal = Unavailable("restarting")
    assert app.http.post("/v1/chat/completions", json=HI).status_code == 503

    (model,) = stats(app)["models"]

    assert (model["since_start"]["requests"], model["since_start"]["errors"]) == (3, {"Unavailable": 1})
    assert model["since_start"]["first_token"]["count"] == 1
    assert model["since_start"]["between_tokens"]["p50_ms"] is not None
    assert model["last_minute"]["first_token"] == model["since_start"]["first_token"]
    assert model["since_start"]["queue"] == {
        "count": 4,
        "mean_ms": pytest.approx(100, rel=0.03),
        "p50_ms": pytest.approx(100, rel=0.03),
        "p95_ms": pytest.approx(100, rel=0.03),
        "p99_ms": pytest.approx(100, rel=0.03),
    }
    assert model["since_start"]["output_tokens"] == 1800
    assert model["last_minute"]["output_tokens_per_s"] == 3.0


def release(app: ChatApp, body: Json | None = None) -> Json:
    answer = app.http.post("/v1/admin/memory/release", json=body)
    answer.raise_for_status()
    released: Json = answer.json()
    return released


def search(app: ChatApp) -> None:
    app.openai.vector_stores.search(app.store_id, query="ferry")


def test_a_release_drops_what_was_kept_and_says_so(app: ChatApp) -> None:
    app.fakes.replicas.others = [Silence("Retriever", "not within 30 s")]
    search(app)

    released = release(app)
    again = release(app)
    search(app)

    assert released == {
        "object": "memory.release",
        "freed_bytes": 10,
        "replicas": [
            {
                "deployment": "Gateway",
                "replica": "gateway_1",
                "node": "node_1",
                "rss_bytes_before": 100,
                "rss_bytes_after": 90,
                "caches": {
                    "query_vectors": {"released": True, "entries": 1, "bytes": 8},
                    "garbage": {"released": True, "entries": None, "bytes": None},
                },
            }
        ],
        "silent": [{"deployment": "Retriever", "message": "not within 30 s"}],
    }
    assert again["replicas"][0]["caches"]["query_vectors"]["entries"] == 0
    assert app.fakes.embedder.texts == ["ferry", "ferry"]


def test_only_the_caches_that_are_named_are_released(app: ChatApp) -> None:
    search(app)

    released = release(app, {"caches": ["garbage"]})
    search(app)

    assert list(released["replicas"][0]["caches"]) == ["garbage"]
    assert app.fakes.embedder.texts == ["ferry"]


def test_a_cache_that_is_none_is_a_400(app: ChatApp) -> None:
    answer = app.http.post("/v1/admin/memory/release", json={"caches": ["pagefile"]})

    assert answer.status_code == 400
    assert "query_vectors" in answer.json()["error"]["message"]
