"""`rayconteur serve`: a Ray of its own, what `serve_config.yaml` says on it, and an end to all of it with Ctrl-C."""

import os
import re
import signal
import time
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from serve_app.cli.check import app_configs, app_problems, read_yaml
from serve_app.cli.cluster import ClusterError, Dashboard, Ports, RayHead, is_free, ray_token_path
from serve_app.cli.terminal import duration, err, fail, out
from serve_app.config import API_KEYS_ENV, AppConfig
from serve_app.types import Json

# Serve's own default is every interface.
_HOST = "127.0.0.1"
_DRAIN_S = 30.0
_NEEDED = re.compile(r"required for each replica: (\{.*?\})")
_FREE = re.compile(r"resources available: (\{.*?\})")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def serve(
    config: Annotated[Path, typer.Argument(help="What to serve, and how big.")] = Path("serve_config.yaml"),
    num_cpus: Annotated[
        float | None, typer.Option(min=0.1, help="CPUs that Ray may share out. Default: the machine's, and at least 2.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="The API's port, instead of the one in the YAML.")] = None,
    dashboard_port: Annotated[int, typer.Option(help="The port of Ray's dashboard.")] = Ports().dashboard,
    ray_port: Annotated[int, typer.Option(help="The port of Ray itself.")] = Ports().ray,
) -> None:
    """Start Ray and the application on this machine, wait until it answers, and stop it all with Ctrl-C."""
    wanted = read_yaml(config)
    if problems := app_problems(wanted):
        fail(f"{config}: {problems[0]} (all of them: rayconteur config check {config})")
    http = wanted.setdefault("http_options", {}) or {}
    wanted["http_options"] = http = {"host": _HOST, "port": Ports().http, **http, **({"port": port} if port else {})}
    address = f"http://{'127.0.0.1' if http['host'] == '0.0.0.0' else http['host']}:{http['port']}"
    ports = Ports(http["port"], dashboard_port, ray_port)
    _check_ports(http["host"], ports)

    head = RayHead(ports, num_cpus or default_num_cpus(), _environment(config, wanted))
    for stop_signal in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop_signal, signal.default_int_handler)
    dashboard: Dashboard | None = None
    exit_code = 130
    try:
        started = time.monotonic()
        err.print(f"Starting Ray, with its dashboard at http://127.0.0.1:{dashboard_port}")
        dashboard = head.start()
        dashboard.deploy(wanted)
        _wait_until_ready(head, dashboard, address)
        exit_code = 0
        _say_what_to_do(address, dashboard, wanted, time.monotonic() - started)
        while True:
            head.check()
            time.sleep(2)
    except KeyboardInterrupt:
        err.print("\nStopping (again Ctrl-C: at once)")
    except (ClusterError, httpx.HTTPError) as error:
        err.print(f"Error: {error or type(error).__name__}", style="red", markup=False)
        if dashboard and dashboard.is_up():
            err.print(f"The logs are in {dashboard.logs_folder() / 'serve'}", markup=False)
        exit_code = 1
    finally:
        _stop(head, dashboard)
    raise typer.Exit(exit_code)


def default_num_cpus() -> float:
    """Two at least: that is what the deployments' shares in `serve_config.yaml` add up to."""
    return max(2, len(os.sched_getaffinity(0)))


def _check_ports(host: str, ports: Ports) -> None:
    if len(set(astuple(ports))) < len(astuple(ports)):
        fail("--port (or the port in the YAML), --dashboard-port and --ray-port must differ")
    if not is_free(ports.http, host):
        fail(f"port {ports.http} is in use{_who_answers(f'http://127.0.0.1:{ports.http}')}: stop that, or say --port")
    if not is_free(ports.dashboard):
        is_ray = Dashboard(ports.dashboard, None).says_it_is_ray()
        who = (
            ": a Ray already runs here. Deploy to it with `RAY_AUTH_MODE=token serve deploy`, stop it, or"
            if is_ray
            else ":"
        )
        fail(f"port {ports.dashboard}, for Ray's dashboard, is in use{who} say --dashboard-port and --ray-port")
    if not is_free(ports.ray):
        fail(f"port {ports.ray}, for Ray, is in use, perhaps by another Ray: stop that, or say --ray-port")


def _who_answers(address: str) -> str:
    try:
        answer = httpx.get(f"{address}/healthz", timeout=2, trust_env=False)
    except httpx.HTTPError:
        return ""
    return f" by a Rayconteur that already answers at {address}" if answer.status_code == 200 else ""


def _environment(config: Path, wanted: Json) -> dict[str, str]:
    """What Ray's processes see: ours, the code's folders, and no model hub if every model is a package."""
    folders = [str(config.absolute().parent), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, folders)))}
    configs = app_configs(wanted)
    generators = [generator for each in configs for generator in each.generators]
    sources = [source for each in generators for source in (each.model_source, *each.adapters.values())]
    sources += [encoder.model_source for each in configs for encoder in each.encoders]
    sources += [reranker.model_source for each in configs if (reranker := each.retrieval.reranker)]
    if sources and all(source.startswith("package:") for source in sources):
        environment.setdefault("HF_HUB_OFFLINE", "1")
    return environment


