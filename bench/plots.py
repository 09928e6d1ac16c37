"""The report's two plots, from what `bench.goodput` measured: goodput over load, and latency over load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.servers import OURS, RAY_APP, VLLM

STYLES = {OURS: "o-", VLLM: "s--", RAY_APP: "^:"}


def draw_plots(points: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Writes the two, and returns their file names."""
    # Else a file differs each time, although nothing has changed.
    with matplotlib.rc_context({"svg.hashsalt": "rayconteur", "svg.fonttype": "none"}):
        draw_goodput(points, folder / "goodput.svg")
        draw_latency(points, folder / "latency.svg")
    return ["goodput.svg", "latency.svg"]


def draw_goodput(points: Sequence[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for server, measured in by_server(points).items():
        loads = [each["offered_per_s"] for each in measured]
        axes.plot(loads, [each["goodput_per_s"] for each in measured], style_of(server), label=server)
    axes.set_ylabel("good answers per second")
    axes.set_ylim(bottom=0)
    save(figure, axes, path)


def draw_latency(points: Sequence[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for server, measured in by_server(points).items():
        loads = [each["offered_per_s"] for each in measured]
        (line,) = axes.plot(
            loads, [each["first_token_p50_ms"] / 1e3 for each in measured], style_of(server), label=f"{server}, p50"
        )
        p95_s = [each["first_token_p95_ms"] / 1e3 for each in measured]
        axes.plot(loads, p95_s, style_of(server), color=line.get_color(), alpha=0.4, label=f"{server}, p95")
    axes.set_ylabel("seconds to the first token")
    axes.set_yscale("log")
    save(figure, axes, path)


def by_server(points: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Each server's points, by rising load."""
    servers: dict[str, list[dict[str, Any]]] = {}
    for point in sorted(points, key=lambda each: float(each["offered_per_s"])):
        servers.setdefault(point["server"], []).append(point)
    return servers


def style_of(server: str) -> str:
    return STYLES.get(server, "x-")


def save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.set_xlabel("requests per second, open loop")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
