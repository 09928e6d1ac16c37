"""`/v1/conversations` over HTTP, asked by the official client."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.conversations import Conversation, ConversationItemList, Message
from pydantic import TypeAdapter

from serve_app.types import Json, new_id
from tests.api.chat_app import ChatApp, running_chat


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("conversations")) as app:
        yield app


def items_of(*words: str) -> Json:
    return {"items": [{"role": "user", "content": word} for word in words]}


def test_a_conversation_is_made_read_changed_and_deleted(app: ChatApp) -> None:
    created = app.openai.conversations.create(metadata={"topic": "rivers"})
    TypeAdapter(Conversation).validate_python(created.to_dict(), strict=True)

    assert app.openai.conversations.retrieve(created.id) == created
    assert app.openai.conversations.update(created.id, metadata={"topic": "lakes"}).metadata == {"topic": "lakes"}
    assert app.openai.conversations.retrieve(created.id).metadata == {"topic": "lakes"}
    deleted = app.openai.conversations.delete(created.id)
    assert deleted.to_dict() == {"id": created.id, "object": "conversation.deleted", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        app.openai.conversations.retrieve(created.id)


def test_a_conversation_needs_no_body(app: ChatApp) -> None:
    answer = app.http.post("/v1/conversations")

    assert answer.status_code == 200
    assert answer.json()["metadata"] == {}


def test_items_are_stored_complete(app: ChatApp) -> None:
    conversation = app.openai.conversations.create(
        items=[
            {"role": "user", "content": "Hi"},
            {"type": "message", "role": "assistant", "content": "Hello"},
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Rhyme."}]},
        ]
    )

    body = app.http.get(f"/v1/conversations/{conversation.id}/items", params={"order": "asc"}).json()

    TypeAdapter(ConversationItemList).validate_python(body)
    assert [TypeAdapter(Message).validate_python(item, strict=True).role for item in body["data"]] == [
        "user",
        "assistant",
        "system",
    ]
    assert [item["content"] for item in body["data"]] == [
        [{"type": "input_text", "text": "Hi"}],
        [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
        [{"type": "input_text", "text": "Rhyme."}],
    ]
    assert {item["status"] for item in body["data"]} == {"completed"}
    assert all(item["id"].startswith("msg_") for item in body["data"])
    assert (body["first_id"], body["last_id"]) == (body["data"][0]["id"], body["data"][-1]["id"])


def test_items_are_added_listed_read_and_deleted(app: ChatApp) -> None:
    conversation = app.openai.conversations.create()
    added = app.openai.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Hi"}])
    item = added.data[0]
    assert isinstance(item, Message)

    assert app.openai.conversations.items.retrieve(item.id, conversation_id=conversation.id) == item
    assert app.openai.conversations.items.list(conversation.id).data == [item]
    assert app.openai.conversations.items.delete(item.id, conversation_id=conversation.id).id == conversation.id
    assert app.openai.conversations.items.list(conversation.id).data == []
    with pytest.raises(openai.NotFoundError):
        app.openai.conversations.items.retrieve(item.id, conversation_id=conversation.id)


def test_items_are_paged_newest_first(app: ChatApp) -> None:
    conversation = app.openai.conversations.create()
    path = f"/v1/conversations/{conversation.id}/items"
    app.http.post(path, json=items_of("one", "two", "three"))

    first = app.http.get(path, params={"limit": 2}).json()
    rest = app.http.get(path, params={"limit": 2, "after": first["last_id"]}).json()

    assert [item["content"][0]["text"] for item in first["data"]] == ["three", "two"]
    assert first["has_more"]
    assert [item["content"][0]["text"] for item in rest["data"]] == ["one"]
    assert not rest["has_more"]


def test_the_same_idempotency_key_adds_items_once(app: ChatApp) -> None:
    conversation = app.openai.conversations.create()
    path = f"/v1/conversations/{conversation.id}/items"

    first = app.http.post(path, json=items_of("one"), headers={"idempotency-key": "k"}).json()
    again = app.http.post(path, json=items_of("one"), headers={"idempotency-key": "k"}).json()

    assert again == first
    assert len(app.http.get(path).json()["data"]) == 1


@pytest.mark.parametrize("count", [0, 21])
def test_a_call_adds_one_to_twenty_items(app: ChatApp, count: int) -> None:
    conversation = app.openai.conversations.create()

    answer = app.http.post(f"/v1/conversations/{conversation.id}/items", json=items_of(*["x"] * count))

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items")


def test_metadata_has_at_most_sixteen_keys(app: ChatApp) -> None:
    answer = app.http.post("/v1/conversations", json={"metadata": {str(key): "x" for key in range(17)}})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "metadata")


def test_a_wrong_item_adds_none(app: ChatApp) -> None:
    conversation = app.openai.conversations.create()
    path = f"/v1/conversations/{conversation.id}/items"

    answer = app.http.post(path, json={"items": [{"role": "user", "content": "x"}, {"type": "item_reference"}]})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items.1")
    assert app.http.get(path).json()["data"] == []


@pytest.mark.parametrize("path", ["", "/items", "/items/msg_1"])
def test_an_unknown_conversation_is_not_found(app: ChatApp, path: str) -> None:
    answer = app.http.get(f"/v1/conversations/{new_id('conv')}{path}")

    assert answer.status_code == 404
