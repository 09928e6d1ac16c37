from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch

from serve_app.config import RerankerConfig
from serve_app.knowledge.rerank import CrossEncoder, load_cross_encoder
from tests.cross_encoder import write_cross_encoder

PAIRS = [
    ("red fox", "the fox sleeps"),
    ("red fox", "the crow eats the stone"),
    ("red fox", "river " * 200),
    ("what sleeps", ""),
]


def load(source: str) -> CrossEncoder:
    return load_cross_encoder(RerankerConfig(model_id="tiny", model_source=source))


def test_scores_are_the_models_own_between_0_and_1(tmp_path: Path) -> None:
    source = write_cross_encoder(tmp_path)

    scores = load(source).score(PAIRS)

    logits = sentence_transformers.CrossEncoder(source).predict(PAIRS, activation_fn=torch.nn.Identity())
    assert scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    assert scores.dtype == np.float32
    assert len(set(scores.tolist())) == len(PAIRS)


def test_nothing_to_score_is_no_work(tmp_path: Path) -> None:
    assert load(write_cross_encoder(tmp_path)).score([]).shape == (0,)


def test_model_that_classifies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gives 3 numbers"):
        load(write_cross_encoder(tmp_path, labels=3))
