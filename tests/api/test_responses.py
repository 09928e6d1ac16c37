"""`/v1/responses` over HTTP, asked by the official client."""

import importlib
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import (
    FileSearchToolParam,
    Response,
    ResponseFileSearchToolCall,
    ResponseOutputMessage,
    ResponseStreamEvent,
)
from pydantic import TypeAdapter

from serve_app.errors import InternalError, InvalidRequest, Overloaded
from serve_app.types import Json, new_id
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.fakes import build_passage

NEVER_NULL = [
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
    "tool_choice",
    "truncation",
    "background",
    "service_tier",
    "tools",
]
ALWAYS = [
    *NEVER_NULL,
    *[
        "id",
        "object",
        "created_at",
        "status",
        "error",
        "incomplete_details",
        "instructions",
        "metadata",
        "model",
        "output",
        "parallel_tool_calls",
    ],
    *["store", "usage", "text"],
]


@pytest.fixture(scope="module")
def running_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    rhine = build_passage(1, "The Rhine flows through Basel.", topic="rivers")
    with running_chat(tmp_path_factory.mktemp("responses"), [rhine]) as app:
        yield app


@pytest.fixture
def app(running_app: ChatApp) -> ChatApp:
    return running_app.with_fresh_fakes()


def file_search(app: ChatApp) -> FileSearchToolParam:
    return {"type": "file_search", "vector_store_ids": [app.store_id]}


def post(app: ChatApp, **body: Any) -> Json:
    answer: Json = app.http.post("/v1/responses", json=body).json()
    return answer


def stream_events(text: str) -> list[tuple[str, Json]]:
    """The name and the data of each event."""
    found = re.findall(r"event: (.+)\ndata: (.+)\n\n", text)
    assert "".join(f"event: {name}\ndata: {data}\n\n" for name, data in found) == text
    return [(name, json.loads(data)) for name, data in found]


# --- an answer ----------------------------------------------------------------------------------


def test_the_client_gets_an_answer(app: ChatApp) -> None:
    response = app.openai.responses.create(input="Hi")

    assert response.output_text == "Hello there."
    assert (response.status, response.model, response.object) == ("completed", MODEL, "response")
    assert response.usage is not None
    assert response.usage.total_tokens == 14


async def test_the_async_client_gets_an_answer(app: ChatApp) -> None:
    async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key="any", max_retries=0) as client:
        response = await client.responses.create(input="Hi")
        stream = await client.responses.create(input="Hi", stream=True)
        types = [event.type async for event in stream]

    assert response.output_text == "Hello there."
    assert types[-1] == "response.completed"


def test_the_object_has_every_field(app: ChatApp) -> None:
    body = post(app, input="Hi")

    assert [name for name in ALWAYS if name not in body] == []
    assert [name for name in NEVER_NULL if body[name] is None] == []
    TypeAdapter(Response).validate_python(body, strict=True)


def test_the_object_says_what_was_asked(app: ChatApp) -> None:
    asked = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 7,
        "service_tier": "flex",
        "truncation": "auto",
        "parallel_tool_calls": False,
        "store": False,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
    }

    body = post(app, input="Hi", **asked)

    assert {name: body[name] for name in asked} == asked


def test_the_sampling_reaches_the_model(app: ChatApp) -> None:
    post(app, input="Hi", temperature=0.5, top_p=0.9, max_output_tokens=7, service_tier="priority")
    request = app.fakes.generator.requests[-1]

    assert request.priority == -10
    assert {name: request.payload[name] for name in ("model", "temperature", "top_p", "max_completion_tokens")} == {
        "model": MODEL,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 7,
    }


@pytest.mark.parametrize(("tier", "priority"), [(None, 0), ("auto", 0), ("default", 0), ("flex", 10)])
def test_a_service_tier_is_a_priority(app: ChatApp, tier: str | None, priority: int) -> None:
    body = post(app, input="Hi", service_tier=tier)

    assert app.fakes.generator.requests[-1].priority == priority
    assert body["service_tier"] == ("flex" if tier == "flex" else "default")


