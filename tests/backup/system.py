"""A whole system on one machine, without Ray and an encoder: database, uploads, tables, conversations, backups."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
from sqlalchemy import delete, insert, select

from serve_app.backup.jobs import BackupJobs
from serve_app.backup.worker import BackupWorker
from serve_app.config import AppConfig, BackupConfig, RetentionConfig, StorageConfig
from serve_app.conversation.log import ConversationLog
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.history import next_version
from serve_app.knowledge.index import FilePassages, IndexWriter
from serve_app.knowledge.parse import detect_media_type
from serve_app.knowledge.search import IndexReader
from serve_app.knowledge.split import Piece
from serve_app.knowledge.versions import Versions, set_table
from serve_app.storage.database import Database
from serve_app.storage.files import FileStore
from serve_app.storage.schema import backup_jobs, metadata, vector_store_files
from serve_app.types import FloatMatrix, Json, PageQuery
from serve_app.types.conversation import AppendItems
from serve_app.types.knowledge import Passage, Ranking, SearchQuery, StoreFileRef

Rows = dict[str, list[tuple[Any, ...]]]


class System:
    def __init__(self, folder: Path, database: Database, backup_url: str) -> None:
        self.folder = folder
        self.database = database
        self.config = AppConfig(storage=StorageConfig(folder=folder), backup=BackupConfig(url=backup_url))
        self.files = FileStore(database, self.config.storage.files_folder)
        self.catalog = Catalog(database, "toy", "other")
        self.index = IndexWriter(self.config.storage.vectors_folder)
        self.versions = Versions(database, self.index, RetentionConfig(keep_versions=1000))
        self.reader = IndexReader(self.config.storage.vectors_folder)
        self.log = ConversationLog(database, 100, stale_after_s=60)
        self.jobs = BackupJobs(database, self.config)
        self.worker = BackupWorker(database, self.config)

    # What is in it

    def add_store(self, name: str = "docs") -> str:
        return str(self.catalog.create_store(name=name)["id"])

    def add_document(
        self, store_id: str, text: str, *, replaces: str | None = None, batch_id: str | None = None
    ) -> str:
        """As the indexer commits: the table first, then the rows, with a version of the store that is tagged."""
        file_id = self.upload(text)
        pieces = [Piece(part, start) for start, part in enumerate(text.split(". "))]
        passages = FilePassages(
            file_id, "a.txt", {"n": len(text)}, pieces, vectors([piece.text for piece in pieces]), 1
        )
        with self.index.lock, self.database.write() as connection:
            self.index.add(store_id, [passages], replacing=[replaces] if replaces else [])
            version = next_version(connection, store_id)
            row = {
                "store_id": store_id,
                "file_id": file_id,
                "key": file_id,
                "version": 1,
                "since_version": version,
                "batch_id": batch_id,
                "status": "completed",
                "attributes": {"n": len(text)},
                "chunking_strategy": {"type": "auto"},
                "usage_bytes": 1,
                "passages": len(pieces),
                "created_at": 1,
                "fence": 1,
                "lease_until": 0.0,
                "attempts": 1,
            }
            connection.execute(insert(vector_store_files).values(row))
            if replaces is not None:
                gone = vector_store_files.c.file_id == replaces
                connection.execute(delete(vector_store_files).where(gone, vector_store_files.c.store_id == store_id))
            self.versions.record(connection, store_id, version)
        return file_id

    def remove_document(self, store_id: str, file_id: str) -> None:
        self.versions.remove_file(StoreFileRef(store_id, file_id))
        self.catalog.remove_file(store_id, file_id)

    def move(self, store_id: str, encoder: str, suffix: str) -> None:
        """To an encoder whose vectors have three dimensions, as the indexer does."""
        table = store_id + suffix
        for row in self.passages(store_id):
            text = [Piece(row["text"], row["start"])]
            self.index.add(table, [FilePassages(row["passage_id"], "a.txt", {}, text, vectors([row["text"]])[:, :3])])
        with self.index.lock, self.database.write() as connection:
            set_table(connection, store_id, encoder, suffix)
            self.versions.record(connection, store_id, next_version(connection, store_id))

    def upload(self, text: str) -> str:
        upload = io.BytesIO(text.encode())
        kept = self.files.save(upload, "a.txt", "assistants", detect_media_type=detect_media_type, max_bytes=10**6)
        return str(kept["id"])

    def say(self, conversation_id: str, text: str) -> str:
        item_id = f"msg_{text}"
        item = {"id": item_id, "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        self.log.append_items(AppendItems(conversation_id, (item,), idempotency_key=text))
        return item_id

    def said(self, conversation_id: str) -> list[str]:
        items = self.log.list_items(conversation_id, PageQuery(order="asc", limit=100)).data
        return [item["content"][0]["text"] for item in items]

    # Backups

    def back_up(self, *store_ids: str) -> Json:
        """Asked for and made."""
        backup = self.jobs.create_backup(store_ids or None)
        assert self.worker.run_once()
        return self.jobs.get_backup(backup["id"])

    def restore(self, backup_id: str, store_id: str | None = None, name: str | None = None) -> Json:
        asked = self.jobs.create_restore(backup_id, store_id, name)
        assert self.worker.run_once()
        return self.jobs.get_restore(backup_id, asked["id"])

    # What can be seen of it

    def table(self, store_id: str) -> Path:
        return self.config.storage.vectors_folder / f"{store_id}.lance"

    async def search(self, store_id: str, text: str) -> list[Passage]:
        query = SearchQuery(store_id, text, vectors([text])[0], 50, ranking=Ranking())
        return list(await self.reader.search(query))

    def passages(self, store_id: str, version: int | str | None = None) -> list[Json]:
        """Every row of the table, vectors included, in the order of its documents."""
        if not self.table(store_id).exists():
            return []
        rows: list[Json] = lance.dataset(str(self.table(store_id)), version=version).to_table().to_pylist()
        return sorted(rows, key=lambda row: row["passage_id"])

    def rows(self, *, but: Sequence[str] = ()) -> Rows:
        """All rows of the database, but those of the jobs and some columns."""
        with self.database.read() as connection:
            return {
                table.name: sorted(
                    (
                        tuple(row[column.name] for column in table.c if column.name not in but)
                        for row in connection.execute(select(table)).mappings()
                    ),
                    key=str,
                )
                for table in metadata.sorted_tables
                if table is not backup_jobs
            }

    def uploads(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.config.storage.files_folder.iterdir()}

    def paths(self) -> set[Path]:
        """All files but the database's own."""
        return {path for path in self.folder.rglob("*") if "rayconteur.db" not in path.name}


def vectors(texts: Sequence[str]) -> FloatMatrix:
    angles = np.array([sum(text.encode()) / 500 for text in texts], dtype=np.float32)
    matrix: FloatMatrix = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1)
    return matrix
