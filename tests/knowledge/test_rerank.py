from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from serve_app.config import RerankerConfig
from serve_app.knowledge.rerank import load_cross_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "fox", "crow", "eats", "sleeps", "river", "stone"]
PAIRS = [
    ("red fox", "the fox sleeps"),
    ("red fox", "the crow eats the stone"),
    ("red fox", "river " * 200),
    ("what sleeps", ""),
]


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> "MakeModel":
    return MakeModel(tmp_path_factory)


class MakeModel:
    """A BERT with random weights, small and whole: no model hub is reached here."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders

    def __call__(self, labels: int = 1) -> Path:
        folder = self._folders.mktemp("cross-encoder")
        torch.manual_seed(0)
        sizes = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=labels,
            initializer_range=1.0,
        )
        BertForSequenceClassification(sizes).save_pretrained(folder)
        tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_max_length=64,
        ).save_pretrained(folder)
        return folder


def test_scores_are_the_models_own_between_0_and_1(make_model: MakeModel) -> None:
    folder = make_model()

    scores = load_cross_encoder(RerankerConfig(model_id="tiny", model_source=str(folder))).score(PAIRS)

    logits = sentence_transformers.CrossEncoder(str(folder)).predict(PAIRS, activation_fn=torch.nn.Identity())
    assert scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    assert scores.dtype == np.float32
    assert len(set(scores.tolist())) == len(PAIRS)


def test_nothing_to_score_is_no_work(make_model: MakeModel) -> None:
    encoder = load_cross_encoder(RerankerConfig(model_id="tiny", model_source=str(make_model())))

    assert encoder.score([]).shape == (0,)


def test_model_that_classifies_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="gives 3 numbers"):
        load_cross_encoder(RerankerConfig(model_id="tiny", model_source=str(make_model(labels=3))))
