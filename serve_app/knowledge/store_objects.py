"""OpenAI's objects of stores, of their files and of batches, from the rows of the database."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select, true

from serve_app.errors import InvalidRequest
from serve_app.knowledge.documents import is_listed
from serve_app.storage.schema import reembeddings, vector_store_files
from serve_app.types import Json, now_s

_DAY_S = 86_400
_RATE_OVER_S = 60


@dataclass(frozen=True, slots=True)
class _Usage:
    counts: Json
    size_bytes: int


def _no_usage() -> _Usage:
    return _Usage({"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}, 0)


def _usage(connection: Connection, store_ids: Sequence[str]) -> dict[str, _Usage]:
    """By store; the stores without files are left out."""
    return _counted(connection, vector_store_files.c.store_id, store_ids, is_listed())


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


def expiry_of(store: RowMapping | Json) -> int | None:
    if store["expires_after"] is None:
        return None
    return int(store["last_active_at"] + store["expires_after"]["days"] * _DAY_S)


def require_alive(store: RowMapping | Json) -> None:
    if _has_expired(store):
        raise InvalidRequest(
            f"The vector store {store['id']!r} has expired; any update of it makes it usable again",
            param="vector_store_ids",
            code="vector_store_expired",
        )


def _has_expired(store: RowMapping | Json) -> bool:
    expires_at = expiry_of(store)
    return expires_at is not None and expires_at <= now_s()


def store_to_json(connection: Connection, store: RowMapping | Json) -> Json:
    (written,) = stores_to_json(connection, [store])
    return written


def stores_to_json(connection: Connection, stores: Sequence[RowMapping | Json]) -> Iterator[Json]:
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
        "expires_at": expiry_of(store),
        "retention": store["retention"],
        "model": store["encoder"],
        "reembedding": move,
        "last_active_at": store["last_active_at"],
        "metadata": store["metadata"],
    }


def file_to_json(row: RowMapping) -> Json:
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


def batch_to_json(connection: Connection, batch: RowMapping | Json) -> Json:
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
