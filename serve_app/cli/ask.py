"""`rayconteur ask` and `chat`: answers as they are written, then where they come from."""

from collections.abc import Iterable
from typing import Annotated

import typer
from openai import OpenAI, omit
from openai.types.responses import FileSearchToolParam, Response

from serve_app.cli.client import DEFAULT_URL, ApiKey, Url, connected, existing_store
from serve_app.cli.terminal import err, fail, out

Model = Annotated[str | None, typer.Option(help="Which of the server's models. Default: the server's choice.")]

_QUOTE_LENGTH = 120


def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotation marks.")],
    store: Annotated[str, typer.Option(help="The name or id of the store to ask about.")],
    model: Model = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Ask one question about the documents of a store, and list the answer's sources."""
    with connected(url, api_key) as client:
        tools = [_search_in(existing_store(client, store).id)]
        if not _answer(client, question, tools, model, conversation_id=None):
            raise typer.Exit(1)


def chat(
    store: Annotated[str | None, typer.Option(help="A store to ask about.")] = None,
    conversation: Annotated[str | None, typer.Option(help="The id of a conversation to go on with.")] = None,
    model: Model = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Talk, with a memory. /quit ends it; Ctrl-C stops an answer."""
    with connected(url, api_key) as client:
        tools = [_search_in(existing_store(client, store).id)] if store else []
        if conversation:
            conversation_id = client.conversations.retrieve(conversation).id
        else:
            conversation_id = client.conversations.create().id
        err.print(f"Conversation {conversation_id}. /quit ends it.", markup=False)
        while (question := _next_question()) is not None:
            try:
                _answer(client, question, tools, model, conversation_id)
            except KeyboardInterrupt:
                err.print("\n(stopped)")
        err.print(f"Go on with: rayconteur chat --conversation {conversation_id}", markup=False)


def _next_question() -> str | None:
    while True:
        try:
            question = err.input("[bold]> [/]").strip()
        except (EOFError, KeyboardInterrupt):
            err.print()
            return None
        if question == "/quit":
            return None
        if question:
            return question


def _answer(
    client: OpenAI, question: str, tools: list[FileSearchToolParam], model: str | None, conversation_id: str | None
) -> bool:
    """Print an answer as it comes, and its sources. Whether it is a whole answer."""
    stream = client.responses.create(
        input=question,
        model=model or omit,
        tools=tools or omit,
        include=["file_search_call.results"] if tools else omit,
        conversation=conversation_id or omit,
        stream=True,
    )
    final: Response | None = None
    with stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                out.print(event.delta, end="", markup=False)
            elif event.type in ("response.completed", "response.incomplete", "response.failed"):
                final = event.response
            elif event.type == "error":
                out.print()
                fail(f"the answer broke off: {event.message}")
    out.print()
    if final is None:
        fail("the answer broke off: the server closed the connection; ask again")
    for line in _sources(final):
        err.print(line, markup=False)
    if final.status == "failed":
        err.print(f"The answer failed: {final.error.message if final.error else 'no reason given'}", style="red")
    elif final.status == "incomplete":
        cause = final.incomplete_details.reason if final.incomplete_details else None
        err.print(f"(The answer is not complete: {cause or 'no reason given'})", markup=False)
    return final.status != "failed"


def _search_in(store_id: str) -> FileSearchToolParam:
    return {"type": "file_search", "vector_store_ids": [store_id]}


def _sources(response: Response) -> Iterable[str]:
    """The files that were read, best first, each with the beginning of its best passage; those cited are marked."""
    cited = {
        annotation.file_id
        for item in response.output
        if item.type == "message"
        for part in item.content
        if part.type == "output_text"
        for annotation in part.annotations
        if annotation.type == "file_citation"
    }
    results = [result for item in response.output if item.type == "file_search_call" for result in item.results or []]
    if not results:
        return
    yield "\nSources (* cited)"
    seen = set()
    for result in sorted(results, key=lambda each: each.file_id not in cited):
        if result.file_id in seen:
            continue
        seen.add(result.file_id)
        quote = " ".join((result.text or "").split())
        if len(quote) > _QUOTE_LENGTH:
            quote = quote[:_QUOTE_LENGTH].rsplit(" ", 1)[0] + "…"
        yield f"  {'*' if result.file_id in cited else ' '} {result.filename}: “{quote}”"