def test_what_is_not_said_is_left_to_the_model(app: ChatApp) -> None:
    post(app, input="Hi")
    payload = app.fakes.generator.requests[-1].payload

    assert "temperature" not in payload
    assert payload["max_completion_tokens"] == 512


def test_a_schema_reaches_the_model(app: ChatApp) -> None:
    text_format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}

    body = post(app, input="Hi", text={"format": text_format})

    assert app.fakes.generator.requests[-1].payload["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}},
    }
    assert body["text"] == {"format": text_format}


def test_items_of_all_roles_are_taken(app: ChatApp) -> None:
    app.openai.responses.create(
        input=[
            {"role": "developer", "content": "Rhyme."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "message", "role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And?"},
        ]
    )

    messages = app.fakes.generator.requests[-1].payload["messages"]
    assert [(each["role"], each["content"]) for each in messages] == [
        ("system", "Rhyme."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "And?"),
    ]


def test_the_output_of_a_response_is_taken_as_input(app: ChatApp) -> None:
    first = post(app, input="Hi", tools=[file_search(app)])

    body = post(app, input=[{"role": "user", "content": "Hi"}, *first["output"], {"role": "user", "content": "And?"}])

    messages = app.fakes.generator.requests[-1].payload["messages"]
    assert [each["content"] for each in messages] == ["Hi", "Hello there.", "And?"]
    assert body["status"] == "completed"


# --- documents ----------------------------------------------------------------------------------


def test_an_answer_cites_its_file(app: ChatApp) -> None:
    app.fakes.generator.deltas = ["Through Basel [1]."]

    response = app.openai.responses.create(input="Where?", tools=[file_search(app)])

    call, message = response.output
    assert isinstance(call, ResponseFileSearchToolCall)
    assert (call.queries, call.results, call.status) == (["Where?"], None, "completed")
    assert isinstance(message, ResponseOutputMessage)
    assert response.output_text == "Through Basel."
    place: dict[str, object] = {"start": 0, "end": 30, "page": None, "last_page": None, "heading": []}
    citation = {"type": "file_citation", "file_id": "file_1", "filename": "1.txt", "index": 13}
    assert message.content[0].to_dict()["annotations"] == [{**citation, "key": "1.txt", "version": 1, "place": place}]


def test_results_are_shown_if_included(app: ChatApp) -> None:
    response = app.openai.responses.create(
        input="Where?", tools=[file_search(app)], include=["file_search_call.results"]
    )

    call = response.output[0]
    assert isinstance(call, ResponseFileSearchToolCall)
    assert call.results is not None
    assert [(each.file_id, each.text, each.attributes) for each in call.results] == [
        ("file_1", "The Rhine flows through Basel.", {"topic": "rivers"})
    ]


def test_the_tool_decides_the_search(app: ChatApp) -> None:
    post(
        app,
        input="Where?",
        tools=[
            {
                **file_search(app),
                "max_num_results": 3,
                "filters": {"type": "eq", "key": "topic", "value": "rivers"},
                "ranking_options": {"score_threshold": 0.2},
            }
        ],
    )

    query = app.fakes.retriever.queries[-1]
    assert (query.store_id, query.text, query.max_results) == (app.store_id, "Where?", 3)
    assert query.filter is not None
    assert query.ranking.score_threshold == 0.2


def test_a_follow_up_shows_what_was_searched_for(app: ChatApp) -> None:
    first = post(app, input="Where does the Rhine flow?", tools=[file_search(app)])
    asked: Json = {"input": "And in Basel?", "previous_response_id": first["id"]}

    widened = post(app, **asked, tools=[file_search(app)])
    app.fakes.generator.deltas = ["Where does the Rhine flow in Basel?"]
    restated = post(app, **asked, tools=[{**file_search(app), "rewrite_query": True}])

    assert widened["output"][0]["queries"] == ["And in Basel?", "Where does the Rhine flow? And in Basel?"]
    assert restated["output"][0]["queries"] == ["And in Basel?", "Where does the Rhine flow in Basel?"]


