"""The model's answer from its first word to its last, although the replica that writes it may die: another goes on.

The new replica is given the text so far as the beginning of its answer (vLLM's `continue_final_message`). Chat
templates strip messages, so the text is sent without the white space at its end, and the same white space is dropped
from what follows. So no word is missing or there twice; what the model chooses to write next is, as always, its own.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from serve_app.errors import Overloaded, RayconteurError, Timeout, Unavailable
from serve_app.generation.answer import Answer
from serve_app.generation.stream import before, close
from serve_app.parts import Generator
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest

logger = logging.getLogger(__name__)

MAX_LOSSES = 5
"""Replicas that one answer may see die: a request that kills them must not kill them all."""

_PAUSE_S = 0.5


async def generate(
    generator: Generator,
    request: GenerationRequest,
    answer: Answer,
    deadline: float,
    count_tokens: Callable[[str], int],
) -> AsyncGenerator[str, None]:
    """The events of `answer`, from where it is to its end. Closing this stops the engine.

    Before the answer has begun it raises as `Generator.stream` does. After that it raises `Unavailable` if the replica
    died and no other could go on by `deadline` (in the event loop's time), and `Timeout` if the model was too slow.
    """
    losses = 0
    loss: RayconteurError | None = None
    while (going_on := continue_request(request, answer, losses, count_tokens)) is not None:
        if not can_continue(request.payload, answer):
            raise loss or Unavailable("the model was lost while it wrote what no other can go on with")
        stream = generator.stream(going_on)
        try:
            while (item := await before(deadline, anext(stream, None))) is not None:
                loss = None
                yield item
            return
        except (Unavailable, Overloaded) as error:
            losses += isinstance(error, Unavailable)
            if losses > MAX_LOSSES or not answer.has_started:
                raise
            loss = error
            characters = len(answer.raw_text)
            logger.warning("request %s: the model was lost after %d characters", request.request_id, characters)
        except Timeout as error:
            raise loss or error from None
        finally:
            await close(stream)
        try:
            await before(deadline, asyncio.sleep(_PAUSE_S))
        except Timeout:
            raise loss from None


def can_continue(payload: Json, answer: Answer) -> bool:
    """Half a JSON text cannot be gone on with: the grammar would begin anew. Before the first word everything can."""
    return not answer.raw_text or "response_format" not in payload


def continue_request(
    request: GenerationRequest, answer: Answer, attempt: int, count_tokens: Callable[[str], int]
) -> GenerationRequest | None:
    """What to ask for the rest of the answer. None if nothing is missing. The answer then expects that rest."""
    if answer.has_ended:
        return None
    text = answer.expect_rest(count_tokens)
    if not text:
        return request if attempt == 0 else replace(request, request_id=f"{request.request_id}-{attempt}")
    left = request.payload["max_completion_tokens"] - answer.carried_tokens
    if left <= 0:
        answer.cut()
        return None
    payload = {
        **request.payload,
        "messages": [*request.payload["messages"], {"role": "assistant", "content": text}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "max_completion_tokens": left,
    }
    # An engine that is cut off, and not dead, may still work on the first one.
    return replace(request, payload=payload, request_id=f"{request.request_id}-{attempt}", cache="off")
