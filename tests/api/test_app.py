import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai.types import Model
from sqlalchemy import text

from serve_app.api.app import check_loops
from serve_app.config import API_KEYS_ENV
from serve_app.errors import Overloaded, Unavailable
from tests.api.conftest import Api, StartApi


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    return error


def test_models_are_the_generator_and_the_encoder(shared_api: Api) -> None:
    models = list(shared_api.openai.models.list())

    assert [model.id for model in models] == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    for model in models:
        Model.model_validate(model.model_dump(), strict=True)
    assert shared_api.openai.models.retrieve("all-minilm-l6-v2").id == "all-minilm-l6-v2"


def test_unknown_model_with_a_slash_in_its_id(shared_api: Api) -> None:
    error = error_of(shared_api.http.get("/v1/models/someone/model"), 404)

    assert error["code"] == "model_not_found"
    assert "someone/model" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nothing", 404, "unknown_url"), ("PUT", "/v1/files", 405, "method_not_allowed")],
)
def test_unknown_routes_answer_in_the_same_form(
    shared_api: Api, method: str, path: str, status: int, code: str
) -> None:
    assert error_of(shared_api.http.request(method, path), status)["code"] == code


def test_every_answer_names_its_request_and_its_time(shared_api: Api) -> None:
    ours = shared_api.http.get("/v1/models")
    theirs = shared_api.http.get("/v1/nothing", headers={"x-request-id": "job-17.3"})
    insane = shared_api.http.get("/v1/models", headers={"x-request-id": "a b;<c>"})

    assert ours.headers["x-request-id"].startswith("req_")
    assert ours.headers["openai-processing-ms"].isdecimal()
    assert theirs.headers["x-request-id"] == "job-17.3"
    assert insane.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b'{"name": ', None, "not JSON"),
        (b"[1, 2]", None, "must be an object"),
        (b'"text"', None, "must be an object"),
        (b'{"name": "\xff"}', None, "not UTF-8"),
        (b'{"name": 5}', "name", "'name' must be a string"),
        (b'{"metadata": {"a": {}}}', "metadata.a", "'metadata.a' must be a string"),
        (b'{"file_ids": [5]}', "file_ids.0", "'file_ids.0' must be a string"),
        (b'{"name": "a\\u0000b"}', "name", "NUL"),
        (b'{"name": "a\x00b"}', None, "NUL"),
        (b'{"metadata": {"\\u0000": "b"}}', "metadata", "NUL"),
        (b'{"name": "\\ud800"}', "name", "surrogate"),
        (b'{"x": 99999999999999999999999}', None, "64 bits"),
        (b'{"x": ' + b"9" * 5000 + b"}", None, "64 bits"),
        (b'{"x": NaN}', None, "NaN"),
        (b'{"x": -Infinity}', None, "-Infinity"),
        (b"[" * 100_000, None, "JSON"),
        (b'{"x": ' + b"[" * 300 + b"]" * 300 + b"}", None, "nested"),
        ('{"name": "a"}'.encode("utf-16"), None, "UTF-8"),
    ],
)
def test_bad_bodies_are_refused_with_the_field_and_the_reason(
    shared_api: Api, body: bytes, param: str | None, message: str
) -> None:
    answer = shared_api.http.post("/v1/vector_stores", content=body, headers={"content-type": "application/json"})

    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("name", ["\\u0000 as it is written", "🦊", "Infinity", "12345678901234567890123"])
def test_texts_that_only_look_bad_are_taken(shared_api: Api, name: str) -> None:
    answer = shared_api.http.post(
        "/v1/vector_stores", content=json.dumps({"name": name}), headers={"content-type": "application/json"}
    )

    assert answer.json()["name"] == name


