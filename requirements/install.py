"""Make the environment and install what the lock files name, once: `python3.11 requirements/install.py cpu dev`.

Needs the standard library only. A lock file that has not changed since it was installed is passed over, so that a
second run installs nothing; one that was interrupted goes on where it was.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = "uv==0.13.9"

WHAT = {"cpu": "what the application needs", "gpu": "what the application needs, for a GPU", "dev": "tests and checks"}


def main(locks: list[str]) -> None:
    if sys.version_info[:2] != (3, 11):
        fail(f"Python 3.11 is needed, and this is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11 ...")
    if not locks or not set(locks) <= set(WHAT):
        fail(f"say what to install, of: {', '.join(WHAT)}")
    for device, other in (("cpu", "gpu"), ("gpu", "cpu")):
        if device in locks and stamp(other).exists():
            fail(f".venv was made for DEVICE={other}: `make clean` removes it, then run this again")
    waiting = [lock for lock in locks if not is_installed(lock)]
    started = time.monotonic()
    for lock in waiting:
        make_environment()
        if lock == "cpu":
            install_torch_for_cpu()
        install_lock(lock)
        if lock != "dev":
            install_project()
        stamp(lock).write_text(fingerprint(lock))
    if waiting:
        report(f"The environment is ready, after {elapsed(started)}.")


def make_environment() -> None:
    if PYTHON.exists():
        return
    report(f"Creating .venv with Python {sys.version.split()[0]}")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False, capture_output=True, text=True)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        fail(f"Python could not make .venv (on Debian and Ubuntu: apt-get install python3.11-venv):\n{made.stdout}")


def install_torch_for_cpu() -> None:
    """Before everything else, so that nothing can bring in the far larger build for GPUs."""
    torch = next(line for line in (HERE / "cpu.txt").read_text().splitlines() if line.startswith("torch=="))
    what = "PyTorch for a CPU"
    if uv(what, ["--no-deps", torch]) or pip(what, ["--no-deps", torch], must_work=False):
        return
    # The package index has no such wheel. uv knows the address of PyTorch's own index of CPU wheels.
    report("  the package index has no such wheel: taking it from PyTorch's own, with uv")
    if not uv(what, ["--no-deps", "--torch-backend=cpu", torch.removesuffix("+cpu")]):
        fail(f"{torch} could not be installed; see the README on PyTorch without a GPU")


def install_lock(lock: str) -> None:
    path = HERE / f"{lock}.txt"
    count = sum(not line.startswith("#") for line in path.read_text().splitlines())
    what, requirements = f"{count} packages: {WHAT[lock]}", ["--no-deps", "-r", str(path)]
    if not uv(what, requirements):
        report("  uv cannot: installing with pip")
        pip(what, requirements, count)


def install_project() -> None:
    pip("Rayconteur itself", ["--no-deps", "--no-build-isolation", "-e", str(ROOT)])


def uv(what: str, arguments: list[str]) -> bool:
    """As pip, and faster. False where it does not work: uv knows not all settings of pip."""
    if not pip("uv", [UV], must_work=False):
        return False
    # As pip does. Else every process compiles what it imports, which takes seconds and 30 MB in each.
    compiled = "--compile-bytecode"
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), compiled, *arguments]
    return run(what, command, os.environ | uv_settings(), must_work=False)


def uv_settings() -> dict[str, str]:
    """From where pip is told to take packages, in the words of uv."""
    said = subprocess.run([str(PYTHON), "-m", "pip", "config", "list"], check=False, capture_output=True, text=True)
    of_pip = dict(re.findall(r"([a-z-]+)='(.*)'$", said.stdout, re.MULTILINE))
    of_uv = {
        "UV_DEFAULT_INDEX": of_pip.get("index-url"),
        "UV_INDEX": of_pip.get("extra-index-url"),
        "UV_FIND_LINKS": of_pip.get("find-links"),
        # pip looks for the newest in all of them.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_HTTP_TIMEOUT": of_pip.get("default-timeout"),
    }
    return {name: value for name, value in of_uv.items() if value}


def pip(what: str, arguments: list[str], count: int = 0, *, must_work: bool = True) -> bool:
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    return run(what, command, os.environ, count, must_work=must_work)


def run(what: str, command: list[str], environment: Mapping[str, str], count: int = 0, *, must_work: bool) -> bool:
    """Show how far an installer is; its own lines are shown only if it fails."""
    started = time.monotonic()
    lines: list[str] = []
    with Progress(what) as progress:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        collected = 0
        for line in process.stdout:
            lines.append(line)
            words = line.split()
            if words[:1] == ["Collecting"] or words[:3] == ["Requirement", "already", "satisfied:"]:
                collected += 1
                progress.say(f"{collected} of {count}  {words[-1] if len(words) < 3 else words[1]}" if count else "")
            elif words[:1] == ["Downloading"] and not count:
                progress.say(" ".join(words[2:]))
            elif words[:1] == ["Installing"]:
                progress.say("unpacking")
        process.wait()
    if process.returncode == 0:
        report(f"  {what}: done in {elapsed(started)}")
    elif must_work:
        fail(f"pip could not install {what}:\n{''.join(lines[-20:])}")
    return process.returncode == 0


class Progress:
    """One line that is written over on a terminal; elsewhere a line now and then."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._detail = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._thread.join()

    def say(self, detail: str) -> None:
        self._detail = detail

    def _tick(self) -> None:
        started = time.monotonic()
        on_terminal = sys.stdout.isatty()
        while not self._stopped.wait(0.5 if on_terminal else 20):
            text = f"  {self._what}  {elapsed(started)}  {self._detail}"
            if on_terminal:
                text = "\r\033[K" + text[: shutil.get_terminal_size().columns - 1]
            print(text, end="" if on_terminal else "\n", flush=True)
        if on_terminal:
            print("\r\033[K", end="", flush=True)


def is_installed(lock: str) -> bool:
    return PYTHON.exists() and stamp(lock).exists() and stamp(lock).read_text() == fingerprint(lock)


def stamp(lock: str) -> Path:
    return VENV / f".installed-{lock}"


def fingerprint(lock: str) -> str:
    content = (HERE / f"{lock}.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    # An environment that was moved or copied holds paths that are no longer true.
    return hashlib.sha256(content + str(ROOT).encode()).hexdigest()


def elapsed(since: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - since), 60)
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def report(text: str) -> None:
    print(text, flush=True)


def fail(text: str) -> None:
    print(f"Error: {text}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
