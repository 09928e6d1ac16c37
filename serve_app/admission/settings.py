"""What an operator may say about admission, in the gateway's `user_config`."""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt


class Limits(BaseModel):
    """Of one model, all its replicas together. None: as much as its engines say that they hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: PositiveInt | None = None
    tokens: PositiveInt | None = None


class AdmissionSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_wait_s: NonNegativeFloat = Field(3.0, le=600)
    """Longest time until a request gets to the model."""
    beside_priority: float = Field(0.5, gt=0, le=1)
    """Share of the room that the other tiers may fill while `priority` requests come: the fewer answers an engine
    writes at once, the sooner it begins with a new one."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Of callers, as `key 1a2b3c4d`: that is how the SHA-256 digest of an API key begins. 1 for all others."""
    limits: dict[str, Limits] = Field(default_factory=dict)
    """By model id."""
