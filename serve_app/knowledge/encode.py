"""Text to vectors: `load_encoder(config)` gives a `TextEncoder`, the same on OpenVINO (CPU) and on torch (GPU).

On a CPU neither torch nor transformers is imported where texts are encoded: they would cost a process about 700 MB.
A child process converts the model once, and what it writes into the cache is all that is read from then on.
"""

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np
from tokenizers import Tokenizer

from serve_app.config import EncoderConfig
from serve_app.models import build_once, cache_folder, resolve_model
from serve_app.types import FloatMatrix

logger = logging.getLogger(__name__)

PerformanceHint = Literal["LATENCY", "THROUGHPUT"]
"""OpenVINO's: whether a batch is to be done soon, or many are."""

_DESCRIPTION = "encoder.json"

_OPENVINO_BATCH_SIZE, _TORCH_BATCH_SIZE = 8, 32
"""Eight passages keep a CPU busy, and the fewer share a batch, the less of it is padding. On two cores, of 95 passages
of a collection at a time: 25 passages/s in batches of 32, 30 in batches of 8. Short texts lose nothing."""


class TextEncoder(Protocol):
    """A loaded model. Its methods may be called from several threads."""

    model_id: str
    dimensions: int
    max_tokens: int
    """Tokens of a text that the model sees, its own special tokens not counted; the rest is cut off."""
    tokenizer: Tokenizer
    """The model's, without truncation or padding."""

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        """One unit vector per text, in the order of the texts."""
        ...


def load_encoder(config: EncoderConfig, hint: PerformanceHint = "LATENCY") -> TextEncoder:
    """Load the configured model, converting it first if nobody has. Takes seconds, a conversion about half a minute.

    On a CPU, "LATENCY" encodes one batch on all cores, and "THROUGHPUT" several side by side, on a core or a few each.
    That is a few percent quicker on an idle machine, and a quarter where others want the cores as well, since no core
    waits for the one that was taken away; but a single text takes up to twice as long.

    Raises ValueError for a package without a model, RuntimeError with the reason if the model cannot be converted.
    """
    source = resolve_model(config.model_source)
    if config.backend == "torch" or (config.backend == "auto" and _cuda_is_visible()):
        return TorchEncoder(config, source)
    converted = build_once(_converted_folder(source), lambda folder: _convert_in_child(source, folder))
    description = json.loads((converted / _DESCRIPTION).read_text())
    if "refused" in description:
        logger.warning("encoder %r runs on torch instead of OpenVINO: %s", config.model_id, description["refused"])
        return TorchEncoder(config, source)
    return OpenVINOEncoder(config, converted, hint)


def load_encoders(configs: Iterable[EncoderConfig], hint: PerformanceHint = "LATENCY") -> dict[str, TextEncoder]:
    """By model id. Raises like `load_encoder`."""
    return {config.model_id: load_encoder(config, hint) for config in configs}


class OpenVINOEncoder:
    """The model is compiled when the first text is encoded: 0.2 GB less for an indexer that has nothing to do."""

    def __init__(self, config: EncoderConfig, folder: Path, hint: PerformanceHint) -> None:
        self._folder, self._hint = folder, hint
        description = json.loads((folder / _DESCRIPTION).read_text())
        self.model_id = config.model_id
        self.dimensions = int(description["dimensions"])
        self.tokenizer = _plain(Tokenizer.from_file(str(folder / "tokenizer.json")))
        self._special_tokens = self.tokenizer.num_special_tokens_to_add(False)
        self.max_tokens = int(description["max_seq_length"]) - self._special_tokens
        self._batch_size = config.batch_size or _OPENVINO_BATCH_SIZE
        self._inputs: list[str] = description["inputs"]
        self._pad_id = int(description["pad_id"])
        self._cutting_tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        self._cutting_tokenizer.enable_truncation(int(description["max_seq_length"]))
        self._requests: Any = None
        self._lock = Lock()  # the requests serve one call at a time

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        encodings = self._cutting_tokenizer.encode_batch_fast(list(texts))
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids), reverse=True)

        def keep(request: Any, batch: list[int]) -> None:
            vectors[batch] = request.get_output_tensor().data

        with self._lock:
            requests = self._requests = self._requests or _compile(self._folder / "model.xml", self._hint)
            requests.set_callback(keep)
            # Few texts are shared out as well.
            size = max(1, min(self._batch_size, math.ceil(len(order) / len(requests))))
            try:
                for start in range(0, len(order), size):
                    batch = order[start : start + size]
                    requests.start_async(self._tensors([encodings[index].ids for index in batch]), batch)
            finally:
                requests.wait_all()
        return unit_rows(vectors)

    def _tensors(self, rows: list[list[int]]) -> dict[str, Any]:
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]
        ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        tensors = {
            "input_ids": ids,
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": np.zeros_like(ids),
        }
        return {name: tensors[name] for name in self._inputs}


def _compile(model: Path, hint: PerformanceHint) -> Any:
    """One inference request, or as many as keep the CPU busy."""
    openvino = _import_openvino()
    core = openvino.Core()
    return openvino.AsyncInferQueue(core.compile_model(core.read_model(model), "CPU", _cpu_properties(hint)))


