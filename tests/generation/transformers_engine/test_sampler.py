import pytest
import torch

from serve_app.generation.transformers_engine.sampler import choose, repeated
from serve_app.generation.transformers_engine.sampling import Sampling

SCORES = torch.tensor([1.0, 3.0, 2.0, 0.0])


def draw(sampling: Sampling, times: int = 200) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {int(choose(SCORES, sampling, [], [], generator)) for _ in range(times)}


def test_without_cuts_every_token_is_drawn() -> None:
    assert draw(Sampling(temperature=2)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=0), {1}),
        (Sampling(temperature=2, top_k=2), {1, 2}),
        (Sampling(temperature=1, top_p=0.64), {1}),  # softmax: 0.087, 0.644, 0.237, 0.032
        (Sampling(temperature=1, top_p=0.65), {1, 2}),
        (Sampling(temperature=1, min_p=0.1), {0, 1, 2}),
        (Sampling(temperature=5, top_k=-1), {0, 1, 2, 3}),
    ],
)
def test_each_cut_leaves_what_it_should(sampling: Sampling, kept: set[int]) -> None:
    assert draw(sampling) == kept


def test_penalties_turn_to_what_was_not_said_yet() -> None:
    greedy = Sampling(temperature=0)

    def chosen(prompt: list[int], answer: list[int], **penalty: float) -> int:
        return int(choose(SCORES, greedy.model_copy(update=penalty), prompt, answer, None))

    assert chosen([], [1], presence_penalty=1.5) == 2
    assert chosen([], [1, 1], frequency_penalty=0.4) == 1
    assert chosen([], [1, 1, 1], frequency_penalty=0.4) == 2
    assert chosen([1], [], presence_penalty=2.0) == 1
    assert chosen([1], [], repetition_penalty=2.0) == 2


def test_no_sequence_comes_twice() -> None:
    assert repeated([5, 6, 7, 5, 6], 3) == [7]
    assert repeated([5, 6, 5, 7, 5], 2) == [6, 7]
    assert repeated([5, 6], 1) == [5, 6]
    assert repeated([5, 6, 7], 4) == []
    assert repeated([], 0) == []
    assert int(choose(SCORES, Sampling(temperature=0, no_repeat_ngram_size=1), [1], [1], None)) == 2


def test_the_scores_of_the_batch_are_left_as_they_are() -> None:
    before = SCORES.clone()
    choose(SCORES, Sampling(temperature=0.5, top_k=1, repetition_penalty=2), [1], [2], None)
    assert torch.equal(SCORES, before)
