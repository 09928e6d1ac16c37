"""The response cache over HTTP: both routes, streamed and whole."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import httpx
import pytest
from sqlalchemy import delete, insert

from serve_app.generation.cache import CachedGenerator
from serve_app.knowledge.search_cache import CachedRetriever
from serve_app.lfu_cache import LfuCache
from serve_app.storage.schema import store_versions
from serve_app.types import Json
from tests.api.chat_app import ChatApp, running_chat
from tests.fakes import build_passage

RHINE = build_passage(1, "The Rhine flows through Basel.")
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ROUTES = pytest.mark.parametrize("path", [CHAT, RESPONSES])
SHAPES = pytest.mark.parametrize("stream", [False, True])


@dataclass(frozen=True)
class CachedApp:
    app: ChatApp

    def ask(self, path: str, cache_control: str | None = None, **fields: object) -> tuple[str, Json]:
        """What the cache had to do with the answer, and what the client reads out of it."""
        headers = {"cache-control": cache_control} if cache_control else {}
        answer = self.app.http.post(path, json=body(path, **fields), headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-cache"], shown(answer)

    def search_tool(self) -> Json:
        return {"tools": [{"type": "file_search", "vector_store_ids": [self.app.store_id]}]}

    def record(self, version: int) -> None:
        """As the indexer does when it has changed what is found."""
        row = {"store_id": self.app.store_id, "version": version, "table_version": version, "created_at": version}
        sizes = {"files": 1, "passages": 1, "pinned": False}
        with self.app.app.state.context.database.write() as connection:
            connection.execute(insert(store_versions).values({**row, **sizes}))


@pytest.fixture(scope="module")
def running_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("cache"), [RHINE]) as app:
        yield app


@pytest.fixture
def cached(running_app: ChatApp) -> CachedApp:
    app = running_app.with_fresh_fakes()
    kept = LfuCache(100, 10**6)
    parts = replace(
        app.fakes.parts,
        generator=CachedGenerator(app.fakes.generator, kept),
        retriever=CachedRetriever(app.fakes.retriever, kept),
    )
    context = app.app.state.context
    context.background.parts = parts
    app.app.state.context = replace(context, parts=parts)
    with context.database.write() as connection:
        connection.execute(delete(store_versions))
    app.fakes.generator.deltas = ["Through Basel [", "1", "]."]
    return CachedApp(app)


def body(path: str, **fields: object) -> Json:
    asked: Json = {"input": "Where?"} if path == RESPONSES else {"messages": [{"role": "user", "content": "Where?"}]}
    return {**asked, "temperature": 0, **fields}


def shown(answer: httpx.Response) -> Json:
    """The answer without what is each one's own: ids and times."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return without_its_own(answer.json())
    events = [event.removeprefix("data: ") for event in answer.text.split("\n") if event.startswith("data: {")]
    return {"events": [without_its_own(json.loads(event)) for event in events]}


def without_its_own(value: Json) -> Json:
    own = ("id", "item_id", "created", "created_at", "completed_at")
    cleaned: Json = json.loads(
        json.dumps(value), object_hook=lambda each: {name: each[name] for name in each if name not in own}
    )
    return cleaned


def deltas(seen: Json) -> list[str]:
    return [event["delta"] for event in seen["events"] if event.get("type") == "response.output_text.delta"]


@ROUTES
@SHAPES
def test_the_same_question_has_the_same_answer_and_one_generation(cached: CachedApp, path: str, stream: bool) -> None:
    first = cached.ask(path, stream=stream)
    again = [cached.ask(path, stream=stream) for _ in range(2)]

    assert first[0] == "miss"
    assert [became for became, _ in again] == ["hit", "hit"]
    if path == RESPONSES and stream:
        assert "".join(deltas(again[0][1])) == "".join(deltas(first[1])) == "Through Basel [1]."
    else:
        assert [seen for _, seen in again] == [first[1]] * 2
    assert len(cached.app.fakes.generator.requests) == 1


@ROUTES
def test_each_answer_has_an_id_of_its_own(cached: CachedApp, path: str) -> None:
    answers = [cached.app.http.post(path, json=body(path)) for _ in range(2)]

    assert len({answer.json()["id"] for answer in answers}) == 2
    if path == CHAT:
        assert [each.json()["id"] for each in answers] == [
            f"chatcmpl-{each.headers['x-request-id']}" for each in answers
        ]


@ROUTES
@SHAPES
def test_a_client_opts_out(cached: CachedApp, path: str, stream: bool) -> None:
    assert cached.ask(path, "no-store", stream=stream)[0] == "off"
    assert cached.ask(path, stream=stream)[0] == "miss"
    cached.app.fakes.generator.deltas = ["New."]

    assert cached.ask(path, "no-store", stream=stream)[0] == "off"
    assert cached.ask(path, stream=stream)[0] == "hit"
    assert cached.ask(path, "max-age=0, No-Cache", stream=stream)[0] == "miss"
    became, seen = cached.ask(path, stream=stream)
    assert became == "hit"
    assert "New." in json.dumps(seen)


