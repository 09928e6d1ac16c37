"""A Ray of our own on this machine, and the dashboard through which Serve is told what to run.

Nothing here imports Ray: it is started as a command and talked to over HTTP.
"""

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path

import httpx
import psutil
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from serve_app.cli.haproxy import haproxy_environment
from serve_app.types import Json

# Set for Ray unless the user has set them: the meaning of each is in the README.
DEFAULT_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # In spite of its name: with 0 Ray stays on 127.0.0.1, and without it turns that into the machine's public address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # When gateways come or go HAProxy is replaced, and the old one ends with what it still streams after Ray's 120 s.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "330",
    # Ray's 30 is for load balancers that have yet to notice. Here that is HAProxy alone, which the controller tells.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # Ray's 15 has every other process interrupt the model: a tenth of its tokens on two cores.
    "RAY_worker_niceness": "0",
    # What Ray and our replicas do while nobody asks takes 22 % of a core otherwise, and 15 % so.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_event_stats": "0",
    "RAY_io_context_monitor_probe_interval_ms": "10000",
    "REPORTER_UPDATE_INTERVAL_MS": "10000",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
# What passes between the parts is small: Ray's own default is 30 % of the machine's memory.
OBJECT_STORE_BYTES = 512 * 2**20
# Ray's workers have those below, Serve's replicas and whatever Linux gives a port to have those above.
_OUR_PORTS = range(20_000, 30_000)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class ClusterError(Exception):
    """Ray did not start, or could not run what it was told to. The message is for the user."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Those that a user knows. The default of `http` is Serve's own."""

    http: int = 8000
    dashboard: int = 8265
    ray: int = 6379


