"""What Rayconteur costs over the bare engine: the same load on vLLM's own server, on Ray's app, and on Rayconteur.

One after the other on this machine, with the same model and engine arguments (those of the YAML), each started fresh.
Prints a Markdown table, with Ray's and Rayconteur's figures as ratios to vLLM's own server in the same run.
"""

import argparse
import asyncio
import contextlib
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
from statistics import median

import yaml

from bench.load import Figures, run_load
from bench.ray_app import ENVIRONMENT as RAY_APP_ENVIRONMENT
from deployments.generator import engine_command_line
from serve_app.config import AppConfig, GeneratorConfig
from serve_app.models import resolve_model

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 400
STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Load:
    streams: int
    requests: int
    max_tokens: int


LOADS = (Load(1, 4, 48), Load(8, 24, 48), Load(32, 64, 48))


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    command: list[str]
    environment: dict[str, str]
    url: str
    ready_path: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=ROOT / "serve_config.yaml")
    parser.add_argument("--rounds", type=int, default=1, help="how often the three are run; medians are printed")
    parser.add_argument("--only", help="run only servers whose name holds this")
    arguments = parser.parse_args()
    generator, engine_environment = read_config(arguments.config)
    chosen = [
        server
        for server in servers(arguments.config, generator, engine_environment)
        if not arguments.only or arguments.only.lower() in server.name.lower()
    ]
    results: dict[str, dict[int, list[Figures]]] = {}
    for round_number in range(arguments.rounds):
        for server in chosen:
            with started(server):
                for load, figures in measure(server, generator.model_id, f"round {round_number}"):
                    results.setdefault(server.name, {}).setdefault(load.streams, []).append(figures)
    print_table(results)


def read_config(path: Path) -> tuple[GeneratorConfig, dict[str, str]]:
    """The generator's arguments, and the environment that its replicas get."""
    application = yaml.safe_load(path.read_text())["applications"][0]
    replica = next(each for each in application["deployments"] if each["name"] == "Generator")
    environment = replica["ray_actor_options"].get("runtime_env", {}).get("env_vars", {})
    return AppConfig.model_validate(application["args"]).generator, environment


def servers(config_path: Path, generator: GeneratorConfig, engine_environment: dict[str, str]) -> list[Server]:
    python = sys.executable
    engine_line = engine_command_line(generator, resolve_model(generator.model_source))
    vllm = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "8101", *engine_line]
    ray_app = [python, "-m", "bench.ray_app", str(config_path), "8102"]
    rayconteur = [python, "-m", "serve_app.cli", "serve", str(config_path)]
    return [
        Server("vLLM's own server", vllm, engine_environment, "http://127.0.0.1:8101", "/health"),
        Server("Ray's LLM app", ray_app, RAY_APP_ENVIRONMENT, "http://127.0.0.1:8102", "/v1/models"),
        Server("Rayconteur", rayconteur, {}, "http://127.0.0.1:8000", "/readyz"),
    ]


@contextlib.contextmanager
def started(server: Server) -> Iterator[None]:
    """Start a server and wait until it answers; end it, and all that it started, afterwards."""
    print(f"starting {server.name} …", file=sys.stderr, flush=True)
    with tempfile.NamedTemporaryFile(prefix="bench-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            server.command,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **server.environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        wait_until_ready(server, process, Path(log.name))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


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


def measure(server: Server, model: str, salt: str) -> Iterator[tuple[Load, Figures]]:
    asyncio.run(run_load(server.url, model, streams=8, requests=8, max_tokens=16, salt=f"{salt} warm"))
    for load in LOADS:
        figures = asyncio.run(
            run_load(
                server.url,
                model,
                streams=load.streams,
                requests=load.requests,
                max_tokens=load.max_tokens,
                salt=f"{salt} {load.streams}",
            )
        )
        print(f"{server.name}, {load.streams} streams: {figures}", file=sys.stderr, flush=True)
        yield load, figures


def print_table(results: dict[str, dict[int, list[Figures]]]) -> None:
    print("| server | streams | requests/s | output tokens/s | ratio | first token p50 / p95 ms | more | between ms |")
    print("|---|---|---|---|---|---|---|---|")
    reference = next(iter(results.values()))
    for name, by_streams in results.items():
        for streams, rounds in by_streams.items():
            tokens_per_s = median(each.output_tokens_per_s for each in rounds)
            first_token_ms = median(each.first_token_p50_ms for each in rounds)
            ratio = tokens_per_s / median(each.output_tokens_per_s for each in reference[streams])
            more_ms = first_token_ms - median(each.first_token_p50_ms for each in reference[streams])
            print(
                f"| {name} | {streams} | {median(each.requests_per_s for each in rounds):.2f} | {tokens_per_s:.1f} "
                f"| {ratio:.3f} | {first_token_ms:.0f} / {median(each.first_token_p95_ms for each in rounds):.0f} "
                f"| {more_ms:+.0f} ms | {median(each.between_tokens_p50_ms for each in rounds):.1f} |"
            )


if __name__ == "__main__":
    main()
