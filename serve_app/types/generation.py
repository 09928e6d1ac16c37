"""What a model is asked, and how much it can do at once."""

import math
from dataclasses import dataclass
from typing import Literal

from serve_app.types import Json

CacheUse = Literal["use", "refresh", "off"]
"""What a request lets the response cache do: answer it and keep the answer, only keep the answer, nothing."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of the model: an OpenAI chat completion request, already checked, with its place in the queue."""

    payload: Json
    request_id: str
    priority: int = 0
    """vLLM's: lower is earlier."""
    session_id: str = ""
    """Requests with the same one go to the same replica, which has the beginning of their prompts in its cache."""
    caller: str = ""
    """Whose it is, as `ApiKeys` names callers. Empty: the server's own."""
    timeout_s: float | None = None
    """So long its client waits for all of it."""
    cache: CacheUse = "off"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine, or several together, can have under way."""

    sequences: float
    tokens: float
    """Of the cache."""
    step_tokens: float
    """Of prompts and answers, that go through the model at once."""
    block_tokens: int = 1
    """The cache is given out in blocks of so many."""
    chunk_tokens: float = math.inf
    """Of one prompt, that go through the model at once. A prompt of more is a long one."""
    long_prompts: float = math.inf
    """That are read at once, and short ones beside them."""
    context_tokens: float = 0
    """The longest prompt with its answer."""

    def __add__(self, other: "Capacity") -> "Capacity":
        """Of replicas of one model."""
        return Capacity(
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.step_tokens + other.step_tokens,
            self.block_tokens,
            self.chunk_tokens,
            self.long_prompts + other.long_prompts,
            self.context_tokens,
        )
