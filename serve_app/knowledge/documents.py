"""The documents of a store: which file is which version of which, and what ingesting one more would change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, RowMapping, or_, select

from serve_app.errors import InvalidRequest, NotFound
from serve_app.storage.schema import files, vector_store_files
from serve_app.types import AttributeValue, Json, now_s


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file for a store. Without a strategy of its own it is split as the store says."""

    file_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    chunking_strategy: Json | None = None
    key: str | None = None
    """Names the document that the file is a version of. None: the attribute `path`, or else the file's name."""


@dataclass(frozen=True, slots=True)
class Document:
    version: int
    """The newest, whatever has become of it."""
    found: Json | None
    """The file that searches find, with its `sha256`, unless a newer version is on its way."""


NO_DOCUMENT = Document(0, None)


def key_of(new_file: NewFile, filename: str) -> str:
    path = new_file.attributes.get("path")
    return new_file.key or (path if isinstance(path, str) and path else filename)


def require_one_version_each(keys: Mapping[str, str], uploads: Mapping[str, RowMapping]) -> None:
    first: dict[str, str] = {}
    for file_id, key in keys.items():
        other = first.setdefault(key, file_id)
        if other != file_id:
            raise InvalidRequest(
                f"The files {other!r} and {file_id!r} ({uploads[file_id]['filename']!r}) would be the same document,"
                f" {key!r}: send `files` and give each a `key` (or the attribute `path`), or add one after the other",
                param="files",
                code="duplicate_key",
            )


def documents_of(connection: Connection, store_id: str, keys: Iterable[str]) -> dict[str, Document]:
    """By key."""
    query = (
        select(vector_store_files, files.c.sha256)
        .join(files, files.c.id == vector_store_files.c.file_id)
        .where(vector_store_files.c.store_id == store_id, vector_store_files.c.key.in_(set(keys)))
        .order_by(vector_store_files.c.version)
    )
    documents: dict[str, Document] = {}
    for row in connection.execute(query).mappings():
        before = documents.get(row["key"], NO_DOCUMENT)
        found = before.found
        if row["status"] == "in_progress":
            found = None
        elif row["status"] == "completed" and row["until_version"] is None and row["same_as"] is None:
            found = dict(row)
        documents[row["key"]] = Document(row["version"], found)
    return documents


def is_the_same(found: Json, row: Json, upload: RowMapping) -> bool:
    """Whether ingesting the new file would change nothing that can be found."""
    return bool(
        found["file_id"] != row["file_id"]
        and found["sha256"] == upload["sha256"]
        and found["attributes"] == row["attributes"]
        and found["chunking_strategy"] == row["chunking_strategy"]
    )


def require_files(connection: Connection, file_ids: Iterable[str]) -> dict[str, RowMapping]:
    """The files' own rows, by id."""
    ids = list(file_ids)
    alive = or_(files.c.expires_at.is_(None), files.c.expires_at > now_s())
    # The lock keeps PostgreSQL from deleting one before the rows that point to it are there; SQLite has one writer.
    query = select(files).where(files.c.id.in_(ids), alive).with_for_update(read=True, key_share=True)
    known = {row["id"]: row for row in connection.execute(query).mappings()}
    for file_id in ids:
        if file_id not in known:
            raise NotFound(f"There is no file {file_id!r}", param="file_id")
    return known


def new_row(store: RowMapping | Json, new_file: NewFile, key: str, version: int, batch_id: str | None) -> Json:
    return {
        "store_id": store["id"],
        "file_id": new_file.file_id,
        "key": key,
        "version": version,
        "since_version": None,
        "until_version": None,
        "same_as": None,
        "completed_at": None,
        "batch_id": batch_id,
        "status": "in_progress",
        "error_code": None,
        "error_message": None,
        "attributes": dict(new_file.attributes),
        "chunking_strategy": new_file.chunking_strategy or store["chunking_strategy"],
        "usage_bytes": 0,
        "passages": 0,
        "created_at": now_s(),
        "fence": 0,
        "lease_until": 0.0,
        "attempts": 0,
    }


def is_listed() -> ColumnElement[bool]:
    """Not what a newer version of its document has replaced."""
    return vector_store_files.c.until_version.is_(None)
