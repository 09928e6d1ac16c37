"""Is the process alive, and are all parts ready? For probes; open without a key."""

from fastapi import APIRouter
from sqlalchemy import select
from starlette.responses import JSONResponse, Response

from serve_app.api.capacity import refresh_capacities
from serve_app.api.context import InContext
from serve_app.api.errors import to_response
from serve_app.errors import Unavailable
from serve_app.storage.schema import vector_stores
from serve_app.types import Json

router = APIRouter(tags=["health"])


@router.get("/healthz")
def is_alive(context: InContext) -> Json:
    with context.database.read() as connection:
        # A table, because SQLite answers a bare `SELECT 1` without looking at its file.
        connection.execute(select(vector_stores.c.id).limit(1))
    return {"status": "ok"}


@router.get("/readyz")
async def is_ready(context: InContext) -> Response:
    parts = await context.check_parts()
    wrong = [f"{name} ({state})" for name, state in parts.items() if state != "ok"]
    if not wrong:
        if not context.parts.admissions.are_measured():
            # Who waits for this answer may send all at once what it has.
            await refresh_capacities(context)
        return JSONResponse({"status": "ready", "parts": parts})
    error = Unavailable(f"Not ready: {', '.join(wrong)}", retry_after_s=5.0)
    return to_response(error, {"status": "not ready", "parts": parts})
