"""The next tokens on a CPU, drawn from the most likely ones.

For `top_p` vLLM sorts the whole vocabulary, and it draws a random number for each token of it: with 32 sequences of a
small model that takes longer than the model itself (`bench/sampling.py`), also for those in the batch that asked for
neither. Nearly always a few hundred tokens decide it, and one random number.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

CANDIDATES = (256, 4096)
"""So many are looked at first, and then; after that all are."""


class CpuSampler(nn.Module):
    """In place of vLLM's `TopKTopPSampler`, and from the same distribution: one uniform random number, and the inverse
    of the cumulative sum with the most likely token first.

    Of tokens that are exactly as likely as the k-th vLLM's `top_k` keeps all, and this one no more than k.
    """

    def forward(
        self, logits: Tensor, generators: Mapping[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, None]:
        """The ids (rows,) for `logits` (rows, vocabulary), which stay as they are.

        `k` and `p` are (rows,), the vocabulary's size and 1 for rows that have none. A row with a generator draws from
        that alone, and comes out the same whatever else is in the batch.
        """
        drawn = torch.rand(len(logits), dtype=torch.float64)
        for row, generator in generators.items():
            drawn[row] = torch.rand((), dtype=torch.float64, generator=generator)

        sampled, is_open = _invert(logits, drawn, k, p, CANDIDATES[0])
        for candidates in (*CANDIDATES[1:], logits.shape[1]):
            if not is_open.any():
                break
            rows = is_open.nonzero()[:, 0]
            k_of_rows, p_of_rows = (None if each is None else each[rows] for each in (k, p))
            sampled[rows], is_open[rows] = _invert(logits[rows], drawn[rows], k_of_rows, p_of_rows, candidates)
        return sampled, None


def _invert(
    logits: Tensor, drawn: Tensor, k: Tensor | None, p: Tensor | None, candidates: int
) -> tuple[Tensor, Tensor]:
    """The ids (rows,) at these places of the distribution, and where (rows,) it takes more candidates to say."""
    vocabulary = logits.shape[1]
    candidates = min(candidates, vocabulary)
    likeliest, ids = logits.topk(candidates)
    total = logits.logsumexp(dim=1, keepdim=True)
    # (rows, candidates): of each and all that are more likely
    mass = (likeliest - total).double().exp_().cumsum_(dim=1)
    # (rows, 1) from here: the place of the last token that is kept
    last = torch.full_like(mass[:, :1], vocabulary - 1, dtype=torch.long) if k is None else k.long()[:, None] - 1
    is_beyond = (last >= candidates) & (last < vocabulary - 1)
    if p is not None:
        # A token is kept if those before it have less than p together.
        is_short = mass < p[:, None] * _mass_up_to(last, mass)
        last = torch.where(p[:, None] < 1, last.minimum(is_short.sum(dim=1, keepdim=True)), last)
        is_beyond |= (last >= candidates) & (last < vocabulary - 1)
    place = torch.searchsorted(mass, drawn[:, None] * _mass_up_to(last, mass), right=True)
    is_open = is_beyond | (place >= candidates)
    return ids.gather(1, place.clamp(max=candidates - 1))[:, 0], is_open[:, 0]


def _mass_up_to(last: Tensor, mass: Tensor) -> Tensor:
    """(rows, 1), of 1 where that is not among the candidates."""
    candidates = mass.shape[1]
    return torch.where(last < candidates, mass.gather(1, last.clamp(max=candidates - 1)), 1.0)
