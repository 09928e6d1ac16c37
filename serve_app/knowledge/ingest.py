"""The ingestion of files: `Ingestor.run_once()` is one round, and its lines are the steps.

A file in a store is its own job: a row of `vector_store_files`, claimed under a fence and held by a lease. A killed
indexer's files are taken over when their lease has run out, and what it had written of them is removed first.
"""

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, select, update

from serve_app.config import IngestionConfig
from serve_app.errors import InternalError, InvalidRequest, UnsupportedFile
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.history import current_table, is_found, next_version
from serve_app.knowledge.index import FilePassages, IndexWriter
from serve_app.knowledge.passages import SourceText, make_passages, read_text
from serve_app.knowledge.versions import Versions, left_alone_if_damaged
from serve_app.metrics import INGESTED_FILES, INGESTED_PASSAGES, INGESTION_FAILURES, NO_METRICS, Metrics
from serve_app.storage.database import Database
from serve_app.storage.lease import kept_alive
from serve_app.storage.schema import files, vector_store_files, vector_stores
from serve_app.types import AttributeValue, Json
from serve_app.types.knowledge import StoreFileRef

logger = logging.getLogger(__name__)

_MAX_BATCH_FILES = 64
_MAX_BATCH_BYTES = 4 * 2**20
"""Of uploaded files: small ones fill the encoder's batches together, and a large one is a round of its own."""

ErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]


class Files(Protocol):
    def path(self, file_id: str) -> Path: ...


@dataclass(frozen=True, slots=True)
class _Job:
    """A file claimed for ingestion into a store."""

    store_id: str
    file_id: str
    filename: str
    key: str
    version: int
    media_type: str
    attributes: dict[str, AttributeValue]
    chunking_strategy: Json
    encoder: str
    fence: int
    attempts: int


