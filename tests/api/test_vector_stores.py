import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import VectorStore, VectorStoreDeleted, VectorStoreSearchResponse
from openai.types.vector_stores import VectorStoreFile, VectorStoreFileBatch, VectorStoreFileDeleted
from sqlalchemy import update

from serve_app.errors import InvalidRequest, Unavailable
from serve_app.knowledge import catalog, parse
from serve_app.storage.schema import vector_store_files, vector_stores
from serve_app.types.knowledge import Comparison, Compound, Passage, Ranking, StoreFileRef
from tests.api.conftest import Api
from tests.api.parts import DIMENSIONS
from tests.api.test_app import error_of
from tests.served.application import wait_until


def finish(api: Api, file_id: str, status: str = "completed", **columns: Any) -> None:
    """What the indexer would write into every store that has the file."""
    with api.database.write() as connection:
        connection.execute(
            update(vector_store_files)
            .where(vector_store_files.c.file_id == file_id)
            .values(status=status, usage_bytes=100, **columns)
        )


def set_store(api: Api, **columns: Any) -> None:
    with api.database.write() as connection:
        connection.execute(update(vector_stores).values(columns))


def passage(store_id: str, number: int, score: float) -> Passage:
    return Passage(
        passage_id=f"p{number}",
        store_id=store_id,
        file_id="file_a",
        filename="a.txt",
        text=f"text {number}",
        score=score,
        start=0,
        attributes={"year": 2024.0},
    )


# Stores


def test_a_store_is_made_changed_and_deleted(api: Api) -> None:
    store = api.openai.vector_stores.create(name="docs", metadata={"team": "a"})

    VectorStore.model_validate(store.model_dump(), strict=True)
    assert (store.name, store.status, store.metadata, store.expires_at) == ("docs", "completed", {"team": "a"}, None)
    assert store.file_counts.total == 0
    assert api.openai.vector_stores.retrieve(store.id) == store

    changed = api.openai.vector_stores.update(
        store.id, name="papers", expires_after={"anchor": "last_active_at", "days": 2}
    )
    assert (changed.name, changed.metadata) == ("papers", {"team": "a"})
    assert changed.last_active_at is not None
    assert changed.expires_at == changed.last_active_at + 2 * 86_400
    assert api.openai.vector_stores.update(store.id, expires_after=None, metadata=None).expires_at is None

    deleted = api.openai.vector_stores.delete(store.id)

    VectorStoreDeleted.model_validate(deleted.model_dump(), strict=True)
    assert api.indexer.told == [store.id]
    with pytest.raises(openai.NotFoundError):
        api.openai.vector_stores.retrieve(store.id)


def test_a_store_counts_its_files_by_status(api: Api) -> None:
    done, failed, waiting = (api.upload(f"{name}.txt") for name in "abc")
    store = api.openai.vector_stores.create(file_ids=[done, failed, waiting, waiting])
    assert store.status == "in_progress"
    finish(api, done)
    finish(api, failed, "failed", error_code="invalid_file", error_message="no text in it")

    store = api.openai.vector_stores.retrieve(store.id)

    assert store.file_counts.model_dump() == {
        "completed": 1,
        "failed": 1,
        "in_progress": 1,
        "cancelled": 0,
        "total": 3,
    }
    assert (store.status, store.usage_bytes) == ("in_progress", 200)
    assert api.openai.vector_stores.list().data == [store]
    finish(api, waiting)
    assert api.openai.vector_stores.retrieve(store.id).status == "completed"
    assert "wake" in api.indexer.told


