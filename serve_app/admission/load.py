"""What requests take of an engine: places in its batch, tokens of its cache, and its time to read them."""

from dataclasses import dataclass

from serve_app.admission.tiers import Tier


@dataclass(frozen=True, slots=True)
class Load:
    sequences: float = 0
    tokens: float = 0
    """Of the cache, for the prompt and the answer."""
    unread: float = 0
    """Tokens of prompts that the engine has to read before it writes the first word."""
    long_prompts: float = 0
    """Those of which it reads a part in each step. Their tokens are not among the `unread`."""

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.unread + other.unread,
            self.long_prompts + other.long_prompts,
        )

    def __sub__(self, other: "Load") -> "Load":
        return self + other * -1

    def __mul__(self, factor: float) -> "Load":
        return Load(self.sequences * factor, self.tokens * factor, self.unread * factor, self.long_prompts * factor)

    def fits(self, room: "Load") -> bool:
        return (
            self.sequences <= room.sequences
            and self.tokens <= room.tokens
            and self.unread <= room.unread
            and self.long_prompts <= room.long_prompts
        )

    def at_least(self, other: "Load") -> "Load":
        return Load(
            max(self.sequences, other.sequences),
            max(self.tokens, other.tokens),
            max(self.unread, other.unread),
            max(self.long_prompts, other.long_prompts),
        )

    def at_most(self, room: "Load") -> "Load":
        return Load(
            min(self.sequences, room.sequences),
            min(self.tokens, room.tokens),
            min(self.unread, room.unread),
            min(self.long_prompts, room.long_prompts),
        )

    def read(self) -> "Load":
        """What is left once its prompts are read."""
        return Load(self.sequences, self.tokens)

    def where(self, taken: "Load") -> "Load":
        """Only what such a request has to do with: who reads no long prompt waits for none."""
        return Load(
            self.sequences,
            self.tokens,
            self.unread if taken.unread else 0,
            self.long_prompts if taken.long_prompts else 0,
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for."""

    request_id: str
    tier: Tier
    caller: str
    """Whose request it is: callers of one tier take turns."""
    prompt_tokens: int
    max_tokens: int
    """Of each answer."""
    answers: int = 1
    is_streamed: bool = True
    """Its first word is seen as it comes."""
    timeout_s: float | None = None
    """So long its client waits for the whole answer."""
