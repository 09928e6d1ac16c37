"""The models that this server runs: those that write, and those that embed."""

from fastapi import APIRouter

from serve_app.api.context import Context, InContext
from serve_app.errors import NotFound
from serve_app.types import Json, now_s

router = APIRouter(prefix="/v1/models", tags=["models"])

_STARTED_AT = now_s()


@router.get("")
async def list_models(context: InContext) -> Json:
    return {"object": "list", "data": _models(context)}


@router.get("/{model_id:path}")
async def get_model(model_id: str, context: InContext) -> Json:
    for model in _models(context):
        if model["id"] == model_id:
            return model
    raise model_not_found(model_id)


def model_not_found(model_id: str) -> NotFound:
    return NotFound(f"This server does not run the model {model_id!r}", param="model", code="model_not_found")


def _models(context: Context) -> list[Json]:
    config = context.config
    ids = dict.fromkeys([*config.models, *(encoder.model_id for encoder in config.encoders)])
    parents = config.parents
    return [
        {"id": id, "object": "model", "created": _STARTED_AT, "owned_by": "rayconteur", "parent": parents.get(id)}
        for id in ids
    ]
