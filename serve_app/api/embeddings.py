"""`POST /v1/embeddings`: texts to vectors, by the encoders that also index the documents."""

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from serve_app.api.context import InContext
from serve_app.api.models import model_not_found
from serve_app.api.sse import while_connected
from serve_app.api.wire import Wire
from serve_app.errors import InvalidRequest
from serve_app.parts import Embedder
from serve_app.types import FloatMatrix, FloatVector

router = APIRouter(prefix="/v1/embeddings", tags=["embeddings"])

_MAX_INPUTS = 2048
_TEXTS_AT_ONCE = 32
"""Of one call to the embedder, which has to answer within `api.call_timeout_s`."""


class EmbeddingsBody(Wire):
    model: str
    input: str | Annotated[list[str | int | list[int]], Field(min_length=1, max_length=_MAX_INPUTS)]
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


@router.post("")
async def create_embeddings(body: EmbeddingsBody, request: Request, context: InContext) -> Response:
    if body.model not in [encoder.model_id for encoder in context.config.encoders]:
        raise model_not_found(body.model)
    texts = _texts(body.input)
    embedder = context.parts.embedder
    work = asyncio.gather(_embed(texts, body.model, embedder), embedder.count_tokens(texts, body.model))
    vectors, tokens = await while_connected(request, work)
    if body.dimensions not in (None, vectors.shape[1]):
        raise InvalidRequest(
            f"'dimensions' is {body.dimensions}, and the vectors of {body.model!r} have {vectors.shape[1]}",
            param="dimensions",
        )
    return JSONResponse(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encode(vector, body.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "model": body.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


async def _embed(texts: Sequence[str], model: str, embedder: Embedder) -> FloatMatrix:
    starts = range(0, len(texts), _TEXTS_AT_ONCE)
    return np.concatenate([await embedder.embed(texts[start : start + _TEXTS_AT_ONCE], model) for start in starts])


def _texts(given: str | list[str | int | list[int]]) -> list[str]:
    inputs = [given] if isinstance(given, str) else given
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) < len(inputs):
        raise InvalidRequest("'input' must be text: lists of tokens are not taken here", param="input")
    if not all(texts):
        raise InvalidRequest("'input' must not hold an empty text", param="input")
    return texts


def _encode(vector: FloatVector, encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
