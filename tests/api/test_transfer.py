"""Export and import of conversations as JSON Lines."""

from collections.abc import Iterator

import httpx
import orjson
import pytest

from serve_app.api import transfer
from serve_app.types import Json, PageQuery, new_id
from serve_app.types.conversation import AppendItems
from tests.api.chat_app import ChatApp, running_chat
from tests.api.conftest import MAX_UPLOAD_BYTES, Api

HEADER: Json = {"object": "conversation", "metadata": {"topic": "rivers"}}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatApp]:
    with running_chat(tmp_path_factory.mktemp("transfer")) as app:
        yield app


def item_line(text: str, **fields: object) -> Json:
    return {"object": "conversation.item", "item": {"type": "message", "role": "user", "content": text, **fields}}


def send(app: ChatApp, *lines: Json | bytes) -> httpx.Response:
    body = b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines)
    return app.http.post("/v1/conversations/import", content=body, headers={"content-type": "application/jsonl"})


def export(app: ChatApp, conversation_id: str) -> list[Json]:
    answer = app.http.get(f"/v1/conversations/{conversation_id}/export")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/jsonl"
    return [orjson.loads(line) for line in answer.content.splitlines()]


def count_conversations(app: ChatApp) -> int:
    return len(app.log.list_conversations(PageQuery(limit=1000), {}).data)


def without_ids(items: list[Json]) -> list[Json]:
    return [{**line, "item": {**line["item"], "id": None}} for line in items]


def test_a_conversation_comes_back_as_it_was_under_new_ids(app: ChatApp) -> None:
    annotation = {"type": "file_citation", "file_id": "file_1", "filename": "a.txt", "index": 3}
    part = {"type": "output_text", "text": "At noon.", "annotations": [annotation], "logprobs": []}
    found = [{"file_id": "file_1", "text": "noon", "score": 0.5}]
    items: tuple[Json, ...] = (
        {
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_text", "text": "When?"}],
        },
        {"type": "file_search_call", "status": "completed", "queries": ["When?"], "results": found},
        {"type": "message", "role": "assistant", "status": "incomplete", "content": [part]},
    )
    conversation_id = app.log.create_conversation(
        new_id("conv"), {"topic": "käse"}, tuple({**item, "id": new_id("item")} for item in items), 3_600
    ).id
    header, *lines = export(app, conversation_id)

    answer = send(app, header, *lines).json()

    imported_header, *imported = export(app, answer["id"])
    assert answer == imported_header
    assert answer["id"] != conversation_id
    assert (answer["metadata"], answer["expires_after"]["seconds"]) == ({"topic": "käse"}, 3_600)
    assert without_ids(imported) == without_ids(lines)
    assert {line["item"]["id"] for line in imported}.isdisjoint(line["item"]["id"] for line in lines)


def test_a_long_conversation_and_a_fork_of_it_go_out_whole(app: ChatApp) -> None:
    conversation_id = app.log.create_conversation(new_id("conv"), {}, ()).id
    texts = [str(number) for number in range(250)]
    items = tuple({"type": "message", "id": new_id("msg"), "role": "user", "content": text} for text in texts)
    app.log.append_items(AppendItems(conversation_id, items, "key"))
    fork_id = app.http.post(f"/v1/conversations/{conversation_id}/fork", json={"item_id": items[-2]["id"]}).json()["id"]

    assert [line["item"]["content"] for line in export(app, fork_id)[1:]] == texts[:-1]


def test_what_a_person_writes_can_be_imported(app: ChatApp) -> None:
    answer = send(app, HEADER, item_line("Hi", role="user"), b"", {**item_line("Hello"), "created_at": 7}).json()

    lines = export(app, answer["id"])[1:]
    assert [line["item"]["content"][0]["text"] for line in lines] == ["Hi", "Hello"]
    assert lines[0]["created_at"] >= answer["created_at"]
    assert lines[1]["created_at"] == 7


@pytest.mark.parametrize(
    ("lines", "number", "what"),
    [
        ([], 1, "missing"),
        ([b"", HEADER], 1, "JSON"),
        ([item_line("a")], 1, "object"),
        ([{"object": "conversation", "metadata": {"a": 1}}], 1, "metadata"),
        ([HEADER, HEADER], 2, "object"),
        ([HEADER, item_line("a"), b"", b"{"], 4, "JSON"),
        ([HEADER, item_line("a"), b"[]"], 3, "object"),
        ([HEADER, item_line("a\0")], 2, "NUL"),
        ([HEADER, b'{"object": "conversation.item", "item": {"content": "\xff"}}'], 2, "UTF-8"),
        ([HEADER, item_line("a", role="tool")], 2, "role"),
        ([HEADER, item_line("a", role=None)], 2, "role"),
        ([HEADER, item_line("a", content=[{"type": "input_image"}])], 2, "input_image"),
        ([HEADER, {"object": "conversation.item", "item": {"type": "function_call"}}], 2, "function_call"),
        ([HEADER, {**item_line("a"), "created_at": -1}], 2, "created_at"),
        ([HEADER, *[item_line("a")] * 700, {"object": "conversation.item"}], 702, "item"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_imported(
    app: ChatApp, lines: list[Json | bytes], number: int, what: str
) -> None:
    before = count_conversations(app)

    answer = send(app, *lines)

    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(f"Line {number}")
    assert what in message
    assert count_conversations(app) == before


def test_more_items_than_may_hold_the_database_up_are_refused(app: ChatApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_ITEMS", 2)
    before = count_conversations(app)

    assert send(app, HEADER, *[item_line("Hi")] * 2).status_code == 200
    assert send(app, HEADER, *[item_line("Hi")] * 3).status_code == 413
    assert count_conversations(app) == before + 1


def test_an_import_may_be_as_large_as_an_upload(shared_api: Api) -> None:
    head = orjson.dumps(HEADER) + b"\n"
    for size, status in ((MAX_UPLOAD_BYTES - 1_000, 200), (3 * MAX_UPLOAD_BYTES, 413)):
        # In pieces, without a length before them.
        pieces = iter([head, *[orjson.dumps(item_line("x" * 900)) + b"\n"] * (size // 1_000)])
        assert shared_api.http.post("/v1/conversations/import", content=pieces).status_code == status
    assert len(shared_api.http.get("/v1/conversations").json()["data"]) == 1
