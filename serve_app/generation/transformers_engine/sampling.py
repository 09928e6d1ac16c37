"""What a chat completion request asks of the transformers engine. What cannot be done here is refused, not ignored."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve_app.errors import InvalidRequest
from serve_app.types import Json

ONLY_VLLM = (
    *("response_format", "structured_outputs", "tools", "logprobs", "top_logprobs", "prompt_logprobs"),
    *("use_beam_search", "logit_bias", "bad_words", "allowed_token_ids", "stop_token_ids", "min_tokens", "echo"),
)
"""Fields that change an answer, and that vLLM knows and this engine does not."""


class Sampling(BaseModel):
    """How the next token is chosen, and when the answer ends. The names and the ranges are vLLM's."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    temperature: float = Field(1.0, ge=0)
    """0: the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    """0 or -1: all tokens."""
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    """Of tokens in the prompt or in the answer so far; the two below know only the answer."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    no_repeat_ngram_size: int = Field(0, ge=0, le=64)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    """None: as many as the context has room for."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    @property
    def is_greedy(self) -> bool:
        # vLLM's bound, too.
        return self.temperature < 1e-5

    @property
    def needs_history(self) -> bool:
        penalties = (self.repetition_penalty - 1, self.frequency_penalty, self.presence_penalty)
        return any(penalties) or self.no_repeat_ngram_size > 0


def read_sampling(payload: Json, defaults: Mapping[str, object]) -> Sampling:
    """`defaults` are the model's own. Raises `InvalidRequest`."""
    for name in _refused(payload):
        raise InvalidRequest(f"{name!r} is not supported by this model's engine (transformers)", param=name)
    given = {name: value for name, value in payload.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    try:
        return Sampling.model_validate({**defaults, **given, **(given.get("vllm_xargs") or {})})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{field}: {first['msg']}", param=field) from None


def read_messages(payload: Json) -> list[Json]:
    """For the model's chat template, each with its content as one text. Raises `InvalidRequest` for anything else."""
    return [{**message, "content": _text(message.get("content"))} for message in payload["messages"]]


def _refused(payload: Json) -> Iterator[str]:
    if payload.get("n") not in (None, 1):
        yield "n"
    for name in ONLY_VLLM:
        value = payload.get(name)
        is_default = name == "response_format" and value == {"type": "text"}
        is_unused = name == "tools" and payload.get("tool_choice") == "none"
        if value and not is_default and not is_unused:
            yield name


# As it came in JSON.
def _text(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence) and all(_is_text(part) for part in content):
        return "\n".join(part["text"] for part in content)
    raise InvalidRequest("'messages' has content that is not text, and this model reads nothing else", param="messages")


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
