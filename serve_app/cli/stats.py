"""`rayconteur stats`: how the server is doing, part by part and model by model; and letting go of its caches."""

from typing import Annotated, Any

import typer
from rich.table import Table

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected
from serve_app.cli.stores import size
from serve_app.cli.terminal import err, out
from serve_app.types import Json

Release = Annotated[bool, typer.Option("--release", help="Drop the caches first, and say what that freed.")]


def stats(release: Release = False, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Show the memory of every replica, and how fast the models answer."""
    with connected(url, api_key) as client:
        if release:
            released = client.post("/admin/memory/release", cast_to=dict[str, Any])
            _warn_of_silent(released)
            err.print(f"{size(released['freed_bytes'])} freed" if released["freed_bytes"] > 0 else "nothing freed")
        shown = client.get("/stats", cast_to=dict[str, Any])
    _warn_of_silent(shown)
    for node in shown["nodes"]:
        used, total = size(node["memory_used_bytes"]), size(node["memory_total_bytes"])
        out.print(f"node {node['node'][:8]}: {used} of {total} used, {size(node['rss_bytes'])} of it by these:")
    out.print(_replicas(shown["replicas"]))
    for model in shown["models"]:
        out.print()
        out.print(_model(model))


def _replicas(replicas: list[Json]) -> Table:
    table = Table("replica", "pid", "memory", "GPU", "caches", "engine", box=None, pad_edge=False)
    for each in replicas:
        gpu = "" if each["gpu_allocated_bytes"] is None else size(each["gpu_allocated_bytes"])
        caches = ", ".join(f"{name} {_cache(cache)}" for name, cache in each["caches"].items())
        engine = each["engine"]
        steps = (
            engine and f"{engine['running']} running, {engine['waiting']} waiting, KV {engine['kv_cache_usage']:.0%}"
        )
        table.add_row(each["deployment"], str(each["pid"]), size(each["rss_bytes"]), gpu, caches, steps or "")
    return table


def _model(model: Json) -> Table:
    spans = (model["last_minute"], model["since_start"])
    table = Table(model["model"], "last minute", "since the start", box=None, pad_edge=False)
    table.add_row("requests", *(f"{each['requests']:,} ({each['cancelled']:,} cancelled)" for each in spans))
    table.add_row("errors", *(_errors(each["errors"]) for each in spans))
    for name, key in (("first token", "first_token"), ("between tokens", "between_tokens"), ("in the queue", "queue")):
        table.add_row(name, *(_times(each[key]) for each in spans))
    table.add_row("tokens", *(f"{each['output_tokens']:,}" for each in spans))
    table.add_row("tokens/s", f"{model['last_minute']['output_tokens_per_s']:g}")
    return table


def _errors(errors: Json) -> str:
    return ", ".join(f"{total:,} {kind}" for kind, total in errors.items()) or "0"


def _times(times: Json) -> str:
    return f"p50 {times['p50_ms']:g}, p95 {times['p95_ms']:g} ms" if times["count"] else ""


def _cache(cache: Json) -> str:
    known = [] if cache["entries"] is None else [f"{cache['entries']:,}"]
    return " ".join(known + ([] if cache["bytes"] is None else [f"({size(cache['bytes'])})"]))


def _warn_of_silent(answer: Json) -> None:
    for each in answer["silent"]:
        err.print(f"{each['deployment']}: {each['message']}", style="yellow", markup=False)
