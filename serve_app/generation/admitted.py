"""A model behind its door: what it is asked waits for a place in the engine, or is refused."""

from collections.abc import AsyncIterator, Callable, Iterable

from serve_app.admission.admission import Admission
from serve_app.admission.load import Demand
from serve_app.admission.tiers import TIER_OF
from serve_app.generation.prompt import text_of
from serve_app.generation.settings import DEFAULT_MAX_TOKENS
from serve_app.generation.stream import close
from serve_app.parts import Generator
from serve_app.types import Json
from serve_app.types.generation import GenerationRequest

_TEMPLATE_TOKENS = 8
"""What a chat template puts round a message."""

_COUNTED_CHARACTERS = 65_536
"""What comes after so many is estimated: to count it would hold other requests up."""
_CHARACTERS_PER_TOKEN = 4


class AdmittedGenerator:
    def __init__(self, generator: Generator, admission: Admission, count_tokens: Callable[[str], int]) -> None:
        self._generator, self._admission, self._count_tokens = generator, admission, count_tokens

    async def complete(self, request: GenerationRequest) -> Json:
        place = await self._admission.enter(build_demand(request, self._count_tokens, is_streamed=False))
        try:
            completion = await self._generator.complete(request)
            place.wrote((completion.get("usage") or {}).get("completion_tokens") or 0)
            place.ended()
            return completion
        finally:
            place.leave()

    async def stream(self, request: GenerationRequest) -> AsyncIterator[str]:
        place = await self._admission.enter(build_demand(request, self._count_tokens, is_streamed=True))
        try:
            events = self._generator.stream(request)
            try:
                async for event in events:
                    # vLLM sends an event for each token, and few others.
                    place.wrote(event.count("\n\n"))
                    yield event
            finally:
                await close(events)
            place.ended()
        finally:
            place.leave()


def build_demand(request: GenerationRequest, count_tokens: Callable[[str], int], *, is_streamed: bool) -> Demand:
    answers = request.payload.get("n")
    return Demand(
        request.request_id,
        TIER_OF[request.priority],
        request.caller,
        count_prompt(request.payload["messages"], count_tokens),
        max_tokens(request.payload),
        # What is no such number vLLM refuses.
        answers if isinstance(answers, int) and answers > 0 else 1,
        is_streamed,
        request.timeout_s,
    )


def count_prompt(messages: Iterable[Json], count_tokens: Callable[[str], int]) -> int:
    """About as many tokens as the chat template makes of these messages, or items."""
    tokens = characters = 0
    for message in messages:
        text = text_of(message.get("content"))
        characters += len(text)
        is_counted = characters <= _COUNTED_CHARACTERS
        tokens += _TEMPLATE_TOKENS + (count_tokens(text) if is_counted else len(text) // _CHARACTERS_PER_TOKEN)
    return tokens


def max_tokens(payload: Json) -> int:
    """The longest that an answer may be."""
    given: int | None = payload.get("max_completion_tokens") or payload.get("max_tokens")
    return given or DEFAULT_MAX_TOKENS