@ROUTES
def test_what_is_not_determined_is_asked_anew(cached: CachedApp, path: str) -> None:
    assert [cached.ask(path, temperature=0.7)[0] for _ in range(2)] == ["off", "off"]


def test_settings_in_force_are_part_of_the_question(cached: CachedApp) -> None:
    path = "/v1/models/smollm2-135m-instruct/settings"
    cached.app.http.patch(path, json={"temperature": 0}).raise_for_status()
    open_question = {"input": "Where?", "store": False}

    def ask() -> str:
        return cached.app.http.post(RESPONSES, json=open_question).headers["x-cache"]

    assert [ask(), ask()] == ["miss", "hit"]
    cached.app.http.patch(path, json={"top_p": 0.5}).raise_for_status()
    assert [ask(), ask()] == ["miss", "hit"]
    cached.app.http.patch(path, json={"temperature": None, "top_p": None}).raise_for_status()
    assert [ask(), ask()] == ["off", "off"]


@ROUTES
@SHAPES
def test_a_hit_keeps_its_citations_and_a_change_of_the_store_is_seen(
    cached: CachedApp, path: str, stream: bool
) -> None:
    asked = {**cached.search_tool(), "stream": stream}
    cached.record(version=1)
    first, second = cached.ask(path, **asked), cached.ask(path, **asked)
    assert (first[0], second[0]) == ("miss", "hit")
    assert "file_1" in json.dumps(second[1])
    if not stream:
        assert second[1] == first[1]
    assert len(cached.app.fakes.retriever.queries) == 1

    bonn = replace(build_passage(2, "The Rhine also flows through Bonn."), score=1.0)
    cached.app.fakes.retriever.passages = (bonn, RHINE)
    cached.record(version=2)
    third = cached.ask(path, **asked)

    assert third[0] == "miss"
    assert "file_2" in json.dumps(third[1])
    assert "Bonn" in cached.app.fakes.generator.requests[-1].payload["messages"][-1]["content"]


@ROUTES
def test_a_change_that_this_question_does_not_find_makes_no_new_answer(cached: CachedApp, path: str) -> None:
    cached.record(version=1)
    cached.ask(path, **cached.search_tool())
    cached.record(version=2)

    assert cached.ask(path, **cached.search_tool())[0] == "hit"
    assert len(cached.app.fakes.retriever.queries) == 2


@pytest.mark.parametrize("cache_control", ["no-cache", "no-store"])
def test_who_opts_out_of_the_cache_is_searched_for_anew(cached: CachedApp, cache_control: str) -> None:
    cached.record(version=1)

    for _ in range(2):
        cached.ask(CHAT, cache_control, **cached.search_tool())

    assert [query.content for query in cached.app.fakes.retriever.queries] == [None, None]


def test_a_search_by_itself_is_always_made(cached: CachedApp) -> None:
    cached.record(version=1)

    for _ in range(2):
        cached.app.openai.vector_stores.search(cached.app.store_id, query="Where?")

    assert len(cached.app.fakes.retriever.queries) == 2


def test_a_hit_is_stored_and_can_be_gone_on_from(cached: CachedApp) -> None:
    first, second = (cached.app.openai.responses.create(input="Where?", temperature=0) for _ in range(2))

    assert first.id != second.id
    assert cached.app.openai.responses.retrieve(second.id).output_text == first.output_text == "Through Basel [1]."
    going_on = {"input": "And then?", "temperature": 0}
    became = [
        cached.app.http.post(RESPONSES, json={**going_on, "previous_response_id": each.id}).headers["x-cache"]
        for each in (first, second)
    ]
    assert became == ["miss", "hit"]


def test_a_background_response_is_never_from_the_cache(cached: CachedApp) -> None:
    cached.record(version=1)
    cached.ask(RESPONSES, **cached.search_tool())

    answer = cached.app.http.post(RESPONSES, json=body(RESPONSES, background=True, stream=True, **cached.search_tool()))

    assert '"response.completed"' in answer.text
    assert len(cached.app.fakes.generator.requests) == len(cached.app.fakes.retriever.queries) == 2
    assert cached.app.fakes.generator.requests[-1].cache == "off"


@ROUTES
def test_many_at_once_share_one_generation(cached: CachedApp, path: str) -> None:
    held = cached.app.fakes.generator.hold()
    asked = body(path, stream=True)
    with ExitStack() as stack, httpx.Client(base_url=cached.app.url) as http:
        answers = [stack.enter_context(http.stream("POST", path, json=asked)) for _ in range(20)]
        held.set()
        texts = [answer.read().decode() for answer in answers]

    assert [answer.headers["x-cache"] for answer in answers] == ["miss", *["shared"] * 19]
    assert len(cached.app.fakes.generator.requests) == 1
    assert all("Basel" in text and text.rstrip().endswith(("[DONE]", "}")) for text in texts)
