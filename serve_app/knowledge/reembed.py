"""`Reembedder`: moves a store to another encoder while it is searched and changed. `run_once` does one move.

The new encoder gets a table of its own, which nobody searches yet. It is filled from the uploads, as if they were put
in anew, since how long a passage may be depends on the encoder. What is changed meanwhile makes the two tables differ
again, and so on until nothing differs: then one transaction puts it in the place of the store's table.

The table itself says how far it is: what a killed indexer has made is not made again. The same goes for the way back:
an earlier encoder's table is there as long as a version of the store in it is kept, and only lacks what changed since.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, Connection, select, update

from serve_app.config import IngestionConfig
from serve_app.errors import Conflict, InternalError, InvalidRequest, Overloaded, RayconteurError, Unavailable
from serve_app.knowledge.encode import TextEncoder
from serve_app.knowledge.history import is_found, next_version
from serve_app.knowledge.index import FilePassages, IndexWriter, WrittenFile
from serve_app.knowledge.ingest import Files
from serve_app.knowledge.passages import SourceText, make_passages, read_text
from serve_app.knowledge.versions import Versions, set_table, sizes_of, update_each
from serve_app.storage.database import Database
from serve_app.storage.lease import kept_alive
from serve_app.storage.schema import files, reembeddings, vector_store_files
from serve_app.types import Json
from serve_app.types.knowledge import AttributeChange

logger = logging.getLogger(__name__)

_MAX_BATCH_FILES = 64
_MAX_BATCH_BYTES = 2**18
"""Of uploaded files: 300 passages, which a slow CPU makes in half a minute. So much may be lost by a kill."""
_MAX_LAST_BYTES = 2**15
"""What is made while changes of the store wait: some seconds of a slow CPU."""

_file = vector_store_files.c


@dataclass(frozen=True, slots=True)
class _Move:
    """A store on its way to another encoder, claimed."""

    store_id: str
    encoder: str
    suffix: str
    fence: int
    attempts: int

    @property
    def table(self) -> str:
        return self.store_id + self.suffix


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that searches of the store find."""

    file_id: str
    filename: str
    media_type: str
    size_bytes: int
    """Of the upload."""
    chunking_strategy: Json
    written: WrittenFile
    """What the new table is to say of it."""


@dataclass(frozen=True, slots=True)
class _Difference:
    """What the new table is not yet, and what the store is."""

    files: int
    """That the store has."""
    missing: list[_Source]
    """To be made, or made anew."""
    relabelled: list[_Source]
    """Of which only the attributes have changed."""
    surplus: list[str]
    """The ids of files that the store has no more."""


