"""`/v1/vector_stores`: stores of files that can be searched, the files in them, and the search itself.

Rows come first and the indexer learns of them afterwards: what it misses it finds in the database.
"""

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Query
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool

from serve_app.api.checks import require_tables
from serve_app.api.context import Context, InContext
from serve_app.api.wake import wake_indexer
from serve_app.api.wire import (
    AnyFilter,
    Attributes,
    ChunkingStrategy,
    Metadata,
    Name,
    PageParameters,
    RankingOptions,
    Wire,
    WireAsOf,
    chunking_to_json,
)
from serve_app.errors import Conflict
from serve_app.knowledge import parse
from serve_app.knowledge.documents import NewFile
from serve_app.knowledge.retrieve import retrieve
from serve_app.types import Json
from serve_app.types.knowledge import Passage, StoreFileRef, StoreVersionRef

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])

Id = Annotated[str, Field(min_length=1, max_length=80)]
StoreVersion = Annotated[int, Field(ge=1, lt=2**31)]
QueryText = Annotated[str, Field(min_length=1, max_length=32_768)]


class StoreExpiry(Wire):
    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class Retention(Wire):
    """What is not sent is as the server's configuration says."""

    keep_versions: int | None = Field(default=None, ge=1, le=100_000)
    keep_days: float | None = Field(default=None, ge=0, le=36_500)


class CreateStoreBody(Wire):
    model: str | None = None
    """The encoder; the configured one if it is not sent."""
    name: Name | None = None
    file_ids: Annotated[list[Id], Field(max_length=500)] | None = None
    chunking_strategy: ChunkingStrategy | None = None
    expires_after: StoreExpiry | None = None
    retention: Retention | None = None
    metadata: Metadata | None = None


class UpdateStoreBody(Wire):
    """What is not sent stays; `null` empties a field."""

    name: Name | None = None
    expires_after: StoreExpiry | None = None
    retention: Retention | None = None
    metadata: Metadata | None = None


class AddFileBody(Wire):
    file_id: Id
    key: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]*$")] | None = None
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None

    def to_new_file(self) -> NewFile:
        return NewFile(self.file_id, self.attributes or {}, chunking_to_json(self.chunking_strategy), self.key)


class AttributesBody(Wire):
    attributes: Attributes | None


