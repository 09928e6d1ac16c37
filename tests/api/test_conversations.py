"""`/v1/conversations` over HTTP, asked by the official client."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.conversations import Conversation, ConversationItemList, Message
from pydantic import TypeAdapter

from serve_app.types import Json, new_id
from tests.api.chat_app import MODEL, ChatApp, running_chat


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


# --- forks --------------------------------------------------------------------------------------


def make(app: ChatApp, *words: str, **fields: object) -> str:
    conversation_id: str = app.http.post("/v1/conversations", json={**items_of(*words), **fields}).json()["id"]
    return conversation_id


def said(app: ChatApp, conversation_id: str) -> list[str]:
    items = app.http.get(f"/v1/conversations/{conversation_id}/items", params={"order": "asc"}).json()["data"]
    return [item["content"][0]["text"] for item in items]


def item_ids(app: ChatApp, conversation_id: str) -> list[str]:
    items = app.http.get(f"/v1/conversations/{conversation_id}/items", params={"order": "asc"}).json()["data"]
    return [item["id"] for item in items]


def test_a_fork_is_a_conversation_with_a_shared_past(app: ChatApp) -> None:
    root = make(app, "one", "two", "three")
    second = item_ids(app, root)[1]

    answer = app.http.post(f"/v1/conversations/{root}/fork", json={"item_id": second, "metadata": {"a": "b"}}).json()

    TypeAdapter(Conversation).validate_python(answer)
    assert answer["forked_from"] == {"conversation_id": root, "item_id": second}
    assert answer["metadata"] == {"a": "b"}
    app.http.post(f"/v1/conversations/{answer['id']}/items", json=items_of("else"))
    assert said(app, answer["id"]) == ["one", "two", "else"]
    assert said(app, root) == ["one", "two", "three"]
    asked = app.openai.responses.create(model=MODEL, input="Why?", conversation=answer["id"])
    assert said(app, answer["id"]) == ["one", "two", "else", "Why?", asked.output_text]
    assert app.http.delete(f"/v1/conversations/{root}").status_code == 200
    assert said(app, answer["id"])[:2] == ["one", "two"]


def test_a_fork_needs_no_body(app: ChatApp) -> None:
    root = make(app, "one")

    forked = app.http.post(f"/v1/conversations/{root}/fork").json()

    assert said(app, forked["id"]) == ["one"]


def test_the_same_idempotency_key_forks_once(app: ChatApp) -> None:
    root, other = make(app, "one"), make(app, "one")

    first, again, elsewhere = (
        app.http.post(f"/v1/conversations/{each}/fork", headers={"idempotency-key": "k"}).json()["id"]
        for each in (root, root, other)
    )

    assert first == again != elsewhere


def test_branches_and_their_comparison(app: ChatApp) -> None:
    root = make(app, "one", "two")
    fork_id = app.http.post(f"/v1/conversations/{root}/fork", json={"item_id": item_ids(app, root)[0]}).json()["id"]

    tree = app.http.get(f"/v1/conversations/{fork_id}/branches").json()
    compared = app.http.get(f"/v1/conversations/{root}/compare", params={"with": fork_id}).json()

    assert [(node["id"], node["parent_id"]) for node in tree["data"]] == [(root, None), (fork_id, root)]
    assert compared["last_common_item_id"] == item_ids(app, root)[0]
    assert (compared["only_here"]["count"], compared["only_there"]["count"]) == (1, 0)
    nothing = app.http.get(f"/v1/conversations/{root}/compare")
    assert (nothing.status_code, nothing.json()["error"]["param"]) == (400, "with")


def test_an_unknown_fork_point_is_named(app: ChatApp) -> None:
    answer = app.http.post(f"/v1/conversations/{make(app)}/fork", json={"item_id": "msg_unknown"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "item_id")


# --- listing, searching, expiring ---------------------------------------------------------------


def test_conversations_are_listed_by_their_metadata(app: ChatApp) -> None:
    made = [make(app, metadata={"list": "this", "n": str(number)}) for number in range(3)]
    make(app, metadata={"list": "that"})

    first = app.http.get("/v1/conversations", params={"metadata[list]": "this", "limit": 2}).json()
    rest = app.http.get("/v1/conversations", params={"metadata[list]": "this", "after": first["last_id"]}).json()
    one = app.http.get("/v1/conversations", params={"metadata[list]": "this", "metadata[n]": "1"}).json()

    assert first["has_more"]
    assert {each["id"] for each in first["data"] + rest["data"]} == set(made)
    assert [each["id"] for each in one["data"]] == [made[1]]


def test_messages_are_searched_in_one_conversation_and_in_many(app: ChatApp) -> None:
    here = make(app, "A needle", "A nail", "A NEEDLE too", metadata={"search": "here"})
    make(app, "needle elsewhere")

    first = app.http.post(f"/v1/conversations/{here}/search", json={"query": "needle", "limit": 1}).json()
    rest = app.http.post(
        f"/v1/conversations/{here}/search", json={"query": "needle", "page": first["next_page"]}
    ).json()
    many = app.http.post("/v1/conversations/search", json={"query": "needle"}).json()
    some = app.http.post("/v1/conversations/search", json={"query": "needle", "metadata": {"search": "here"}}).json()

    assert [hit["item"]["content"][0]["text"] for hit in first["data"]] == ["A NEEDLE too"]
    assert [hit["item"]["content"][0]["text"] for hit in rest["data"]] == ["A needle"]
    assert (first["has_more"], rest["has_more"], rest["next_page"]) == (True, False, None)
    assert (len(many["data"]), len(some["data"])) == (3, 2)
    assert {hit["conversation_id"] for hit in some["data"]} == {here}


@pytest.mark.parametrize("body", [{"query": " "}, {"query": "a", "page": "?"}, {"query": "a", "limit": 0}, {}])
def test_a_wrong_search_is_named(app: ChatApp, body: Json) -> None:
    for path in (f"/v1/conversations/{make(app)}/search", "/v1/conversations/search"):
        assert app.http.post(path, json=body).status_code == 400


def test_an_expiry_is_set_changed_and_cleared(app: ChatApp) -> None:
    day = {"anchor": "last_active_at", "seconds": 86_400}
    conversation_id = make(app, metadata={"a": "b"}, expires_after=day)
    path = f"/v1/conversations/{conversation_id}"

    assert app.http.get(path).json()["expires_after"] == day
    changed = app.http.post(path, json={"expires_after": {**day, "seconds": 60}}).json()
    assert (changed["expires_after"]["seconds"], changed["metadata"]) == (60, {"a": "b"})
    assert app.http.post(path, json={"metadata": {}}).json()["expires_after"]["seconds"] == 60
    assert app.http.post(path, json={"expires_after": None}).json()["expires_after"] is None


@pytest.mark.parametrize(
    "expiry", [{"anchor": "created_at", "seconds": 60}, {"anchor": "last_active_at", "seconds": 1}]
)
def test_a_wrong_expiry_is_named(app: ChatApp, expiry: Json) -> None:
    answer = app.http.post("/v1/conversations", json={"expires_after": expiry})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("expires_after")


@pytest.mark.parametrize("path", ["", "/items", "/items/msg_1", "/branches", "/compare?with=conv_1", "/export"])
def test_an_unknown_conversation_is_not_found(app: ChatApp, path: str) -> None:
    answer = app.http.get(f"/v1/conversations/{new_id('conv')}{path}")

    assert answer.status_code == 404