def _wait_until_ready(head: RayHead, dashboard: Dashboard, address: str) -> None:
    """Show how far each deployment is until the application answers. Raises ClusterError if it will not."""
    started = time.monotonic()
    seen: dict[str, str] = {}
    with ExitStack() as stack:
        live = stack.enter_context(Live(console=err, transient=True)) if err.is_terminal else None
        while True:
            head.check()
            applications = dashboard.applications()
            states = _states(applications)
            _raise_if_failed(applications)
            is_running = bool(applications) and all(each["status"] == "RUNNING" for each in applications.values())
            waiting_for = _not_ready(address) if is_running else ""
            if is_running and waiting_for is None:
                return
            if live:
                live.update(_board(states, waiting_for or "", time.monotonic() - started))
            else:
                for name, state in states.items():
                    if seen.get(name) != state:
                        err.print(f"{duration(time.monotonic() - started):>10}  {name}: {state}", markup=False)
                seen = states
            time.sleep(1)


def _states(applications: dict[str, Json]) -> dict[str, str]:
    states = {}
    for application in applications.values():
        if not application["deployments"]:
            states[application["name"]] = f"{application['status'].lower()} {application.get('message') or ''}".strip()
        for name, deployment in application["deployments"].items():
            running = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            wanted = deployment.get("target_num_replicas") or len(deployment["replicas"])
            status = "ready" if deployment["status"] == "HEALTHY" else deployment["status"].lower()
            states[name] = ", ".join(
                filter(None, [status, f"{running} of {wanted} replicas", _in_short(deployment.get("message") or "")])
            )
    return states


def _in_short(message: str) -> str:
    """What Serve says of a deployment, without what is known or is no news."""
    if "to be scheduled" in message:
        needed, free = _NEEDED.search(message), _FREE.search(message)
        return (
            f"waiting for room: it needs {needed[1]}, and free are {free[1]}" if needed and free else "waiting for room"
        )
    if "to initialize" in message:
        return "still loading"
    return message.strip().split("\n")[0]


def _board(states: dict[str, str], waiting_for: str, elapsed_s: float) -> Group:
    table = Table.grid(padding=(0, 2))
    for name, state in states.items():
        table.add_row("  " + name, Text(state, style="green" if state.startswith("ready") else "yellow"))
    title = f"Starting the application, {duration(elapsed_s)}" + (f" ({waiting_for})" if waiting_for else "")
    return Group(Spinner("dots", text=title), table)


def _raise_if_failed(applications: dict[str, Json]) -> None:
    for application in applications.values():
        if application["status"] == "DEPLOY_FAILED":
            # Ray's tracebacks come with colours of their own.
            messages = [application.get("message") or ""]
            for name, deployment in application["deployments"].items():
                if deployment["status"] in ("UNHEALTHY", "DEPLOY_FAILED") and deployment.get("message"):
                    messages.append(f"{name}: {deployment['message']}")
            raise ClusterError(
                f"{application['name']} could not be deployed.\n" + _COLOUR.sub("", "\n".join(filter(None, messages)))
            )


def _not_ready(address: str) -> str | None:
    """Why the application does not answer yet, or None if it does."""
    try:
        answer = httpx.get(f"{address}/readyz", timeout=30, trust_env=False)
    except httpx.HTTPError as error:
        return f"no answer yet: {type(error).__name__}"
    # An application that is not ours may have no such route.
    if answer.status_code in (200, 404):
        return None
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"/readyz answers {answer.status_code}"


def _say_what_to_do(address: str, dashboard: Dashboard, wanted: Json, elapsed_s: float) -> None:
    model_id = next((each.generator.model_id for each in app_configs(wanted)), AppConfig().generator.model_id)
    key = ' -H "authorization: Bearer $RAYCONTEUR_API_KEY"' if os.environ.get(API_KEYS_ENV) else ""
    question = f'{{"model": "{model_id}", "messages": [{{"role": "user", "content": "Hello! Who are you?"}}]}}'
    token = "$RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(ray_token_path(os.environ))
    elsewhere = "" if dashboard.url.endswith(f":{Ports().dashboard}") else f" -a {dashboard.url}"
    out.print(
        f"Rayconteur is ready, after {duration(elapsed_s)}.\n\n"
        f"  address    {address}\n"
        f"  dashboard  {dashboard.url} (its token is in {token})\n"
        f"  logs       {dashboard.logs_folder() / 'serve'}\n"
        f"  state      RAY_AUTH_MODE=token .venv/bin/serve status{elsewhere}\n\n"
        "Try this in another terminal:\n\n"
        f"  curl {address}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    -d '{question}'\n\n"
        "or put documents in and ask about them:\n\n"
        "  .venv/bin/rayconteur ingest README.md --store docs\n"
        '  .venv/bin/rayconteur ask "What is Rayconteur?" --store docs\n\n'
        "Ctrl-C stops everything.",
        markup=False,
    )


def _stop(head: RayHead, dashboard: Dashboard | None) -> None:
    try:
        if dashboard:
            dashboard.shut_serve_down(_DRAIN_S)
        head.stop()
    except KeyboardInterrupt:
        head.stop(patience_s=0)
    err.print("Stopped")