class TorchEncoder:
    def __init__(self, config: EncoderConfig, source: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(source)
        self.model_id = config.model_id
        self.dimensions = int(self._model.get_embedding_dimension())
        self.tokenizer = _plain(Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str()))
        self.max_tokens = _window(self._model) - self.tokenizer.num_special_tokens_to_add(False)
        self._batch_size = config.batch_size or _TORCH_BATCH_SIZE
        self._lock = Lock()  # the tokenizer keeps its padding and truncation as state

    def encode(self, texts: Sequence[str]) -> FloatMatrix:
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        with self._lock:
            vectors = self._model.encode(
                list(texts), batch_size=self._batch_size, show_progress_bar=False, convert_to_numpy=True
            )
        return unit_rows(np.asarray(vectors, dtype=np.float32))


def unit_rows(vectors: FloatMatrix) -> FloatMatrix:
    """The rows scaled to length 1, in float32: a model that computes in bfloat16 normalises too coarsely."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    # Many models ship truncation and padding in tokenizer.json, which would hide the true length of a text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


# The module is not typed.
def _import_openvino() -> Any:
    # Its import reports to Google Analytics, through a forked process, if it finds this package. No setting stops it.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    import openvino

    return openvino


def _cuda_is_visible() -> bool:
    """Whether this process may use a GPU, without torch: Ray hides GPUs by an empty CUDA_VISIBLE_DEVICES."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none", "NoDevFiles"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _cpu_properties(hint: PerformanceHint) -> dict[str, Any]:
    properties = {
        # 1.6 to 2 times as fast where the CPU multiplies in bfloat16, and as near to float32 as 0.9999 (cosine, of 489
        # passages). Elsewhere OpenVINO would only emulate it.
        "INFERENCE_PRECISION_HINT": "bf16" if _cpu_multiplies_bfloat16() else "f32",
        "PERFORMANCE_HINT": hint,
        # With pinning, two processes share the same cores and leave the others idle.
        "ENABLE_CPU_PINNING": False,
        # Each shape of a batch leaves compiled kernels here; by default thousands.
        "CPU_RUNTIME_CACHE_CAPACITY": 200,
    }
    # Ray sets this to the CPUs of the replica; OpenVINO does not read it itself.
    if threads := os.environ.get("OMP_NUM_THREADS"):
        properties["INFERENCE_NUM_THREADS"] = int(threads)
    return properties


def _cpu_multiplies_bfloat16() -> bool:
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux
        return False
    return not flags.isdisjoint({"amx_bf16", "avx512_bf16"})


# --- conversion, in a process of its own ---------------------------------------------------------


def _converted_folder(source: str) -> Path:
    """Its name changes with the model's files and with OpenVINO, so that a stale conversion is never read."""
    folder = Path(source)
    identity = [source, version("openvino")]
    if folder.is_dir():
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        identity += [f"{each} {each.stat().st_size} {each.stat().st_mtime_ns}" for each in files]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    name = folder.parent.name if folder.name == "model" else folder.name
    return cache_folder() / "encoders" / f"{name}-{digest}"


def _convert_in_child(source: str, folder: Path) -> None:
    sys.stderr.write(f"Converting the encoder {source} for OpenVINO (once)…\n")
    child = subprocess.run(
        [sys.executable, "-m", "serve_app.knowledge.encode", source, str(folder)],
        # A worker of Ray finds this package on its own sys.path only.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        raise RuntimeError(f"the encoder {source!r} cannot be loaded: {child.stderr.strip().splitlines()[-1:]}")


def _convert(source: str, folder: Path) -> None:
    """Write the model as one graph from token ids to pooled vectors, its tokenizer, and a description of both."""
    import torch
    from sentence_transformers import SentenceTransformer

    openvino = _import_openvino()
    model = SentenceTransformer(source, device="cpu").eval()
    if reason := _refusal(model):
        (folder / _DESCRIPTION).write_text(json.dumps({"refused": reason}))
        return

    example = model.tokenizer(["two texts", "of unlike length"], padding=True, return_tensors="pt")
    inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in example]

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.model(dict(zip(inputs, tensors, strict=True)))["sentence_embedding"]
            return pooled

    with torch.no_grad():
        graph = openvino.convert_model(Graph().eval(), example_input=tuple(example[name] for name in inputs))
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    (folder / "tokenizer.json").write_text(model.tokenizer.backend_tokenizer.to_str())
    description = {
        "dimensions": model.get_embedding_dimension(),
        "max_seq_length": _window(model),
        "inputs": inputs,
        "pad_id": model.tokenizer.pad_token_id or 0,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description))


def _refusal(model: Any) -> str | None:
    """Why the graph would not compute what sentence-transformers does; None if it would."""
    modules = [type(module).__name__ for module in model]
    if modules[:2] != ["Transformer", "Pooling"] or set(modules[2:]) - {"Normalize"}:
        return f"its modules are {modules}, not Transformer, Pooling and Normalize"
    if not hasattr(model.tokenizer, "backend_tokenizer"):
        return "it has no fast tokenizer"
    if model[0].do_lower_case or model.default_prompt_name:
        return "it changes texts before the tokenizer"
    if set(model.tokenizer.model_input_names) - {"input_ids", "attention_mask", "token_type_ids"}:
        return f"it takes {model.tokenizer.model_input_names}"
    return None


def _window(model: Any) -> int:
    # Some models name no limit, and transformers then says 10**30.
    return int(min(model.max_seq_length or 512, model[0].auto_model.config.max_position_embeddings, 32768))


if __name__ == "__main__":
    _convert(sys.argv[1], Path(sys.argv[2]))
