"""The official OpenAI client on our server, for the commands; its errors become one line that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import openai
import typer
from openai import OpenAI
from openai.types import VectorStore

from serve_app.cli.terminal import fail

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="RAYCONTEUR_URL", help="Where the server is.")]
ApiKey = Annotated[
    str,
    typer.Option("--api-key", envvar=["RAYCONTEUR_API_KEY", "OPENAI_API_KEY"], help="If the server wants one."),
]


@contextmanager
def connected(url: str, api_key: str) -> Iterator[OpenAI]:
    base_url = url.rstrip("/").removesuffix("/v1")
    try:
        # The client insists on a key; a server without keys does not look at it.
        with OpenAI(base_url=f"{base_url}/v1", api_key=api_key or "none", max_retries=4, timeout=600) as client:
            yield client
    except openai.APITimeoutError:
        fail(f"{base_url} did not answer in time: try again, or look at its {base_url}/readyz")
    except openai.APIConnectionError:
        fail(f"nothing answers at {base_url}: start it with `rayconteur serve`, or say --url (or RAYCONTEUR_URL)")
    except openai.AuthenticationError as error:
        fail(f"{reason(error)} (set RAYCONTEUR_API_KEY, or say --api-key)")
    except openai.APIError as error:
        fail(f"{base_url} answers: {reason(error)}")


def reason(error: openai.APIError) -> str:
    """What the server said, without the client's wrapping."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict) and inner.get("message"):
            return str(inner["message"])
    return error.message


def find_store(client: OpenAI, name: str) -> VectorStore | None:
    """The store of that name or id, or None. Two of the same name are an error that lists their ids."""
    found = [store for store in client.vector_stores.list(limit=100) if name in (store.name, store.id)]
    if len(found) > 1:
        fail(f"{len(found)} stores are named {name!r}: name one by its id, {' or '.join(store.id for store in found)}")
    return found[0] if found else None


def existing_store(client: OpenAI, name: str) -> VectorStore:
    store = find_store(client, name)
    if store is None:
        fail(f"there is no store {name!r}: `rayconteur stores` lists them, `rayconteur ingest PATH --store` makes one")
    return store
