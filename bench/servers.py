"""The servers that are compared, each started fresh on this machine: vLLM's own, Ray's app, and Rayconteur."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from bench.ray_app import ENVIRONMENT as RAY_APP_ENVIRONMENT
from serve_app.cli.cluster import Ports, RayHead, free_ports
from serve_app.config import AppConfig, GeneratorConfig
from serve_app.models import resolve_model
from tests.served.application import CONFIG, serving

ROOT = Path(__file__).resolve().parent.parent
VLLM, RAY_APP, OURS = "vLLM's own server", "Ray's LLM app", "Rayconteur"
START_TIMEOUT_S = 400
STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    command: list[str]
    environment: dict[str, str]
    url: str
    ready_path: str


def read_config() -> tuple[GeneratorConfig, dict[str, str], float]:
    """The generator's arguments, and its replicas' environment and share of a GPU."""
    application = yaml.safe_load(CONFIG.read_text())["applications"][0]
    deployment = next(each for each in application["deployments"] if each["name"] == "Generator")
    options = deployment["ray_actor_options"]
    environment = options.get("runtime_env", {}).get("env_vars", {})
    return AppConfig.model_validate(application["args"]).generator, environment, options.get("num_gpus", 0)


def servers() -> list[Server]:
    """Each with the model and the engine arguments of `CONFIG`."""
    # It imports Ray, which takes seconds, and who only starts Rayconteur needs neither.
    from deployments.generator import engine_command_line

    generator, engine_environment, _ = read_config()
    python = sys.executable
    engine_line = engine_command_line(generator, resolve_model(generator.model_source))
    vllm = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "8101", *engine_line]
    ray_app = [python, "-m", "bench.ray_app", "8102"]
    rayconteur = [python, "-m", "serve_app.cli", "serve", str(CONFIG)]
    return [
        Server(VLLM, vllm, engine_environment, "http://127.0.0.1:8101", "/health"),
        Server(RAY_APP, ray_app, RAY_APP_ENVIRONMENT, "http://127.0.0.1:8102", "/v1/models"),
        Server(OURS, rayconteur, {}, "http://127.0.0.1:8000", "/readyz"),
    ]


@contextlib.contextmanager
def started(server: Server) -> Iterator[psutil.Process]:
    """Start a server and wait until it answers; end it, and all that it started, afterwards."""
    print(f"starting {server.name} …", file=sys.stderr, flush=True)
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            server.command,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **server.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            # In this client's session: between sessions Linux shares the processors out, and lets this one starve.
            process_group=0,
        )
    try:
        wait_until_ready(server, process, Path(log.name))
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def idle_ray() -> Iterator[None]:
    """Ray as `rayconteur serve` starts it, with nothing to do. What runs beside it starts later and ends earlier."""
    head = RayHead(Ports(*free_ports(3)), 2, os.environ)
    try:
        head.start()
        yield
    finally:
        head.stop()


def wait_until_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{server.name} ended while it started: {log}\n{log.read_text()[-3000:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if urllib.request.urlopen(server.url + server.ready_path, timeout=5).status == 200:
                return
        time.sleep(1)
    raise RuntimeError(f"{server.name} was not ready within {START_TIMEOUT_S} s: {log}")


@contextlib.contextmanager
def served(url: str | None) -> Iterator[str]:
    """The application under `url`, or one that is started for it in a folder of its own."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="rayconteur-bench-") as folder, serving(Path(folder)) as application:
        yield application.url


def served_model(url: str, key: str = "none") -> str:
    """The first that it names."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["data"][0]["id"])
