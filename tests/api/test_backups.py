"""Backups over HTTP. The jobs are done by a real worker on the same folder, as the indexer does them."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.backup.jobs import BackupWorker
from serve_app.config import AppConfig, StorageConfig
from serve_app.errors import Unavailable
from serve_app.types import Json
from tests.api.conftest import Api


def work(api: Api) -> None:
    worker = BackupWorker(api.database, AppConfig(storage=StorageConfig(folder=api.folder)))
    while worker.run_once():
        pass


def ask(api: Api, method: str, path: str, expected: int = 200, **json: Any) -> Json:
    answer = api.http.request(method, f"/v1/backups{path}", json=json if method == "POST" else None)
    assert answer.status_code == expected, answer.text
    body: Json = answer.json()
    return body


def test_from_a_backup_to_its_restore(api: Api) -> None:
    store = api.openai.vector_stores.create(name="docs", file_ids=[api.upload()])

    backup = ask(api, "POST", "")
    assert (backup["object"], backup["status"], backup["vector_store_ids"]) == ("backup", "in_progress", None)
    assert api.indexer.told[-1] == "wake"
    work(api)
    done = ask(api, "GET", f"/{backup['id']}")
    assert (done["status"], done["files"], done["error"]) == ("completed", 1, None)
    assert done["vector_stores"] == [{"id": store.id, "name": "docs", "passages": 0}]
    assert 0 < done["bytes_copied"] <= done["bytes"]
    listed = ask(api, "GET", "?limit=1")
    assert (listed["object"], listed["data"], listed["has_more"]) == ("list", [done], False)

    restore = ask(api, "POST", f"/{backup['id']}/restores", vector_store_id=store.id, name="docs of then")
    assert (restore["object"], restore["status"]) == ("backup.restore", "in_progress")
    work(api)
    restored = ask(api, "GET", f"/{backup['id']}/restores/{restore['id']}")
    (copy,) = restored["vector_stores"]
    assert (restored["status"], copy["name"], copy["restored_from"]) == ("completed", "docs of then", store.id)
    assert api.openai.vector_stores.retrieve(copy["id"]).file_counts.total == 1

    assert ask(api, "DELETE", f"/{backup['id']}")["deleted"]
    ask(api, "GET", f"/{backup['id']}", 404)
    assert ask(api, "GET", "")["data"] == []


def test_what_cannot_be_is_refused_at_once(api: Api) -> None:
    store = api.openai.vector_stores.create(name="docs")
    assert ask(api, "POST", "", 404, vector_store_ids=["vs_0"])["error"]["param"] == "vector_store_ids"
    ask(api, "POST", "", 400, vector_store_ids=[])
    backup = ask(api, "POST", "", vector_store_ids=[store.id])
    ask(api, "POST", f"/{backup['id']}/restores", 404)
    ask(api, "DELETE", f"/{backup['id']}", 409)
    work(api)

    there = ask(api, "POST", f"/{backup['id']}/restores", 409, vector_store_id=store.id)["error"]
    assert (there["code"], there["param"]) == ("vector_store_exists", "vector_store_id")
    assert "'name'" in there["message"]
    ask(api, "POST", f"/{backup['id']}/restores", 400, name="which one?")
    ask(api, "POST", f"/{backup['id']}/restores", 404, vector_store_id="vs_0")
    ask(api, "GET", f"/{backup['id']}/restores/restore_0", 404)
    ask(api, "GET", "/backup_20260101000000_00", 404)
    ask(api, "GET", "?after=backup_0", 400)


def test_a_damaged_backup_is_a_400(api: Api) -> None:
    backup = ask(api, "POST", "")
    work(api)
    (Path(api.folder) / "backups" / "snapshots" / f"{backup['id']}.json").write_text("{")

    assert ask(api, "GET", f"/{backup['id']}")["status"] == "failed"
    refused = ask(api, "POST", f"/{backup['id']}/restores", 400)["error"]

    assert (refused["code"], refused["param"]) == ("backup_damaged", "backup_id")


def test_an_indexer_that_is_away_finds_its_work_later(api: Api) -> None:
    api.indexer.error = Unavailable("restarting")

    backup = ask(api, "POST", "")
    work(api)

    assert ask(api, "GET", f"/{backup['id']}")["status"] == "completed"


@pytest.mark.parametrize("path", ["/..%2Fobjects", "/backup_1", "/restore_1"])
def test_only_backups_are_found(shared_api: Api, path: str) -> None:
    ask(shared_api, "GET", path, 404)
    ask(shared_api, "DELETE", path, 404)
