"""Several encoders over HTTP: a store is moved from one to another, searched with others, and back."""

from typing import Any

import httpx
import openai
import pytest

from tests.api.test_knowledge import LetterEncoder, WordEncoder
from tests.api.test_knowledge import client as client  # the whole knowledge base, in this process
from tests.api.test_versions import Documents
from tests.api.test_versions import documents as documents

WORDS, LETTERS = WordEncoder.model_id, LetterEncoder.model_id
BY_VECTOR = {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}


def store_of(client: openai.OpenAI, store_id: str) -> Any:
    return client.get(f"/vector_stores/{store_id}", cast_to=httpx.Response).json()


def test_store_moves_to_another_encoder_and_back(client: openai.OpenAI, documents: Documents) -> None:
    paris = documents.put("paris.txt", "Paris is the capital of France.")
    tokyo = documents.put("tokyo.txt", "Tokyo is the capital of Japan.")
    by_words = documents.answers("mountain capital", ranking_options=BY_VECTOR)

    moved = documents.post("reembed", {"model": LETTERS})

    assert (moved["model"], moved["reembedding"]["model"], moved["reembedding"]["status"]) == (
        WORDS,
        LETTERS,
        "in_progress",
    )
    assert moved["reembedding"]["error"] is None
    store = store_of(client, documents.store_id)
    assert (store["model"], store["reembedding"]) == (LETTERS, None)
    by_letters = documents.answers("mountain capital", ranking_options=BY_VECTOR)
    assert [text for text, _ in by_letters] != []
    assert by_letters != by_words
    assert documents.search("capital") == sorted(
        [(paris, "Paris is the capital of France."), (tokyo, "Tokyo is the capital of Japan.")]
    )
    assert documents.answers("mountain capital", ranking_options=BY_VECTOR, as_of=2) == by_words
    assert [each["model"] for each in documents.get("versions")["data"]] == [LETTERS, WORDS, WORDS]

    documents.post("reembed", {"model": WORDS})

    assert documents.answers("mountain capital", ranking_options=BY_VECTOR) == by_words


def test_answer_says_what_is_wrong_with_an_encoder(client: openai.OpenAI, documents: Documents) -> None:
    with pytest.raises(openai.BadRequestError, match="further_encoders") as refused:
        documents.post("reembed", {"model": "bge-m3"})
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.BadRequestError, match="bge-m3"):
        client.post("/vector_stores", body={"model": "bge-m3"}, cast_to=httpx.Response)
    with pytest.raises(openai.NotFoundError):
        client.post("/vector_stores/vs_00/reembed", body={"model": LETTERS}, cast_to=httpx.Response)
    with pytest.raises(openai.BadRequestError):
        documents.post("reembed", {})


def test_store_is_made_with_the_encoder_that_is_named(client: openai.OpenAI) -> None:
    made = client.post("/vector_stores", body={"model": LETTERS}, cast_to=httpx.Response).json()

    assert made["model"] == LETTERS
    assert store_of(client, client.vector_stores.create().id)["model"] == WORDS


def test_every_encoder_embeds_and_is_listed(client: openai.OpenAI) -> None:
    for model, dimensions in ((WORDS, WordEncoder.dimensions), (LETTERS, LetterEncoder.dimensions)):
        (entry,) = client.embeddings.create(model=model, input="Paris").data
        assert len(entry.embedding) == dimensions
    assert {WORDS, LETTERS} <= {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="bge-m3", input="Paris")


def test_stores_of_several_encoders_are_searched_as_one(client: openai.OpenAI, documents: Documents) -> None:
    documents.put("paris.txt", "Paris is the capital of France.")
    documents.put("tokyo.txt", "The mountain of Tokyo is called Fuji.")
    other = Documents(client)
    other.put("france.txt", "France has a river, the Seine.")
    other.put("japan.txt", "Japan has a mountain.")
    other.post("reembed", {"model": LETTERS})
    body = {"vector_store_ids": [documents.store_id, other.store_id], "query": "Japan has a mountain."}

    def search(**ranking: Any) -> Any:
        return client.post("/vector_stores/search", body={**body, **ranking}, cast_to=httpx.Response).json()["data"]

    # Each encoder's ranks are taken among its own: both stores have a passage that is first in both halves.
    assert {(each["filename"], each["score"]) for each in search()[:2]} == {("tokyo.txt", 1.0), ("japan.txt", 1.0)}
    cosines = [each["score"] for each in search(ranking_options=BY_VECTOR)]
    assert len(cosines) == 4
    assert cosines == sorted(cosines, reverse=True)

    with pytest.raises(openai.BadRequestError, match="several encoders") as refused:
        client.post(
            "/vector_stores/search",
            body={**body, "ranking_options": {"mmr": {"lambda": 0.5}}},
            cast_to=httpx.Response,
        )
    assert refused.value.param == "ranking_options.mmr"


def test_roll_back_to_the_time_of_another_encoder(client: openai.OpenAI, documents: Documents) -> None:
    documents.put("paris.txt", "Paris is the capital of France.")
    before = documents.answers("capital", ranking_options=BY_VECTOR)
    documents.post("reembed", {"model": LETTERS})
    documents.put("tokyo.txt", "Tokyo is the capital of Japan.")

    now = documents.post("rollback", {"version": 1})

    assert (now["model"], now["files"]) == (WORDS, 1)
    assert documents.answers("capital", ranking_options=BY_VECTOR) == before


def test_optimisation_and_statistics_are_of_the_table_that_is_searched(
    client: openai.OpenAI, documents: Documents
) -> None:
    documents.put("paris.txt", "Paris is the capital of France.")
    documents.post("reembed", {"model": LETTERS})
    documents.put("tokyo.txt", "Tokyo is the capital of Japan.")

    assert documents.get("statistics")["passages"] == 2
    assert documents.post("optimize", {})["fragments"]["after"] == 1
    documents.remove(next(iter(documents.listed())))
    assert len(documents.search("capital")) == 1
    client.vector_stores.delete(documents.store_id)
