"""A chat completion by the transformers engine, streamed or whole."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from serve_app.errors import InternalError
from serve_app.generation.transformers_engine.engine import Prompt, TransformersEngine
from serve_app.generation.transformers_engine.events import ChatEvents, Ending, build_usage
from serve_app.generation.transformers_engine.text import TextStream
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest


async def complete(engine: TransformersEngine, request: GenerationRequest) -> Json:
    """The whole object. Raises `InvalidRequest`, and `Unavailable` if the engine has died."""
    prompt = engine.read(request.payload, request.priority)
    written = ""
    async with aclosing(_answer(engine, prompt)) as answer:
        async for text, ending in answer:
            written += text
            if ending:
                return ChatEvents(request.request_id, request.payload["model"]).completion(written, ending)
    raise InternalError("the model stopped before its answer was finished: try again")


async def stream(engine: TransformersEngine, request: GenerationRequest) -> AsyncGenerator[str, None]:
    """vLLM's events, last `data: [DONE]`. Raises as `complete`, before the first. Closing it stops the model."""
    prompt = engine.read(request.payload, request.priority)
    options = request.payload.get("stream_options") or {}
    events = ChatEvents(request.request_id, request.payload["model"], with_usage=bool(options.get("include_usage")))
    has_begun = False
    async with aclosing(_answer(engine, prompt)) as answer:
        async for text, ending in answer:
            if not has_begun:
                has_begun = True
                yield events.first()
            if ending:
                yield events.last(text, ending)
            elif text:
                yield events.delta(text)


async def _answer(engine: TransformersEngine, prompt: Prompt) -> AsyncGenerator[tuple[str, Ending | None], None]:
    """Pieces of text, some of them empty; with the last one how it ends."""
    text = TextStream(engine.tokenizer, prompt.token_ids, prompt.sampling.stop)
    async with aclosing(engine.generate(prompt)) as steps:
        async for step in steps:
            piece = text.add(step.token_ids)
            usage = build_usage(len(prompt.token_ids), step.completion_tokens)
            if text.stopped_by is not None:
                yield piece, Ending("stop", text.stopped_by, usage)
                return
            if step.finish_reason:
                yield piece + text.end(), Ending(step.finish_reason, None, usage)
                return
            yield piece, None
