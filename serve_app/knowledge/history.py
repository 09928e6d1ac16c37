"""The versions of a store as the database knows them: which are kept, which one a time or a number means.

Nothing here needs LanceDB. `versions.py` makes versions, and lets go of them.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, func, select

from serve_app.config import RetentionConfig
from serve_app.errors import InvalidRequest, NotFound
from serve_app.storage.schema import store_versions, vector_store_files, vector_stores
from serve_app.types import Json
from serve_app.types.knowledge import StoreTable

AsOf = int | datetime
"""A version of a store, or a time."""

_DAY_S = 86_400
_file = vector_store_files.c


def is_found() -> ColumnElement[bool]:
    """Files whose passages the newest version of their store has."""
    return and_(_file.status == "completed", _file.until_version.is_(None), _file.same_as.is_(None))


def next_version(connection: Connection, store_id: str) -> int:
    query = select(func.max(store_versions.c.version)).where(store_versions.c.store_id == store_id)
    return int(connection.execute(query).scalar() or 0) + 1


def newest_version(connection: Connection, store_id: str) -> RowMapping | None:
    query = select(store_versions).where(store_versions.c.store_id == store_id)
    return connection.execute(query.order_by(store_versions.c.version.desc()).limit(1)).mappings().first()


def version_row(connection: Connection, store_id: str, version: int, *, param: str = "version") -> RowMapping:
    query = select(store_versions).where(store_versions.c.store_id == store_id, store_versions.c.version == version)
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound(f"The vector store {store_id!r} keeps no version {version}", param=param, code="version_gone")
    return row


def current_table(connection: Connection, store_id: str) -> StoreTable | None:
    """What searches read now; None if there is no such store."""
    query = select(vector_stores.c.encoder, vector_stores.c.table_suffix).where(vector_stores.c.id == store_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else StoreTable(row["encoder"], row["table_suffix"])


def content_of(version: RowMapping) -> str:
    """`StoreTable.content`. With the time, since a store that was deleted and restored counts on from its backup."""
    return f"{version['version']} of {version['created_at']!r}"


def table_as_of(connection: Connection, store: RowMapping, as_of: AsOf) -> StoreTable:
    """What searches read then: version 0 if there was nothing yet, the newest if no version was recorded."""
    if isinstance(as_of, int):
        return _table(version_row(connection, store["id"], as_of, param="as_of"))
    moment = as_of.timestamp()
    if moment < store["created_at"]:
        raise InvalidRequest(f"The vector store {store['id']!r} did not exist at {as_of.isoformat()}", param="as_of")
    query = select(store_versions).where(store_versions.c.store_id == store["id"]).order_by(store_versions.c.version)
    rows = connection.execute(query).mappings().all()
    if not rows:
        return StoreTable(store["encoder"], store["table_suffix"])
    before = [row for row in rows if row["created_at"] <= moment]
    # A gap between two versions is one that is no longer kept: nobody knows what was found then.
    following = before[-1]["version"] + 1 if before else 1
    if len(before) < len(rows) and rows[len(before)]["version"] != following:
        raise NotFound(
            f"The vector store {store['id']!r} no longer keeps what was found at {as_of.isoformat()}:"
            " its retention says how many versions and days are kept",
            param="as_of",
            code="version_gone",
        )
    return _table(before[-1]) if before else StoreTable(store["encoder"], version=0)


def _table(row: RowMapping) -> StoreTable:
    return StoreTable(row["encoder"], row["table_suffix"], row["table_version"], content_of(row))


def expired(rows: Sequence[RowMapping], retention: RetentionConfig, now: float) -> set[int]:
    """Which of a store's versions, newest first, are not to be kept. The newest always is."""
    oldest = now - retention.keep_days * _DAY_S
    # A version was what searches saw until the next one came.
    seen_until = [now, *(row["created_at"] for row in rows)]
    return {
        row["version"]
        for rank, (row, until) in enumerate(zip(rows, seen_until, strict=False))
        if rank >= retention.keep_versions and until <= oldest and not row["pinned"]
    }


def version_to_json(row: RowMapping) -> Json:
    return {
        "object": "vector_store.version",
        "vector_store_id": row["store_id"],
        "version": row["version"],
        # Finer than a second, since several commits may be made in one.
        "created_at": round(row["created_at"], 3),
        "files": row["files"],
        "passages": row["passages"],
        "model": row["encoder"],
        "pinned": row["pinned"],
    }


def file_version_to_json(row: RowMapping, kept: Sequence[int]) -> Json:
    """`kept` are the store's versions that can still be searched, in order."""
    since, until = row["since_version"], row["until_version"]
    finding = [number for number in kept if (since or 1) <= number and (until is None or number < until)]
    is_completed = row["status"] == "completed"
    was_found = is_completed and row["same_as"] is None and (since is not None or until is None)
    return {
        "id": row["file_id"],
        "object": "vector_store.file.version",
        "vector_store_id": row["store_id"],
        "key": row["key"],
        "version": row["version"],
        "status": "superseded" if is_completed and until is not None else row["status"],
        "created_at": row["created_at"],
        "completed_at": None if row["completed_at"] is None else int(row["completed_at"]),
        "same_as": row["same_as"],
        # The versions of the store that found it, and those of them that can still be searched.
        "since_version": since,
        "until_version": until,
        "kept_versions": finding if was_found else [],
    }
