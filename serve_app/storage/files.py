"""`FileStore`: the uploaded files, their bytes in a folder and their rows in the database.

A file is there when its row is. What a crash may leave is bytes without a row, which nobody can see and which go later.
"""

import contextlib
import hashlib
import math
import os
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from sqlalchemy import ColumnElement, RowMapping, delete, insert, or_, select

from serve_app.errors import InvalidRequest, NotFound, Unavailable, UploadTooLarge
from serve_app.storage.database import Database
from serve_app.storage.paging import select_page
from serve_app.storage.schema import files
from serve_app.types import Json, Page, PageQuery, new_id, now_s

_COPY_BYTES = 1 << 20
_MAX_FILENAME_CHARACTERS = 255
_ID_PREFIX = "file"
_TEMPORARY_PREFIX = ".upload-"
_STALE_AFTER_S = 86_400
# They turn the reading direction of what follows, so that "fdp.exe" can look like "exe.pdf".
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class FileStore:
    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep_stale_uploads()

    def save(
        self,
        upload: IO[bytes],
        filename: str,
        purpose: str,
        *,
        detect_media_type: Callable[[Path, str], str],
        max_bytes: int,
        expires_after_s: int | None = None,
    ) -> Json:
        """Keep an upload, whole or not at all.

        `detect_media_type(path, filename)` raises `UnsupportedFile` or `InvalidRequest` for what is not taken. A file
        of more than `max_bytes` is `UploadTooLarge`.
        """
        filename = clean_filename(filename)
        file_id = new_id(_ID_PREFIX)
        temporary = self._folder / f"{_TEMPORARY_PREFIX}{file_id}"
        kept = self.path(file_id)
        try:
            size_bytes, sha256 = _copy(upload, temporary, max_bytes)
            media_type = detect_media_type(temporary, filename)
            temporary.rename(kept)
            sync_path(self._folder)
            created_at = now_s()
            row = {
                "id": file_id,
                "filename": filename,
                "media_type": media_type,
                "purpose": purpose,
                "size_bytes": size_bytes,
                "sha256": sha256,
                "created_at": created_at,
                "expires_at": None if expires_after_s is None else created_at + expires_after_s,
            }
            with self._database.write() as connection:
                connection.execute(insert(files).values(row))
        except Unavailable:
            # The row may be there, and then it needs the bytes. If it is not, they are removed as orphans.
            raise
        except BaseException:
            temporary.unlink(missing_ok=True)
            kept.unlink(missing_ok=True)
            raise
        return _to_json(row)

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are. Only for ids that this class has given out."""
        return self._folder / file_id

    def get(self, file_id: str) -> Json:
        return _to_json(self._row(file_id))

    def media_type(self, file_id: str) -> str:
        """What the content was found to be."""
        return str(self._row(file_id)["media_type"])

    def list(self, page: PageQuery, purpose: str | None = None) -> Page:
        only = _is_alive() if purpose is None else _is_alive() & (files.c.purpose == purpose)
        with self._database.read() as connection:
            rows, has_more = select_page(connection, select(files), (files.c.created_at, files.c.id), page, only)
        return Page(tuple(_to_json(row) for row in rows), has_more)

    def expired_ids(self) -> Sequence[str]:
        with self._database.read() as connection:
            return connection.execute(select(files.c.id).where(~_is_alive())).scalars().all()

    def delete(self, file_id: str) -> None:
        """Row first: a file without bytes would be a lie, bytes without a row are only rubbish."""
        with self._database.write() as connection:
            if connection.execute(delete(files).where(files.c.id == file_id)).rowcount == 0:
                raise _not_found(file_id)
        self.path(file_id).unlink(missing_ok=True)

    def remove_orphans(self) -> None:
        """Remove bytes whose row was never written, or is deleted, once they have been here for a day.

        What came before every row stays: the database may be a new one, and the bytes those of the one before.
        """
        names = {path.name for path in self._folder.glob(f"{_ID_PREFIX}_*")}
        with self._database.read() as connection:
            created_at = {row.id: row.created_at for row in connection.execute(select(files.c.id, files.c.created_at))}
        since, until = min(created_at.values(), default=math.inf), time.time() - _STALE_AFTER_S
        for name in names - created_at.keys():
            orphan = self._folder / name
            # Another process may sweep, too.
            with contextlib.suppress(FileNotFoundError):
                # A restore moves older files here before their rows are committed, which changes this time alone.
                if since <= orphan.stat().st_ctime < until:
                    orphan.unlink()

    def _row(self, file_id: str) -> RowMapping:
        with self._database.read() as connection:
            row = connection.execute(select(files).where(files.c.id == file_id, _is_alive())).mappings().first()
        if row is None:
            raise _not_found(file_id)
        return row

    def _sweep_stale_uploads(self) -> None:
        for temporary in self._folder.glob(f"{_TEMPORARY_PREFIX}*"):
            # Another process may sweep, or finish an upload, at the same time.
            with contextlib.suppress(FileNotFoundError):
                if temporary.stat().st_mtime < time.time() - _STALE_AFTER_S:
                    temporary.unlink()


def _copy(upload: IO[bytes], target: Path, max_bytes: int) -> tuple[int, str]:
    """Durable when it returns the size and the SHA-256."""
    digest = hashlib.sha256()
    size_bytes = 0
    with target.open("xb") as file:
        while block := upload.read(_COPY_BYTES):
            size_bytes += len(block)
            if size_bytes > max_bytes:
                raise UploadTooLarge(
                    f"The file is larger than {max_bytes} bytes, which is the most this server takes",
                    param="file",
                    code="file_too_large",
                )
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size_bytes, digest.hexdigest()


def clean_filename(filename: str) -> str:
    """The user's base name, without directories and control characters. Raises `InvalidRequest` if nothing is left."""
    if "\x00" in filename:
        raise InvalidRequest("The filename holds a NUL character", param="file")
    base = filename.replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(
        character
        for character in unicodedata.normalize("NFC", base)
        if unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") and character not in _BIDI_CONTROLS
    ).strip()
    if name in ("", ".", ".."):
        raise InvalidRequest(f"{filename!r} is not the name of a file", param="file")
    if len(name) > _MAX_FILENAME_CHARACTERS:
        raise InvalidRequest(
            f"The filename has {len(name)} characters; at most {_MAX_FILENAME_CHARACTERS} are taken", param="file"
        )
    return name


def _is_alive() -> ColumnElement[bool]:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > now_s())


def sync_path(path: Path | str) -> None:
    """A file's content, or the names in a folder: a new file, or a rename, is durable only when its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"There is no file {file_id!r}", param="file_id")


# A row just made is a dict, one that was read is a RowMapping.
def _to_json(row: RowMapping | dict[str, Any]) -> Json:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["size_bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }
