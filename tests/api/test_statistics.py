from pathlib import Path
from typing import Any

import openai
import pytest

from serve_app.api import statistics as route
from serve_app.errors import Unavailable
from serve_app.knowledge.statistics import load_statistics
from serve_app.storage.database import Database
from serve_app.types import Json
from tests.api.conftest import Api, running_api
from tests.served.application import wait_until


def statistics(api: Api, store_id: str) -> Json:
    shown: Json = api.openai.get(f"/vector_stores/{store_id}/statistics", cast_to=dict[str, Any])
    return shown


def search(api: Api, store_id: str, query: str, **options: Any) -> None:
    api.openai.vector_stores.search(store_id, query=query, **options)


def test_a_fresh_store_has_its_table_and_no_searches(api: Api) -> None:
    store = api.openai.vector_stores.create()

    assert statistics(api, store.id) == {
        "object": "vector_store.statistics",
        "vector_store_id": store.id,
        "documents": 0,
        "passages": 12,
        "versions": 0,
        "size_bytes": 45_000,
        "index": {
            "fragments": 3,
            "vector": {"kind": None, "indexed_rows": 0, "unindexed_rows": 12},
            "text": {"kind": "FTS", "indexed_rows": 10, "unindexed_rows": 2},
        },
        "searches": {"count": 0, "failed": 0, "mean_ms": None, "p50_ms": None, "p95_ms": None, "p99_ms": None},
        "query_cache": {"hits": 0, "misses": 0},
    }


def test_searches_count_at_once_for_who_asks_the_same_gateway(api: Api) -> None:
    store, other = api.openai.vector_stores.create(), api.openai.vector_stores.create()
    for query in ("ferry", "ferry", "lighthouse"):
        search(api, store.id, query)
    search(api, store.id, "ferry", ranking_options={"hybrid_search": {"embedding_weight": 0, "text_weight": 1}})
    api.retriever.answers["broken"] = Unavailable("no index")
    with pytest.raises(openai.InternalServerError):
        search(api, store.id, "broken")

    shown = statistics(api, store.id)

    assert (shown["searches"]["count"], shown["searches"]["failed"]) == (4, 1)
    assert 0 < shown["searches"]["p50_ms"] <= shown["searches"]["p95_ms"] <= shown["searches"]["p99_ms"]
    assert shown["query_cache"] == {"hits": 1, "misses": 3}
    assert statistics(api, other.id)["searches"]["count"] == 0


def test_embeddings_for_clients_go_round_the_cache(api: Api) -> None:
    store = api.openai.vector_stores.create()
    search(api, store.id, "ferry")
    for _ in range(2):
        api.openai.embeddings.create(model="all-minilm-l6-v2", input="ferry")

    assert api.embedder.calls == [["ferry"]] * 3
    assert statistics(api, store.id)["query_cache"] == {"hits": 0, "misses": 1}


def test_what_was_counted_survives_the_gateway(tmp_path: Path) -> None:
    with running_api(tmp_path) as api:
        store = api.openai.vector_stores.create()
        search(api, store.id, "ferry")
    with running_api(tmp_path) as api:
        search(api, store.id, "ferry")

        shown = statistics(api, store.id)

    assert shown["searches"]["count"] == 2
    assert shown["query_cache"] == {"hits": 0, "misses": 2}


def test_counts_are_saved_while_the_gateway_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_SAVE_EVERY_S", 0.01)
    with running_api(tmp_path) as api:
        store = api.openai.vector_stores.create()
        search(api, store.id, "ferry")

        wait_until(lambda: load_statistics(api.database, store.id).searches.count == 1, 30, "the search is saved")


def test_a_database_that_does_not_answer_costs_no_counts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    store = api.openai.vector_stores.create()
    search(api, store.id, "ferry")

    def refuse(database: Database, tallies: object) -> None:
        raise Unavailable("The database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(route, "add_tallies", refuse)
        assert statistics(api, store.id)["searches"]["count"] == 0
    search(api, store.id, "ferry")

    assert statistics(api, store.id)["searches"]["count"] == 2