def test_no_tool_is_used_if_none_is_chosen(app: ChatApp) -> None:
    post(app, input="Where?", tools=[file_search(app)], tool_choice="none")

    assert app.fakes.retriever.queries == []


# --- the stream ---------------------------------------------------------------------------------


def event_model(event_type: str) -> type:
    """OpenAI's class of an event."""
    names = {"response.output_text.delta": "text_delta", "response.output_text.done": "text_done"}
    name = names.get(event_type, event_type.removeprefix("response.").replace(".", "_"))
    module = importlib.import_module(f"openai.types.responses.response_{name}_event")
    model: type = getattr(module, module.__all__[0])
    return model


def test_events_come_in_openais_order_and_shapes(app: ChatApp) -> None:
    app.fakes.generator.deltas = ["Through", " Basel [1]."]

    answer = app.http.post("/v1/responses", json={"input": "Where?", "tools": [file_search(app)], "stream": True})
    events = stream_events(answer.text)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert [name.removeprefix("response.") for name, _ in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "file_search_call.in_progress",
        "file_search_call.searching",
        "file_search_call.completed",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.annotation.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [data["sequence_number"] for _, data in events] == list(range(16))
    for name, data in events:
        assert data["type"] == name
        TypeAdapter(event_model(name)).validate_python(data, strict=True)


def test_the_parts_of_a_stream_agree(app: ChatApp) -> None:
    stream = app.openai.responses.create(input="Where?", tools=[file_search(app)], stream=True)
    events: dict[str, list[ResponseStreamEvent]] = {}
    for event in stream:
        events.setdefault(event.type, []).append(event)

    (completed,) = events["response.completed"]
    assert completed.type == "response.completed"
    (done,) = events["response.output_text.done"]
    assert done.type == "response.output_text.done"
    deltas = [event.delta for event in events["response.output_text.delta"] if hasattr(event, "delta")]
    assert "".join(map(str, deltas)) == done.text == completed.response.output_text
    items = [event.item for event in events["response.output_item.done"] if event.type == "response.output_item.done"]
    assert items == completed.response.output
    assert app.openai.responses.retrieve(completed.response.id) == completed.response


def test_an_answer_at_its_limit_ends_the_stream_as_incomplete(app: ChatApp) -> None:
    app.fakes.generator.finish_reason = "length"

    *_, last = app.openai.responses.create(input="Hi", stream=True)

    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_a_failure_in_mid_stream_is_an_error_event_and_a_failed_response(app: ChatApp) -> None:
    app.fakes.generator.failure = InternalError("the model is gone")

    *_, error, last = app.openai.responses.create(input="Hi", stream=True)

    assert error.type == "error"
    assert error.message == "the model is gone"
    assert last.type == "response.failed"
    assert last.sequence_number == error.sequence_number + 1
    assert app.openai.responses.retrieve(last.response.id).status == "failed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_event_has_its_status(app: ChatApp, stream: bool) -> None:
    app.fakes.generator.refusal = Overloaded("full", retry_after_s=3)

    answer = app.http.post("/v1/responses", json={"input": "Hi", "stream": stream})

    assert answer.status_code == 429
    assert answer.headers["retry-after-ms"] == "3000"
    assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_is_refused(app: ChatApp, stream: bool) -> None:
    app.fakes.generator.refusal = InvalidRequest("the prompt is longer than the context", param="input")

    with pytest.raises(openai.BadRequestError, match="longer than the context"):
        app.openai.responses.create(input="Hi", stream=stream)
    assert app.fakes.journal.entries[-1] == "question withdrawn"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_engine_and_leaves_its_partial_answer(app: ChatApp, stream: bool) -> None:
    app.fakes.generator.stalls = True
    conversation = app.openai.conversations.create()
    body = {"input": "Hi", "stream": stream, "conversation": conversation.id}

    if stream:
        with app.http.stream("POST", "/v1/responses", json=body) as answer:
            arriving = answer.iter_text()  # kept: httpx closes the connection with it
            assert "response.created" in next(arriving)
            assert app.fakes.generator.stalled.wait(10)
    else:
        leave_once_stalled(app, body)

    assert app.fakes.generator.closed.wait(10)
    assert app.fakes.sessions.closed.wait(10)
    assert app.fakes.journal.entries[-2:] == ["generator closed", "answer committed as incomplete"]
    newest = app.openai.conversations.items.list(conversation.id).data[0]
    assert newest.type == "message"
    assert (newest.role, newest.status) == ("assistant", "incomplete")


def leave_once_stalled(app: ChatApp, body: Json) -> None:
    """Ask over a connection that is cut while the model is at work."""
    host, port = app.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + content)
        assert app.fakes.generator.stalled.wait(10)


