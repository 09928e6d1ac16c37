"""`Catalog`: which vector stores there are, which files are in them, and how far each has come.

A file's row in a store is also the job of ingesting it (see `ingest.py`). Whatever takes a job away from the indexer
raises the row's fence, so that a result which is still on its way is refused.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, delete, func, insert, or_, select, true, update

from serve_app.errors import InvalidRequest, NotFound
from serve_app.knowledge.history import (
    AsOf,
    content_of,
    file_version_to_json,
    newest_version,
    table_as_of,
    version_row,
    version_to_json,
)
from serve_app.storage.database import Database
from serve_app.storage.paging import select_page
from serve_app.storage.schema import (
    file_batches,
    files,
    reembeddings,
    store_versions,
    vector_store_files,
    vector_stores,
)
from serve_app.types import AttributeValue, Json, Page, PageQuery, StoreTable, new_id, now_s

FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]

AUTO_CHUNKING: Json = {"type": "auto"}
_DAY_S = 86_400
_TOUCH_EVERY_S = 60
_RATE_OVER_S = 60


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file for a store. Without a strategy of its own it is split as the store says."""

    file_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    chunking_strategy: Json | None = None
    key: str | None = None
    """Names the document that the file is a version of. None: the attribute `path`, or else the file's name."""


class Catalog:
    def __init__(self, database: Database, encoder: str, *further_encoders: str) -> None:
        """Encoders by their model ids: that of new stores first, then those that others were made by."""
        self._database = database
        self._encoders = (encoder, *further_encoders)

    # Stores

    def create_store(
        self,
        *,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expires_after: Json | None = None,
        chunking_strategy: Json | None = None,
        retention: Json | None = None,
        model: str | None = None,
        new_files: Sequence[NewFile] = (),
    ) -> Json:
        """`model` is the encoder. None: the one of new stores."""
        now = now_s()
        encoder = model or self._encoders[0]
        self._require_encoder(encoder)
        row: Json = {
            "id": new_id("vs"),
            "name": name,
            "metadata": dict(metadata or {}),
            "encoder": encoder,
            "table_suffix": "",
            "chunking_strategy": chunking_strategy or AUTO_CHUNKING,
            "expires_after": expires_after,
            "retention": retention,
            "created_at": now,
            "last_active_at": now,
        }
        with self._database.write() as connection:
            connection.execute(insert(vector_stores).values(row))
            self._add(connection, row, new_files, batch_id=None)
            return _store_to_json(connection, row)

    def get_store(self, store_id: str) -> Json:
        with self._database.read() as connection:
            return _store_to_json(connection, _store_row(connection, store_id))

    def list_stores(self, page: PageQuery) -> Page:
        key = (vector_stores.c.created_at, vector_stores.c.id)
        with self._database.read() as connection:
            rows, has_more = select_page(connection, select(vector_stores), key, page)
            return Page(tuple(_stores_to_json(connection, rows)), has_more)

    def update_store(self, store_id: str, changes: Mapping[str, Any]) -> Json:
        """`changes` may name `name`, `metadata`, `expires_after` and `retention`; what it does not name stays."""
        with self._database.write() as connection:
            connection.execute(
                update(vector_stores)
                .where(vector_stores.c.id == store_id)
                .values({**changes, "last_active_at": now_s()})
            )
            return _store_to_json(connection, _store_row(connection, store_id))

    def delete_store(self, store_id: str) -> None:
        with self._database.write() as connection:
            if connection.execute(delete(vector_stores).where(vector_stores.c.id == store_id)).rowcount == 0:
                raise _no_store(store_id)

    def expired_for(self, seconds: float) -> list[str]:
        """The ids of the stores that expired at least so long ago."""
        with self._database.read() as connection:
            # JSON null and no value are two things in SQL: which it is here depends on the database.
            rows = connection.execute(select(vector_stores)).mappings().all()
        latest = now_s() - seconds
        return [row["id"] for row in rows if (expires_at := _expires_at(row)) is not None and expires_at <= latest]

    def require_stores(self, store_ids: Sequence[str], as_of: AsOf | None = None) -> dict[str, StoreTable]:
        """Are these stores there to be searched? `NotFound` or `InvalidRequest` if not; counts as a use of them.

        Returns what a search of each store is to read.
        """
        now = now_s()
        with self._database.read() as connection:
            query = select(vector_stores).where(vector_stores.c.id.in_(set(store_ids)))
            rows = {row["id"]: row for row in connection.execute(query).mappings()}
            for store_id in store_ids:
                if store_id not in rows:
                    raise _no_store(store_id)
                _require_alive(rows[store_id])
            tables = {store_id: _table(connection, rows[store_id], as_of) for store_id in store_ids}
        for store_id, table in tables.items():
            self._require_usable(store_id, table.encoder)
        stale = [row["id"] for row in rows.values() if row["last_active_at"] <= now - _TOUCH_EVERY_S]
        if stale:
            with self._database.write() as connection:
                connection.execute(
                    update(vector_stores).where(vector_stores.c.id.in_(stale)).values(last_active_at=now)
                )
        return tables

    def require_version(self, store_id: str, version: int) -> None:
        """Is this version of a store there to be rolled back to? `NotFound` or `InvalidRequest` if not."""
        with self._database.read() as connection:
            _require_alive(_store_row(connection, store_id))
            row = version_row(connection, store_id, version)
        self._require_usable(store_id, row["encoder"])

    def reembed(self, store_id: str, model: str) -> Json:
        """Have a store moved to another encoder, or back to an earlier one; returns the store.

        With the encoder that it has, a move that is under way or has failed is called off. Raises `InvalidRequest` for
        an encoder that is not configured.
        """
        self._require_encoder(model)
        with self._database.write() as connection:
            store = _store_row(connection, store_id, lock=True)
            _require_alive(store)
            of_store = reembeddings.c.store_id == store_id
            asked = _one(connection, select(reembeddings).where(of_store))
            is_under_way = asked is not None and (asked["encoder"], asked["status"]) == (model, "in_progress")
            if not is_under_way:
                connection.execute(delete(reembeddings).where(of_store))
            if not is_under_way and model != store["encoder"]:
                # What a failed move has made, or what is kept from the time of that encoder, need not be made again.
                made = asked["table_suffix"] if asked and asked["encoder"] == model else None
                suffix = made or _kept_suffix(connection, store_id, model)
                row = _new_reembedding(store_id, model, _new_suffix() if suffix is None else suffix)
                connection.execute(insert(reembeddings).values(row))
            connection.execute(
                update(vector_stores).where(vector_stores.c.id == store_id).values(last_active_at=now_s())
            )
            return _store_to_json(connection, _store_row(connection, store_id))

    # Versions of a store

    def list_versions(self, store_id: str) -> list[Json]:
        """Those that are kept, newest first."""
        query = select(store_versions).where(store_versions.c.store_id == store_id)
        with self._database.read() as connection:
            _store_row(connection, store_id)
            rows = connection.execute(query.order_by(store_versions.c.version.desc())).mappings().all()
        return [version_to_json(row) for row in rows]

    def get_version(self, store_id: str, version: int) -> Json:
        with self._database.read() as connection:
            return version_to_json(version_row(connection, store_id, version))

    def pin_version(self, store_id: str, version: int, is_pinned: bool) -> Json:
        """A pinned version is kept whatever the retention says."""
        with self._database.write() as connection:
            _store_row(connection, store_id)
            connection.execute(
                update(store_versions)
                .where(store_versions.c.store_id == store_id, store_versions.c.version == version)
                .values(pinned=is_pinned)
            )
            return version_to_json(version_row(connection, store_id, version))

    # Files in a store

    def add_file(self, store_id: str, new_file: NewFile) -> Json:
        """Queue a file for ingestion. One that is there already stays as it is, unless it failed or was cancelled.

        It is a new version of the document that its key names. If that has the same content, nothing is to be done.
        """
        with self._database.write() as connection:
            store = _store_row(connection, store_id, lock=True)
            self._add(connection, store, [new_file], batch_id=None)
            return _file_to_json(_file_row(connection, store_id, new_file.file_id))

    def get_file(self, store_id: str, file_id: str) -> Json:
        with self._database.read() as connection:
            return _file_to_json(_file_row(connection, store_id, file_id))

    def list_files(
        self, store_id: str, page: PageQuery, *, status: FileStatus | None = None, batch_id: str | None = None
    ) -> Page:
        rows = select(vector_store_files).where(vector_store_files.c.store_id == store_id)
        only = _is_listed() if batch_id is None else true()
        if status is not None:
            only &= vector_store_files.c.status == status
        with self._database.read() as connection:
            _store_row(connection, store_id)
            if batch_id is not None:
                _batch_row(connection, store_id, batch_id)
                rows = rows.where(vector_store_files.c.batch_id == batch_id)
            key = (vector_store_files.c.created_at, vector_store_files.c.file_id)
            found, has_more = select_page(connection, rows, key, page, only)
        return Page(tuple(_file_to_json(row) for row in found), has_more)

    def list_file_versions(self, store_id: str, file_id: str) -> list[Json]:
        """All files that are or were a version of the same document, newest first."""
        with self._database.read() as connection:
            key = _file_row(connection, store_id, file_id)["key"]
            query = select(vector_store_files).where(
                vector_store_files.c.store_id == store_id, vector_store_files.c.key == key
            )
            rows = connection.execute(query.order_by(vector_store_files.c.version.desc())).mappings().all()
            kept = select(store_versions.c.version).where(store_versions.c.store_id == store_id)
            versions = connection.execute(kept.order_by(store_versions.c.version)).scalars().all()
        return [file_version_to_json(row, versions) for row in rows]

    def update_attributes(self, store_id: str, file_id: str, attributes: Mapping[str, AttributeValue]) -> Json:
        with self._database.write() as connection:
            connection.execute(
                update(vector_store_files).where(_is_file(store_id, file_id)).values(attributes=dict(attributes))
            )
            return _file_to_json(_file_row(connection, store_id, file_id))

    def remove_file(self, store_id: str, file_id: str) -> None:
        with self._database.write() as connection:
            if connection.execute(delete(vector_store_files).where(_is_file(store_id, file_id))).rowcount == 0:
                raise _no_file(store_id, file_id)
            # Those that were searched in its place have to be ingested themselves now.
            same = (vector_store_files.c.same_as == file_id) & vector_store_files.c.until_version.is_(None)
            connection.execute(
                update(vector_store_files)
                .where(vector_store_files.c.store_id == store_id, same)
                .values(status="in_progress", same_as=None)
            )

    def stores_with(self, file_id: str) -> Sequence[str]:
        with self._database.read() as connection:
            query = select(vector_store_files.c.store_id).where(vector_store_files.c.file_id == file_id)
            return connection.execute(query).scalars().all()

    def stop_ingestion(self, store_id: str, file_id: str | None = None) -> None:
        """Of one file, or of all files of the store: what is to be deleted must not be written any more."""
        with self._database.write() as connection:
            _store_row(connection, store_id)
            where = vector_store_files.c.store_id == store_id
            if file_id is not None:
                _file_row(connection, store_id, file_id)
                where = _is_file(store_id, file_id)
            else:
                connection.execute(delete(reembeddings).where(reembeddings.c.store_id == store_id))
            _cancel(connection, where)

    # Batches

    def create_batch(self, store_id: str, new_files: Sequence[NewFile]) -> Json:
        """Queue many files at once: all of them, or none if one is unknown."""
        batch: Json = {"id": new_id("vsfb"), "store_id": store_id, "created_at": now_s()}
        with self._database.write() as connection:
            store = _store_row(connection, store_id, lock=True)
            connection.execute(insert(file_batches).values(batch))
            self._add(connection, store, new_files, batch_id=batch["id"])
            return _batch_to_json(connection, batch)

    def get_batch(self, store_id: str, batch_id: str) -> Json:
        with self._database.read() as connection:
            return _batch_to_json(connection, _batch_row(connection, store_id, batch_id))

    def cancel_batch(self, store_id: str, batch_id: str) -> Json:
        """What is done stays done."""
        with self._database.write() as connection:
            batch = _batch_row(connection, store_id, batch_id)
            _cancel(connection, vector_store_files.c.batch_id == batch_id)
            return _batch_to_json(connection, batch)

    def _require_usable(self, store_id: str, encoder: str) -> None:
        if encoder not in self._encoders:
            raise InvalidRequest(
                f"The vectors of {store_id!r} were made by the encoder {encoder!r}, and this server runs"
                f" {_listed(self._encoders)}: they cannot be compared. Move the store to one of these with"
                f" POST /v1/vector_stores/{store_id}/reembed, or put {encoder!r} under `further_encoders`",
                param="vector_store_ids",
                code="encoder_mismatch",
            )

    def _require_encoder(self, model: str) -> None:
        if model not in self._encoders:
            raise InvalidRequest(
                f"This server runs no encoder {model!r}, but {_listed(self._encoders)}: put it under `further_encoders`"
                " in the configuration first",
                param="model",
                code="model_not_found",
            )

    def _add(
        self, connection: Connection, store: RowMapping | Json, new_files: Sequence[NewFile], batch_id: str | None
    ) -> None:
        _require_alive(store)
        self._require_usable(store["id"], store["encoder"])
        wanted = {new_file.file_id: new_file for new_file in new_files}
        if not wanted:
            return
        uploads = _require_files(connection, wanted)
        query = select(vector_store_files).where(vector_store_files.c.store_id == store["id"])
        by_id = query.where(vector_store_files.c.file_id.in_(wanted))
        present = {row["file_id"]: row for row in connection.execute(by_id).mappings()}
        keys = {file_id: _key(new_file, uploads[file_id]["filename"]) for file_id, new_file in wanted.items()}
        _require_one_version_each(keys, uploads)
        documents = _documents(connection, store["id"], keys.values())

        added = []
        for file_id, new_file in wanted.items():
            document = documents.get(keys[file_id], _NO_DOCUMENT)
            row = _new_row(store, new_file, keys[file_id], document.version + 1, batch_id)
            same = document.found
            if same and _is_the_same(same, row, uploads[file_id]):
                row |= {"status": "completed", "same_as": same["file_id"], "completed_at": time.time()}
            if file_id not in present:
                added.append(row)
                continue
            if present[file_id]["status"] in ("failed", "cancelled") or present[file_id]["until_version"] is not None:
                changes = {**row, "fence": vector_store_files.c.fence + 1}
            elif batch_id is not None:
                # The newest batch that asked for a file counts it, or it would wait for files it cannot see.
                changes = {"batch_id": batch_id}
            else:
                continue
            connection.execute(update(vector_store_files).where(_is_file(store["id"], file_id)).values(changes))
        if added:
            connection.execute(insert(vector_store_files), added)
        connection.execute(
            update(vector_stores).where(vector_stores.c.id == store["id"]).values(last_active_at=now_s())
        )