def test_stores_page_through_the_client(api: Api) -> None:
    ids = {api.openai.vector_stores.create(name=str(number)).id for number in range(5)}

    listed = [store.id for store in api.openai.vector_stores.list(limit=2)]

    assert set(listed) == ids
    page = api.openai.vector_stores.list(limit=2, before=listed[3])
    assert [store.id for store in page.data] == listed[1:3]
    assert page.has_more


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"chunking_strategy": {"type": "clever"}}, "chunking_strategy"),
        ({"chunking_strategy": {}}, "chunking_strategy"),
        ({"chunking_strategy": {"type": "static"}}, "chunking_strategy.static"),
        (
            {"chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 99}}},
            "chunking_strategy.static.max_chunk_size_tokens",
        ),
        (
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 101},
                }
            },
            "chunking_strategy.static",
        ),
        ({"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days"),
        ({"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
        ({"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
        ({"expires_after": {"days": 1}}, "expires_after.anchor"),
        ({"file_ids": ["file_x"] * 501}, "file_ids"),
        ({"metadata": {str(number): "a" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"name": "a" * 513}, "name"),
    ],
)
def test_bad_stores_are_refused_and_not_made(shared_api: Api, body: dict[str, object], param: str) -> None:
    assert error_of(shared_api.http.post("/v1/vector_stores", json=body), 400)["param"] == param
    assert shared_api.openai.vector_stores.list().data == []


def test_an_unknown_file_is_named_and_nothing_is_half_written(api: Api) -> None:
    known = api.upload()
    with pytest.raises(openai.NotFoundError, match="file_unknown"):
        api.openai.vector_stores.create(file_ids=[known, "file_unknown"])
    assert api.openai.vector_stores.list().data == []

    store = api.openai.vector_stores.create()
    with pytest.raises(openai.NotFoundError, match="file_unknown"):
        api.openai.vector_stores.file_batches.create(store.id, file_ids=[known, "file_unknown"])
    assert api.openai.vector_stores.files.list(store.id).data == []


def test_a_store_delete_that_fails_halfway_can_be_made_again(api: Api) -> None:
    store = api.openai.vector_stores.create(file_ids=[api.upload()])
    api.indexer.error = Unavailable("The indexer is down")
    with pytest.raises(openai.APIStatusError):
        api.openai.vector_stores.delete(store.id)

    api.indexer.error = None
    assert api.openai.vector_stores.delete(store.id).deleted


def test_progress_says_how_long_ingestion_will_still_take(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(catalog, "time", SimpleNamespace(time=lambda: now))
    done, one, two = (api.upload(f"{name}.txt") for name in "abc")
    store = api.openai.vector_stores.create(file_ids=[done, one, two])

    def progress() -> Any:
        return api.openai.vector_stores.retrieve(store.id).to_dict()["progress"]

    assert progress() == {"files_left": 3, "files_per_second": 0.0, "seconds_left": None}
    finish(api, done, completed_at=now - 10)
    assert progress() == {"files_left": 2, "files_per_second": 0.1, "seconds_left": 20}
    finish(api, one)
    finish(api, two)
    assert progress() is None


# Files in a store


def test_a_file_is_added_described_and_removed(api: Api) -> None:
    file_id = api.upload(content=b"Paris is in France.")
    store = api.openai.vector_stores.create()

    added = api.openai.vector_stores.files.create(
        store.id, file_id=file_id, attributes={"year": 2024, "draft": False, "by": "me"}
    )

    VectorStoreFile.model_validate(added.model_dump(), strict=True)
    assert (added.id, added.status, added.vector_store_id) == (file_id, "in_progress", store.id)
    assert added.attributes == {"year": 2024, "draft": False, "by": "me"}
    assert added.attributes["draft"] is False

    changed = api.openai.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"year": 2025})
    assert changed.attributes == {"year": 2025}
    assert StoreFileRef(store.id, file_id) in api.indexer.told

    finish(api, file_id)
    content = api.openai.vector_stores.files.content(file_id, vector_store_id=store.id)
    assert [part.text for part in content] == ["Paris is in France."]

    deleted = api.openai.vector_stores.files.delete(file_id, vector_store_id=store.id)
    VectorStoreFileDeleted.model_validate(deleted.model_dump(), strict=True)
    assert StoreFileRef(store.id, file_id) in api.indexer.told
    with pytest.raises(openai.NotFoundError):
        api.openai.vector_stores.files.retrieve(file_id, vector_store_id=store.id)
    assert api.openai.files.retrieve(file_id).id == file_id


@pytest.mark.parametrize("status", ["in_progress", "failed", "cancelled"])
def test_a_file_that_was_not_indexed_is_not_parsed_for_its_content(
    api: Api, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = api.upload()
    store = api.openai.vector_stores.create(file_ids=[file_id])
    finish(api, file_id, status)
    parsed: list[object] = []
    monkeypatch.setattr(parse, "extract_text", lambda *given: parsed.append(given))

    answer = api.http.get(f"/v1/vector_stores/{store.id}/files/{file_id}/content")

    assert f"is '{status}'" in error_of(answer, 409)["message"]
    assert parsed == []


def test_files_that_are_parsed_for_their_content_hold_up_no_other_request(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = api.upload()
    store = api.openai.vector_stores.create(file_ids=[file_id])
    finish(api, file_id)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def extract_text(*_given: object) -> str:
        begun.release()
        assert go_on.wait(60)
        return "read"

    monkeypatch.setattr(parse, "extract_text", extract_text)
    url = f"{api.url}/v1/vector_stores/{store.id}/files/{file_id}/content"
    with ThreadPoolExecutor(40) as clients:
        contents = [clients.submit(httpx.get, url, timeout=60) for _ in range(40)]  # as many as there are threads
        try:
            assert begun.acquire(timeout=30)
            assert begun.acquire(timeout=30)
            wait_until(lambda: api.context.parsers.statistics().tasks_waiting == 38, 30, "all have come")
            assert api.http.get(f"/v1/files/{file_id}").status_code == 200
        finally:
            go_on.set()

    assert [content.result().json()["data"][0]["text"] for content in contents] == ["read"] * 40


def test_adding_a_file_again_changes_nothing_unless_it_failed(api: Api) -> None:
    file_id = api.upload()
    store = api.openai.vector_stores.create()
    first = api.openai.vector_stores.files.create(store.id, file_id=file_id, attributes={"n": 1})

    assert api.openai.vector_stores.files.create(store.id, file_id=file_id, attributes={"n": 2}) == first
    finish(api, file_id)
    assert api.openai.vector_stores.files.create(store.id, file_id=file_id).status == "completed"
    finish(api, file_id, "failed", error_code="server_error", error_message="killed", attempts=3)
    failed = api.openai.vector_stores.files.retrieve(file_id, vector_store_id=store.id)
    VectorStoreFile.model_validate(failed.model_dump(), strict=True)
    assert failed.last_error is not None
    assert failed.last_error.code == "server_error"

    again = api.openai.vector_stores.files.create(store.id, file_id=file_id, attributes={"n": 3})

    assert (again.status, again.last_error, again.attributes) == ("in_progress", None, {"n": 3})


def test_files_are_queued_even_if_the_indexer_is_away(api: Api) -> None:
    api.indexer.error = Unavailable("The indexer is down")
    store = api.openai.vector_stores.create()

    assert api.openai.vector_stores.files.create(store.id, file_id=api.upload()).status == "in_progress"


def test_a_files_chunking_strategy_is_its_own_else_the_stores_else_auto(api: Api) -> None:
    def add(store: VectorStore, **strategy: Any) -> dict[str, Any]:
        added = api.openai.vector_stores.files.create(store.id, file_id=api.upload(), **strategy)
        assert added.chunking_strategy is not None
        VectorStoreFile.model_validate(added.model_dump(), strict=True)
        return added.chunking_strategy.model_dump()

    def static(tokens: int) -> dict[str, Any]:
        return {"type": "static", "static": {"max_chunk_size_tokens": tokens, "chunk_overlap_tokens": 50}}

    response = api.http.post("/v1/vector_stores", json={"chunking_strategy": static(200)})
    with_strategy = VectorStore.model_validate(response.json())

    assert add(with_strategy, chunking_strategy=static(300))["static"]["max_chunk_size_tokens"] == 300
    assert add(with_strategy)["static"]["max_chunk_size_tokens"] == 200
    assert add(api.openai.vector_stores.create())["type"] == "other"


def test_files_are_listed_by_status(api: Api) -> None:
    done, waiting = api.upload("a.txt"), api.upload("b.txt")
    store = api.openai.vector_stores.create(file_ids=[done, waiting])
    finish(api, done)

    listed = api.openai.vector_stores.files.list(store.id, filter="completed")

    assert [file.id for file in listed] == [done]
    assert {file.id for file in api.openai.vector_stores.files.list(store.id, limit=1)} == {done, waiting}
    # A place in the list stays one when its file is not in the narrowed list.
    assert list(api.openai.vector_stores.files.list(store.id, filter="failed", after=waiting)) == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "", {}),
        ("DELETE", "", None),
        ("GET", "/files", None),
        ("POST", "/files", {"file_id": "file_x"}),
        ("GET", "/files/file_x", None),
        ("POST", "/files/file_x", {"attributes": {}}),
        ("DELETE", "/files/file_x", None),
        ("GET", "/files/file_x/content", None),
        ("POST", "/file_batches", {"file_ids": ["file_x"]}),
        ("GET", "/file_batches/b", None),
        ("POST", "/file_batches/b/cancel", None),
        ("GET", "/file_batches/b/files", None),
        ("POST", "/search", {"query": "a"}),
        ("POST", "/optimize", None),
        ("GET", "/statistics", None),
    ],
)
def test_an_unknown_store_is_not_found_wherever_it_is_named(
    shared_api: Api, method: str, path: str, body: object
) -> None:
    answer = shared_api.http.request(method, f"/v1/vector_stores/vs_x{path}", json=body)

    assert "vs_x" in error_of(answer, 404)["message"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"a": None},
        {"a": ["b"]},
        {"a": {"b": 1}},
        {"a": "b" * 513},
        {"a" * 65: 1},
        {str(number): 1 for number in range(17)},
        "none",
    ],
)
def test_bad_attributes_are_refused(shared_api: Api, attributes: object) -> None:
    body = {"file_id": "file_x", "attributes": attributes}

    error = error_of(shared_api.http.post("/v1/vector_stores/vs_x/files", json=body), 400)

    assert error["param"].startswith("attributes")


