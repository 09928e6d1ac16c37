"""What a user does, with OpenAI's own client, unchanged: documents in, questions, follow-ups, all remembered."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFileSearchToolCall,
    ResponseIncompleteEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseStreamEvent,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_output_text import AnnotationFileCitation

from tests.served.conftest import BOTH, ENCODER, MODEL, OTHER_ENCODER, TRANSFORMERS

HANDBOOK = {
    "lighthouse.md": "# The lighthouse of Kermorvan\n\nThe lighthouse keeper of Kermorvan is called Yann Le Gall. "
    "The lamp was electrified in 1932. Its light reaches 22 nautical miles.\n",
    "ferry.txt": "The ferry to the island of Molene sails at 09:15 on weekdays. A return ticket costs 34 euros.\n",
    "bakery.html": "<html><body><h1>Bakery</h1><p>The bakery in Le Conquet closes on Tuesdays.</p></body></html>",
    "boats.jsonl": '{"title": "Boats", "text": "The trawler Marie-Jeanne was launched in 1958."}\n',
}


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handbook")
    for name, text in HANDBOOK.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def store_id(client: openai.OpenAI, handbook: Path) -> str:
    store = client.vector_stores.create(name="harbour")
    batch = client.vector_stores.file_batches.upload_and_poll(
        vector_store_id=store.id, files=sorted(handbook.iterdir()), poll_interval_ms=200
    )
    assert batch.status == "completed"
    assert batch.file_counts.completed == len(HANDBOOK)
    return store.id


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {*BOTH, ENCODER, OTHER_ENCODER}


def test_embeddings_of_like_texts_are_close(client: openai.OpenAI) -> None:
    texts = ["a ferry to an island", "the boat that sails to the isle", "quarterly tax returns"]
    ferry, boat, taxes = (
        item.embedding for item in client.embeddings.create(model="all-minilm-l6-v2", input=texts).data
    )

    def cosine(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert cosine(ferry, ferry) == pytest.approx(1, abs=1e-3)
    assert cosine(ferry, boat) > cosine(ferry, taxes) + 0.2


def test_search_finds_the_passage(client: openai.OpenAI, store_id: str) -> None:
    found = client.vector_stores.search(store_id, query="When was the lamp electrified?").data
    assert found[0].filename == "lighthouse.md"
    assert "1932" in found[0].content[0].text
    assert 0 < found[0].score <= 1


def test_an_optimised_store_answers_as_before(client: openai.OpenAI, store_id: str) -> None:
    question = "When was the lamp electrified?"
    before = [result.to_dict() for result in client.vector_stores.search(store_id, query=question).data]

    done = client.post(f"/vector_stores/{store_id}/optimize", cast_to=dict[str, Any])

    assert done["duplicates_removed"] == 0
    assert done["fragments"]["after"] == 1
    assert [result.to_dict() for result in client.vector_stores.search(store_id, query=question).data] == before


@pytest.mark.parametrize("model", BOTH)
def test_streamed_answer_cites_and_follow_ups_remember(client: openai.OpenAI, store_id: str, model: str) -> None:
    tools = [{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 2}]
    events: list[ResponseStreamEvent] = list(
        client.responses.create(
            model=model,
            input="What is the name of the lighthouse keeper of Kermorvan?",
            tools=tools,  # type: ignore[arg-type]  # a plain dict, as users write it
            include=["file_search_call.results"],
            max_output_tokens=48,
            temperature=0,
            stream=True,
        )
    )

    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert isinstance(events[-1], ResponseCompletedEvent | ResponseIncompleteEvent)
    response: Response = events[-1].response
    deltas = [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)]
    assert len(deltas) > 3
    assert "".join(deltas) == response.output_text
    assert "Yann Le Gall" in response.output_text
    call, message = response.output
    assert isinstance(call, ResponseFileSearchToolCall)
    assert call.results
    assert call.results[0].filename == "lighthouse.md"
    assert isinstance(message, ResponseOutputMessage)
    (text,) = message.content
    assert isinstance(text, ResponseOutputText)
    cited = {note.filename for note in text.annotations if isinstance(note, AnnotationFileCitation)}
    assert "lighthouse.md" in cited

    # A follow-up, not streamed.
    follow_up = client.responses.create(
        model=model,
        input="Repeat the question that I asked before.",
        previous_response_id=response.id,
        max_output_tokens=24,
        temperature=0,
    )
    assert follow_up.status in ("completed", "incomplete")
    assert follow_up.previous_response_id == response.id
    assert follow_up.usage
    assert follow_up.usage.input_tokens > 60  # the first question and its answer are in the prompt
    stored = client.responses.retrieve(follow_up.id)
    assert stored.output_text == follow_up.output_text
    asked = client.responses.input_items.list(follow_up.id)
    assert "Repeat the question that I asked before." in asked.to_json()
    assert len(asked.data) == 1


@pytest.mark.parametrize("model", BOTH)
def test_a_conversation_keeps_every_item_in_order(client: openai.OpenAI, model: str) -> None:
    conversation = client.conversations.create(metadata={"topic": "boats"})
    for question in ("My boat is called Marie-Jeanne.", "Say hello to my boat."):
        response = client.responses.create(
            model=model, input=question, conversation=conversation.id, max_output_tokens=16, temperature=0
        )
        assert response.conversation
        assert response.conversation.id == conversation.id

    items = list(client.conversations.items.list(conversation.id, order="asc"))

    assert [item.role for item in items if item.type == "message"] == ["user", "assistant", "user", "assistant"]
    assert client.conversations.retrieve(conversation.id).metadata == {"topic": "boats"}


def test_insights_follow_a_conversation(client: openai.OpenAI) -> None:
    conversation = client.conversations.create()
    for count, text in enumerate(("When does the ferry sail?", "What is a lighthouse for?"), 1):
        client.responses.create(model=MODEL, input=text, conversation=conversation.id, max_output_tokens=16)

        shown = client.get(f"/conversations/{conversation.id}/insights", cast_to=dict[str, Any])

        assert shown["messages"] == 2 * count
        assert shown["engagement"]["user"]["questions"] == count
        assert [turn["item_id"] for turn in shown["topics"]["turns"]] == [
            item.id for item in client.conversations.items.list(conversation.id, order="asc")
        ]
    overview = client.get("/insights", cast_to=dict[str, Any])
    assert overview["messages"]["count"] >= 4


@pytest.mark.parametrize("model", BOTH)
def test_chat_completions_take_the_same_tool(client: openai.OpenAI, store_id: str, model: str) -> None:
    question = [{"role": "user", "content": "How much is a return ticket of the ferry?"}]
    tools = [{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 2}]
    answer = client.chat.completions.create(
        model=model,
        messages=question,  # type: ignore[arg-type]
        tools=tools,  # type: ignore[arg-type]  # our addition to OpenAI's chat completions
        max_completion_tokens=40,
        temperature=0,
    )
    streamed = client.chat.completions.create(
        model=model,
        messages=question,  # type: ignore[arg-type]
        tools=tools,  # type: ignore[arg-type]
        max_completion_tokens=40,
        temperature=0,
        stream=True,
    )

    text = ""
    for chunk in streamed:
        assert isinstance(chunk, ChatCompletionChunk)
        text += "".join(choice.delta.content or "" for choice in chunk.choices)

    assert "34" in (answer.choices[0].message.content or "")
    assert text == answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.prompt_tokens > 50


def test_a_conversation_is_forked_searched_exported_and_imported(client: openai.OpenAI) -> None:
    items = [{"role": "user", "content": "Remember the number 42."}, {"role": "assistant", "content": "Noted."}]
    root = client.conversations.create(items=items)  # type: ignore[arg-type]
    first = client.conversations.items.list(root.id, order="asc").data[0]

    fork: dict[str, Any] = client.post(f"/conversations/{root.id}/fork", body={"item_id": first.id}, cast_to=dict)
    client.responses.create(model=MODEL, input="Which number?", conversation=fork["id"], max_output_tokens=8)

    items_of_fork = client.conversations.items.list(fork["id"], order="asc").data
    assert [item.id for item in items_of_fork[:1]] == [first.id]
    assert len(items_of_fork) == 3
    assert len(client.conversations.items.list(root.id).data) == 2
    found: dict[str, Any] = client.post("/conversations/search", body={"query": "NUMBER 42"}, cast_to=dict)
    assert root.id in {hit["conversation_id"] for hit in found["data"]}
    client.conversations.delete(root.id)
    exported = client.get(f"/conversations/{fork['id']}/export", cast_to=openai.HttpxBinaryResponseContent).content
    assert len(exported.splitlines()) == 4
    imported: dict[str, Any] = client.post("/conversations/import", content=exported, cast_to=dict)
    assert len(client.conversations.items.list(imported["id"]).data) == 3


def test_a_conversation_goes_from_one_model_to_another(client: openai.OpenAI) -> None:
    conversation = client.conversations.create()
    for model in (MODEL, TRANSFORMERS, MODEL):
        response = client.responses.create(
            model=model, input="Say hello.", conversation=conversation.id, max_output_tokens=8, temperature=0
        )
        assert response.model == model
        assert response.output_text
    assert len(client.conversations.items.list(conversation.id).data) == 6
