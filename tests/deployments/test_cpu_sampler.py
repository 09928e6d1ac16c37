"""The same distribution as by transformers' `top_k` and `top_p`, which are vLLM's too."""

import pytest
import torch
from scipy.stats import chisquare  # type: ignore[import-untyped]
from torch import Tensor
from transformers import TopKLogitsWarper, TopPLogitsWarper

from deployments.cpu_sampler import CANDIDATES, CpuSampler

VOCABULARY = 2_000
WIDE = CANDIDATES[0] + 50
DRAWS = 5_000
PEAKED, FLAT = 3.0, 0.5
"""How far apart the logits are. A few tokens have it all, or the candidates hold less than half of it."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def some_logits(spread: float, rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(3)) * spread


def every(value: float, rows: int, dtype: torch.dtype) -> Tensor:
    return torch.full((rows,), value, dtype=dtype)


@pytest.mark.parametrize(
    ("spread", "k", "p"),
    [
        pytest.param(PEAKED, None, None, id="all, mostly among the candidates"),
        pytest.param(FLAT, None, None, id="all, mostly not among them"),
        pytest.param(PEAKED, 40, None, id="top_k"),
        pytest.param(FLAT, WIDE, None, id="top_k of more than the candidates"),
        pytest.param(PEAKED, None, 0.8, id="top_p"),
        pytest.param(FLAT, None, 0.6, id="top_p of more than the candidates"),
        pytest.param(PEAKED, 40, 0.7, id="both"),
        pytest.param(FLAT, WIDE, 0.5, id="both, of more than the candidates"),
    ],
)
def test_tokens_come_as_often_as_they_are_likely(spread: float, k: int | None, p: float | None) -> None:
    logits = some_logits(spread)
    top_k = None if k is None else every(k, 1, torch.int32)
    top_p = None if p is None else every(p, 1, torch.float32)
    kept = logits if k is None else TopKLogitsWarper(k)(None, logits)
    kept = kept if p is None else TopPLogitsWarper(p)(None, kept)
    likely = kept.softmax(dim=1)[0].double()

    sampled, _ = CpuSampler()(
        logits.expand(DRAWS, -1), {}, *(each if each is None else each.expand(DRAWS) for each in (top_k, top_p))
    )

    counts = torch.bincount(sampled, minlength=VOCABULARY)
    assert counts[likely == 0].sum() == 0
    # The test needs five of each kind: the rarest ones are one kind together.
    is_frequent = likely * DRAWS >= 5
    expected = torch.cat([likely[is_frequent], likely[~is_frequent].sum()[None]]) * DRAWS
    found = torch.cat([counts[is_frequent], counts[~is_frequent].sum()[None]])
    has_any = expected > 0
    assert chisquare(found[has_any], expected[has_any] * DRAWS / expected.sum()).pvalue > 0.001


def test_each_row_has_its_own_parameters() -> None:
    logits = some_logits(PEAKED).expand(3, -1)
    best = int(logits[0].argmax())
    k = torch.tensor([1, VOCABULARY, VOCABULARY], dtype=torch.int32)
    p = torch.tensor([1.0, 1e-6, 1.0])

    drawn = torch.stack([CpuSampler()(logits, {}, k, p)[0] for _ in range(200)])

    assert set(drawn[:, 0].tolist()) == set(drawn[:, 1].tolist()) == {best}
    assert len(set(drawn[:, 2].tolist())) > 10


@pytest.mark.parametrize("spread", [PEAKED, FLAT])
def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(spread: float) -> None:
    rows = some_logits(spread, rows=50)

    def draw(logits: Tensor, row: int) -> list[int]:
        generator = torch.Generator().manual_seed(11)
        return [int(CpuSampler()(logits, {row: generator}, None, None)[0][row]) for _ in range(20)]

    alone = draw(rows[40:41], 0)
    assert draw(rows, 40) == alone
    assert len(set(alone)) > 1


def test_what_is_forbidden_never_comes() -> None:
    # As a grammar does it: also where rounding leaves a little that no token has.
    logits = torch.full((DRAWS, VOCABULARY), float("-inf"))
    logits[:, [3, 1_500]] = torch.tensor([0.1, 0.7])

    for p in (None, every(0.999, DRAWS, torch.float32)):
        assert set(CpuSampler()(logits, {}, None, p)[0].tolist()) == {3, 1_500}


def test_a_vocabulary_smaller_than_the_candidates() -> None:
    logits = some_logits(FLAT)[:, :30].expand(DRAWS, -1)

    for p in (None, every(0.9999, DRAWS, torch.float32)):
        assert set(CpuSampler()(logits, {}, None, p)[0].tolist()) == set(range(30))


def test_the_logits_stay_as_they_are() -> None:
    logits = some_logits(FLAT, rows=4)
    before = logits.clone()

    CpuSampler()(logits, {}, None, every(0.6, 4, torch.float32))

    assert torch.equal(logits, before)
