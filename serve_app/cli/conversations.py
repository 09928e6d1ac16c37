"""`rayconteur conversations`, `export` and `import`: what was said, as a list and as files."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from openai import HttpxBinaryResponseContent

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected
from serve_app.cli.terminal import err, fail, out
from serve_app.types import Json


def conversations(
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those that have it; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many of the newest.")] = 20,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """List the conversations, the newest first, each with the time when it was used last and its metadata."""
    query: dict[str, object] = {"limit": limit}
    for pair in metadata or ():
        key, separator, value = pair.partition("=")
        if not separator:
            fail(f"--metadata takes KEY=VALUE, not {pair!r}")
        query[f"metadata[{key}]"] = value
    with connected(url, api_key) as client:
        listed = cast(Json, client.get("/conversations", cast_to=object, options={"params": query}))
    for each in listed["data"]:
        last_used = datetime.fromtimestamp(each["last_active_at"])
        pairs = ", ".join(f"{key}={value}" for key, value in each["metadata"].items())
        # Plain lines and no table, which would break an id in a narrow window.
        out.print(f"{each['id']}  {last_used:%Y-%m-%d %H:%M}  {pairs}".rstrip(), markup=False)
    if not listed["data"]:
        err.print("There are no conversations like that")


def export(
    conversation_id: Annotated[str, typer.Argument(metavar="ID", help="As `rayconteur conversations` lists it.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file. Default: stdout.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Write a conversation as JSON Lines: first itself, then its items, oldest first."""
    with connected(url, api_key) as client:
        lines = client.get(f"/conversations/{conversation_id}/export", cast_to=HttpxBinaryResponseContent).content
    if output is None:
        typer.echo(lines, nl=False)
    else:
        output.write_bytes(lines)


def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `rayconteur export` wrote.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Make a new conversation of an export, and print its id."""
    with connected(url, api_key) as client, file.open("rb") as content:
        made = client.post("/conversations/import", cast_to=object, content=content)
    typer.echo(cast(Json, made)["id"])
