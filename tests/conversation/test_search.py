"""Search by words: in one conversation and in all of them."""

import pytest
from sqlalchemy import update

from serve_app.conversation.log import ConversationLog
from serve_app.errors import InvalidRequest, NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import items
from serve_app.types import Json, new_id
from serve_app.types.conversation import AppendItems, ForkConversation, ItemSearch
from tests.conversation.messages import message, texts


def make(log: ConversationLog, *said: str, **metadata: str) -> str:
    return log.create_conversation(new_id("conv"), metadata, tuple(map(message, said))).id


def found(log: ConversationLog, search: ItemSearch) -> list[str]:
    return texts([hit["item"] for hit in log.search_items(search).data])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("ferry", ["The Ferry to Molène", "a FERRY"]),
        ("molène ferry", ["The Ferry to Molène"]),
        ("MOLÈNE", ["The Ferry to Molène"]),
        ("erry to", ["The Ferry to Molène"]),
        ("plane", []),
        ("100%", ['100% sure/certain "quoted" back\\slash snake_case']),
        ("%", ['100% sure/certain "quoted" back\\slash snake_case']),
        ("e_c", ['100% sure/certain "quoted" back\\slash snake_case']),
        ('e/c "q k\\s', ['100% sure/certain "quoted" back\\slash snake_case']),
        ("渡し船", ["渡し船 🧀"]),
        ("🧀", ["渡し船 🧀"]),
        ("content", []),
        ("message", []),
        ("u00e8", []),
    ],
)
def test_every_word_must_be_there_in_any_case(log: ConversationLog, query: str, expected: list[str]) -> None:
    said = ["渡し船 🧀", '100% sure/certain "quoted" back\\slash snake_case', "a FERRY", "The Ferry to Molène"]
    conversation_id = make(log, *said)
    assert found(log, ItemSearch(query, conversation_id)) == expected
    assert sorted(found(log, ItemSearch(query))) == sorted(expected)


def test_the_text_of_parts_is_searched(log: ConversationLog) -> None:
    answer: Json = {"type": "output_text", "text": "At noon.", "annotations": [{"filename": "timetable.txt"}]}
    item = {**message(""), "content": [answer, {"type": "output_text", "text": "Or later."}]}
    conversation_id = log.create_conversation(new_id("conv"), {}, (item,)).id
    assert log.search_items(ItemSearch("noon later", conversation_id)).data == (
        {
            "object": "conversation.search_result",
            "conversation_id": conversation_id,
            "created_at": log.export_items(conversation_id, 0, 1)[0].created_at,
            "item": item,
        },
    )
    assert found(log, ItemSearch("timetable", conversation_id)) == []


def test_what_is_found_is_paged_newest_first(log: ConversationLog) -> None:
    conversation_id = make(log, *(f"word {number}" for number in range(7)))
    for conversation in (conversation_id, None):
        seen: list[list[str]] = []
        page = None
        while len(seen) < 3:
            answer = log.search_items(ItemSearch("word", conversation, limit=3, page=page))
            seen.append(texts([hit["item"] for hit in answer.data]))
            page = answer.next_page
        assert seen == [["word 6", "word 5", "word 4"], ["word 3", "word 2", "word 1"], ["word 0"]]
        assert page is None


def test_a_page_is_full_although_the_database_found_more_than_there_is(log: ConversationLog) -> None:
    """`content` is in the JSON of every item, but in the text of few."""
    conversation_id = make(log, *(f"content {number}" if number % 200 == 0 else "other" for number in range(601)))
    answer = log.search_items(ItemSearch("content", conversation_id, limit=3))
    assert texts([hit["item"] for hit in answer.data]) == ["content 600", "content 400", "content 200"]
    assert answer.next_page is not None


def test_a_fork_finds_what_it_shares(log: ConversationLog) -> None:
    first, second = message("word one"), message("word two")
    root = log.create_conversation(new_id("conv"), {}, (first, second)).id
    branch = log.fork_conversation(ForkConversation(root, new_id("conv"), first["id"])).id
    log.append_items(AppendItems(branch, (message("word three"),), "key"))
    assert found(log, ItemSearch("word", branch)) == ["word three", "word one"]
    assert log.search_items(ItemSearch("word", branch)).data[1]["conversation_id"] == branch
    assert sorted(found(log, ItemSearch("word"))) == ["word one", "word three", "word two"]
    newest = log.search_items(ItemSearch("word", branch, limit=1))
    assert found(log, ItemSearch("word", branch, page=newest.next_page)) == ["word one"]


def test_deleted_items_are_not_found(log: ConversationLog) -> None:
    gone = message("word")
    conversation = log.create_conversation(new_id("conv"), {}, (gone,))
    log.delete_item(conversation.id, gone["id"])
    assert found(log, ItemSearch("word")) == found(log, ItemSearch("word", conversation.id)) == []


@pytest.mark.parametrize("key", ["topic", "käse", 'quo"te', "back\\slash", "a.b[0]", "%", "it's"])
def test_a_search_of_many_has_their_metadata(log: ConversationLog, key: str) -> None:
    make(log, "word 1", **{key: "rivers", "lang": "en"})
    make(log, "word 2", **{key: "Rivers"})
    make(log, "word 3", **{key: f'"{key}": "rivers"'})
    make(log, "word 4", lang=key)
    assert found(log, ItemSearch("word", metadata={key: "rivers"})) == ["word 1"]
    assert found(log, ItemSearch("word", metadata={key: "rivers", "lang": "en"})) == ["word 1"]
    assert found(log, ItemSearch("word", metadata={key: "rivers", "lang": "de"})) == []
    assert len(found(log, ItemSearch("word"))) == 4


def test_a_search_of_many_has_a_time(log: ConversationLog, database: Database) -> None:
    for time in (100, 200, 300):
        conversation_id = make(log, f"word {time}")
        with database.write() as connection:
            connection.execute(update(items).where(items.c.log_id == conversation_id).values(created_at=time))
    assert found(log, ItemSearch("word")) == ["word 300", "word 200", "word 100"]
    assert found(log, ItemSearch("word", created_after=200)) == ["word 300", "word 200"]
    assert found(log, ItemSearch("word", created_after=200, created_before=300)) == ["word 200"]


@pytest.mark.parametrize("query", ["", "  ", " ".join(["word"] * 21)])
def test_a_query_has_words(log: ConversationLog, query: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        log.search_items(ItemSearch(query))
    assert caught.value.param == "query"


@pytest.mark.parametrize("page", ["x", "-1", "1.2", "1.2.3.4", "9" * 30, "1.x.conv"])
def test_an_unknown_page_is_an_invalid_request(log: ConversationLog, page: str) -> None:
    for conversation_id in (make(log), None):
        with pytest.raises(InvalidRequest) as caught:
            log.search_items(ItemSearch("word", conversation_id, page=page))
        assert caught.value.param == "page"


def test_an_unknown_conversation_is_not_found(log: ConversationLog) -> None:
    with pytest.raises(NotFound):
        log.search_items(ItemSearch("word", "conv_unknown"))