# Batches


def test_a_batch_is_made_counted_and_cancelled(api: Api) -> None:
    done, waiting = api.upload("a.txt"), api.upload("b.txt")
    store = api.openai.vector_stores.create()

    batch = api.openai.vector_stores.file_batches.create(
        store.id, files=[{"file_id": done, "attributes": {"n": 1}}, {"file_id": waiting}]
    )

    VectorStoreFileBatch.model_validate(batch.model_dump(), strict=True)
    assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 2)
    finish(api, done)
    cancelled = api.openai.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert (cancelled.status, cancelled.file_counts.completed, cancelled.file_counts.cancelled) == ("cancelled", 1, 1)
    assert api.openai.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id) == cancelled
    files = api.openai.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="cancelled")
    assert [file.id for file in files] == [waiting]


def test_a_new_batch_counts_files_that_are_there_already_and_queues_cancelled_ones(api: Api) -> None:
    done, cancelled = api.upload("a.txt"), api.upload("b.txt")
    store = api.openai.vector_stores.create(file_ids=[done, cancelled])
    finish(api, done)
    finish(api, cancelled, "cancelled")

    batch = api.openai.vector_stores.file_batches.create(store.id, file_ids=[done, cancelled])

    assert (batch.file_counts.completed, batch.file_counts.in_progress, batch.file_counts.total) == (1, 1, 2)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"file_ids": ["a"], "files": [{"file_id": "a"}]}, None),
        ({"file_ids": []}, "file_ids"),
        ({"file_ids": [f"file_{number}" for number in range(2001)]}, "file_ids"),
        ({"files": [{"file_id": f"file_{number}"} for number in range(2001)]}, "files"),
        ({"files": [{"file_id": "a"}, {}]}, "files.1.file_id"),
    ],
)
def test_bad_batches_are_refused(shared_api: Api, body: dict[str, object], param: str | None) -> None:
    answer = shared_api.http.post("/v1/vector_stores/vs_x/file_batches", json=body)

    assert error_of(answer, 400)["param"] == param


