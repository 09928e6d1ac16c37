"""`GET /v1/conversations/{id}/context` over HTTP."""

from collections.abc import Iterator

import pytest

from serve_app.generation.prompt import SUMMARY
from serve_app.types import Json
from tests.api.chat_app import MODEL, ChatApp, running_chat
from tests.fakes import build_passage


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("memory"), [build_passage(1, "The Rhine flows.")]) as app:
        yield app


@pytest.fixture
def chat(app: ChatApp) -> ChatApp:
    return app.with_fresh_fakes()


def context_of(app: ChatApp, conversation_id: str) -> Json:
    answer = app.http.get(f"/v1/conversations/{conversation_id}/context")
    assert answer.status_code == 200, answer.text
    context: Json = answer.json()
    return context


def test_the_context_is_what_the_next_turn_shows(chat: ChatApp) -> None:
    conversation_id = chat.openai.conversations.create().id
    tools: list[Json] = [{"type": "file_search", "vector_store_ids": [chat.store_id]}]
    chat.openai.responses.create(model=MODEL, input="Where?", conversation=conversation_id, tools=tools)  # type: ignore[arg-type]

    context = context_of(chat, conversation_id)
    chat.openai.responses.create(model=MODEL, input="And?", conversation=conversation_id)

    assert context["messages"] == chat.fakes.generator.requests[-1].payload["messages"][:-1]
    assert context["messages"][0]["content"] == "Sources:\n[1] (1.txt) The Rhine flows.\n\nQuestion: Where?"
    assert context["tokens"] == 10
    assert context["summary"] is None
    assert context["window"]["tokens"] == 10
    items = chat.openai.conversations.items.list(conversation_id, order="asc").data
    assert context["window"]["item_ids"] == [items[0].id, items[2].id]  # without the search


def test_the_context_shows_the_summary_and_how_far_it_reaches(chat: ChatApp) -> None:
    items = [{"role": "user", "content": f"Line {number}."} for number in range(60)]
    conversation_id = chat.openai.conversations.create(items=items[:20]).id  # type: ignore[arg-type]
    for start in (20, 40):
        chat.openai.conversations.items.create(conversation_id, items=items[start : start + 20])  # type: ignore[arg-type]

    before = context_of(chat, conversation_id)
    chat.openai.responses.create(model=MODEL, input="And?", conversation=conversation_id)
    context = context_of(chat, conversation_id)

    listed = chat.openai.conversations.items.list(conversation_id, order="asc", limit=60).data
    assert before["window"]["item_ids"] == [each.id for each in listed[54:60]]
    assert before["summary"] | {"created_at": 0} == context["summary"] | {"created_at": 0}
    assert context["summary"]["last_item_id"] == listed[53].id
    assert context["summary"]["model"] == "extract"
    assert context["summary"]["tokens"] <= 256
    assert context["messages"][0] == {"role": "system", "content": SUMMARY + context["summary"]["text"]}


def test_what_is_no_conversation_has_no_context(chat: ChatApp) -> None:
    response = chat.openai.responses.create(model=MODEL, input="Where?")

    for missing in ("conv_1", response.id):
        answer = chat.http.get(f"/v1/conversations/{missing}/context")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
