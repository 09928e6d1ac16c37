"""Backups on S3: s3fs against moto's server, which speaks S3 over HTTP. Left out where they are not installed."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.backup.system import System
from tests.backup.test_restore import CHANGES, fill
from tests.databases import opened

moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@dataclass(frozen=True)
class Bucket:
    name: str
    # s3fs is not typed.
    files: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}/backups"

    def objects(self) -> set[str]:
        return set(self.files.find(f"{self.name}/backups/objects"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    # The servers of two tests have different ports, and s3fs keeps its file systems; moto keeps its buckets.
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = Bucket(f"bucket-{secrets.token_hex(8)}", s3fs.S3FileSystem())
    bucket.files.mkdir(bucket.name)
    yield bucket
    server.stop()


@pytest.fixture
def here(tmp_path: Path, bucket: Bucket) -> Iterator[System]:
    with opened(f"sqlite:///{tmp_path}/here/rayconteur.db") as database:
        yield System(tmp_path / "here", database, bucket.url)


@pytest.fixture
def there(tmp_path: Path, bucket: Bucket) -> Iterator[System]:
    with opened(f"sqlite:///{tmp_path}/there/rayconteur.db") as database:
        yield System(tmp_path / "there", database, bucket.url)


def test_backups_on_s3_are_incremental_and_are_restored(here: System, there: System) -> None:
    store_id = fill(here)
    first = here.back_up()
    here.add_document(store_id, "A new one")

    second = here.back_up()

    assert (first["status"], second["status"]) == ("completed", "completed")
    assert 0 < second["bytes_copied"] < second["bytes"] - first["bytes_copied"] / 2
    assert there.restore(second["id"])["error"] is None
    assert there.passages(store_id) == here.passages(store_id)
    assert there.rows(but=CHANGES) == here.rows(but=CHANGES)
    assert there.uploads() == here.uploads()


def test_a_flipped_bit_on_s3_is_noticed(here: System, there: System, bucket: Bucket) -> None:
    fill(here)
    backup = here.back_up()
    largest = max(bucket.objects(), key=bucket.files.size)
    content = bucket.files.cat_file(largest)
    bucket.files.pipe_file(largest, content[:-1] + bytes([content[-1] ^ 1]))

    restored = there.restore(backup["id"])

    assert (restored["status"], restored["error"]["code"]) == ("failed", "backup_damaged")
    assert there.uploads() == {}


def test_what_only_a_deleted_backup_needs_leaves_s3(here: System, bucket: Bucket) -> None:
    store_id = fill(here)
    kept = here.back_up()
    objects = bucket.objects()
    here.add_document(store_id, "Only in the second backup")
    second = here.back_up()

    here.jobs.delete_backup(second["id"])
    here.worker.run_once()

    assert bucket.objects() == objects
    assert here.jobs.get_backup(kept["id"])["status"] == "completed"
