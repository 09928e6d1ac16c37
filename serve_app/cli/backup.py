"""`rayconteur backup`, `backups` and `restore`: the server makes them, these ask for them and show how far they are."""

import time
from typing import Annotated, cast

import typer
from openai import OpenAI
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected, existing_store
from serve_app.cli.stores import size
from serve_app.cli.terminal import duration, err, fail, out
from serve_app.types import Json

_POLL_S = 0.5


def backup(
    store: Annotated[
        list[str] | None, typer.Option(help="The name or id of a store; may be given again. Default: everything.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Take a backup of everything, or of some stores with their files, while the server goes on."""
    started = time.monotonic()
    with connected(url, api_key) as client:
        body = {"vector_store_ids": [existing_store(client, name).id for name in store]} if store else {}
        made = _await(client, _post(client, "/backups", body), "/backups/{id}", "Copying")
    what = f"{len(made['vector_stores'])} stores, {made['files']} files, {size(made['bytes'])}"
    took = duration(time.monotonic() - started)
    out.print(f"{made['id']}: {what}, of which {size(made['bytes_copied'])} are new, in {took}", markup=False)


def restore(
    backup_id: Annotated[str, typer.Argument(metavar="ID", help="As `rayconteur backups` lists it.")],
    store: Annotated[str | None, typer.Option(help="A store's name or id. Default: all that is missing.")] = None,
    new_name: Annotated[str | None, typer.Option("--as", help="Another name for it, beside the original.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Bring back what a backup holds and the server does not."""
    started = time.monotonic()
    with connected(url, api_key) as client:
        body = {"vector_store_id": _store_in(client, backup_id, store) if store else None, "name": new_name}
        asked = _post(client, f"/backups/{backup_id}/restores", body)
        done = _await(client, asked, f"/backups/{backup_id}/restores/{{id}}", "Restoring")
    for each in done["vector_stores"]:
        out.print(f"{each['name'] or each['id']}: restored as {each['id']}", markup=False)
    what = f"{len(done['vector_stores'])} stores, {done['files']} files, {done['conversations']} conversations"
    out.print(f"{backup_id}: {what} restored, in {duration(time.monotonic() - started)}", markup=False)


def backups(url: Url = DEFAULT_URL, api_key: ApiKey = "") -> None:
    """List the backups, the newest first."""
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "what", "files", "size", "status"):
        # An id is for copying, and tells the time as well.
        table.add_column(heading, overflow="fold", no_wrap=heading != "what")
    failed: list[Json] = []
    with connected(url, api_key) as client:
        for each in _list(client):
            what = "everything"
            if each["vector_store_ids"] is not None:
                names = {store["id"]: store["name"] for store in each["vector_stores"]}
                what = ", ".join(names.get(store_id) or store_id for store_id in each["vector_store_ids"])
            table.add_row(each["id"], what, str(each["files"]), size(each["bytes"]), each["status"])
            if each["status"] == "failed":
                failed.append(each)
    if table.row_count:
        out.print(table)
    else:
        err.print("There are no backups yet: rayconteur backup takes one")
    for each in failed:
        err.print(f"{each['id']} failed: {each['error']['message']}", style="red", markup=False)


def _await(client: OpenAI, job: Json, path: str, doing: str) -> Json:
    """Show how far a job is until it is done. Going away does not stop it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal) as progress:
            task = progress.add_task(doing, total=None)
            while job["status"] == "in_progress":
                time.sleep(_POLL_S)
                job = _get(client, path.format(id=job["id"]))
                progress.update(task, completed=job["bytes_copied"], total=job["bytes_to_copy"] or None)
    except KeyboardInterrupt:
        err.print(f"\nThe server goes on with {job['id']}", markup=False)
        raise typer.Exit(130) from None
    if job["status"] == "failed":
        fail(f"{job['id']} failed: {job['error']['message']}")
    return job


def _store_in(client: OpenAI, backup_id: str, name: str) -> str:
    """The id of a store in a backup, which the server may not have any more."""
    stores = _get(client, f"/backups/{backup_id}")["vector_stores"]
    found = [each["id"] for each in stores if name in (each["id"], each["name"])]
    if len(found) > 1:
        fail(f"{len(found)} stores of it are named {name!r}: name one by its id, {' or '.join(found)}")
    if not found:
        names = ", ".join(each["name"] or each["id"] for each in stores) or "none"
        fail(f"{backup_id} has no store {name!r}; those that it has: {names}")
    return str(found[0])


def _list(client: OpenAI) -> list[Json]:
    found: list[Json] = []
    page: Json = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = f"&after={page['last_id']}" if page["last_id"] else ""
        page = _get(client, f"/backups?limit=100{after}")
        found += page["data"]
    return found


# OpenAI has no backups: its client knows these answers as plain objects only.


def _get(client: OpenAI, path: str) -> Json:
    return cast(Json, client.get(path, cast_to=object))


def _post(client: OpenAI, path: str, body: object) -> Json:
    return cast(Json, client.post(path, cast_to=object, body=body))