def _table(connection: Connection, store: RowMapping, as_of: AsOf | None) -> StoreTable:
    if as_of is None:
        version = newest_version(connection, store["id"])
        content = None if version is None else content_of(version)
        return StoreTable(store["encoder"], store["table_suffix"], content=content)
    return table_as_of(connection, store, as_of)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)


# Moves to another encoder


def _kept_suffix(connection: Connection, store_id: str, encoder: str) -> str | None:
    """Of a table that holds a version which that encoder made and which is kept; None if there is none."""
    query = select(store_versions.c.table_suffix).where(
        store_versions.c.store_id == store_id, store_versions.c.encoder == encoder
    )
    newest: str | None = connection.execute(query.order_by(store_versions.c.version.desc()).limit(1)).scalar()
    return newest


def _new_suffix() -> str:
    """For a further table of a store, whose name is the store's id and this. No two ever have the same."""
    return f"_{secrets.token_hex(4)}"


def _new_reembedding(store_id: str, encoder: str, suffix: str) -> Json:
    return {
        "store_id": store_id,
        "encoder": encoder,
        "table_suffix": suffix,
        "status": "in_progress",
        "files_done": 0,
        "files_total": 0,
        "created_at": now_s(),
        "fence": 0,
        "lease_until": 0.0,
        "attempts": 0,
    }


