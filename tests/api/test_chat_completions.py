"""`/v1/chat/completions` over HTTP, asked by the official client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from serve_app.errors import InvalidRequest, Overloaded, Unavailable
from serve_app.generation.citations import build_citation
from serve_app.types import Json
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.fakes import build_passage

RHINE = build_passage(1, "The Rhine flows through Basel.")
CITATION = build_citation(RHINE, 13)


@pytest.fixture(scope="module")
def running_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("chat"), [RHINE]) as app:
        yield app


@pytest.fixture
def app(running_app: ChatApp) -> ChatApp:
    return running_app.with_fresh_fakes()


def body(**fields: Any) -> Json:
    return {"messages": [{"role": "user", "content": "Where?"}], **fields}


def searching(app: ChatApp, **fields: Any) -> Json:
    return body(tools=[{"type": "file_search", "vector_store_ids": [app.store_id]}], **fields)


def post(app: ChatApp, asked: Json) -> Json:
    answer: Json = app.http.post("/v1/chat/completions", json=asked).json()
    return answer


def stream(app: ChatApp, asked: Json) -> list[Json]:
    """The chunks; checks how the stream ends."""
    events = app.http.post("/v1/chat/completions", json={**asked, "stream": True}).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


# --- passed through -----------------------------------------------------------------------------


def test_the_client_gets_an_answer(app: ChatApp) -> None:
    completion = app.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])

    assert completion.choices[0].message.content == "Hello there."
    assert completion.usage is not None
    assert completion.usage.total_tokens == 14
    TypeAdapter(ChatCompletion).validate_python(post(app, body()), strict=True)


async def test_the_async_client_gets_a_stream(app: ChatApp) -> None:
    async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key="any", max_retries=0) as client:
        chunks = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        deltas = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]

    assert "".join(deltas) == "Hello there."


def test_a_stream_is_passed_on_byte_for_byte(app: ChatApp) -> None:
    answer = app.http.post("/v1/chat/completions", json=body(stream=True))

    assert answer.text == "".join(app.fakes.generator.events(request_id=answer.headers["x-request-id"]))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"


def test_all_fields_reach_the_model_as_they_are(app: ChatApp) -> None:
    asked = body(
        temperature=0.5,
        seed=7,
        stop=["x"],
        n=2,
        logprobs=True,
        top_k=5,
        min_p=0.1,
        chat_template_kwargs={"a": [1]},
        stream_options={"include_usage": True},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        tool_choice="auto",
        max_tokens=9,
        user="u",
    )

    post(app, asked)

    assert app.fakes.generator.requests[-1].payload == {**asked, "model": MODEL}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, {"max_completion_tokens": 512}), ({"max_tokens": 5}, {"max_tokens": 5})],
)
def test_an_answer_has_a_limit(app: ChatApp, fields: Json, expected: Json) -> None:
    post(app, body(**fields))
    payload = app.fakes.generator.requests[-1].payload

    assert {name: value for name, value in payload.items() if name.startswith("max_")} == expected


@pytest.mark.parametrize(("tier", "priority"), [("priority", -10), ("default", 0), ("auto", 0), ("flex", 10)])
def test_a_service_tier_is_a_priority(app: ChatApp, tier: str, priority: int) -> None:
    completion = post(app, body(service_tier=tier))
    request = app.fakes.generator.requests[-1]

    assert request.priority == priority
    assert "service_tier" not in request.payload
    assert completion["service_tier"] == ("default" if tier == "auto" else tier)


# --- documents ----------------------------------------------------------------------------------


def test_an_answer_cites_its_file(app: ChatApp) -> None:
    app.fakes.generator.deltas = ["Through Basel [1]."]

    message = post(app, searching(app))["choices"][0]["message"]

    assert (message["content"], message["annotations"]) == ("Through Basel.", [CITATION])


def test_a_stream_has_the_citations_before_its_end(app: ChatApp) -> None:
    app.fakes.generator.deltas = ["Through Basel", " [", "1", "]", "."]

    chunks = stream(app, searching(app))

    for chunk in chunks:
        TypeAdapter(ChatCompletionChunk).validate_python(chunk, strict=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Through Basel."
    assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [[CITATION]]
    assert "annotations" in deltas[-2]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["total_tokens"] == 14


def test_sources_stand_before_the_question(app: ChatApp) -> None:
    asked = searching(app)
    asked["messages"].insert(0, {"role": "system", "content": "Be brief."})

    post(app, asked)

    system, question = app.fakes.generator.requests[-1].payload["messages"]
    assert system["content"].startswith("Be brief.\n\n")
    assert question["content"] == "Sources:\n[1] (1.txt) The Rhine flows through Basel.\n\nQuestion: Where?"
    assert app.fakes.retriever.queries[-1].text == "Where?"


def test_a_follow_up_is_searched_for_with_the_question_before(app: ChatApp) -> None:
    asked = searching(app)
    asked["messages"] = [
        {"role": "user", "content": "Where does the Rhine flow?"},
        {"role": "assistant", "content": "Through Basel."},
        {"role": "user", "content": "And the Aare?"},
    ]

    post(app, asked)

    searched = {query.text for query in app.fakes.retriever.queries}
    assert searched == {"And the Aare?", "Where does the Rhine flow? And the Aare?"}


def test_a_conversation_keeps_to_one_generator(app: ChatApp) -> None:
    messages: list[Json] = [{"role": "user", "content": "Where does the Rhine flow?"}]
    post(app, {"messages": messages})
    post(app, {"messages": [*messages, {"role": "assistant", "content": "Here."}, {"role": "user", "content": "And?"}]})
    post(app, {"messages": messages, "user": "maud"})

    first, second, third = (request.session_id for request in app.fakes.generator.requests)
    assert first == second
    assert third == "maud"


def test_the_other_tools_reach_the_model(app: ChatApp) -> None:
    function = {"type": "function", "function": {"name": "f", "parameters": {}}}
    asked = searching(app, tool_choice="auto")
    asked["tools"].append(function)

    post(app, asked)

    payload = app.fakes.generator.requests[-1].payload
    assert (payload["tools"], payload["tool_choice"]) == ([function], "auto")


def test_without_other_tools_nothing_of_tools_reaches_the_model(app: ChatApp) -> None:
    post(app, searching(app, tool_choice={"type": "file_search"}, parallel_tool_calls=True))

    assert {"tools", "tool_choice", "parallel_tool_calls"}.isdisjoint(app.fakes.generator.requests[-1].payload)


def test_no_tool_is_used_if_none_is_chosen(app: ChatApp) -> None:
    app.fakes.generator.deltas = ["a[1]"]

    completion = post(app, searching(app, tool_choice="none"))

    assert app.fakes.retriever.queries == []
    assert completion["choices"][0]["message"]["content"] == "a[1]"


@pytest.mark.parametrize("response_format", [{"type": "text"}, None])
def test_text_is_cited_also_if_it_is_asked_for_by_name(app: ChatApp, response_format: Json | None) -> None:
    app.fakes.generator.deltas = ["Through Basel [1]."]

    message = post(app, searching(app, response_format=response_format))["choices"][0]["message"]

    assert (message["content"], message["annotations"]) == ("Through Basel.", [CITATION])


@pytest.mark.parametrize("fields", [{"max_tokens": "50"}, {"no_repeat_ngram_size": 3, "vllm_xargs": "x"}])
def test_what_goes_on_as_it_came_has_its_type(app: ChatApp, fields: Json) -> None:
    answer = app.http.post("/v1/chat/completions", json=body(**fields))

    assert answer.status_code == 400


def test_brackets_stay_in_json(app: ChatApp) -> None:
    app.fakes.generator.deltas = ["[1]"]

    completion = post(app, searching(app, response_format={"type": "json_object"}))

    assert completion["choices"][0]["message"]["content"] == "[1]"


# --- what does not end well ---------------------------------------------------------------------


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("searches", [False, True])
def test_a_refusal_has_its_status(app: ChatApp, streams: bool, searches: bool) -> None:
    app.fakes.generator.refusal = InvalidRequest("the prompt is too long", param="messages")
    asked = searching(app, stream=streams) if searches else body(stream=streams)

    answer = app.http.post("/v1/chat/completions", json=asked)

    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": "the prompt is too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": None,
        }
    }


def test_overload_says_when_to_come_back(app: ChatApp) -> None:
    app.fakes.generator.refusal = Overloaded("full", retry_after_s=2)

    answer = app.http.post("/v1/chat/completions", json=body(stream=True))

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


@pytest.mark.parametrize("searches", [False, True])
@pytest.mark.parametrize(
    ("failure", "message"),
    [(Unavailable("the model is gone"), "the model is gone"), (KeyError("a bug"), "an internal error")],
)
def test_a_failure_in_mid_stream_is_an_error_event(
    app: ChatApp, searches: bool, failure: Exception, message: str
) -> None:
    app.fakes.generator.failure = failure

    *chunks, error = stream(app, searching(app) if searches else body())

    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "Hello there."
    assert error["error"]["message"].startswith(message)
    with pytest.raises(openai.APIError, match=message):
        list(app.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=True))


@pytest.mark.parametrize("searches", [False, True])
def test_a_client_that_leaves_stops_the_engine(app: ChatApp, searches: bool) -> None:
    app.fakes.generator.stalls = True
    asked = searching(app, stream=True) if searches else body(stream=True)

    with app.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        arriving = answer.iter_text()  # kept: httpx closes the connection with it
        next(arriving)
        assert app.fakes.generator.stalled.wait(10)
        assert not app.fakes.generator.closed.is_set()

    assert app.fakes.generator.closed.wait(10)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages.0"),
        (body(stream="yes"), "stream"),
        (body(model=5), "model"),
        (body(service_tier="scale"), "service_tier"),
        (body(tools={}), "tools"),
        (body(tools=[{"type": "file_search"}]), "tools.0.vector_store_ids"),
        ([], None),
    ],
)
def test_a_wrong_request_names_the_field(app: ChatApp, asked: Json, param: str | None) -> None:
    answer = app.http.post("/v1/chat/completions", json=asked)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert app.fakes.generator.requests == []


def test_what_is_not_json_is_refused(app: ChatApp) -> None:
    answer = app.http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})

    assert answer.status_code == 400


def test_an_unknown_model_or_store_is_not_found(app: ChatApp) -> None:
    unknown_model = app.http.post("/v1/chat/completions", json=body(model="gpt-5"))
    tool = {"type": "file_search", "vector_store_ids": ["vs_" + "0" * 48]}
    unknown_store = app.http.post("/v1/chat/completions", json=body(tools=[tool]))

    assert (unknown_model.status_code, unknown_model.json()["error"]["code"]) == (404, "model_not_found")
    assert unknown_store.status_code == 404


def test_the_openapi_document_shows_the_body(app: ChatApp) -> None:
    document = app.http.get("/openapi.json").json()

    operation = document["paths"]["/v1/chat/completions"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["messages"]
