"""Tokens become text as they come: whole characters only, and nothing from a stop string on."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_CONTEXT_TOKENS = 6
"""Of the prompt's end: how a word begins can depend on what was before it."""


class TextStream:
    """Of one answer. What may turn out to be the beginning of a stop string is held back until that is known."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        self.stopped_by: str | None = None
        """The stop string that was met; the text before it has been returned."""
        self._tokenizer, self._stop = tokenizer, stop
        self._decoder = DecodeStream(list(prompt_ids[-_CONTEXT_TOKENS:]), skip_special_tokens=True)
        self._held = ""

    def add(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens add; often none."""
        steps = (self._decoder.step(self._tokenizer, token_id) for token_id in token_ids)
        self._held += "".join(text for text in steps if text)
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            text, self._held = self._held[:at], ""
            return text
        kept = self._length_of_a_beginning()
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return text

    def end(self) -> str:
        """What was held back, once there is nothing to come."""
        text, self._held = self._held, ""
        return text

    def _length_of_a_beginning(self) -> int:
        """How many of the last characters begin a stop string."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stop), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