# Search


def test_a_search_finds_passages_best_first(api: Api) -> None:
    store = api.openai.vector_stores.create()
    api.retriever.answers["where?"] = [passage(store.id, 1, 0.9), passage(store.id, 2, 0.4)]

    page = api.openai.vector_stores.search(
        store.id,
        query=" where?\n",
        max_num_results=5,
        rewrite_query=True,
        filters={"type": "and", "filters": [{"type": "in", "key": "year", "value": [2023, 2024]}]},
        ranking_options={"ranker": "auto", "score_threshold": 0.2},
        extra_body={"ranking_options": {"score_threshold": 0.2, "hybrid_search": {"text_weight": 0.5}}},
    )

    for result in page.data:
        VectorStoreSearchResponse.model_validate(result.model_dump(), strict=True)
    assert [(result.content[0].text, result.score) for result in page.data] == [("text 1", 0.9), ("text 2", 0.4)]
    assert page.data[0].attributes == {"year": 2024.0}
    assert page.to_dict()["object"] == "vector_store.search_results.page"
    assert page.to_dict()["search_query"] == ["where?"]
    query = api.retriever.queries[0]
    assert (query.store_id, query.text, query.max_results) == (store.id, "where?", 5)
    assert query.filter == Compound("and", (Comparison("in", "year", (2023, 2024)),))
    assert query.ranking == Ranking(1.0, 0.5, 0.2)
    assert query.vector is not None
    assert query.vector.shape == (DIMENSIONS,)


