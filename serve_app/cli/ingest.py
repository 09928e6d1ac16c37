"""`rayconteur ingest`: documents into a store, as far as they are not there yet, so that it can always be run again.

A file is known by two attributes in the store: `path`, with which a later version finds what it replaces, and `sha256`,
by which a content that is there already, under whatever path, is not put in again.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import openai
import typer
from openai import OpenAI
from openai.types.vector_stores import VectorStoreFile
from openai.types.vector_stores.file_batch_create_params import File as BatchFile
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected, find_store, reason
from serve_app.cli.terminal import duration, err, fail, out
from serve_app.errors import InvalidRequest
from serve_app.knowledge.parse import detect_media_type

PATH_KEY, SHA256_KEY = "path", "sha256"
_UPLOADS_AT_ONCE = 4
_BATCH_SIZE = 50
"""The files that one request asks about. Small, as nothing is indexed before its batch is attached."""
_POLL_S = 1.0
_MAX_ATTRIBUTE_LENGTH = 512
_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_LISTED_SKIPS = 5


@dataclass(frozen=True, slots=True)
class Document:
    """A file on this machine."""

    file: Path
    path: str
    """Its name in the store: from the folder that was named, that folder included."""
    sha256: str


@dataclass(slots=True)
class Outcome:
    """What came of a run, for its last lines."""

    added: int = 0
    replaced: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Paths and reasons."""


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: Annotated[str, typer.Option(help="The name or id of the store; made if there is none.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Put documents into a store. Run it again after an interruption, or when documents have changed."""
    started = time.monotonic()
    documents, skipped = _read(paths)
    for name, why in skipped[:_LISTED_SKIPS]:
        err.print(f"Skipped {name}: {why}", markup=False)
    if len(skipped) > _LISTED_SKIPS:
        err.print(f"Skipped {len(skipped) - _LISTED_SKIPS} more")
    if not documents:
        fail("there is nothing to put in: name a folder with documents (.txt, .md, .html, .pdf, .docx, …)")
    with connected(url, api_key) as client:
        store_id = (find_store(client, store) or client.vector_stores.create(name=store)).id
        try:
            outcome = _Ingestion(client, store_id, documents).run()
        except KeyboardInterrupt:
            err.print("\nInterrupted. What was uploaded is being indexed; run the same command again to go on.")
            raise typer.Exit(130) from None
    known = len(documents) - outcome.added - outcome.replaced - len(outcome.failed)
    summary = f"{outcome.added} added, {outcome.replaced} replaced, {known} there already, {len(skipped)} skipped"
    took = duration(time.monotonic() - started)
    out.print(f"{store}: {summary}, {len(outcome.failed)} failed, in {took}", markup=False)
    for name, why in outcome.failed:
        err.print(f"Failed {name}: {why}", style="red", markup=False)
    if outcome.failed:
        raise typer.Exit(1)


def _read(paths: Iterable[Path]) -> tuple[list[Document], list[tuple[str, str]]]:
    """The documents under `paths`, each once; and what is no document, with the reason."""
    documents: dict[Path, Document] = {}
    skipped: list[tuple[str, str]] = []
    for root in paths:
        if not root.exists():
            fail(f"there is no {root}: name files and folders that exist")
        for file in _walk(root):
            resolved = file.resolve()
            if resolved in documents:
                continue
            path = _name_in_store(root, file)
            try:
                detect_media_type(file, file.name)
                with file.open("rb") as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            except InvalidRequest as error:
                skipped.append((path, error.message))
            except OSError as error:
                skipped.append((path, error.strerror or str(error)))
            else:
                documents[resolved] = Document(file, path, sha256)
    return list(documents.values()), skipped


def _walk(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        yield root
        return
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        for name in sorted(files):
            if not name.startswith(".") and (file := Path(folder, name)).is_file():
                yield file


def _name_in_store(root: Path, file: Path) -> str:
    # The folder's own name keeps the README.md of two folders apart.
    top = root.resolve() if root.is_dir() else root.resolve().parent
    inside = file.absolute().relative_to(root.absolute()) if root.is_dir() else Path(file.name)
    return (Path(top.name) / inside).as_posix()[-_MAX_ATTRIBUTE_LENGTH:]


class _Ingestion:
    """One run over one store: upload what is new, see it indexed, then remove what it replaces."""

    def __init__(self, client: OpenAI, store_id: str, documents: list[Document]) -> None:
        self._client = client
        self._store_id = store_id
        self._documents = documents
        self._outcome = Outcome()
        self._replacing: list[str] = []
        """The new ones of the files that took the place of others."""
        self._indexing: dict[str, str] = {}
        """Paths, by the ids of their files."""
        self._unfinished: list[str] = []
        """Those that an earlier run has uploaded."""
        self._batches: list[str] = []
        """Those of this run, in the order in which they will be indexed."""

    def run(self) -> Outcome:
        stored = list(self._client.vector_stores.files.list(self._store_id, limit=100, order="asc"))
        present = {_attribute(each, PATH_KEY): each for each in stored if each.status in ("completed", "in_progress")}
        new = _to_upload(self._documents, {path: _attribute(each, SHA256_KEY) for path, each in present.items()})
        needed = {document.sha256 for document in self._documents}
        replaced = {document.path for document in new}
        for path, each in present.items():
            if each.status == "in_progress" and path not in replaced and _attribute(each, SHA256_KEY) in needed:
                self._indexing[each.id] = path
                self._unfinished.append(each.id)
        with _progress() as progress:
            self._upload(new, progress)
            earlier = {_attribute(each, PATH_KEY) for each in stored if each.status == "completed"}
            for file in self._indexed(progress):
                self._settle(file, earlier)
        self._remove_leftovers(stored)
        return self._outcome

    def _upload(self, new: list[Document], progress: Progress) -> None:
        """Upload side by side and attach in batches. What is uploaded is attached even if we are interrupted."""
        task = progress.add_task("Uploading", total=len(new), visible=bool(new))
        uploaded: list[BatchFile] = []
        waiting = iter(new)
        running: dict[Future[str], Document] = {}
        with ThreadPoolExecutor(_UPLOADS_AT_ONCE) as pool:
            try:
                while True:
                    while len(running) < _UPLOADS_AT_ONCE and (document := next(waiting, None)):
                        running[pool.submit(self._upload_one, document)] = document
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self._take(future, running.pop(future), uploaded)
                        progress.advance(task)
                    if len(uploaded) >= _BATCH_SIZE:
                        self._attach(uploaded)
            finally:
                for future, document in running.items():
                    with suppress(openai.APIError):
                        self._take(future, document, uploaded)
                self._attach(uploaded)

    def _upload_one(self, document: Document) -> str:
        with document.file.open("rb") as content:
            return self._client.files.create(file=(document.file.name, content), purpose="assistants").id

    def _take(self, future: Future[str], document: Document, uploaded: list[BatchFile]) -> None:
        try:
            file_id = future.result()
        except openai.APIStatusError as error:
            # The others are about the server, and would meet every file.
            if error.status_code not in (400, 413, 415):
                raise
            self._outcome.failed.append((document.path, reason(error)))
        except OSError as error:
            self._outcome.failed.append((document.path, error.strerror or str(error)))
        else:
            self._indexing[file_id] = document.path
            attributes: dict[str, str | float | bool] = {PATH_KEY: document.path, SHA256_KEY: document.sha256}
            uploaded.append({"file_id": file_id, "attributes": attributes})

    def _attach(self, uploaded: list[BatchFile]) -> None:
        if uploaded:
            self._batches.append(self._client.vector_stores.file_batches.create(self._store_id, files=uploaded).id)
            uploaded.clear()

    def _indexed(self, progress: Progress) -> Iterator[VectorStoreFile]:
        """Each when it is indexed or failed. Only the next batch in line is asked about: many cost little."""
        task = progress.add_task("Indexing", total=len(self._indexing), visible=bool(self._indexing))
        files, batches = self._client.vector_stores.files, self._client.vector_stores.file_batches
        for file_id in self._unfinished:
            while (file := files.retrieve(file_id, vector_store_id=self._store_id)).status == "in_progress":
                time.sleep(_POLL_S)
            progress.advance(task)
            yield file
        done = len(self._unfinished)
        for batch_id in self._batches:
            while (counts := batches.retrieve(batch_id, vector_store_id=self._store_id).file_counts).in_progress:
                progress.update(task, completed=done + counts.total - counts.in_progress)
                time.sleep(_POLL_S)
            done += counts.total
            progress.update(task, completed=done)
            yield from batches.list_files(batch_id, vector_store_id=self._store_id, limit=100)

    def _settle(self, file: VectorStoreFile, earlier: Set[str]) -> None:
        """`earlier` are the paths that the store held before."""
        path = self._indexing[file.id]
        if file.status != "completed":
            why = file.last_error.message if file.last_error else f"its indexing was {file.status}"
            self._outcome.failed.append((path, why))
        elif path in earlier:
            self._outcome.replaced += 1
            self._replacing.append(file.id)
        else:
            self._outcome.added += 1

    def _remove_leftovers(self, stored: list[VectorStoreFile]) -> None:
        """Earlier failures of what was tried again, and uploads that no version of the store needs any more."""
        paths = {document.path for document in self._documents}
        for each in stored:
            if each.status in ("failed", "cancelled") and _attribute(each, PATH_KEY) in paths:
                self._delete(each.id)
        for file_id in self._replacing:
            path = f"/vector_stores/{self._store_id}/files/{file_id}/versions"
            for version in self._client.get(path, cast_to=httpx.Response).json()["data"]:
                if version["status"] == "superseded" and not version["kept_versions"]:
                    self._delete(version["id"])

    def _delete(self, file_id: str) -> None:
        with suppress(openai.NotFoundError):
            self._client.files.delete(file_id)


def _to_upload(documents: Sequence[Document], stored: Mapping[str, str]) -> list[Document]:
    """What changed under its path, and then what is under none. `stored` are the SHA-256s by path."""
    changed = {each.path: each for each in documents if stored.get(each.path, each.sha256) != each.sha256}
    # What is replaced can stand for no other file: it will be gone.
    contents = {sha256 for path, sha256 in stored.items() if path not in changed}
    contents.update(each.sha256 for each in changed.values())
    added: dict[str, Document] = {}
    for each in documents:
        if each.path not in stored and each.sha256 not in contents:
            added.setdefault(each.sha256, each)
    return [*changed.values(), *added.values()]


def _attribute(stored: VectorStoreFile, key: str) -> str:
    return str((stored.attributes or {}).get(key, ""))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} files/s")