def _reembedding_to_json(row: RowMapping) -> Json:
    """How far a store is on its way to another encoder."""
    return {
        "model": row["encoder"],
        "status": row["status"],
        "created_at": row["created_at"],
        "files_done": row["files_done"],
        "files_total": row["files_total"],
        "seconds_left": row["seconds_left"],
        "error": {"code": row["error_code"], "message": row["error_message"] or ""} if row["error_code"] else None,
    }


def _new_row(store: RowMapping | Json, new_file: NewFile, key: str, version: int, batch_id: str | None) -> Json:
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


# Documents


@dataclass(frozen=True, slots=True)
class _Document:
    version: int
    """The newest, whatever has become of it."""
    found: Json | None
    """The file that searches find, with its `sha256`, unless a newer version is on its way."""


_NO_DOCUMENT = _Document(0, None)


def _key(new_file: NewFile, filename: str) -> str:
    path = new_file.attributes.get("path")
    return new_file.key or (path if isinstance(path, str) and path else filename)


def _require_one_version_each(keys: Mapping[str, str], uploads: Mapping[str, RowMapping]) -> None:
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


def _documents(connection: Connection, store_id: str, keys: Iterable[str]) -> dict[str, _Document]:
    """By key."""
    query = (
        select(vector_store_files, files.c.sha256)
        .join(files, files.c.id == vector_store_files.c.file_id)
        .where(vector_store_files.c.store_id == store_id, vector_store_files.c.key.in_(set(keys)))
        .order_by(vector_store_files.c.version)
    )
    documents: dict[str, _Document] = {}
    for row in connection.execute(query).mappings():
        before = documents.get(row["key"], _NO_DOCUMENT)
        found = before.found
        if row["status"] == "in_progress":
            found = None
        elif row["status"] == "completed" and row["until_version"] is None and row["same_as"] is None:
            found = dict(row)
        documents[row["key"]] = _Document(row["version"], found)
    return documents