class BatchBody(Wire):
    file_ids: Annotated[list[Id], Field(min_length=1, max_length=2000)] | None = None
    files: Annotated[list[AddFileBody], Field(min_length=1, max_length=2000)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "BatchBody":
        if (self.file_ids is None) == (self.files is None):
            raise ValueError("send either 'file_ids' or 'files'")
        return self

    def to_new_files(self) -> list[NewFile]:
        if self.files is not None:
            return [file.to_new_file() for file in self.files]
        strategy = chunking_to_json(self.chunking_strategy)
        return [NewFile(file_id, self.attributes or {}, strategy) for file_id in self.file_ids or ()]


class SearchBody(Wire):
    query: QueryText | Annotated[list[QueryText], Field(min_length=1, max_length=20)]
    filters: AnyFilter | None = None
    max_num_results: int = Field(10, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    as_of: WireAsOf | None = None
    rewrite_query: bool = False


class PinBody(Wire):
    pinned: bool


class RollBackBody(Wire):
    version: StoreVersion


class ReembedBody(Wire):
    model: str


class SearchStoresBody(SearchBody):
    vector_store_ids: Annotated[list[Id], Field(min_length=1, max_length=10)]


class FilePageParameters(PageParameters):
    filter: Literal["in_progress", "completed", "failed", "cancelled"] | None = None


InPage = Annotated[PageParameters, Query()]
InFilePage = Annotated[FilePageParameters, Query()]

# Stores


@router.post("")
async def create_store(body: CreateStoreBody, context: InContext) -> Json:
    store = await run_in_threadpool(
        context.catalog.create_store,
        name=body.name,
        metadata=body.metadata,
        expires_after=body.expires_after.model_dump() if body.expires_after else None,
        chunking_strategy=chunking_to_json(body.chunking_strategy),
        retention=body.retention.model_dump(exclude_none=True) if body.retention else None,
        model=body.model,
        new_files=[NewFile(file_id) for file_id in body.file_ids or ()],
    )
    if body.file_ids:
        await wake_indexer(context)
    return store


# Before the routes of one store: `search` is no store's id.
@router.post("/search")
async def search_stores(body: SearchStoresBody, context: InContext) -> Json:
    """One search of several stores: at most `max_num_results` in all, each with its `vector_store_id`."""
    return await _search(body.vector_store_ids, body, context)


@router.get("")
def list_stores(page: InPage, context: InContext) -> Json:
    return context.catalog.list_stores(page.to_query()).to_json()


@router.get("/{store_id}")
def get_store(store_id: str, context: InContext) -> Json:
    return context.catalog.get_store(store_id)


@router.post("/{store_id}")
def update_store(store_id: str, body: UpdateStoreBody, context: InContext) -> Json:
    changes = body.model_dump(exclude_unset=True)
    if changes.get("retention"):
        changes["retention"] = {name: value for name, value in changes["retention"].items() if value is not None}
    if "metadata" in changes:
        changes["metadata"] = changes["metadata"] or {}
    return context.catalog.update_store(store_id, changes)


@router.delete("/{store_id}")
async def delete_store(store_id: str, context: InContext) -> Json:
    await delete_with_passages(context, store_id)
    return {"id": store_id, "object": "vector_store.deleted", "deleted": True}


@router.post("/{store_id}/search")
async def search_store(store_id: str, body: SearchBody, context: InContext) -> Json:
    return await _search([store_id], body, context)


# Versions


@router.get("/{store_id}/versions")
def list_versions(store_id: str, context: InContext) -> Json:
    """Those that are kept, newest first: `as_of` searches them."""
    return {"object": "list", "data": context.catalog.list_versions(store_id), "has_more": False}


@router.post("/{store_id}/versions/{version}")
def pin_version(store_id: str, version: StoreVersion, body: PinBody, context: InContext) -> Json:
    return context.catalog.pin_version(store_id, version, body.pinned)


@router.post("/{store_id}/rollback")
async def roll_back(store_id: str, body: RollBackBody, context: InContext) -> Json:
    """The store is again what it was at a version that is kept. That is a new version, so it can be undone."""
    await run_in_threadpool(context.catalog.require_version, store_id, body.version)
    version = await context.parts.indexer.roll_back(StoreVersionRef(store_id, body.version))
    return await run_in_threadpool(context.catalog.get_version, store_id, version)


@router.get("/{store_id}/files/{file_id}/versions")
def list_file_versions(store_id: str, file_id: str, context: InContext) -> Json:
    """All files that are or were versions of the same document, newest first."""
    return {"object": "list", "data": context.catalog.list_file_versions(store_id, file_id), "has_more": False}


@router.post("/{store_id}/reembed")
async def reembed(store_id: str, body: ReembedBody, context: InContext) -> Json:
    """Move the store to another encoder: answered at once, done behind. The store says how far it is."""
    store = await run_in_threadpool(context.catalog.reembed, store_id, body.model)
    await wake_indexer(context)
    return store


@router.post("/{store_id}/optimize")
async def optimize_store(store_id: str, context: InContext) -> Json:
    """Do now what the server else does by itself when it is worth it; searches and changes go on meanwhile."""
    await run_in_threadpool(context.catalog.require_stores, [store_id])
    done = await context.parts.indexer.optimize(store_id)
    return {
        "object": "vector_store.optimization",
        "vector_store_id": store_id,
        "duplicates_removed": done.duplicates_removed,
        "fragments": _before_and_after(done.fragments),
        "size_bytes": _before_and_after(done.size_bytes),
        "search_ms": _before_and_after(done.search_ms),
        "elapsed_ms": round(done.elapsed_ms, 1),
    }


# Files in a store


@router.post("/{store_id}/files")
async def add_file(store_id: str, body: AddFileBody, context: InContext) -> Json:
    file = await run_in_threadpool(context.catalog.add_file, store_id, body.to_new_file())
    await wake_indexer(context)
    return file


@router.get("/{store_id}/files")
def list_files(store_id: str, page: InFilePage, context: InContext) -> Json:
    return context.catalog.list_files(store_id, page.to_query(), status=page.filter).to_json()


@router.get("/{store_id}/files/{file_id}")
def get_file(store_id: str, file_id: str, context: InContext) -> Json:
    return context.catalog.get_file(store_id, file_id)


@router.post("/{store_id}/files/{file_id}")
async def update_file(store_id: str, file_id: str, body: AttributesBody, context: InContext) -> Json:
    attributes = dict(body.attributes or {})
    file = await run_in_threadpool(context.catalog.update_attributes, store_id, file_id, attributes)
    await context.parts.indexer.update_attributes(StoreFileRef(store_id, file_id))
    if file["status"] == "in_progress":
        await wake_indexer(context)
    return file


@router.delete("/{store_id}/files/{file_id}")
async def remove_file(store_id: str, file_id: str, context: InContext) -> Json:
    """The row goes last, so that a call which fails halfway can be made again."""
    await run_in_threadpool(context.catalog.stop_ingestion, store_id, file_id)
    await context.parts.indexer.remove_file(StoreFileRef(store_id, file_id))
    await run_in_threadpool(context.catalog.remove_file, store_id, file_id)
    await wake_indexer(context)
    return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}


@router.get("/{store_id}/files/{file_id}/content")
async def get_file_content(store_id: str, file_id: str, context: InContext) -> Json:
    """Parsed anew, which is only done with a file that the indexer has parsed and survived."""
    file = await run_in_threadpool(context.catalog.get_file, store_id, file_id)
    if (status := file["status"]) != "completed":
        raise Conflict(f"The file {file_id!r} is {status!r}: its text can be read once it is 'completed'")
    media_type = await run_in_threadpool(context.files.media_type, file_id)
    path, max_characters = context.files.path(file_id), context.config.ingestion.max_file_characters
    text = await to_thread.run_sync(parse.extract_text, path, media_type, max_characters, limiter=context.parsers)
    return {
        "object": "vector_store.file_content.page",
        "data": [{"type": "text", "text": text}],
        "has_more": False,
        "next_page": None,
    }


# Batches


@router.post("/{store_id}/file_batches")
async def create_batch(store_id: str, body: BatchBody, context: InContext) -> Json:
    batch = await run_in_threadpool(context.catalog.create_batch, store_id, body.to_new_files())
    await wake_indexer(context)
    return batch


@router.get("/{store_id}/file_batches/{batch_id}")
def get_batch(store_id: str, batch_id: str, context: InContext) -> Json:
    return context.catalog.get_batch(store_id, batch_id)


@router.post("/{store_id}/file_batches/{batch_id}/cancel")
def cancel_batch(store_id: str, batch_id: str, context: InContext) -> Json:
    return context.catalog.cancel_batch(store_id, batch_id)


@router.get("/{store_id}/file_batches/{batch_id}/files")
def list_batch_files(store_id: str, batch_id: str, page: InFilePage, context: InContext) -> Json:
    listed = context.catalog.list_files(store_id, page.to_query(), status=page.filter, batch_id=batch_id)
    return listed.to_json()


async def _search(store_ids: Sequence[str], body: SearchBody, context: Context) -> Json:
    tables = await require_tables(context.catalog, store_ids, body.as_of, "off")
    queries = [body.query] if isinstance(body.query, str) else body.query
    if body.rewrite_query:
        # There is no conversation here to restate them from.
        queries = [" ".join(unicodedata.normalize("NFKC", query).split()) or query for query in queries]
    passages = await retrieve(
        context.parts,
        tables=tables,
        queries=queries,
        max_results=body.max_num_results,
        filter=body.filters.to_filter() if body.filters else None,
        ranking=(body.ranking_options or RankingOptions()).to_ranking(context.config.retrieval.reranker),
    )
    return {
        "object": "vector_store.search_results.page",
        "search_query": queries,
        "data": [_result(passage) for passage in passages],
        "has_more": False,
        "next_page": None,
    }


async def delete_with_passages(context: Context, store_id: str) -> None:
    """The row goes last, so that a call which fails halfway can be made again."""
    await run_in_threadpool(context.catalog.stop_ingestion, store_id)
    await context.parts.indexer.drop_store(store_id)
    await run_in_threadpool(context.catalog.delete_store, store_id)


def _before_and_after(pair: tuple[float, float]) -> Json:
    before, after = pair
    return {"before": round(before, 2), "after": round(after, 2)}


def _result(passage: Passage) -> Json:
    return {
        "file_id": passage.file_id,
        "filename": passage.filename,
        "key": passage.key,
        "version": passage.version,
        "score": passage.score,
        "attributes": passage.attributes,
        "content": [{"type": "text", "text": passage.text}],
        "vector_store_id": passage.store_id,
        "place": passage.place_to_json(),
    }
