"""How long a backup, the next one and a restore take, with a store of synthetic passages.

    python -m bench.backup [--passages 100000]

384 dimensions, 400 characters a passage, one file for each hundred. The next backup is taken after one file more.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from bench.figures import found, parse_arguments
from serve_app.backup.jobs import BackupJobs
from serve_app.backup.worker import BackupWorker
from serve_app.config import AppConfig, BackupConfig, StorageConfig
from serve_app.knowledge.catalog import Catalog
from serve_app.knowledge.index import FilePassages, IndexWriter
from serve_app.knowledge.parse import detect_media_type
from serve_app.knowledge.split import Piece
from serve_app.storage.database import open_database
from serve_app.storage.files import FileStore
from serve_app.storage.schema import vector_store_files
from serve_app.types import Json

DIMENSIONS = 384
PASSAGES_A_FILE = 100
FILES_A_COMMIT = 50


class System:
    def __init__(self, folder: Path, backups: Path) -> None:
        config = AppConfig(storage=StorageConfig(folder=folder), backup=BackupConfig(url=str(backups)))
        self.database = open_database(config.storage.resolved_database_url)
        self.files = FileStore(self.database, config.storage.files_folder)
        self.catalog = Catalog(self.database, "synthetic")
        self.index = IndexWriter(config.storage.vectors_folder)
        self.jobs = BackupJobs(self.database, config)
        self.worker = BackupWorker(self.database, config)

    def add_files(self, store_id: str, count: int) -> None:
        random = np.random.default_rng(count)
        for start in range(0, count, FILES_A_COMMIT):
            added = [self._file(random) for _ in range(min(FILES_A_COMMIT, count - start))]
            self.index.add(store_id, added)
            with self.database.write() as connection:
                rows = [_row(store_id, passages) for passages in added]
                connection.execute(insert(vector_store_files), rows)

    def _file(self, random: np.random.Generator) -> FilePassages:
        texts = [" ".join(random.choice(WORDS, 60)) for _ in range(PASSAGES_A_FILE)]
        upload = io.BytesIO("\n".join(texts).encode())
        kept = self.files.save(upload, "a.txt", "assistants", detect_media_type=detect_media_type, max_bytes=10**7)
        vectors = random.normal(size=(PASSAGES_A_FILE, DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return FilePassages(kept["id"], "a.txt", {}, [Piece(text, 0) for text in texts], vectors)

    def run(self, ask: Callable[[], Json]) -> Json:
        asked = ask()
        assert self.worker.run_once()
        return asked

    def back_up(self) -> Json:
        return self.jobs.get_backup(self.run(lambda: self.jobs.create_backup(None))["id"])

    def restore(self, backup_id: str) -> Json:
        asked = self.run(lambda: self.jobs.create_restore(backup_id, None, None))
        return self.jobs.get_restore(backup_id, asked["id"])


WORDS = np.array([f"word{number}" for number in range(5000)])


def _row(store_id: str, passages: FilePassages) -> Json:
    return {
        "store_id": store_id,
        "file_id": passages.file_id,
        "key": passages.file_id,
        "version": 1,
        "status": "completed",
        "attributes": {},
        "chunking_strategy": {"type": "auto"},
        "usage_bytes": 1,
        "passages": len(passages.pieces),
        "created_at": 1,
        "fence": 1,
        "lease_until": 0.0,
        "attempts": 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    passages = parse_arguments(parser).passages
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        here, there = System(folder / "here", folder / "backups"), System(folder / "there", folder / "backups")
        with closing(here.database), closing(there.database):
            store_id = here.catalog.create_store(name="bench")["id"]
            here.add_files(store_id, passages // PASSAGES_A_FILE)
            first = _report("first backup", here.back_up)
            here.add_files(store_id, 1)
            second = _report("the next, after one file", here.back_up)
            assert first["status"] == second["status"] == "completed"
            restored = _report("restore of everything", lambda: there.restore(second["id"]))
            assert restored["status"] == "completed", restored


def _report(what: str, run: Callable[[], Json]) -> Json:
    started = time.perf_counter()
    done = run()
    elapsed_s = time.perf_counter() - started
    copied = f", {done['bytes_copied'] / 1e6:8.1f} of {done['bytes'] / 1e6:.1f} MB copied" if "bytes" in done else ""
    print(f"{what:26} {elapsed_s:7.2f} s{copied}")
    found(what, elapsed_s, "s")
    return done


if __name__ == "__main__":
    main()