def test_one_search_of_several_stores(api: Api) -> None:
    stores = [api.openai.vector_stores.create().id for _ in range(2)]
    api.retriever.answers["where?"] = [
        replace(passage(stores[0], 1, 0), cosine=0.4),
        replace(passage(stores[1], 2, 0), cosine=0.9),
    ]
    weights = {"ranking_options": {"hybrid_search": {"text_weight": 0}}}

    answer = api.http.post("/v1/vector_stores/search", json={"query": "where?", "vector_store_ids": stores} | weights)

    assert [(result["vector_store_id"], result["score"]) for result in answer.json()["data"]] == [
        (stores[1], 0.9),
        (stores[0], 0.4),
    ]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({}, 400, "vector_store_ids"),
        ({"vector_store_ids": []}, 400, "vector_store_ids"),
        ({"vector_store_ids": ["vs_a"] * 11}, 400, "vector_store_ids"),
        ({"vector_store_ids": ["vs_a"]}, 404, "vector_store_id"),
        ({"vector_store_ids": ["vs_a"], "query": ""}, 400, "query"),
    ],
)
def test_bad_searches_of_several_stores(shared_api: Api, change: dict[str, object], status: int, param: str) -> None:
    answer = shared_api.http.post("/v1/vector_stores/search", json={"query": "a"} | change)

    assert error_of(answer, status)["param"] == param


def test_results_can_be_unlike_one_another(api: Api) -> None:
    store = api.openai.vector_stores.create()
    near, nearer, other = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    api.retriever.answers["?"] = [
        replace(passage(store.id, 1, 0.9), vector=near),
        replace(passage(store.id, 2, 0.8), vector=nearer),
        replace(passage(store.id, 3, 0.5), vector=other),
    ]

    body = {"query": "?", "max_num_results": 2, "ranking_options": {"mmr": {"lambda": 0.5}}}
    answer = api.http.post(f"/v1/vector_stores/{store.id}/search", json=body)

    assert [result["content"][0]["text"] for result in answer.json()["data"]] == ["text 1", "text 3"]
    assert api.retriever.queries[0].with_vectors


def test_ranker_that_is_not_configured_is_refused(api: Api) -> None:
    store = api.openai.vector_stores.create()

    with pytest.raises(openai.BadRequestError, match="cross-encoder") as refused:
        api.openai.post(
            f"/vector_stores/{store.id}/search",
            body={"query": "?", "ranking_options": {"ranker": "cross-encoder"}},
            cast_to=dict[str, Any],
        )

    assert (refused.value.code, refused.value.param) == ("ranker_not_configured", "ranking_options.ranker")


def test_several_queries_are_embedded_at_once_and_merged_by_best_score(api: Api) -> None:
    store = api.openai.vector_stores.create()
    api.retriever.answers["one"] = [passage(store.id, 1, 0.5), passage(store.id, 2, 0.4)]
    api.retriever.answers["two"] = [passage(store.id, 3, 0.6), passage(store.id, 2, 0.55)]

    page = api.openai.vector_stores.search(store.id, query=["one", "two"], max_num_results=2)

    assert [result.content[0].text for result in page.data] == ["text 3", "text 2"]
    assert api.embedder.calls == [["one", "two"]]


def test_a_search_by_text_alone_embeds_nothing(api: Api) -> None:
    store = api.openai.vector_stores.create()
    weights = {"embedding_weight": 0, "text_weight": 1}

    body = {"query": "words", "ranking_options": {"hybrid_search": weights}}
    answer = api.http.post(f"/v1/vector_stores/{store.id}/search", json=body)

    assert answer.json()["data"] == []
    assert api.embedder.calls == []
    assert api.retriever.queries[0].vector is None


def test_a_filter_on_a_key_that_no_file_has_is_the_callers_mistake(api: Api) -> None:
    store = api.openai.vector_stores.create()
    api.retriever.answers["?"] = InvalidRequest("no file has the attribute 'yaer'", param="filters")

    with pytest.raises(openai.BadRequestError, match="yaer") as refused:
        api.openai.vector_stores.search(store.id, query="?", filters={"type": "eq", "key": "yaer", "value": 1})

    assert refused.value.param == "filters"


def nested(depth: int) -> dict[str, Any]:
    leaf: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    for _ in range(depth):
        leaf = {"type": "or", "filters": [leaf]}
    return leaf


