"""`/v1/backups`: snapshots of a store or of everything, and restores from them.

A backup and a restore are answered at once and made by the indexer; ask for them again until they are no longer
`in_progress`. Where the backups are kept is the operator's to say (`backup.url`).
"""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from serve_app.api.context import InContext
from serve_app.api.wake import wake_indexer
from serve_app.api.wire import Name, PageParameters, Wire
from serve_app.types import Json

router = APIRouter(prefix="/v1/backups", tags=["backups"])

StoreId = Annotated[str, Field(min_length=1, max_length=80)]


class CreateBackupBody(Wire):
    vector_store_ids: Annotated[list[StoreId], Field(min_length=1, max_length=500)] | None = None
    """None: everything, conversations included."""


class RestoreBody(Wire):
    vector_store_id: StoreId | None = None
    """None: all that is missing here."""
    name: Annotated[Name, Field(min_length=1)] | None = None
    """A store that is restored under another name stands beside the original."""


@router.post("")
async def create_backup(body: CreateBackupBody, context: InContext) -> Json:
    backup = await run_in_threadpool(context.backups.create_backup, body.vector_store_ids)
    await wake_indexer(context)
    return backup


@router.get("")
def list_backups(page: Annotated[PageParameters, Query()], context: InContext) -> Json:
    return context.backups.list_backups(page.to_query()).to_json()


@router.get("/{backup_id}")
def get_backup(backup_id: str, context: InContext) -> Json:
    return context.backups.get_backup(backup_id)


@router.delete("/{backup_id}")
async def delete_backup(backup_id: str, context: InContext) -> Json:
    await run_in_threadpool(context.backups.delete_backup, backup_id)
    await wake_indexer(context)
    return {"id": backup_id, "object": "backup.deleted", "deleted": True}


@router.post("/{backup_id}/restores")
async def create_restore(backup_id: str, body: RestoreBody, context: InContext) -> Json:
    restore = await run_in_threadpool(context.backups.create_restore, backup_id, body.vector_store_id, body.name)
    await wake_indexer(context)
    return restore


@router.get("/{backup_id}/restores/{restore_id}")
def get_restore(backup_id: str, restore_id: str, context: InContext) -> Json:
    return context.backups.get_restore(backup_id, restore_id)
