"""The served application, and what a test may ask about it beside HTTP: its processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import yaml
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from serve_app.cli.cluster import ray_token
from serve_app.config import AppConfig

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
CONFIG = Path(os.environ.get("RAYCONTEUR_CONFIG") or ROOT / "serve_config.yaml").absolute()
"""What is served."""
START_TIMEOUT_S = 420
RESTART_TIMEOUT_S = 360
PORT, DASHBOARD_PORT, RAY_PORT = 8017, 8277, 6397


@dataclass(frozen=True, slots=True)
class Application:
    url: str
    folder: Path
    process: psutil.Process

    def replica_pid(self, deployment: str) -> int:
        """The process of a deployment's only running replica, as Serve knows it."""
        (pid,) = self.replica_pids(deployment)
        return pid

    def replica_pids(self, deployment: str) -> list[int]:
        applications = ask_ray(f"http://127.0.0.1:{DASHBOARD_PORT}/api/serve/applications/").json()["applications"]
        replicas = applications["rayconteur"]["deployments"][deployment]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]

    def engine_pid(self) -> int:
        """The process in which vLLM's engine runs, which its replica has started."""
        replica = psutil.Process(self.replica_pid("Generator"))
        (engine,) = (each for each in replica.children() if "EngineCore" in each.name())
        return int(engine.pid)

    def kill(self, *deployments: str) -> None:
        """With -9 the only replica of each, all at once. Returns when others run in their places."""
        victims = {deployment: self.replica_pid(deployment) for deployment in deployments}
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        for deployment, pid in victims.items():
            self.wait_until_replaced(deployment, pid)
        self.wait_until_ready()

    def wait_until_replaced(self, deployment: str, pid: int) -> None:
        wait_until(
            lambda: bool(pids := self.replica_pids(deployment)) and pid not in pids,
            RESTART_TIMEOUT_S,
            f"a new {deployment}",
        )

    def processes(self) -> list[psutil.Process]:
        """All that `rayconteur serve` has started, and itself."""
        return [self.process, *self.process.children(recursive=True)]

    def of_processes(self, measure: Callable[[psutil.Process], T]) -> dict[psutil.Process, T]:
        """Of each that lives: Ray's own come and go."""
        measured = {}
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                measured[process] = measure(process)
        return measured

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        wait_until(lambda: self.answers("/readyz"), timeout_s, "the application is ready")

    def answers(self, path: str) -> bool:
        try:
            return httpx.get(self.url + path, timeout=20).status_code == 200
        except httpx.HTTPError:
            return False


# On a busy machine Ray's dashboard now and then drops a connection.
@retry(
    retry=retry_if_exception_type(httpx.TransportError), stop=stop_after_attempt(5), wait=wait_fixed(1), reraise=True
)
def ask_ray(url: str) -> httpx.Response:
    """One of the pages of Ray's own."""
    return httpx.get(url, headers={"authorization": f"Bearer {ray_token(os.environ)}"}, timeout=30).raise_for_status()


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll, for what another process does without telling us. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.2)


@contextmanager
def serving(folder: Path, **args: object) -> Iterator[Application]:
    """`rayconteur serve` with `CONFIG`, but for its folder, its ports, and these of its `args:`.

    A further generator has the numbers of the first one.
    """
    config = yaml.safe_load(CONFIG.read_text())
    wanted = config["applications"][0]
    shipped = wanted["args"]
    for name, changed in {**args, "storage": {"folder": str(folder / "data")}}.items():
        shipped[name] = {**shipped.get(name, {}), **changed} if isinstance(changed, dict) else changed
    (generator,) = (each for each in wanted["deployments"] if each["name"] == "Generator")
    for name in list(AppConfig.model_validate(shipped).generator_deployments.values())[1:]:
        share = {**generator["ray_actor_options"], "num_cpus": 0}
        wanted["deployments"].append({**generator, "name": name, "ray_actor_options": share})
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config))
    ports = ["--port", str(PORT), "--dashboard-port", str(DASHBOARD_PORT), "--ray-port", str(RAY_PORT)]
    with (folder / "serve.log").open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "serve_app.cli", "serve", str(path), *ports],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    application = Application(f"http://127.0.0.1:{PORT}", folder / "data", psutil.Process(started.pid))
    try:
        wait_until(lambda: started.poll() is not None or application.answers("/readyz"), START_TIMEOUT_S, "the start")
        if started.poll() is not None:
            raise RuntimeError((folder / "serve.log").read_text())
        yield application
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(120)