# --- conversations ------------------------------------------------------------------------------


def test_a_follow_up_by_response(app: ChatApp) -> None:
    first = app.openai.responses.create(input="Hi")
    second = app.openai.responses.create(input="And?", previous_response_id=first.id)
    branch = app.openai.responses.create(input="Or?", previous_response_id=first.id)

    messages = [request.payload["messages"] for request in app.fakes.generator.requests]
    assert [each["content"] for each in messages[1]] == ["Hi", "Hello there.", "And?"]
    assert [each["content"] for each in messages[2]] == ["Hi", "Hello there.", "Or?"]
    assert (second.previous_response_id, branch.previous_response_id) == (first.id, first.id)


def test_a_follow_up_in_a_conversation(app: ChatApp) -> None:
    conversation = app.openai.conversations.create()
    first = app.openai.responses.create(input="Hi", conversation=conversation.id)
    app.openai.responses.create(input="And?", conversation={"id": conversation.id})

    assert first.conversation is not None
    assert first.conversation.id == conversation.id
    assert [each["content"] for each in app.fakes.generator.requests[-1].payload["messages"]] == [
        "Hi",
        "Hello there.",
        "And?",
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_idempotency_key_gives_the_same_response(app: ChatApp, stream: bool) -> None:
    key = new_id("key")
    first = app.openai.responses.create(input="Hi", extra_headers={"Idempotency-Key": key})
    body = {"input": "Hi", "stream": stream}

    again = app.http.post("/v1/responses", json=body, headers={"idempotency-key": key})

    response = stream_events(again.text)[-1][1]["response"] if stream else again.json()
    assert response["id"] == first.id
    assert len(app.fakes.generator.requests) == 1


def test_an_answer_that_is_not_stored_cannot_be_given_again(app: ChatApp) -> None:
    conversation = app.openai.conversations.create()
    body = {"input": "Hi", "conversation": conversation.id, "store": False}

    answer = app.http.post("/v1/responses", json=body, headers={"idempotency-key": new_id("key")})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "store"
    assert app.openai.conversations.items.list(conversation.id).data == []


# --- stored responses ---------------------------------------------------------------------------


def test_a_response_is_read_and_deleted(app: ChatApp) -> None:
    created = app.openai.responses.create(input="Hi")

    assert app.openai.responses.retrieve(created.id) == created
    assert app.http.delete(f"/v1/responses/{created.id}").json() == {
        "id": created.id,
        "object": "response",
        "deleted": True,
    }
    with pytest.raises(openai.NotFoundError):
        app.openai.responses.retrieve(created.id)


def test_a_response_that_is_not_stored_cannot_be_read(app: ChatApp) -> None:
    created = app.openai.responses.create(input="Hi", store=False)

    with pytest.raises(openai.NotFoundError):
        app.openai.responses.retrieve(created.id)


def test_input_items_are_paged(app: ChatApp) -> None:
    created = app.openai.responses.create(input=[{"role": "user", "content": text} for text in ("one", "two", "three")])

    page = app.openai.responses.input_items.list(created.id, limit=2, order="asc")

    assert page.has_more
    texts = [item.to_dict()["content"] for item in page]  # the client asks for the next page itself
    assert texts == [[{"type": "input_text", "text": text}] for text in ("one", "two", "three")]


# --- read again, and in the background ----------------------------------------------------------


def read_again(app: ChatApp, response_id: str, starting_after: int) -> str:
    answer = app.http.get(f"/v1/responses/{response_id}", params={"stream": True, "starting_after": starting_after})
    assert answer.status_code == 200
    return answer.text


@pytest.mark.parametrize(
    "body",
    [{}, {"background": True}, {"temperature": 0.3, "metadata": {"ü": "\u2028"}, "reasoning": {"effort": "low"}}],
)
@pytest.mark.parametrize("ends", ["completed", "limit", "failed"])
def test_a_stream_is_read_again_byte_for_byte(app: ChatApp, body: Json, ends: str) -> None:
    app.fakes.generator.deltas = ["Through", " Basél [", "1] 🌊", " on."]
    app.fakes.generator.finish_reason = "length" if ends == "limit" else "stop"
    app.fakes.generator.failure = InternalError("the model is gone") if ends == "failed" else None
    asked = {
        "input": "Where?",
        "tools": [file_search(app)],
        "include": ["file_search_call.results"],
        "stream": True,
        **body,
    }

    first = app.http.post("/v1/responses", json=asked).text

    events = first.split("\n\n")[:-1]
    response_id = stream_events(first)[0][1]["response"]["id"]
    assert len([event for event in events if "output_text.delta" in event]) > 2
    for number in range(-1, len(events)):
        assert read_again(app, response_id, number) == "".join(f"{event}\n\n" for event in events[number + 1 :])


def test_a_stream_that_broke_is_picked_up_with_the_official_client(app: ChatApp) -> None:
    app.fakes.generator.stalls = True
    seen: list[ResponseStreamEvent] = []
    with app.openai.responses.create(input="Hi", stream=True) as stream:
        for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
    assert app.fakes.sessions.closed.wait(10)
    first = seen[0]
    assert first.type == "response.created"

    rest = list(app.openai.responses.retrieve(first.response.id, stream=True, starting_after=seen[-1].sequence_number))

    assert [event.sequence_number for event in [*seen, *rest]] == list(range(len(seen) + len(rest)))
    last = rest[-1]
    assert last.type == "response.incomplete"
    deltas = [event.delta for event in [*seen, *rest] if event.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text == "Hello there."


def test_a_stream_is_picked_up_while_another_client_still_reads_it(app: ChatApp) -> None:
    held = app.fakes.generator.hold()
    with app.http.stream("POST", "/v1/responses", json={"input": "Hi", "stream": True}) as answer:
        arriving = answer.iter_text()
        first = next(arriving)
        response_id = stream_events(first)[0][1]["response"]["id"]
        with ThreadPoolExecutor() as threads:
            again = threads.submit(read_again, app, response_id, -1)
            held.set()
            whole = first + "".join(arriving)

    assert again.result() == whole


def test_a_background_response_goes_from_queued_to_completed(app: ChatApp) -> None:
    created = app.openai.responses.create(input="Hi", background=True)

    assert (created.status, created.background, created.output) == ("queued", True, [])
    *_, last = app.openai.responses.retrieve(created.id, stream=True)
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello there."
    assert app.openai.responses.retrieve(created.id) == last.response


def test_a_background_response_outlives_its_client(app: ChatApp) -> None:
    held = app.fakes.generator.hold()
    with app.http.stream("POST", "/v1/responses", json={"input": "Hi", "stream": True, "background": True}) as answer:
        seen = next(answer.iter_text())
    response_id = stream_events(seen)[0][1]["response"]["id"]
    held.set()

    number = stream_events(seen)[-1][1]["sequence_number"]
    rest = read_again(app, response_id, number)

    assert stream_events(rest)[-1][0] == "response.completed"
    assert seen + rest == read_again(app, response_id, -1)


def test_a_background_response_is_cancelled_once_and_for_all(app: ChatApp) -> None:
    app.fakes.generator.stalls = True
    created = app.openai.responses.create(input="Hi", background=True)
    assert app.fakes.generator.stalled.wait(10)

    cancelled = app.openai.responses.cancel(created.id)

    assert cancelled.status == "cancelled"
    assert app.fakes.generator.closed.wait(10)
    assert app.openai.responses.cancel(created.id) == cancelled
    *_, last = app.openai.responses.retrieve(created.id, stream=True)
    assert last.type == "response.incomplete"
    assert last.response == cancelled


def test_a_background_response_that_is_deleted_stops(app: ChatApp) -> None:
    app.fakes.generator.stalls = True
    created = app.openai.responses.create(input="Hi", background=True)
    assert app.fakes.generator.stalled.wait(10)

    app.openai.responses.delete(created.id)

    assert app.fakes.generator.closed.wait(10)
    with pytest.raises(openai.NotFoundError):
        app.openai.responses.retrieve(created.id)


def test_what_is_not_of_the_background_cannot_be_cancelled(app: ChatApp) -> None:
    created = app.openai.responses.create(input="Hi")

    with pytest.raises(openai.BadRequestError, match="background"):
        app.openai.responses.cancel(created.id)
    with pytest.raises(openai.NotFoundError):
        app.openai.responses.cancel(new_id("resp"))


@pytest.mark.parametrize("starting_after", ["x", "-2", "1.5", "99999999999999999999"])
def test_a_wrong_place_in_a_stream_is_refused(app: ChatApp, starting_after: str) -> None:
    created = app.openai.responses.create(input="Hi")

    answer = app.http.get(f"/v1/responses/{created.id}?stream=true&starting_after={starting_after}")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "starting_after")


def test_the_stream_of_an_unknown_response_is_not_found(app: ChatApp) -> None:
    assert app.http.get("/v1/responses/resp_none?stream=true").status_code == 404


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "tools": [{"type": "file_search"}]}, "tools.0.vector_store_ids"),
        ({"input": "x", "tool_choice": "always"}, "tool_choice"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
        ({"input": "x", "include": ["reasoning.encrypted_content"]}, "include"),
        ({"input": "x", "background": True, "store": False}, "background"),
        ({"input": "x", "temperature": 2.5}, "temperature"),
        ({"input": "x", "top_p": -1}, "top_p"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "service_tier": "scale"}, "service_tier"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata.a"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ],
)
def test_a_wrong_request_names_the_field(app: ChatApp, body: Json, param: str) -> None:
    answer = app.http.post("/v1/responses", json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert app.fakes.journal.entries == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": "gpt-5"}, "model_not_found"),
        ({"previous_response_id": "resp_none"}, None),
        ({"conversation": "conv_none"}, None),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_none"]}]}, None),
    ],
)
def test_what_does_not_exist_is_not_found(app: ChatApp, body: Json, code: str | None) -> None:
    answer = app.http.post("/v1/responses", json={"input": "x", **body})

    assert answer.status_code in (400, 404)
    if code:
        assert answer.json()["error"]["code"] == code
    assert "generate" not in app.fakes.journal.entries


def test_a_search_needs_a_question(app: ChatApp) -> None:
    answer = app.http.post(
        "/v1/responses", json={"input": [{"role": "system", "content": "x"}], "tools": [file_search(app)]}
    )

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
