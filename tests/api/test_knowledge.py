"""From an upload to a search, with LanceDB, the ingestion and the database as they are; only the encoder is a toy."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import openai
import pytest
from starlette.concurrency import run_in_threadpool
from tokenizers import Tokenizer, models, pre_tokenizers

from serve_app.config import IngestionConfig, RetentionConfig
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.index import IndexWriter
from serve_app.knowledge.ingest import Ingestor
from serve_app.knowledge.reembed import Reembedder
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.versions import Versions
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore
from serve_app.types import FloatMatrix
from serve_app.types.knowledge import (
    AttributeChange,
    Optimization,
    Passage,
    SearchQuery,
    StoreFileRef,
    StoreVersionRef,
    TableState,
)
from tests.api.conftest import build_app, open_test_database
from tests.api.parts import knowledge_parts
from tests.server import serve

WORDS = ["paris", "france", "tokyo", "japan", "capital", "river", "seine", "mountain"]
PARIS = b"Paris is the capital of France. The river Seine flows through it."
TOKYO = b"Tokyo is the capital of Japan. The mountain is called Fuji."


class WordEncoder:
    """Each of a few words is a dimension; one more is for all others."""

    model_id = "all-minilm-l6-v2"
    dimensions = len(WORDS) + 1
    max_tokens = 256

    def __init__(self) -> None:
        self.tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        rows = np.array([[text.lower().count(word) for word in WORDS] + [0.1] for text in texts], dtype=np.float32)
        rows = rows.reshape(len(texts), self.dimensions)
        unit: FloatMatrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


class LetterEncoder(WordEncoder):
    """Each letter is a dimension."""

    model_id = "letters"
    dimensions = 26

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        rows = np.array([[text.lower().count(letter) + 0.1 for letter in ascii_lowercase] for text in texts])
        unit: FloatMatrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


class LocalIndex:
    """The indexer, the embedder and the retriever, in this process. Waking it does all that waits."""

    def __init__(self, database: Database, folder: Path) -> None:
        encoders: dict[str, TextEncoder] = {each.model_id: each for each in (WordEncoder(), LetterEncoder())}
        self._writer = IndexWriter(folder / "vectors")
        self._reader = IndexReader(folder / "vectors")
        config = IngestionConfig(max_file_characters=100_000)
        files = FileStore(database, folder / "files")
        self._versions = Versions(database, self._writer, RetentionConfig())
        self._ingestor = Ingestor(database, files, encoders, self._writer, self._versions, config)
        self._reembedder = Reembedder(database, files, encoders, self._writer, self._versions, config)
        self._encoders = encoders

    def take_over(self) -> None:
        """From a process that was killed."""
        self._versions.undo_unrecorded()
        self._ingestor.take_over()
        self._reembedder.take_over()
        self._versions.enforce_retention()

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        return self._encoders[model or WordEncoder.model_id].encode(texts)

    async def count_tokens(self, texts: Sequence[str], model: str | None = None) -> int:
        return sum(len(text.split()) for text in texts)

    async def wake(self) -> None:
        while await run_in_threadpool(self._ingestor.run_once):
            pass
        while await run_in_threadpool(self._reembedder.run_once):
            pass

    async def update_attributes(self, change: AttributeChange) -> None:
        await run_in_threadpool(self._versions.update_attributes, change)

    async def remove_file(self, ref: StoreFileRef) -> None:
        await run_in_threadpool(self._versions.remove_file, ref)

    async def roll_back(self, ref: StoreVersionRef) -> int:
        return await run_in_threadpool(self._versions.roll_back, ref)

    async def drop_store(self, store_id: str) -> None:
        await run_in_threadpool(self._writer.drop, store_id)

    async def optimize(self, store_id: str) -> Optimization:
        return await run_in_threadpool(self._writer.optimize, self._versions.table(store_id))

    async def describe(self, store_id: str) -> TableState:
        return await run_in_threadpool(self._writer.describe, self._versions.table(store_id))

    async def search(self, query: SearchQuery) -> tuple[Passage, ...]:
        return await self._reader.search(query)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[openai.OpenAI]:
    with open_test_database(tmp_path) as database:
        index = LocalIndex(database, tmp_path)
        parts = knowledge_parts(index, index, index)
        with (
            serve(build_app(tmp_path, database, parts, {}, LetterEncoder.model_id)) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        ):
            yield client


def upload(client: openai.OpenAI, name: str, content: bytes) -> str:
    return client.files.create(file=(name, content), purpose="assistants").id


def found(client: openai.OpenAI, store_id: str, query: str, **options: Any) -> list[str]:
    return [result.filename for result in client.vector_stores.search(store_id, query=query, **options)]


def test_a_result_says_where_in_its_file_it_stands(client: openai.OpenAI) -> None:
    text = "# France\n\n" + "The river Seine is long. " * 40 + "\n\n# Japan\n\n" + "The capital is Tokyo. " * 9
    file_id = upload(client, "countries.md", text.encode())
    store = client.vector_stores.create(file_ids=[file_id])

    # `place` is not one of OpenAI's fields.
    best: Any = client.vector_stores.search(store.id, query="capital of Japan").data[0].to_dict()

    place = best["place"]
    (content,) = client.vector_stores.files.content(file_id, vector_store_id=store.id).data
    assert content.text is not None
    assert content.text[place["start"] : place["end"]] == best["content"][0]["text"]
    assert (place["heading"], place["page"], place["last_page"]) == (["Japan"], None, None)
    assert best["vector_store_id"] == store.id


def test_several_stores_are_searched_as_one(client: openai.OpenAI) -> None:
    stores = [
        client.vector_stores.create(file_ids=[upload(client, name, content) for name, content in files])
        for files in (
            [("paris.txt", PARIS), ("seine.txt", b"The river Seine rises near Dijon.")],
            [("tokyo.txt", TOKYO), ("copy.txt", PARIS.upper()), ("fuji.txt", b"Fuji is high.")],
        )
    ]
    body = {"query": "the river Seine", "vector_store_ids": [store.id for store in stores], "max_num_results": 3}

    data = client.post("/vector_stores/search", body=body, cast_to=dict[str, Any])["data"]

    # Each store's best is first in both halves there; over both together is Fuji what it is. The copy is not shown.
    assert [(result["filename"], result["vector_store_id"]) for result in data] == [
        ("seine.txt", stores[0].id),
        ("paris.txt", stores[0].id),
        ("fuji.txt", stores[1].id),
    ]
    assert data[0]["score"] == 1.0


def test_a_document_is_found_until_it_is_removed(client: openai.OpenAI) -> None:
    paris, tokyo = upload(client, "paris.txt", PARIS), upload(client, "tokyo.md", TOKYO)
    store = client.vector_stores.create(file_ids=[paris, tokyo])
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 2
    assert client.vector_stores.retrieve(store.id).usage_bytes > 0

    assert found(client, store.id, "the river Seine") == ["paris.txt", "tokyo.md"]
    assert found(client, store.id, "mountain in Japan")[0] == "tokyo.md"
    best = client.vector_stores.search(store.id, query="the river Seine").data[0]
    assert (best.file_id, best.content[0].text) == (paris, PARIS.decode())
    assert 0 < best.score <= 1

    client.files.delete(paris)
    assert found(client, store.id, "the river Seine") == ["tokyo.md"]
    client.vector_stores.files.delete(tokyo, vector_store_id=store.id)
    assert found(client, store.id, "the river Seine") == []
    client.vector_stores.delete(store.id)


def test_filters_follow_the_attributes_as_they_are_now(client: openai.OpenAI) -> None:
    paris, tokyo = upload(client, "paris.txt", PARIS), upload(client, "tokyo.txt", TOKYO)
    store = client.vector_stores.create()
    client.vector_stores.file_batches.create(
        store.id,
        files=[
            {"file_id": paris, "attributes": {"year": 2023, "place": "Europe"}},
            {"file_id": tokyo, "attributes": {"year": 2025, "draft": True}},
        ],
    )

    assert found(client, store.id, "capital", filters={"type": "gt", "key": "year", "value": 2024}) == ["tokyo.txt"]
    assert found(client, store.id, "capital", filters={"type": "eq", "key": "draft", "value": True}) == ["tokyo.txt"]
    client.vector_stores.files.update(paris, vector_store_id=store.id, attributes={"year": 2026})
    assert found(client, store.id, "capital", filters={"type": "gte", "key": "year", "value": 2026}) == ["paris.txt"]
    with pytest.raises(openai.BadRequestError, match="yaer") as refused:
        found(client, store.id, "capital", filters={"type": "eq", "key": "yaer", "value": 1})
    assert refused.value.param == "filters"


def test_a_file_that_cannot_be_used_fails_with_a_reason(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(file_ids=[upload(client, "blank.txt", b"  \n  \n")])

    (file,) = client.vector_stores.files.list(store.id)

    assert file.status == "failed"
    assert file.last_error is not None
    assert (file.last_error.code, "no text" in file.last_error.message) == ("invalid_file", True)
    assert client.vector_stores.retrieve(store.id).status == "completed"


def test_the_clients_own_helpers_wait_for_the_ingestion(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()

    file = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("paris.txt", PARIS))
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("tokyo.txt", TOKYO)], file_ids=[file.id]
    )

    assert file.status == "completed"
    assert (batch.status, batch.file_counts.completed) == ("completed", 2)


def test_the_statistics_tell_of_the_table_as_it_is(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(
        file_ids=[upload(client, "paris.txt", PARIS), upload(client, "tokyo.txt", TOKYO)]
    )
    before = client.get(f"/vector_stores/{store.id}/statistics", cast_to=dict[str, Any])

    client.post(f"/vector_stores/{store.id}/optimize", cast_to=object)
    after = client.get(f"/vector_stores/{store.id}/statistics", cast_to=dict[str, Any])

    assert (before["documents"], before["passages"]) == (after["documents"], after["passages"]) == (2, 2)
    assert before["size_bytes"] > 0
    assert before["index"]["text"] == {"kind": "FTS", "indexed_rows": 0, "unindexed_rows": 2}
    assert after["index"]["text"] == {"kind": "FTS", "indexed_rows": 2, "unindexed_rows": 0}
    assert after["index"]["vector"] == {"kind": None, "indexed_rows": 0, "unindexed_rows": 2}
    assert after["index"]["fragments"] == 1
