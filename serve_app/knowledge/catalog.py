"""`Catalog`: which vector stores there are, which files are in them, and how far each has come.

A file's row in a store is also the job of ingesting it (see `ingest.py`). Whatever takes a job away from the indexer
raises the row's fence, so that a result which is still on its way is refused.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, delete, insert, select, true, update

from serve_app.errors import InvalidRequest, NotFound
from serve_app.knowledge.documents import (
    NO_DOCUMENT,
    NewFile,
    documents_of,
    is_listed,
    is_the_same,
    key_of,
    new_row,
    require_files,
    require_one_version_each,
)
from serve_app.knowledge.history import (
    AsOf,
    content_of,
    file_version_to_json,
    newest_version,
    table_as_of,
    version_row,
    version_to_json,
)
from serve_app.knowledge.store_objects import (
    batch_to_json,
    expiry_of,
    file_to_json,
    require_alive,
    store_to_json,
    stores_to_json,
)
from serve_app.storage.database import Database
from serve_app.storage.paging import select_page
from serve_app.storage.schema import (
    file_batches,
    reembeddings,
    store_versions,
    vector_store_files,
    vector_stores,
)
from serve_app.types import AttributeValue, Json, Page, PageQuery, new_id, now_s
from serve_app.types.knowledge import StoreTable

FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]

AUTO_CHUNKING: Json = {"type": "auto"}
_TOUCH_EVERY_S = 60


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
            return store_to_json(connection, row)

    def get_store(self, store_id: str) -> Json:
        with self._database.read() as connection:
            return store_to_json(connection, _store_row(connection, store_id))

    def list_stores(self, page: PageQuery) -> Page:
        key = (vector_stores.c.created_at, vector_stores.c.id)
        with self._database.read() as connection:
            rows, has_more = select_page(connection, select(vector_stores), key, page)
            return Page(tuple(stores_to_json(connection, rows)), has_more)

    def update_store(self, store_id: str, changes: Mapping[str, Any]) -> Json:
        """`changes` may name `name`, `metadata`, `expires_after` and `retention`; what it does not name stays."""
        with self._database.write() as connection:
            connection.execute(
                update(vector_stores)
                .where(vector_stores.c.id == store_id)
                .values({**changes, "last_active_at": now_s()})
            )
            return store_to_json(connection, _store_row(connection, store_id))

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
        return [row["id"] for row in rows if (expires_at := expiry_of(row)) is not None and expires_at <= latest]

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
                require_alive(rows[store_id])
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
            require_alive(_store_row(connection, store_id))
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
            require_alive(store)
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
            return store_to_json(connection, _store_row(connection, store_id))

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
            return file_to_json(_file_row(connection, store_id, new_file.file_id))

    def get_file(self, store_id: str, file_id: str) -> Json:
        with self._database.read() as connection:
            return file_to_json(_file_row(connection, store_id, file_id))

    def list_files(
        self, store_id: str, page: PageQuery, *, status: FileStatus | None = None, batch_id: str | None = None
    ) -> Page:
        rows = select(vector_store_files).where(vector_store_files.c.store_id == store_id)
        only = is_listed() if batch_id is None else true()
        if status is not None:
            only &= vector_store_files.c.status == status
        with self._database.read() as connection:
            _store_row(connection, store_id)
            if batch_id is not None:
                _batch_row(connection, store_id, batch_id)
                rows = rows.where(vector_store_files.c.batch_id == batch_id)
            key = (vector_store_files.c.created_at, vector_store_files.c.file_id)
            found, has_more = select_page(connection, rows, key, page, only)
        return Page(tuple(file_to_json(row) for row in found), has_more)

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
        """One that was searched as another of its document has to be ingested itself from then on."""
        changes: Json = {"attributes": dict(attributes)}
        with self._database.write() as connection:
            _store_row(connection, store_id, lock=True)
            row = _file_row(connection, store_id, file_id)
            if row["same_as"] and row["until_version"] is None and row["attributes"] != changes["attributes"]:
                document = documents_of(connection, store_id, [row["key"]])[row["key"]]
                changes |= {"status": "in_progress", "same_as": None, "version": document.version + 1}
            connection.execute(update(vector_store_files).where(_is_file(store_id, file_id)).values(changes))
            return file_to_json(_file_row(connection, store_id, file_id))

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
            return batch_to_json(connection, batch)

    def get_batch(self, store_id: str, batch_id: str) -> Json:
        with self._database.read() as connection:
            return batch_to_json(connection, _batch_row(connection, store_id, batch_id))

    def cancel_batch(self, store_id: str, batch_id: str) -> Json:
        """What is done stays done."""
        with self._database.write() as connection:
            batch = _batch_row(connection, store_id, batch_id)
            _cancel(connection, vector_store_files.c.batch_id == batch_id)
            return batch_to_json(connection, batch)

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
        require_alive(store)
        self._require_usable(store["id"], store["encoder"])
        wanted = {new_file.file_id: new_file for new_file in new_files}
        if not wanted:
            return
        uploads = require_files(connection, wanted)
        query = select(vector_store_files).where(vector_store_files.c.store_id == store["id"])
        by_id = query.where(vector_store_files.c.file_id.in_(wanted))
        present = {row["file_id"]: row for row in connection.execute(by_id).mappings()}
        keys = {file_id: key_of(new_file, uploads[file_id]["filename"]) for file_id, new_file in wanted.items()}
        require_one_version_each(keys, uploads)
        documents = documents_of(connection, store["id"], keys.values())

        added = []
        for file_id, new_file in wanted.items():
            document = documents.get(keys[file_id], NO_DOCUMENT)
            row = new_row(store, new_file, keys[file_id], document.version + 1, batch_id)
            same = document.found
            if same and is_the_same(same, row, uploads[file_id]):
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


def _cancel(connection: Connection, where: ColumnElement[bool]) -> None:
    connection.execute(
        update(vector_store_files)
        .where(where, vector_store_files.c.status == "in_progress")
        .values(status="cancelled", fence=vector_store_files.c.fence + 1, lease_until=0.0)
    )


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
