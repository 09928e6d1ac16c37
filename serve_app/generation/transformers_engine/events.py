"""A chat completion in vLLM's form: as server-sent events, or as one object."""

from dataclasses import dataclass
from typing import Literal

import orjson

from serve_app.types import Json, now_s

FinishReason = Literal["stop", "length"]

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Ending:
    reason: FinishReason
    stop: str | None
    """The stop string that was met."""
    usage: Json


class ChatEvents:
    """Of one answer with one choice."""

    def __init__(self, request_id: str, model_id: str, *, with_usage: bool = False) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "created": now_s(), "model": model_id}
        self._with_usage = with_usage

    def first(self) -> str:
        return self._chunk([self._choice({"role": "assistant", "content": ""})])

    def delta(self, text: str) -> str:
        return self._chunk([self._choice({"content": text})])

    def last(self, text: str, ending: Ending) -> str:
        """The end of the text, why it ends, and `[DONE]`."""
        ends = {**self._choice({"content": text}), "finish_reason": ending.reason, "stop_reason": ending.stop}
        # The chunk with the usage has no choices, as OpenAI's.
        return self._chunk([ends]) + (self._chunk([], usage=ending.usage) if self._with_usage else "") + DONE

    def completion(self, text: str, ending: Ending) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": None}
        choice = {
            **{"index": 0, "message": message, "logprobs": None},
            **{"finish_reason": ending.reason, "stop_reason": ending.stop},
        }
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": ending.usage}

    def _choice(self, delta: Json) -> Json:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}

    def _chunk(self, choices: list[Json], **more: Json) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {orjson.dumps(chunk).decode()}\n\n"


def build_usage(prompt_tokens: int, completion_tokens: int) -> Json:
    # How much of a prompt was in its cache transformers does not say.
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": None,
    }
