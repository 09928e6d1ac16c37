"""`rayconteur reembed`: the server moves a store to another encoder, this asks for it and shows how far it is."""

import time
from typing import Annotated, cast

import typer
from openai import OpenAI
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected, existing_store
from serve_app.cli.terminal import duration, err, fail, out
from serve_app.types import Json

_POLL_S = 0.5


def reembed(
    store: Annotated[str, typer.Argument(help="The name or id of the store.")],
    model: Annotated[str, typer.Option(help="The encoder's model_id, as the server's configuration has it.")],
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Move a store to another encoder, or back, while it is searched. Its own encoder calls a move off."""
    started = time.monotonic()
    with connected(url, api_key) as client:
        store_id = existing_store(client, store).id
        body = {"model": model}
        asked = cast(Json, client.post(f"/vector_stores/{store_id}/reembed", cast_to=object, body=body))
        if asked["model"] == model:
            out.print(f"{store} is searched with {model}", markup=False)
            return
        _await(client, asked, model)
    took = duration(time.monotonic() - started)
    out.print(
        f"{store} is searched with {model} from now on, instead of {asked['model']} (it took {took})", markup=False
    )


def _await(client: OpenAI, store: Json, model: str) -> None:
    """Show how far the move is until it is done. Going away does not stop it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    try:
        with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
            task = progress.add_task("Re-embedding", total=None, left="")
            while (move := store["reembedding"]) and (move["model"], move["status"]) == (model, "in_progress"):
                seconds = move["seconds_left"]
                left = "" if seconds is None else f"{duration(seconds)} left"
                progress.update(task, completed=move["files_done"], total=move["files_total"] or None, left=left)
                time.sleep(_POLL_S)
                store = cast(Json, client.get(f"/vector_stores/{store['id']}", cast_to=object))
    except KeyboardInterrupt:
        err.print(f"\nThe server goes on; rayconteur reembed --model {store['model']} calls it off", markup=False)
        raise typer.Exit(130) from None
    if move and move["status"] == "failed":
        fail(f"it failed: {move['error']['message']}")
    if store["model"] != model:
        fail(f"somebody called it off: the store is still searched with {store['model']}")
