"""Where a model lies on this machine, for whoever loads one: `resolve_model("package:NAME")` is a folder.

`python -m serve_app.models SOURCE…` prepares models before anything is served, and prints their folders.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

CACHE_ENV = "RAYCONTEUR_CACHE"
_PACKAGE = "package:"


def resolve_model(source: str) -> str:
    """The folder of a `package:NAME`; any other source (a Hugging Face id, a folder) as it is.

    A package carries its model either as a folder `model/` or as one GGUF file, which is converted into safetensors
    the first time anybody on this machine asks for it. Raises ValueError for a package that has neither.
    """
    if not source.startswith(_PACKAGE):
        return source
    name = source.removeprefix(_PACKAGE)
    package = _package_folder(name)
    if (package / "model" / "config.json").is_file():
        return str(package / "model")
    gguf_files = sorted(package.glob("*.gguf"))
    if len(gguf_files) != 1:
        raise ValueError(f"the package {name!r} carries no model: it has neither a folder 'model' nor one *.gguf file")
    return str(
        build_once(cache_folder() / "models" / f"{name}-{_version(name)}", lambda to: _convert(gguf_files[0], to))
    )


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE_ENV) or "~/.cache/rayconteur").expanduser().absolute()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Have `build` fill `folder`, unless that has been done before. Several processes may ask at once.

    What is there is whole: `build` fills a temporary folder beside it, which is then renamed.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                build(unfinished)
                unfinished.chmod(0o755)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _package_folder(name: str) -> Path:
    # A dotted name would import its parent, and find_spec raises on an empty one.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the model package {name!r} is not installed: pip install it, or name another model source")
    return Path(next(iter(spec.submodule_search_locations)))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _convert(gguf_file: Path, folder: Path) -> None:
    sys.stderr.write(f"Converting {gguf_file.name} into safetensors (once, about a minute)…\n")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, file = str(gguf_file.parent), gguf_file.name
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    sys.stderr.write(f"Converted {gguf_file.name}\n")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        sys.stdout.write(f"{resolve_model(each)}\n")
