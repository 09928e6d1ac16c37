"""What holds for an answer where its request says nothing: settings, and profiles of rules that adapt them.

A request's own parameters always win; then come the rules of its profile, then the settings in force, then the model's
own defaults.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from serve_app.admission.settings import AdmissionSettings
from serve_app.types import Json

DEFAULT_MAX_TOKENS = 512

Stop = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]*$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(_Frozen):
    """A model's. None leaves a parameter to the model's authors (its `generation_config.json`), or to vLLM."""

    max_tokens: int | None = Field(None, ge=1)
    """Longest answer, in tokens. None: 512."""
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    """0: all tokens."""
    beams: int | None = Field(None, ge=1, le=16)
    """Over 1 it is beam search, and the best beam is the answer: it comes in one piece."""
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    no_repeat_ngram_size: int | None = Field(None, ge=0, le=64)
    """No sequence of so many tokens comes twice in an answer. 0: any may."""
    length_penalty: float | None = Field(None, ge=-10, le=10)
    """Of beam search: over 0 prefers longer answers."""
    stop: tuple[Stop, ...] | None = Field(None, max_length=4)
    profile: Name | None = None
    """The profile of requests that name none. None: no rules."""

    def laid_over(self, other: "Settings") -> "Settings":
        """These, and the other's where these say nothing."""
        return Settings.model_validate({**other.said(), **self.said()})

    def said(self) -> Json:
        # As the log gives it back: there is no tuple in JSON.
        return self.model_dump(mode="json", exclude_none=True)


class Rule(_Frozen):
    """Applies if all its conditions hold. Lengths are in tokens of the model."""

    name: Name
    prompt_tokens_over: int | None = Field(None, ge=0)
    prompt_tokens_up_to: int | None = Field(None, ge=0)
    max_tokens_over: int | None = Field(None, ge=0)
    """Of the answer that the request asks for, or the settings grant."""
    max_tokens_up_to: int | None = Field(None, ge=0)
    settings: Settings

    def applies(self, prompt_tokens: int, max_tokens: int) -> bool:
        return _within(prompt_tokens, self.prompt_tokens_over, self.prompt_tokens_up_to) and _within(
            max_tokens, self.max_tokens_over, self.max_tokens_up_to
        )


Profile = tuple[Rule, ...]
"""Later rules win."""

LESSON: Profile = (
    Rule(name="short-prompt", prompt_tokens_up_to=50, settings=Settings(temperature=0.7, top_p=0.9)),
    Rule(name="long-prompt", prompt_tokens_over=1000, settings=Settings(temperature=0.3, max_tokens=256)),
    Rule(name="long-answer", max_tokens_over=512, settings=Settings(repetition_penalty=1.1, no_repeat_ngram_size=4)),
)
"""After the lessons that this server comes from: the longer the prompt, the closer the answer keeps to it, and a long
answer is kept from repeating itself. The numbers are ours, and nothing was tuned by them."""


class UserConfig(_Frozen):
    """The gateway's `user_config` in `serve_config.yaml`: `serve deploy` changes it without a restart."""

    settings: dict[str, Settings] = Field(default_factory=dict)
    """By model id."""
    profiles: dict[Name, Profile] = Field(default_factory=dict)
    """Beside `lesson`, or in its place."""
    admission: AdmissionSettings = AdmissionSettings()

    @property
    def all_profiles(self) -> dict[str, Profile]:
        return {"lesson": LESSON, **self.profiles}


@dataclass(frozen=True, slots=True)
class Applied:
    """What one answer is made with."""

    settings: Settings
    """Where the request says nothing."""
    revision: int
    profile: str | None
    rules: tuple[str, ...]

    def to_json(self) -> Json:
        return {"revision": self.revision, "profile": self.profile, "rules": list(self.rules)}

    def to_header(self) -> str:
        parts = [f"revision={self.revision}"]
        if self.profile:
            parts += [f"profile={self.profile}", f"rules={' '.join(self.rules) or 'none'}"]
        return ", ".join(parts)


def adapt(
    settings: Settings, profile: Profile, prompt_tokens: int, max_tokens: int | None
) -> tuple[Settings, tuple[str, ...]]:
    """The settings after the rules of a profile, and the names of the rules that applied."""
    wanted = max_tokens or settings.max_tokens or DEFAULT_MAX_TOKENS
    applying = [rule for rule in profile if rule.applies(prompt_tokens, wanted)]
    for rule in applying:
        settings = rule.settings.laid_over(settings)
    return settings, tuple(rule.name for rule in applying)


def fill_in(payload: Json, settings: Settings) -> None:
    """Give vLLM's chat payload what its client left open. Null is open, as OpenAI's clients mean it."""
    given = {name for name, value in payload.items() if value is not None}
    if not given & {"max_tokens", "max_completion_tokens"}:
        payload["max_completion_tokens"] = settings.max_tokens or DEFAULT_MAX_TOKENS
    open_values: Json = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "repetition_penalty": settings.repetition_penalty,
        "stop": list(settings.stop) if settings.stop else None,
    }
    if has_own_beams(settings, payload):
        open_values |= {"use_beam_search": True, "n": settings.beams, "length_penalty": settings.length_penalty}
    for name, value in open_values.items():
        if value is not None and name not in given:
            payload[name] = value
    # vLLM hands `vllm_xargs` to our logits processor (deployments/no_repeat_ngram.py).
    size = payload.pop("no_repeat_ngram_size", None)
    size = settings.no_repeat_ngram_size if size is None else size
    if size:
        payload["vllm_xargs"] = {"no_repeat_ngram_size": size, **(payload.get("vllm_xargs") or {})}


def has_own_beams(settings: Settings, payload: Json) -> bool:
    """Whether the settings, and not the client, make it a beam search: then only the best beam is for the client."""
    chosen = any(payload.get(name) is not None for name in ("use_beam_search", "n"))
    return (settings.beams or 1) > 1 and not chosen


def _within(value: int, over: int | None, up_to: int | None) -> bool:
    return (over is None or value > over) and (up_to is None or value <= up_to)