def one_of(values: int) -> dict[str, Any]:
    return {"type": "in", "key": "a", "value": list(range(values))}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": []}, "query"),
        ({"query": None}, "query"),
        ({"query": ["a"] * 21}, "query"),
        ({"max_num_results": 0}, "max_num_results"),
        ({"max_num_results": 51}, "max_num_results"),
        ({"filters": {}}, "filters"),
        ({"filters": {"type": "like", "key": "a", "value": "b"}}, "filters"),
        ({"filters": {"type": "eq", "key": "a"}}, "filters.value"),
        ({"filters": {"type": "eq", "key": "a", "value": [1]}}, "filters"),
        ({"filters": {"type": "in", "key": "a", "value": 1}}, "filters"),
        ({"filters": {"type": "gt", "key": "a", "value": "b"}}, "filters"),
        ({"filters": {"type": "and", "filters": []}}, "filters.filters"),
        ({"filters": nested(11)}, "filters"),
        ({"filters": one_of(1001)}, "filters"),
        ({"filters": {"type": "and", "filters": [one_of(500), {"type": "or", "filters": [one_of(501)]}]}}, "filters"),
        ({"ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
        ({"ranking_options": {"ranker": "cross_encoder"}}, "ranking_options.ranker"),
        ({"ranking_options": {"mmr": {"lambda": 1.1}}}, "ranking_options.mmr.lambda"),
        (
            {"ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
            "ranking_options.hybrid_search",
        ),
    ],
)
def test_bad_searches_name_the_field(shared_api: Api, change: dict[str, object], param: str) -> None:
    answer = shared_api.http.post("/v1/vector_stores/vs_x/search", json={"query": "a"} | change)

    assert error_of(answer, 400)["param"] == param


def test_a_filter_of_a_thousand_values_is_searched_with(shared_api: Api) -> None:
    store = shared_api.openai.vector_stores.create()
    body = {"query": "a", "filters": {"type": "and", "filters": [one_of(499), one_of(501)]}}
    assert shared_api.http.post(f"/v1/vector_stores/{store.id}/search", json=body).status_code == 200


def test_a_filter_that_is_nested_beyond_sense_is_refused(shared_api: Api) -> None:
    for depth in (11, 200, 5000):
        content = '{"query": "a", "filters": ' + '{"type": "or", "filters": [' * depth + "]}" * depth + "}"
        headers = {"content-type": "application/json"}
        error_of(shared_api.http.post("/v1/vector_stores/vs_x/search", content=content, headers=headers), 400)


def test_an_expired_store_refuses_work_until_it_is_updated(api: Api) -> None:
    store = api.openai.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1})
    set_store(api, last_active_at=store.created_at - 86_401)

    assert api.openai.vector_stores.retrieve(store.id).status == "expired"
    with pytest.raises(openai.BadRequestError, match="expired"):
        api.openai.vector_stores.search(store.id, query="a")
    with pytest.raises(openai.BadRequestError, match="expired"):
        api.openai.vector_stores.files.create(store.id, file_id=api.upload())

    api.openai.vector_stores.update(store.id, name="again")
    assert api.openai.vector_stores.search(store.id, query="a").data == []


def test_a_search_keeps_a_store_alive(api: Api) -> None:
    store = api.openai.vector_stores.create()
    set_store(api, last_active_at=store.created_at - 1000)

    api.openai.vector_stores.search(store.id, query="a")

    touched = api.openai.vector_stores.retrieve(store.id).last_active_at
    assert touched is not None
    assert touched >= store.created_at


def test_a_store_made_by_another_encoder_is_refused(api: Api) -> None:
    store = api.openai.vector_stores.create()
    set_store(api, encoder="another-encoder")

    with pytest.raises(openai.BadRequestError, match="another-encoder") as refused:
        api.openai.vector_stores.search(store.id, query="a")
    assert refused.value.code == "encoder_mismatch"


def test_a_store_is_optimised_and_told_what_that_did(api: Api) -> None:
    store = api.openai.vector_stores.create()

    done = api.openai.post(f"/vector_stores/{store.id}/optimize", cast_to=dict[str, Any])

    assert done["object"] == "vector_store.optimization"
    assert done["vector_store_id"] == store.id
    assert done["duplicates_removed"] == 0
    assert done["fragments"] == {"before": 7, "after": 1}
    assert set(done["size_bytes"]) == set(done["search_ms"]) == {"before", "after"}
