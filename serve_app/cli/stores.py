"""`rayconteur stores`: what can be asked about."""

from datetime import datetime

from rich.table import Table

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected
from serve_app.cli.terminal import err, out


def stores(url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """List the vector stores."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "id", "files", "size", "last used"):
        # An id is for copying: broken over two lines rather than cut.
        table.add_column(heading, overflow="fold")
    with connected(url, api_key) as client:
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


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