class RayHead:
    """Ray's head node as child processes. `stop` ends all of them, and no others."""

    def __init__(self, ports: Ports, num_cpus: float, environment: Mapping[str, str]) -> None:
        # Not in the folder of TMPDIR: HAProxy's sockets lie in it, whose paths may not be long.
        self._folder = tempfile.TemporaryDirectory(prefix="rayconteur-", dir="/tmp")
        self._client_port, self._agent_port, *haproxy_ports = free_ports(6, apart_from=astuple(ports))
        haproxy = haproxy_environment(Path(self._folder.name), haproxy_ports)
        self._environment = {**DEFAULT_ENVIRONMENT, **haproxy, **environment}
        # An address left over from another cluster would be followed.
        self._environment.pop("RAY_ADDRESS", None)
        self._ports = ports
        self._num_cpus = num_cpus
        # Open as long as Ray runs, and gone by itself.
        self._output = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process: subprocess.Popen[str] | None = None
        self._not_ours: set[int] = set()

    def start(self) -> "Dashboard":
        """Start Ray, wait until its dashboard answers, and return that. Raises ClusterError."""
        token = ray_token(self._environment) if self._environment["RAY_AUTH_MODE"] == "token" else None
        # Processes that lose their parent become ours, so that none can be lost at the end.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._not_ours = {child.pid for child in psutil.Process().children(recursive=True)}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
                *("--node-ip-address", "127.0.0.1", "--port", str(self._ports.ray)),
                *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(self._ports.dashboard)),
                # Nobody is told these two, and their defaults belong to the first Ray of a machine.
                *("--ray-client-server-port", str(self._client_port)),
                *("--dashboard-agent-listen-port", str(self._agent_port)),
                # Not needed on one machine without interactive drivers: 80 MB each.
                *("--no-monitor", "--include-log-monitor", "false"),
                *("--num-cpus", f"{self._num_cpus:g}", "--object-store-memory", str(OBJECT_STORE_BYTES)),
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C in the terminal is for us: Serve is shut down before Ray is. A session of its own would do as well,
            # but Linux shares the processors out between sessions (autogroup), and may let a client on this machine,
            # in another one, wait for seconds.
            process_group=0,
            preexec_fn=_end_with_parent,
        )
        dashboard = Dashboard(self._ports.dashboard, token)
        deadline = time.monotonic() + 120
        while not dashboard.is_up():
            self.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"Ray's dashboard did not answer within 120 s. Ray said:\n{self._tail()}")
            time.sleep(0.3)
        return dashboard

    def check(self) -> None:
        """Raises ClusterError if Ray has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise ClusterError(f"Ray ended with exit code {self._process.returncode}. It said:\n{self._tail()}")
        self._reap_orphans()

    def stop(self, patience_s: float = 15.0) -> None:
        if self._process is not None:
            self._process.terminate()
            psutil.wait_procs(self._descendants(), timeout=patience_s)
            for process in self._descendants():
                _signal(process, signal.SIGTERM)
            psutil.wait_procs(self._descendants(), timeout=3)
            # Those that are killed may leave children, which become ours: look again until there are none.
            while remaining := self._descendants():
                for process in remaining:
                    _signal(process, signal.SIGKILL)
                psutil.wait_procs(remaining, timeout=3)
            self._process.wait()
            self._forget_address()
        self._output.close()
        self._folder.cleanup()

    def _forget_address(self) -> None:
        """What `ray stop` does at the end: a later `ray.init()` on this machine would look for this Ray."""
        noted = Path(self._environment.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
        with suppress(FileNotFoundError):
            if noted.read_text().strip().endswith(f":{self._ports.ray}"):
                noted.unlink()

    def _descendants(self) -> list[psutil.Process]:
        self._reap_orphans()
        return [child for child in psutil.Process().children(recursive=True) if child.pid not in self._not_ours]

    def _reap_orphans(self) -> None:
        assert self._process is not None
        self._process.poll()
        for child in psutil.Process().children():
            if child.pid in self._not_ours or child.pid == self._process.pid:
                continue
            try:
                os.waitpid(child.pid, os.WNOHANG)
            except ChildProcessError:
                continue

    def _tail(self) -> str:
        self._output.seek(0)
        return "".join(self._output.readlines()[-30:])


# On a busy machine the dashboard now and then drops a connection. What is asked here may be asked twice.
_asked_again = retry(
    retry=retry_if_exception_type((httpx.NetworkError, httpx.RemoteProtocolError)),
    stop=stop_after_attempt(5),
    wait=wait_fixed(1),
    reraise=True,
)


class Dashboard:
    """Ray's HTTP API, as far as Serve needs it."""

    def __init__(self, port: int, token: str | None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # A proxy from the environment is not for this machine's own ports.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def is_up(self) -> bool:
        try:
            return self._http.get("/api/version", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def says_it_is_ray(self) -> bool:
        """Whether Ray answers, even to one without its token."""
        try:
            return self._http.get("/api/gcs_healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def logs_folder(self) -> Path:
        version: Json = self._http.get("/api/version").json()
        root = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
        return root / "ray" / str(version.get("session_name", "session_latest")) / "logs"

    @_asked_again
    def deploy(self, config: Json) -> None:
        """Have Serve run what `config` says, as `serve deploy` does. Raises ClusterError if it is not accepted."""
        answer = self._http.put("/api/serve/applications/", json=config, timeout=120)
        if answer.status_code != 200:
            raise ClusterError(f"Ray Serve does not accept the configuration:\n{answer.text.strip()}")

    @_asked_again
    def applications(self) -> dict[str, Json]:
        answer = self._http.get("/api/serve/applications/")
        answer.raise_for_status()
        applications: dict[str, Json] = answer.json()["applications"]
        return applications

    def shut_serve_down(self, patience_s: float) -> None:
        """Let running requests end, as far as `patience_s` allows."""
        try:
            self._http.delete("/api/serve/applications/", timeout=patience_s)
        except httpx.HTTPError:
            return


def ray_token(environment: Mapping[str, str]) -> str:
    """The token that Ray's commands and dashboard want, made if there is none: Ray's own order of places."""
    if token := environment.get("RAY_AUTH_TOKEN"):
        return token
    path = ray_token_path(environment)
    if not path.exists():
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        made = subprocess.run(command, env=dict(environment), check=False, capture_output=True, text=True)
        if made.returncode or not path.exists():
            raise ClusterError(f"Ray could not make an access token in {path}:\n{made.stderr.strip()}")
    return path.read_text().strip()


def ray_token_path(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int, *, apart_from: Iterable[int] = ()) -> list[int]:
    """None of those that a system or Ray gives away by itself: such a one might be taken before it is used.

    `apart_from` are free as well, but promised to somebody.
    """
    candidates = list(set(_OUR_PORTS).difference(apart_from))
    random.shuffle(candidates)
    return list(islice(filter(is_free, candidates), count))


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, argument: int) -> None:
    # Linux only; elsewhere Ray's own reaper has to do.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)
