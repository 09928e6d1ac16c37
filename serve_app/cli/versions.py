"""`rayconteur versions`, `rollback` and `optimize`: what a store was, that again, and in good order."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected, existing_store
from serve_app.cli.stores import size
from serve_app.cli.terminal import err, out

Store = Annotated[str, typer.Argument(help="The name or id of the store.")]


def versions(store: Store, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """List the versions of a store that are kept, newest first."""
    with connected(url, api_key) as client:
        found = existing_store(client, store)
        kept = client.get(f"/vector_stores/{found.id}/versions", cast_to=dict[str, Any])["data"]
    table = Table(box=None, pad_edge=False)
    for heading in ("version", "since", "files", "passages", ""):
        table.add_column(heading)
    for each in kept:
        since = datetime.fromtimestamp(each["created_at"])
        pinned = "pinned" if each["pinned"] else ""
        table.add_row(
            str(each["version"]), f"{since:%Y-%m-%d %H:%M:%S}", f"{each['files']:,}", f"{each['passages']:,}", pinned
        )
    if kept:
        out.print(table)
    else:
        err.print("Nothing has been put into this store yet")


def rollback(
    store: Store,
    version: Annotated[int, typer.Argument(min=1, help="One of those that `rayconteur versions` lists.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Make a store again what it was. That is a new version, so it can be undone."""
    with connected(url, api_key) as client:
        found = existing_store(client, store)
        body = {"version": version}
        now = client.post(f"/vector_stores/{found.id}/rollback", body=body, cast_to=dict[str, Any])
    out.print(f"{store} is as it was at version {version}: {now['files']:,} files. This is version {now['version']}.")


def optimize(store: Store, url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """Index, merge and clean a store up now. The server does so by itself when searches would notice."""
    with connected(url, api_key) as client:
        found = existing_store(client, store)
        done = client.post(f"/vector_stores/{found.id}/optimize", cast_to=dict[str, Any])
    fragments, on_disk, search_ms = done["fragments"], done["size_bytes"], done["search_ms"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("duplicates removed", f"{done['duplicates_removed']:,}")
    table.add_row("fragments", f"{fragments['before']:,.0f} before, {fragments['after']:,.0f} after")
    table.add_row("on disk", f"{size(on_disk['before'])} before, {size(on_disk['after'])} after")
    table.add_row("a search", f"{search_ms['before']:.1f} ms before, {search_ms['after']:.1f} ms after")
    table.add_row("took", f"{done['elapsed_ms'] / 1e3:.1f} s")
    out.print(table)
