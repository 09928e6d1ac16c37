"""The next token of each request in the batch, by that request's own sampling.

transformers' own per-request processors know temperature, top_k and top_p, and no greedy request beside a sampled one.
So this one chooses the token itself and leaves it as the only one, in rows of (vocabulary,).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

from serve_app.generation.transformers_engine.sampling import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What the batch carries along with a request."""

    sampling: Sampling
    priority: int
    generator: torch.Generator | None
    """Of its random numbers, if it has a seed."""

    @classmethod
    def build(cls, sampling: Sampling, priority: int, device: torch.device) -> "Asked":
        seed = sampling.seed
        return cls(sampling, priority, None if seed is None else torch.Generator(device).manual_seed(seed))

    def __deepcopy__(self, memo: object) -> "Asked":
        # A request that is put back when the cache is full goes on with its random numbers, and is not begun anew.
        return self


# transformers' classes have no types for mypy.
class Sampler(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    supported_kwargs: dict[str, type] = {"asked": Asked}  # noqa: RUF012 - as in the base class
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._states: list[RequestState] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> torch.Tensor:
        """Called just before the batch is computed, with its requests in the order of the rows."""
        self._states = [request.state for request in requests_with_new_token]
        return torch.zeros(len(self._states), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """`scores` are (rows, vocabulary), and those that it returns have one finite one in each row."""
        chosen = scores.argmax(dim=-1)
        for row, state in enumerate(self._states):
            asked: Asked = state.logit_processor_kwargs["asked"]
            if asked.sampling.needs_history or not asked.sampling.is_greedy:
                prompt, answer = split(state) if asked.sampling.needs_history else ((), ())
                chosen[row] = choose(scores[row], asked.sampling, prompt, answer, asked.generator)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(1, chosen.unsqueeze(-1), 0.0)


def split(state: RequestState) -> tuple[Sequence[int], Sequence[int]]:
    """The prompt and the answer so far. A request that was put back when the cache was full has both in its prompt."""
    prompt_length = state._true_initial_tokens or len(state.initial_tokens)
    return state.initial_tokens[:prompt_length], [*state.initial_tokens[prompt_length:], *state.generated_tokens]


def choose(
    scores: torch.Tensor,
    sampling: Sampling,
    prompt: Sequence[int],
    answer: Sequence[int],
    generator: torch.Generator | None,
) -> torch.Tensor:
    """One token of scores (vocabulary,), in vLLM's order: forbidden ones, penalties, temperature, the cuts."""
    scores = scores.clone()
    if forbidden := repeated(answer, sampling.no_repeat_ngram_size):
        scores[forbidden] = float("-inf")
    _penalize(scores, sampling, prompt, answer)
    if sampling.is_greedy:
        return scores.argmax()
    scores /= sampling.temperature
    if sampling.min_p > 0:
        probabilities = scores.softmax(dim=-1)
        scores[probabilities < sampling.min_p * probabilities.max()] = float("-inf")
    if 0 < sampling.top_k < len(scores):
        scores[scores < scores.topk(sampling.top_k).values[-1]] = float("-inf")
    if sampling.top_p < 1:
        ordered, indices = scores.softmax(dim=-1).sort(descending=True)
        # The token that passes the bound still belongs to it.
        scores[indices[ordered.cumsum(dim=-1) - ordered > sampling.top_p]] = float("-inf")
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[0]


def repeated(answer: Sequence[int], size: int) -> list[int]:
    """The tokens with which the last `size` of the answer would be there a second time."""
    if size == 0 or len(answer) < size - 1:
        return []
    last = tuple(answer[len(answer) - size + 1 :])
    starts = range(len(answer) - size + 1)
    return [answer[at + size - 1] for at in starts if tuple(answer[at : at + size - 1]) == last]


def _penalize(scores: torch.Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> None:
    if sampling.repetition_penalty != 1:
        seen = list({*prompt, *answer})
        there = scores[seen]
        scores[seen] = torch.where(there > 0, there / sampling.repetition_penalty, there * sampling.repetition_penalty)
    if answer and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = Counter(answer)
        times = torch.tensor(list(counts.values()), dtype=scores.dtype, device=scores.device)
        scores[list(counts)] -= sampling.frequency_penalty * times + sampling.presence_penalty