class Reembedder:
    """Works through the moves that the database asks for. For one thread."""

    def __init__(
        self,
        database: Database,
        file_store: Files,
        encoders: Mapping[str, TextEncoder],
        index: IndexWriter,
        versions: Versions,
        config: IngestionConfig,
    ) -> None:
        self._database = database
        self._files = file_store
        self._encoders = encoders
        self._index = index
        self._versions = versions
        self._config = config

    def take_over(self) -> None:
        """Wait for no lease of the process before this one. If that is still alive, the fence stops it."""
        with self._database.write() as connection:
            connection.execute(update(reembeddings).values(lease_until=0.0))

    def run_once(self) -> bool:
        """Do the oldest move to its end; False if none waits. One that cannot be done is marked failed, with a reason.

        Takes as long as it takes to encode the store. Searches and changes go on meanwhile.
        """
        move = self._claim()
        if move is None:
            return False
        started = time.monotonic()
        with kept_alive(lambda: self._renew(move), self._config.lease_s):
            try:
                self._move(move)
                logger.info("store %s: moved to %r in %.1f s", move.table, move.encoder, time.monotonic() - started)
            except Conflict as error:
                logger.info("store %s: %s", move.table, error.message)
            except (Unavailable, Overloaded) as error:
                # The database has other troubles: the next one goes on when the lease has run out.
                logger.warning("store %s: the move to %r is interrupted: %s", move.table, move.encoder, error.message)
            except RayconteurError as error:
                self._fail(move, error.code or "server_error", error.message)
            # A disk that is full must not end the indexer.
            except Exception as error:
                logger.exception("store %s: the move to %r failed", move.table, move.encoder)
                self._fail(move, "server_error", f"{type(error).__name__}: {error}")
        return True

    # The steps

    def _claim(self) -> _Move | None:
        now = time.time()
        waiting = (
            select(reembeddings)
            .where(reembeddings.c.status == "in_progress", reembeddings.c.lease_until < now)
            .order_by(reembeddings.c.created_at, reembeddings.c.store_id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._database.write() as connection:
            row = connection.execute(waiting).mappings().first()
            if row is None:
                return None
            move = _Move(row["store_id"], row["encoder"], row["table_suffix"], row["fence"] + 1, row["attempts"] + 1)
            connection.execute(
                update(reembeddings)
                .where(reembeddings.c.store_id == move.store_id)
                .values(fence=move.fence, attempts=move.attempts, lease_until=now + self._config.lease_s)
            )
        return move

    def _move(self, move: _Move) -> None:
        """Raises `Conflict` if the move was called off, or another does it."""
        if move.encoder not in self._encoders:
            raise InvalidRequest(f"The encoder {move.encoder!r} is not configured any more", code="model_not_found")
        if move.attempts > self._config.max_attempts:
            raise InternalError(f"The move was cut off {self._config.max_attempts} times without a step forward")
        is_done = False
        while not is_done:
            difference = self._difference(move)
            self._make(move, difference.missing, difference.files)
            self._index.maintain(move.table)
            is_done = self._switch(move)

    def _difference(self, move: _Move) -> _Difference:
        wanted = self._wanted(move.store_id)
        written = self._index.written_files(move.table)
        missing: list[_Source] = []
        relabelled: list[_Source] = []
        for file_id, source in wanted.items():
            found = written.get(file_id)
            if found == source.written:
                continue
            is_whole = found is not None and replace(found, attributes=source.written.attributes) == source.written
            (relabelled if is_whole else missing).append(source)
        return _Difference(len(wanted), missing, relabelled, sorted(written.keys() - wanted.keys()))

    def _wanted(self, store_id: str) -> dict[str, _Source]:
        """By id, oldest first."""
        query = (
            select(vector_store_files, files.c.filename, files.c.media_type, files.c.size_bytes)
            .join(files, files.c.id == _file.file_id)
            .where(_file.store_id == store_id, is_found(), _file.passages > 0)
            .order_by(_file.created_at, _file.file_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return {
            row["file_id"]: _Source(
                row["file_id"],
                row["filename"],
                row["media_type"],
                row["size_bytes"],
                row["chunking_strategy"],
                WrittenFile(row["key"], row["version"], row["attributes"], row["fence"]),
            )
            for row in rows
        }

    def _make(self, move: _Move, sources: Sequence[_Source], total_files: int) -> None:
        """Put these files into the new table, each batch in a commit of its own."""
        started = time.monotonic()
        left_files, left_bytes = len(sources), _size(sources)
        all_bytes = left_bytes
        for batch in _batches(sources):
            made = self._passages(move, batch)
            left_files, left_bytes = left_files - len(batch), left_bytes - _size(batch)
            rate = (all_bytes - left_bytes) / (time.monotonic() - started)
            # The row is held meanwhile, so that nobody calls the move off between that and our own commit.
            with self._index.lock, self._database.write() as connection:
                self._keep(
                    connection,
                    move,
                    files_done=total_files - left_files,
                    files_total=total_files,
                    seconds_left=round(left_bytes / rate) if rate else None,
                    attempts=0,
                )
                # What was taken out of the store meanwhile is not put in behind its back.
                found = _found(connection, move.store_id, batch)
                kept = [each for each in made if each.file_id in found]
                self._index.add(move.table, kept, replacing=[each.file_id for each in kept])

    def _passages(self, move: _Move, batch: Sequence[_Source]) -> list[FilePassages]:
        read = [(source, text) for source in batch if (text := self._read(move, source)) is not None]
        made = make_passages([text for _, text in read], self._encoders[move.encoder])
        return [
            FilePassages(
                source.file_id,
                source.filename,
                source.written.attributes,
                pieces,
                vectors,
                source.written.fence,
                source.written.key,
                source.written.version,
            )
            for (source, _), (pieces, vectors) in zip(read, made, strict=True)
        ]

    def _read(self, move: _Move, source: _Source) -> SourceText | None:
        """None if it was taken out of the store meanwhile."""
        path, encoder = self._files.path(source.file_id), self._encoders[move.encoder]
        try:
            return read_text(
                path, source.media_type, source.chunking_strategy, encoder, self._config.max_file_characters
            )
        except RayconteurError as error:
            if source.file_id not in self._wanted(move.store_id):
                return None
            raise InternalError(
                f"The file {source.file_id!r} ({source.filename!r}) cannot be read any more: {error.message}. The store"
                " is as it was: take the file out of it, or add another version of it, and ask for the move again",
                code="unreadable_file",
            ) from error

    def _switch(self, move: _Move) -> bool:
        """Make the last of what is missing, and the table that of the store. False if it is too much to wait for."""
        with self._index.lock:
            difference = self._difference(move)
            if _size(difference.missing) > _MAX_LAST_BYTES:
                return False
            self._make(move, difference.missing, difference.files)
            for source in difference.relabelled:
                change = AttributeChange(move.store_id, source.file_id, source.written.attributes)
                self._index.update_attributes(move.table, change)
            if difference.surplus:
                self._index.add(move.table, [], replacing=difference.surplus)
            sizes = [{"file": each.file_id, **sizes_of(each)} for each in self._index.files(move.table)]
            with self._versions.changing(move.store_id) as connection:
                self._keep(connection, move)
                version = next_version(connection, move.store_id)
                set_table(connection, move.store_id, move.encoder, move.suffix)
                _begin_again(connection, move.store_id)
                update_each(connection, move.store_id, sizes)
                self._versions.record(connection, move.store_id, version)
        return True

    # The claim

    def _renew(self, move: _Move) -> None:
        with self._database.write() as connection:
            self._keep(connection, move)

    # The columns are of several types.
    def _keep(self, connection: Connection, move: _Move, **values: object) -> None:
        """Hold the move until the end of this transaction. Raises `Conflict` if it is no longer ours."""
        until = time.time() + self._config.lease_s
        kept = connection.execute(update(reembeddings).where(_is_held(move)).values(lease_until=until, **values))
        if not kept.rowcount:
            raise Conflict(f"the move to {move.encoder!r} was called off, or another indexer does it")

    def _fail(self, move: _Move, code: str, message: str) -> None:
        logger.warning("store %s: the move to %r failed: %s", move.table, move.encoder, message)
        with self._database.write() as connection:
            connection.execute(
                update(reembeddings)
                .where(_is_held(move))
                .values(status="failed", error_code=code, error_message=message, seconds_left=None, lease_until=0.0)
            )


def _begin_again(connection: Connection, store_id: str) -> None:
    """What is just being ingested was encoded by the old encoder: that is refused, and it waits to be done anew."""
    connection.execute(
        update(vector_store_files)
        .where(_file.store_id == store_id, _file.status == "in_progress")
        .values(fence=_file.fence + 1, lease_until=0.0, attempts=0)
    )


def _found(connection: Connection, store_id: str, batch: Sequence[_Source]) -> set[str]:
    """The ids of those that searches still find."""
    ids = [source.file_id for source in batch]
    query = select(_file.file_id).where(_file.store_id == store_id, _file.file_id.in_(ids), is_found())
    return set(connection.execute(query).scalars())


def _is_held(move: _Move) -> ColumnElement[bool]:
    return (
        (reembeddings.c.store_id == move.store_id)
        & (reembeddings.c.table_suffix == move.suffix)
        & (reembeddings.c.fence == move.fence)
        & (reembeddings.c.status == "in_progress")
    )


def _size(sources: Iterable[_Source]) -> int:
    return sum(source.size_bytes for source in sources)


def _batches(sources: Iterable[_Source]) -> Iterator[list[_Source]]:
    """As they come. A file that is too large for a batch is one of its own."""
    batch: list[_Source] = []
    for source in sources:
        if batch and (len(batch) == _MAX_BATCH_FILES or _size([*batch, source]) > _MAX_BATCH_BYTES):
            yield batch
            batch = []
        batch.append(source)
    if batch:
        yield batch