@pytest.mark.parametrize("path", ["/v1/files/a%00b", "/v1/files?after=%00", "/v1/vector_stores/%00/files"])
def test_nul_in_the_url_is_refused(shared_api: Api, path: str) -> None:
    assert "NUL" in error_of(shared_api.http.get(path), 400)["message"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=99999999999999999999999999", "limit"),
        ("limit=many", "limit"),
        ("order=up", "order"),
        ("after=vs_unknown", "after"),
        ("before=vs_unknown", "before"),
    ],
)
def test_bad_pages_are_refused(shared_api: Api, query: str, param: str) -> None:
    assert error_of(shared_api.http.get(f"/v1/vector_stores?{query}"), 400)["param"] == param


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/files"])
def test_a_large_body_is_refused_before_it_is_read(shared_api: Api, path: str) -> None:
    # Only the head is sent: an answer can come only from a server that does not wait for the body.
    url = httpx.URL(shared_api.url)
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {10**12}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_large_body_is_refused_while_it_is_read(shared_api: Api) -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 2**20

    error_of(shared_api.http.post("/v1/embeddings", content=blocks()), 413)


def test_keys_guard_v1_and_nothing_else(start_api: StartApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEYS_ENV, "first, second")
    api = start_api()

    assert error_of(api.http.get("/v1/models"), 401)["code"] == "missing_api_key"
    assert api.http.get("/v1/models").headers["www-authenticate"] == "Bearer"
    assert error_of(api.http.get("/v1/models", headers={"authorization": "Basic first"}), 401)
    with pytest.raises(openai.AuthenticationError) as wrong:
        api.openai.models.list()
    assert wrong.value.code == "invalid_api_key"
    assert api.openai.with_options(api_key="second").models.list().data
    assert api.http.get("/healthz").status_code == 200
    assert api.http.get("/openapi.json").status_code == 200


@pytest.mark.parametrize(
    ("error", "status"), [(Overloaded("full", retry_after_s=0.25), 429), (Unavailable("down"), 503)]
)
def test_what_passes_says_when_to_come_back(api: Api, error: Overloaded, status: int) -> None:
    api.retriever.answers["?"] = error
    store = api.openai.vector_stores.create()

    answer = api.http.post(f"/v1/vector_stores/{store.id}/search", json={"query": "?"})

    error_of(answer, status)
    assert answer.headers["retry-after-ms"] == ("250" if status == 429 else "1000")
    assert answer.headers["retry-after"] == "1"


def test_the_unexpected_is_logged_once_and_not_shown(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    def embed(texts: object) -> None:
        raise RuntimeError("secret detail")

    api.embedder.embed = embed  # type: ignore[method-assign, assignment]  # a part with a bug
    with caplog.at_level(logging.ERROR):
        answer = api.http.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", "input": "a"})

    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in error["message"]
    records = [record for record in caplog.records if record.exc_info]
    assert [answer.headers["x-request-id"] in record.getMessage() for record in records] == [True]


def test_health_and_readiness(api: Api) -> None:
    assert api.http.get("/healthz").json() == {"status": "ok"}
    assert api.http.get("/readyz").json() == {"status": "ready", "parts": {"generator": "ok", "indexer": "ok"}}

    api.part_states["generator"] = "loading"
    answer = api.http.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["parts"]["generator"] == "loading"
    assert "generator (loading)" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "5"


def test_without_its_database_it_is_not_alive(api: Api) -> None:
    with api.database.write() as connection:
        connection.execute(text("DROP TABLE vector_stores"))

    error_of(api.http.get("/healthz"), 503)


def test_the_documentation_is_served(shared_api: Api) -> None:
    assert "swagger" in shared_api.http.get("/docs").text
    assert "/v1/vector_stores/{store_id}/search" in shared_api.http.get("/openapi.json").json()["paths"]


async def test_a_loop_that_has_ended_is_noticed() -> None:
    app = FastAPI()
    going_on = asyncio.create_task(asyncio.Event().wait())
    left = asyncio.create_task(asyncio.Event().wait())
    left.cancel()
    app.state.loops = [going_on, left]
    await asyncio.wait([left])
    check_loops(app)

    async def fail() -> None:
        raise OSError("the disk is gone")

    app.state.loops.append(ended := asyncio.create_task(fail()))
    await asyncio.wait([ended])
    with pytest.raises(OSError, match="the disk is gone"):
        check_loops(app)
    going_on.cancel()
