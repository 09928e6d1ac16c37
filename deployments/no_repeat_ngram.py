"""`no_repeat_ngram_size` for vLLM, which has no such parameter of its own: a logits processor of its V1 engine.

`engine: {logits_processors: [...]}` in `serve_config.yaml` loads it. A request sets it with
`vllm_xargs: {"no_repeat_ngram_size": N}`, as the gateway does.
"""

from collections.abc import Callable

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

NAME = "no_repeat_ngram_size"
LARGEST = 64


# vLLM's classes have no types where its package is not installed.
class NoRepeatNgram(AdapterLogitsProcessor):  # type: ignore[misc]
    """No sequence of N tokens comes twice in an answer.

    transformers' `NoRepeatNGramLogitsProcessor` counts the prompt's sequences too. Here an answer may quote its
    sources, so only its own count.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises `ValueError`, which vLLM answers as a 400."""
        size = (sampling_params.extra_args or {}).get(NAME, 0)
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= LARGEST:
            raise ValueError(f"{NAME} is {size!r}: send a whole number from 0 to {LARGEST}")

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(
        self, params: SamplingParams
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        size = (params.extra_args or {}).get(NAME, 0)
        return _Forbid(size) if size else None


class _Forbid:
    """The sequences of one answer so far: each step adds the newest one, and looks up those that would be repeated."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._followers: dict[tuple[int, ...], list[int]] = {}
        """The tokens that came after each sequence of `size - 1` tokens."""
        self._seen = 0
        """So many tokens of the answer are in `_followers`."""

    def __call__(self, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """`logits` are (vocabulary,); what must not come next is set to minus infinity, in place."""
        before = self._size - 1
        for end in range(max(self._seen, before), len(output_ids)):
            self._followers.setdefault(tuple(output_ids[end - before : end]), []).append(output_ids[end])
        self._seen = len(output_ids)
        # A sequence of one token follows nothing: every token that came is forbidden.
        last = tuple(output_ids[-before:]) if before else ()
        forbidden = self._followers.get(last)
        if forbidden and len(output_ids) >= before:
            logits[forbidden] = float("-inf")
        return logits
