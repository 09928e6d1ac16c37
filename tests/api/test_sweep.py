"""What has expired goes, and nothing else."""

from dataclasses import replace

import openai
import pytest
from sqlalchemy import update

from serve_app.api.sweep import KEEP_EXPIRED_STORES_S, sweep
from serve_app.config import SessionsConfig
from serve_app.storage import files as stored_files
from serve_app.storage.schema import files, logs, vector_stores
from serve_app.types import now_s
from serve_app.types.knowledge import StoreFileRef
from tests.api.conftest import Api

_DAY_S = 86_400


async def test_expired_uploads_go_with_their_passages(api: Api) -> None:
    kept, expired = api.upload("kept.txt"), api.upload("expired.txt")
    store = api.openai.vector_stores.create(file_ids=[kept, expired])
    with api.database.write() as connection:
        connection.execute(update(files).where(files.c.id == expired).values(expires_at=now_s() - 1))
    api.indexer.told.clear()

    await sweep(api.context)

    assert api.indexer.told == [StoreFileRef(store.id, expired)]
    assert not (api.folder / "files" / expired).exists()
    assert [each.id for each in api.openai.vector_stores.files.list(store.id)] == [kept]


async def test_bytes_without_a_row_go(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_files, "_STALE_AFTER_S", -60)
    kept = api.upload()
    (api.folder / "files" / "file_without_a_row").touch()

    await sweep(api.context)

    assert api.kept_files() == [kept]


async def test_bytes_that_cannot_be_deleted_are_looked_at_again(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    expired = api.upload()
    with api.database.write() as connection:
        connection.execute(update(files).values(expires_at=now_s() - 1))
    (api.folder / "files" / expired).unlink()
    (api.folder / "files" / expired).mkdir()

    await sweep(api.context)

    assert "will be looked at again" in caplog.text


async def test_stores_that_expired_a_week_ago_go(api: Api) -> None:
    after_a_day = {"anchor": "last_active_at", "days": 1}
    forever = api.openai.vector_stores.create()
    lately, long_ago = (
        api.openai.vector_stores.create(expires_after=after_a_day)  # type: ignore[arg-type]
        for _ in range(2)
    )
    for store, ago_s in ((forever, 10**8), (lately, _DAY_S + 60), (long_ago, _DAY_S + KEEP_EXPIRED_STORES_S)):
        with api.database.write() as connection:
            changed = update(vector_stores).where(vector_stores.c.id == store.id)
            connection.execute(changed.values(last_active_at=now_s() - ago_s))
    api.indexer.told.clear()

    await sweep(api.context)

    assert api.indexer.told == [long_ago.id]
    with pytest.raises(openai.NotFoundError):
        api.openai.vector_stores.retrieve(long_ago.id)
    assert api.openai.vector_stores.retrieve(lately.id).status == "expired"
    assert api.openai.vector_stores.update(lately.id, name="used again").status == "completed"
    assert api.openai.vector_stores.retrieve(forever.id).status == "completed"


async def test_idle_conversations_go(api: Api) -> None:
    after_a_day = {"expires_after": {"anchor": "last_active_at", "seconds": _DAY_S}}
    idle, kept = (api.http.post("/v1/conversations", json=after_a_day).json()["id"] for _ in range(2))
    with api.database.write() as connection:
        connection.execute(update(logs).where(logs.c.id == idle).values(last_active_at=now_s() - _DAY_S))

    await sweep(api.context)

    assert [each["id"] for each in api.http.get("/v1/conversations").json()["data"]] == [kept]


async def test_the_configuration_says_when_the_others_go(api: Api) -> None:
    conversation_id = api.http.post("/v1/conversations").json()["id"]
    with api.database.write() as connection:
        connection.execute(update(logs).values(last_active_at=now_s() - 2 * _DAY_S))

    await sweep(api.context)
    assert api.http.get(f"/v1/conversations/{conversation_id}").status_code == 200

    config = api.context.config.model_copy(update={"sessions": SessionsConfig(expire_after_days=1)})
    await sweep(replace(api.context, config=config))
    assert api.http.get(f"/v1/conversations/{conversation_id}").status_code == 404
