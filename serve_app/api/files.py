"""`/v1/files`: documents as they were uploaded. A vector store makes them searchable."""

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import FileResponse, Response

from serve_app.api.context import Context, InContext
from serve_app.api.errors import invalid_request
from serve_app.api.wire import PageParameters, Wire
from serve_app.errors import InvalidRequest, NotFound
from serve_app.knowledge.parse import detect_media_type
from serve_app.types import Json
from serve_app.types.knowledge import StoreFileRef

router = APIRouter(prefix="/v1/files", tags=["files"])

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class FileExpiry(Wire):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class UploadFields(Wire):
    purpose: Purpose
    expires_after: FileExpiry | None = None


class FilePageParameters(PageParameters):
    limit: int = Field(10_000, ge=1, le=10_000)
    purpose: Purpose | None = None


# The form is read in the route, so that an upload which is too large ends the reading with our own error.
_UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3_600, "maximum": 2_592_000},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_UPLOAD_SCHEMA)
async def upload_file(request: Request, context: InContext) -> Json:
    form = await _read_form(request)
    try:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise InvalidRequest("'file' is required: the upload, with a filename", param="file")
        fields = _parse_fields(form)
        return await run_in_threadpool(
            context.files.save,
            upload.file,
            upload.filename or "",
            fields.purpose,
            detect_media_type=detect_media_type,
            max_bytes=context.config.api.max_upload_bytes,
            expires_after_s=fields.expires_after.seconds if fields.expires_after else None,
        )
    finally:
        await form.close()


@router.get("")
def list_files(page: Annotated[FilePageParameters, Query()], context: InContext) -> Json:
    return context.files.list(page.to_query(), page.purpose).to_json()


@router.get("/{file_id}")
def get_file(file_id: str, context: InContext) -> Json:
    return context.files.get(file_id)


@router.delete("/{file_id}")
async def delete_file(file_id: str, context: InContext) -> Json:
    await run_in_threadpool(context.files.get, file_id)
    await delete_everywhere(context, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/{file_id}/content", response_class=FileResponse)
def get_content(file_id: str, context: InContext) -> Response:
    file = context.files.get(file_id)
    path = context.files.path(file["id"])
    if not path.exists():
        raise NotFound(f"The content of the file {file_id!r} is gone", param="file_id")
    # Never as what it says it is: a browser must not run somebody's upload as a page of this server.
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=file["filename"],
        headers={"x-content-type-options": "nosniff"},
    )


async def delete_everywhere(context: Context, file_id: str) -> None:
    """A file and its passages in every store. Rows go last, so that a call which fails halfway can be made again."""
    for store_id in await run_in_threadpool(context.catalog.stores_with, file_id):
        await run_in_threadpool(context.catalog.stop_ingestion, store_id, file_id)
        await context.parts.indexer.remove_file(StoreFileRef(store_id, file_id))
        with suppress(NotFound):  # another call has come first
            await run_in_threadpool(context.catalog.remove_file, store_id, file_id)
    await run_in_threadpool(context.files.delete, file_id)


async def _read_form(request: Request) -> FormData:
    """The parser holds up to 1 MiB in memory, and the rest on disk."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("An upload is sent as multipart/form-data, with the fields `file` and `purpose`")
    stream: AsyncGenerator[bytes, None] = request.stream()
    try:
        return await MultiPartParser(request.headers, stream, max_files=1, max_fields=10).parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form cannot be read: {error.message}") from None
    finally:
        await stream.aclose()


def _parse_fields(form: FormData) -> UploadFields:
    """Clients send nested fields flat, e.g. `expires_after[seconds]`."""
    given: Json = {}
    for name, value in form.multi_items():
        outer, _, inner = name.partition("[")
        if name == "file" or not isinstance(value, str):
            continue
        if "\x00" in value:
            raise InvalidRequest(f"{name!r} holds a NUL character", param=outer)
        if inner and isinstance(given.setdefault(outer, {}), dict):
            given[outer][inner.rstrip("]")] = value
        else:
            given[outer] = value
    try:
        return UploadFields.model_validate(given)
    except ValidationError as error:
        raise invalid_request(error.errors(), given) from None
