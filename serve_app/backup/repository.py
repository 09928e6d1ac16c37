"""`Repository`: a folder, or an s3:// URL, that holds snapshots. It is written so that nothing in it is ever changed.

objects/ab/abcd…      contents, each under its SHA-256 and so kept once, whichever snapshots it belongs to
snapshots/{id}.json   one snapshot: its manifest, and the manifest's own SHA-256. Written last: what is there is whole

Among the objects is, for each snapshot, the list of its items: where each content belongs, its size and its SHA-256.
"""

import calendar
import gzip
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import orjson
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from serve_app.errors import InternalError, InvalidRequest, NotFound, RayconteurError, Unavailable
from serve_app.types import Json

logger = logging.getLogger(__name__)

FORMAT = 2
_BLOCK_BYTES = 1 << 20
_REMEMBERED_SNAPSHOTS = 10
_BACKUP_ID = re.compile(r"backup_[0-9]{14}_[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Item:
    """A content of a snapshot, and where it belongs: `vectors/vs_…/data/…`, `files/file_…` or `sql/TABLE.jsonl.gz`."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredStore:
    """A vector store in a snapshot."""

    id: str
    name: str
    table_version: int | None
    """LanceDB's, that a search of it reads; None if it has no table."""
    passages: int
    """Rows of the table."""
    table_suffix: str = ""
    """Of that table's name, after the store's id."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot is. `items` is the content that lists the rest."""

    id: str
    created_at: int
    is_everything: bool
    """All that there was, conversations included; else only the stores and their files."""
    stores: tuple[StoredStore, ...]
    schema: str
    """The revision of the SQL schema."""
    settings: Json
    """The configuration of the system, for the reader: a restore does not apply it."""
    item_count: int
    file_count: int
    size_bytes: int
    copied_bytes: int
    """Of those, what the repository did not hold yet."""
    items: Item
    format: int = FORMAT

    def to_json(self) -> Json:
        """As the API shows it."""
        return {
            "id": self.id,
            "object": "backup",
            "status": "completed",
            "created_at": self.created_at,
            "vector_store_ids": None if self.is_everything else [store.id for store in self.stores],
            "vector_stores": [
                {"id": store.id, "name": store.name, "passages": store.passages} for store in self.stores
            ],
            "files": self.file_count,
            "bytes": self.size_bytes,
            "bytes_copied": self.copied_bytes,
            "bytes_to_copy": self.copied_bytes,
            "error": None,
        }


class Repository:
    """The snapshots at one URL. May be used from several threads.

    Every method raises `Unavailable` if the place cannot be reached, and those that read a snapshot `InvalidRequest`
    with the code `backup_damaged` for contents that are missing or are not what was written.
    """

    def __init__(self, url: str) -> None:
        # fsspec's file systems are not typed.
        self._fs: Any
        with _reachable(url):
            try:
                self._fs, self._root = url_to_fs(url, use_listings_cache=False)
            except ImportError:
                raise Unavailable(
                    f"backup.url is {url!r}, and what reads s3:// is not installed:"
                    f" pip install s3fs=={fsspec.__version__} on every node"
                ) from None
        self._url = url
        self._is_local = isinstance(self._fs, LocalFileSystem)
        if self._is_local:
            # It holds everything that anybody has said to the model.
            with _reachable(url):
                Path(self._root).mkdir(mode=0o700, parents=True, exist_ok=True)

    # Snapshots

    def ids(self) -> list[str]:
        """Of all snapshots, in no order."""
        with _reachable(self._url):
            names = [Path(name) for name in self._fs.find(f"{self._root}/snapshots")]
        return [name.stem for name in names if name.suffix == ".json" and _BACKUP_ID.fullmatch(name.stem)]

    def manifest(self, backup_id: str) -> Manifest:
        """Raises `NotFound` if there is no such snapshot."""
        place = self._snapshot(backup_id)
        with _reachable(self._url):
            try:
                content = self._fs.cat_file(place)
            except FileNotFoundError:
                raise no_backup(backup_id) from None
        try:
            written = orjson.loads(content)
            body = written["manifest"]
            is_whole = hashlib.sha256(orjson.dumps(body)).hexdigest() == written["sha256"]
        except (ValueError, TypeError, KeyError):
            is_whole = False
        if not is_whole:
            raise _damaged(f"the manifest of {backup_id}")
        if body["format"] > FORMAT:
            raise InvalidRequest(
                f"The backup {backup_id!r} was written by a newer version of Rayconteur: restore it with that one",
                param="backup_id",
                code="backup_too_new",
            )
        stores = tuple(StoredStore(**each) for each in body["stores"])
        return Manifest(**{**body, "stores": stores, "items": Item(**body["items"])})

    def items(self, manifest: Manifest) -> list[Item]:
        """All contents of a snapshot but the list itself."""
        lines = gzip.decompress(b"".join(self._blocks(manifest.items))).splitlines()
        items = [Item(*orjson.loads(line)) for line in lines]
        for item in items:
            # A digest tells an accident from the truth, and not who has written it.
            if item.path.startswith("/") or ".." in item.path.split("/"):
                raise _damaged(f"the path {item.path!r}")
        return items

    def commit(self, manifest: Manifest) -> None:
        """From here on the snapshot is there."""
        body = asdict(manifest)
        written = {"manifest": body, "sha256": hashlib.sha256(orjson.dumps(body)).hexdigest()}
        place = self._snapshot(manifest.id)
        with _reachable(self._url):
            self._make_parent(place)
            if self._is_local:
                # What the manifest names must be on the disk before it.
                os.sync()
            self._fs.pipe_file(f"{place}.tmp", orjson.dumps(written, option=orjson.OPT_INDENT_2))
            self._fs.mv(f"{place}.tmp", place)

    def forget(self, backup_id: str) -> None:
        """Remove a snapshot; what only it needed goes with the next `prune`."""
        place = self._snapshot(backup_id)
        with _reachable(self._url):
            try:
                self._fs.rm_file(place)
            except FileNotFoundError:
                raise no_backup(backup_id) from None

    def prune(self) -> int:
        """Remove the contents that no snapshot needs; returns their bytes. Not while a snapshot is being made.

        If a snapshot is damaged nobody knows what it needs, and it raises.
        """
        needed = set()
        for backup_id in self.ids():
            manifest = self.manifest(backup_id)
            needed |= {manifest.items.sha256, *(item.sha256 for item in self.items(manifest))}
        stored = self.stored()
        idle = stored.keys() - needed
        with _reachable(self._url):
            for sha256 in idle:
                self._fs.rm_file(self._object(sha256))
        return sum(stored[sha256] for sha256 in idle)

    # Contents

    def stored(self) -> dict[str, int]:
        """The size of every content, by SHA-256."""
        with _reachable(self._url):
            found = self._fs.find(f"{self._root}/objects", detail=True)
        return {Path(name).name: int(info["size"]) for name, info in found.items()}

    def remembered(self, stored: dict[str, int]) -> dict[str, Item]:
        """The contents of the last snapshots by their paths, as far as they are still stored."""
        known: dict[str, Item] = {}
        for backup_id in sorted(self.ids(), reverse=True)[:_REMEMBERED_SNAPSHOTS]:
            try:
                items = self.items(self.manifest(backup_id))
            except InvalidRequest as error:
                logger.warning("%s", error.message)
                continue
            for item in items:
                if stored.get(item.sha256) == item.size_bytes:
                    known.setdefault(item.path, item)
        return known

    def put(self, source: Path, item: Item) -> None:
        """Keep a content. It is read back and compared: a disk that lies is noticed now."""
        place = self._object(item.sha256)
        with _reachable(self._url):
            self._make_parent(place)
            self._fs.put_file(str(source), place)
        try:
            for _ in self._blocks(item):
                pass
        except InvalidRequest:
            # Left there, it would be taken for the content by the next backup.
            with _reachable(self._url):
                self._fs.rm_file(place)
            raise InternalError(f"{self._url} gave back something else than was written for {item.path}") from None

    def fetch(self, item: Item, target: Path) -> None:
        """Copy a content out, and check it on the way."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for block in self._blocks(item):
                file.write(block)

    def _blocks(self, item: Item) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with _reachable(self._url):
            try:
                with self._fs.open(self._object(item.sha256), "rb") as file:
                    while block := file.read(_BLOCK_BYTES):
                        digest.update(block)
                        yield block
            except FileNotFoundError:
                raise _damaged(f"{item.path}, which is missing,") from None
        if digest.hexdigest() != item.sha256:
            raise _damaged(item.path)

    # Places

    def _snapshot(self, backup_id: str) -> str:
        if not _BACKUP_ID.fullmatch(backup_id):
            raise no_backup(backup_id)
        return f"{self._root}/snapshots/{backup_id}.json"

    def _object(self, sha256: str) -> str:
        return f"{self._root}/objects/{sha256[:2]}/{sha256}"

    def _make_parent(self, place: str) -> None:
        # S3 has no folders, and would be asked for nothing.
        if self._is_local:
            Path(place).parent.mkdir(parents=True, exist_ok=True)


def new_backup_id() -> str:
    """Ids sort by time, to the second."""
    return f"backup_{time.strftime('%Y%m%d%H%M%S', time.gmtime())}_{secrets.token_hex(8)}"


def created_at(backup_id: str) -> int:
    """What the id says, for a snapshot that says nothing else any more."""
    return calendar.timegm(time.strptime(backup_id.split("_")[1], "%Y%m%d%H%M%S"))


def describe(path: str, source: Path) -> Item:
    """A file on this machine as an item."""
    with source.open("rb") as file:
        return Item(path, source.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write_items(items: Iterable[Item], target: Path) -> Item:
    """The list of a snapshot's items as a file, to be kept like any other content."""
    with target.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for item in items:
            packed.write(orjson.dumps([item.path, item.size_bytes, item.sha256]) + b"\n")
    return describe("items.jsonl.gz", target)


def no_backup(backup_id: str) -> NotFound:
    return NotFound(f"There is no backup {backup_id!r}", param="backup_id")


def _damaged(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"The backup is damaged: {what} is not what was written. Nothing was changed; take another backup",
        param="backup_id",
        code="backup_damaged",
    )


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    try:
        yield
    except RayconteurError:
        raise
    # Each file system raises what its own libraries do, and they have no common root.
    except Exception as error:
        raise Unavailable(f"The backups at {url!r} cannot be reached ({type(error).__name__}: {error})") from error