def _is_the_same(found: Json, row: Json, upload: RowMapping) -> bool:
    """Whether ingesting the new file would change nothing that can be found."""
    return bool(
        found["file_id"] != row["file_id"]
        and found["sha256"] == upload["sha256"]
        and found["attributes"] == row["attributes"]
        and found["chunking_strategy"] == row["chunking_strategy"]
    )


def _require_files(connection: Connection, file_ids: Iterable[str]) -> dict[str, RowMapping]:
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


def _cancel(connection: Connection, where: ColumnElement[bool]) -> None:
    connection.execute(
        update(vector_store_files)
        .where(where, vector_store_files.c.status == "in_progress")
        .values(status="cancelled", fence=vector_store_files.c.fence + 1, lease_until=0.0)
    )


def _is_listed() -> ColumnElement[bool]:
    """Not what a newer version of its document has replaced."""
    return vector_store_files.c.until_version.is_(None)


def _is_file(store_id: str, file_id: str) -> ColumnElement[bool]:
    return (vector_store_files.c.store_id == store_id) & (vector_store_files.c.file_id == file_id)


def _store_row(connection: Connection, store_id: str, *, lock: bool = False) -> RowMapping:
    query = select(vector_stores).where(vector_stores.c.id == store_id)
    row = _one(connection, query.with_for_update() if lock else query)
    if row is None:
        raise _no_store(store_id)
    return row


def _file_row(connection: Connection, store_id: str, file_id: str) -> RowMapping:
    row = _one(connection, select(vector_store_files).where(_is_file(store_id, file_id)))
    if row is None:
        _store_row(connection, store_id)
        raise _no_file(store_id, file_id)
    return row


def _batch_row(connection: Connection, store_id: str, batch_id: str) -> RowMapping:
    query = select(file_batches).where(file_batches.c.id == batch_id, file_batches.c.store_id == store_id)
    row = _one(connection, query)
    if row is None:
        raise NotFound(f"The vector store {store_id!r} has no file batch {batch_id!r}", param="batch_id")
    return row


# The columns differ from query to query.
def _one(connection: Connection, query: Select[Any]) -> RowMapping | None:
    return connection.execute(query).mappings().first()


def _no_store(store_id: str) -> NotFound:
    return NotFound(f"There is no vector store {store_id!r}", param="vector_store_id")


def _no_file(store_id: str, file_id: str) -> NotFound:
    return NotFound(f"The vector store {store_id!r} has no file {file_id!r}", param="file_id")


# OpenAI's objects


@dataclass(frozen=True, slots=True)
class _Usage:
    counts: Json
    size_bytes: int


def _no_usage() -> _Usage:
    return _Usage({"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}, 0)


def _usage(connection: Connection, store_ids: Sequence[str]) -> dict[str, _Usage]:
    """By store; the stores without files are left out."""
    return _counted(connection, vector_store_files.c.store_id, store_ids, _is_listed())


# A column of the table is typed by what it holds, and both are strings here.
def _counted(
    connection: Connection, group: ColumnElement[Any], ids: Sequence[str], only: ColumnElement[bool] | None = None
) -> dict[str, _Usage]:
    counted: dict[str, _Usage] = {}
    if ids:
        query = (
            select(group, vector_store_files.c.status, func.count(), func.sum(vector_store_files.c.usage_bytes))
            .where(group.in_(ids), true() if only is None else only)
            .group_by(group, vector_store_files.c.status)
        )
        for key, status, count, size_bytes in connection.execute(query):
            before = counted.get(key, _no_usage())
            counts = {**before.counts, status: count, "total": before.counts["total"] + count}
            counted[key] = _Usage(counts, before.size_bytes + int(size_bytes))
    return counted


def _progress(connection: Connection, usage: _Usage, where: ColumnElement[bool]) -> Json | None:
    """How long these files will still be in ingestion, at the rate of the last minute; None if none of them is.

    Files are ingested in the order in which they came, whatever their store: those that came before count, too.
    """
    if not usage.counts["in_progress"]:
        return None
    in_progress = vector_store_files.c.status == "in_progress"
    latest = select(func.max(vector_store_files.c.created_at)).where(where, in_progress).scalar_subquery()
    ahead = select(func.count()).where(in_progress, vector_store_files.c.created_at <= latest)
    since = time.time() - _RATE_OVER_S
    done = select(func.count(), func.min(vector_store_files.c.completed_at)).where(
        vector_store_files.c.completed_at > since
    )
    left = connection.execute(ahead).scalar_one()
    completed, first_at = connection.execute(done).one()
    # What has just begun is not measured over the minute before.
    rate = completed / max(time.time() - first_at, 1.0) if completed else 0.0
    return {
        "files_left": left,
        "files_per_second": round(rate, 2),
        "seconds_left": round(left / rate) if rate else None,
    }


def _expires_at(store: RowMapping | Json) -> int | None:
    if store["expires_after"] is None:
        return None
    return int(store["last_active_at"] + store["expires_after"]["days"] * _DAY_S)


def _require_alive(store: RowMapping | Json) -> None:
    if _has_expired(store):
        raise InvalidRequest(
            f"The vector store {store['id']!r} has expired; any update of it makes it usable again",
            param="vector_store_ids",
            code="vector_store_expired",
        )


def _has_expired(store: RowMapping | Json) -> bool:
    expires_at = _expires_at(store)
    return expires_at is not None and expires_at <= now_s()


def _store_to_json(connection: Connection, store: RowMapping | Json) -> Json:
    (written,) = _stores_to_json(connection, [store])
    return written


def _stores_to_json(connection: Connection, stores: Sequence[RowMapping | Json]) -> Iterator[Json]:
    ids = [store["id"] for store in stores]
    usage = _usage(connection, ids)
    moving = select(reembeddings).where(reembeddings.c.store_id.in_(ids))
    moves = {row["store_id"]: _reembedding_to_json(row) for row in connection.execute(moving).mappings()}
    for store in stores:
        used, move = usage.get(store["id"], _no_usage()), moves.get(store["id"])
        yield _one_store_to_json(connection, store, used, move)


def _one_store_to_json(connection: Connection, store: RowMapping | Json, used: _Usage, move: Json | None) -> Json:
    status = "expired" if _has_expired(store) else "in_progress" if used.counts["in_progress"] else "completed"
    return {
        "id": store["id"],
        "object": "vector_store",
        "created_at": store["created_at"],
        # OpenAI's type says that a name is never null.
        "name": store["name"] or "",
        "usage_bytes": used.size_bytes,
        "file_counts": used.counts,
        "progress": _progress(connection, used, vector_store_files.c.store_id == store["id"]),
        "status": status,
        "expires_after": store["expires_after"],
        "expires_at": _expires_at(store),
        "retention": store["retention"],
        "model": store["encoder"],
        "reembedding": move,
        "last_active_at": store["last_active_at"],
        "metadata": store["metadata"],
    }


def _file_to_json(row: RowMapping) -> Json:
    error = {"code": row["error_code"], "message": row["error_message"] or ""} if row["error_code"] else None
    strategy = row["chunking_strategy"]
    return {
        "id": row["file_id"],
        "object": "vector_store.file",
        "created_at": row["created_at"],
        "vector_store_id": row["store_id"],
        "status": row["status"],
        "last_error": error,
        "usage_bytes": row["usage_bytes"],
        "attributes": row["attributes"],
        # OpenAI's type has no `auto` in an answer. What it stands for here depends on the encoder.
        "chunking_strategy": {"type": "other"} if strategy["type"] == "auto" else strategy,
        "key": row["key"],
        "version": row["version"],
        "same_as": row["same_as"],
    }


def _batch_to_json(connection: Connection, batch: RowMapping | Json) -> Json:
    used = _counted(connection, vector_store_files.c.batch_id, [batch["id"]])
    usage = used.get(batch["id"], _no_usage())
    return {
        "id": batch["id"],
        "object": "vector_store.files_batch",
        "created_at": batch["created_at"],
        "vector_store_id": batch["store_id"],
        "status": _batch_status(usage.counts),
        "file_counts": usage.counts,
        "progress": _progress(connection, usage, vector_store_files.c.batch_id == batch["id"]),
    }


def _batch_status(counts: Json) -> str:
    if counts["in_progress"]:
        return "in_progress"
    if counts["cancelled"]:
        return "cancelled"
    return "failed" if counts["total"] and counts["failed"] == counts["total"] else "completed"
