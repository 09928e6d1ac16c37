"""`rayconteur stores`: what can be asked about, and how a store is doing."""

from datetime import datetime
from typing import Annotated, Any

import typer
from openai import OpenAI
from rich.table import Table

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected, existing_store
from serve_app.cli.terminal import err, out
from serve_app.types import Json

StatisticsOf = Annotated[
    str | None, typer.Option("--statistics", metavar="NAME", help="Show how this store is doing, by name or id.")
]


def stores(statistics: StatisticsOf = None, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """List the vector stores, or show the statistics of one."""
    with connected(url, api_key) as client:
        if statistics is None:
            _list(client)
        else:
            _show_statistics(client, statistics)


def _list(client: OpenAI) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "id", "files", "size", "last used"):
        # An id is for copying: broken over two lines rather than cut.
        table.add_column(heading, overflow="fold")
    for store in client.vector_stores.list(limit=100):
        counts = store.file_counts
        files = f"{counts.completed}"
        if counts.in_progress:
            files += f" (and {counts.in_progress} being indexed)"
        if counts.failed:
            files += f" ({counts.failed} failed)"
        last_used = datetime.fromtimestamp(store.last_active_at or store.created_at)
        table.add_row(store.name or "", store.id, files, size(store.usage_bytes), f"{last_used:%Y-%m-%d %H:%M}")
    if table.row_count:
        out.print(table)
    else:
        err.print("There are no stores yet: rayconteur ingest PATH --store NAME makes one")


def _show_statistics(client: OpenAI, name: str) -> None:
    store = existing_store(client, name)
    shown = client.get(f"/vector_stores/{store.id}/statistics", cast_to=dict[str, Any])
    searches, cache, index = shown["searches"], shown["query_cache"], shown["index"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("store", f"{store.name} {store.id}".strip())
    table.add_row("documents", f"{shown['documents']:,} in {shown['passages']:,} passages")
    table.add_row("versions", f"{shown['versions']:,}")
    table.add_row("on disk", f"{size(shown['size_bytes'])} in {index['fragments']:,} fragments")
    table.add_row("vector index", _index(index["vector"]))
    table.add_row("text index", _index(index["text"]))
    table.add_row("searches", f"{searches['count']:,} ({searches['failed']:,} more failed)")
    if searches["count"]:
        times = "  ".join(f"{key} {searches[f'{key}_ms']:.1f} ms" for key in ("mean", "p50", "p95", "p99"))
        table.add_row("", times)
    table.add_row("queries", f"{cache['hits']:,} from the cache, {cache['misses']:,} embedded")
    out.print(table)


def _index(index: Json) -> str:
    kind = index["kind"] or "none: every passage is compared"
    return f"{kind}, {index['indexed_rows']:,} passages in it, {index['unindexed_rows']:,} not"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