class Ingestor:
    """Works through the files that the database says are to be ingested. For one thread."""

    def __init__(
        self,
        database: Database,
        file_store: Files,
        encoders: Mapping[str, TextEncoder],
        index: IndexWriter,
        versions: Versions,
        config: IngestionConfig,
        metrics: Metrics = NO_METRICS,
    ) -> None:
        self._database = database
        self._files = file_store
        self._encoders = encoders
        self._index = index
        self._versions = versions
        self._config = config
        self._metrics = metrics

    def take_over(self) -> None:
        """Wait for no lease of the process before this one. If that is still alive, the fence stops it."""
        is_claimed = (vector_store_files.c.status == "in_progress") & (vector_store_files.c.lease_until > 0)
        with self._database.write() as connection:
            connection.execute(
                update(vector_store_files)
                .where(is_claimed)
                .values(fence=vector_store_files.c.fence + 1, lease_until=0.0)
            )

    def run_once(self) -> int:
        """Ingest some of the files that wait, and return how many were taken on: 0 if none waits.

        A file that cannot be used is marked failed, with a reason, and stops no other. Nor does a table that cannot be
        read or written: its files stay claimed until their lease ends, and are tried again. So are all after what the
        database or the encoder raise.
        """
        jobs = self._claim()
        if not jobs:
            return 0
        started = time.monotonic()
        done: list[tuple[_Job, FilePassages]] = []
        with self._held(jobs):
            for store_id, rows in _by_store(self._encode(self._read(jobs))):
                with left_alone_if_damaged(store_id):
                    self._commit(store_id, rows)
                    done += rows
        passages = sum(len(each.pieces) for _, each in done)
        self._metrics.add(INGESTED_FILES, len(done))
        self._metrics.add(INGESTED_PASSAGES, passages)
        elapsed_s = time.monotonic() - started
        logger.info("ingested %d of %d files, %d passages, in %.1f s", len(done), len(jobs), passages, elapsed_s)
        return len(jobs)

    # The steps

    def _claim(self) -> list[_Job]:
        """Take the oldest files that nobody holds, as many as make a batch."""
        now = time.time()
        with self._database.write() as connection:
            jobs = [_take(row) for row in _batch(connection.execute(_waiting(now)).mappings().all())]
            if jobs:
                until = now + self._config.lease_s
                connection.execute(_TAKE, [_keys(job) | {"tried": job.attempts, "until": until} for job in jobs])
            return jobs

    def _read(self, jobs: Sequence[_Job]) -> list[tuple[_Job, SourceText]]:
        """The files' texts. A file that cannot be used is left out, and failed."""
        read = []
        for job in jobs:
            try:
                read.append((job, self._read_one(job)))
            except UnsupportedFile as error:
                self._fail(job, "unsupported_file", error.message)
            except InvalidRequest as error:
                self._fail(job, "invalid_file", error.message)
            except InternalError as error:
                self._fail(job, "server_error", error.message)
        return read

    def _read_one(self, job: _Job) -> SourceText:
        if job.attempts > self._config.max_attempts:
            raise InternalError(f"The ingestion of the file was cut off {self._config.max_attempts} times")
        if job.encoder not in self._encoders:
            raise InternalError(f"The vector store was made by the encoder {job.encoder!r}, which is not loaded now")
        path, encoder = self._files.path(job.file_id), self._encoders[job.encoder]
        return read_text(path, job.media_type, job.chunking_strategy, encoder, self._config.max_file_characters)

    def _encode(self, read: Sequence[tuple[_Job, SourceText]]) -> Iterator[tuple[_Job, FilePassages]]:
        """All that one encoder makes is split and encoded together: on all cores, and in full batches."""
        for model_id in {job.encoder for job, _ in read}:
            ours = [(job, text) for job, text in read if job.encoder == model_id]
            made = make_passages([text for _, text in ours], self._encoders[model_id])
            for (job, _), (pieces, vectors) in zip(ours, made, strict=True):
                yield (
                    job,
                    FilePassages(
                        job.file_id, job.filename, job.attributes, pieces, vectors, job.fence, job.key, job.version
                    ),
                )

    def _commit(self, store_id: str, rows: Sequence[tuple[_Job, FilePassages]]) -> None:
        """Put files' passages in the place of the versions that they replace, in one commit of the index.

        The rows of the database are held meanwhile, so that nobody takes a file away between that and their own commit.
        """
        with self._versions.changing(store_id) as connection:
            held = self._renew(connection, [job for job, _ in rows])
            found = _found(connection, store_id, {job.key for job in held})
            wanted = _newest(held, found)
            overtaken = {job.file_id for job in held} - wanted.keys()
            version = next_version(connection, store_id)
            replaced = _replace(connection, store_id, wanted.values(), found, version)
            attributes = _attributes(connection, store_id, wanted)
            added = [replace(each, attributes=attributes[job.file_id]) for job, each in rows if job.file_id in wanted]
            table = current_table(connection, store_id)
            self._index.add(store_id + (table.suffix if table else ""), added, replacing=replaced)
            _finish(connection, store_id, added, version)
            _finish_overtaken(connection, store_id, overtaken, version)
            if wanted:
                self._versions.record(connection, store_id, version)

    def _fail(self, job: _Job, code: ErrorCode, message: str) -> None:
        logger.info("file %s of store %s failed: %s", job.file_id, job.store_id, code)
        self._metrics.add(INGESTION_FAILURES, code=code)
        if job.fence > 1:
            with left_alone_if_damaged(job.store_id):
                self._versions.remove_leftovers(StoreFileRef(job.store_id, job.file_id), before_fence=job.fence)
        with self._database.write() as connection:
            connection.execute(_FAIL, _keys(job) | {"code": code, "message": message})

    # The lease

    @contextmanager
    def _held(self, jobs: Sequence[_Job]) -> Iterator[None]:
        """Renew the leases in the background: one file may take longer than a lease, in parsers we cannot pause."""

        def renew() -> None:
            with self._database.write() as connection:
                self._renew(connection, jobs)

        with kept_alive(renew, self._config.lease_s):
            yield

    def _renew(self, connection: Connection, jobs: Sequence[_Job]) -> list[_Job]:
        """Renew the leases of those that are still ours, and return them."""
        until = time.time() + self._config.lease_s
        return [job for job in jobs if connection.execute(_RENEW, _keys(job) | {"until": until}).rowcount]


def _take(row: RowMapping) -> _Job:
    return _Job(
        store_id=row["store_id"],
        file_id=row["file_id"],
        filename=row["filename"],
        key=row["key"],
        version=row["version"],
        media_type=row["media_type"],
        attributes=row["attributes"],
        chunking_strategy=row["chunking_strategy"],
        encoder=row["encoder"],
        fence=row["fence"] + 1,
        attempts=row["attempts"] + 1,
    )


# The row's columns are of several types.
def _waiting(now: float) -> Any:
    """In progress and held by nobody, oldest first. Rows that another indexer is just claiming are skipped."""
    return (
        select(vector_store_files, files.c.filename, files.c.media_type, files.c.size_bytes, vector_stores.c.encoder)
        .join(files, files.c.id == vector_store_files.c.file_id)
        .join(vector_stores, vector_stores.c.id == vector_store_files.c.store_id)
        .where(vector_store_files.c.status == "in_progress", vector_store_files.c.lease_until < now)
        .order_by(vector_store_files.c.created_at, vector_store_files.c.file_id)
        .limit(_MAX_BATCH_FILES)
        .with_for_update(of=vector_store_files, skip_locked=True)
    )


def _batch(rows: Sequence[RowMapping]) -> list[RowMapping]:
    """The first rows that fit together. A file whose indexer died goes alone: it may be the reason."""
    if rows and rows[0]["attempts"] > 0:
        return [rows[0]]
    batch: list[RowMapping] = []
    size_bytes = 0
    for row in rows:
        size_bytes += row["size_bytes"]
        if row["attempts"] > 0 or (batch and size_bytes > _MAX_BATCH_BYTES):
            break
        batch.append(row)
    return batch


def _by_store(encoded: Iterable[tuple[_Job, FilePassages]]) -> Iterator[tuple[str, list[tuple[_Job, FilePassages]]]]:
    rows = sorted(encoded, key=lambda row: row[0].store_id)
    for store_id, group in groupby(rows, key=lambda row: row[0].store_id):
        yield store_id, list(group)


# Versions of documents


def _found(connection: Connection, store_id: str, keys: Collection[str]) -> dict[str, RowMapping]:
    """By key, the file that searches find now."""
    query = select(vector_store_files).where(
        vector_store_files.c.store_id == store_id, vector_store_files.c.key.in_(keys), is_found()
    )
    return {row["key"]: row for row in connection.execute(query).mappings()}


def _newest(jobs: Sequence[_Job], found: Mapping[str, RowMapping]) -> dict[str, _Job]:
    """By file id, those that no later version of the same document has overtaken."""
    newest = {job.key: job for job in sorted(jobs, key=lambda job: job.version)}
    return {
        job.file_id: job for job in newest.values() if job.key not in found or found[job.key]["version"] < job.version
    }


def _replace(
    connection: Connection, store_id: str, jobs: Collection[_Job], found: Mapping[str, RowMapping], version: int
) -> list[str]:
    """Say that `version` is the first that finds these files and not those before them, whose ids it returns."""
    connection.execute(
        update(vector_store_files)
        .where(
            vector_store_files.c.store_id == store_id,
            vector_store_files.c.key.in_([job.key for job in jobs]),
            vector_store_files.c.status == "completed",
            vector_store_files.c.until_version.is_(None),
        )
        .values(until_version=version)
    )
    return [found[job.key]["file_id"] for job in jobs if job.key in found]


def _attributes(connection: Connection, store_id: str, file_ids: Iterable[str]) -> dict[str, Json]:
    """By file id, as they are now: they may have been changed since the claim."""
    query = select(vector_store_files.c.file_id, vector_store_files.c.attributes)
    rows = connection.execute(query.where(_are_files(store_id, file_ids)))
    return {row.file_id: row.attributes for row in rows}


def _finish(connection: Connection, store_id: str, added: Sequence[FilePassages], version: int) -> None:
    """Searches find these from `version` on."""
    if added:
        size: Json = {"usage_bytes": bindparam("size_bytes"), "passages": bindparam("count")}
        finish = update(vector_store_files).where(_IS_FILE)
        connection.execute(
            finish.values(since_version=version, until_version=None, **_completed(), **size),
            [
                {"store": store_id, "file": each.file_id, "size_bytes": _size_bytes(each), "count": len(each.pieces)}
                for each in added
            ],
        )


def _finish_overtaken(connection: Connection, store_id: str, file_ids: Collection[str], version: int) -> None:
    """A later version of their documents has come first: these were never found."""
    if file_ids:
        finish = update(vector_store_files).where(_are_files(store_id, file_ids))
        connection.execute(finish.values(until_version=version, **_completed()))


def _completed() -> Json:
    fields = {"status": "completed", "completed_at": time.time(), "lease_until": 0.0}
    return fields | {"error_code": None, "error_message": None}


def _size_bytes(passages: FilePassages) -> int:
    return sum(len(piece.text.encode()) for piece in passages.pieces) + passages.vectors.nbytes


def _are_files(store_id: str, file_ids: Iterable[str]) -> ColumnElement[bool]:
    return (vector_store_files.c.store_id == store_id) & vector_store_files.c.file_id.in_(list(file_ids))


# One job: `_keys` are its parameters.
_IS_FILE = (vector_store_files.c.store_id == bindparam("store")) & (vector_store_files.c.file_id == bindparam("file"))
_IS_HELD = _IS_FILE & (vector_store_files.c.fence == bindparam("held")) & (vector_store_files.c.status == "in_progress")
_TAKE = (
    update(vector_store_files)
    .where(_IS_FILE)
    .values(fence=bindparam("held"), attempts=bindparam("tried"), lease_until=bindparam("until"))
)
_RENEW = update(vector_store_files).where(_IS_HELD).values(lease_until=bindparam("until"))
_FAIL = (
    update(vector_store_files)
    .where(_IS_HELD)
    .values(status="failed", error_code=bindparam("code"), error_message=bindparam("message"), lease_until=0.0)
)


def _keys(job: _Job) -> Json:
    return {"store": job.store_id, "file": job.file_id, "held": job.fence}
