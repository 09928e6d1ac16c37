"""Ten running summaries as they come out: TIAGE's dialogues, put into conversations of a served application.

Each dialogue is appended, a last question is asked, and the conversation's context is read until the background has
folded it. Prints Markdown: who wrote the summary, how many messages it covers, its text, and how the dialogue begins.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai

from bench.figures import found, parse_arguments
from bench.servers import ROOT, served
from serve_app.types import Json

ITEMS_AT_ONCE = 20
WAIT_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--url", help="a served application, e.g. http://127.0.0.1:8000; default: start one")
    parser.add_argument("--conversations", type=int, default=10)
    arguments = parse_arguments(parser)
    lines = (arguments.data / "tiage" / "dialogs.jsonl").read_text().splitlines()
    print("| written by | messages | summary | the dialogue begins |\n|---|---|---|---|")
    with (
        served(arguments.url) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client,
    ):
        for line in lines[: arguments.conversations]:
            texts = [turn["text"] for turn in json.loads(line)["turns"]]
            summary = summarize(client, url, texts)
            text = summary["text"].replace("\n", " ").replace("|", "\\|")
            print(f"| {summary['model']} | {summary['messages']} | {text} | {texts[0]} |", flush=True)
    found("conversations that got a summary", min(arguments.conversations, len(lines)))


def summarize(client: openai.OpenAI, url: str, texts: list[str]) -> Json:
    # The client's own types of items are many; the API checks them.
    items: Any = [
        {"type": "message", "role": ("user", "assistant")[number % 2], "content": text}
        for number, text in enumerate(texts)
    ]
    conversation = client.conversations.create(items=items[:ITEMS_AT_ONCE])
    client.responses.create(input="Thank you. That is all for now.", conversation=conversation.id, max_output_tokens=16)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        context = httpx.get(f"{url}/v1/conversations/{conversation.id}/context", timeout=30).json()
        if context["summary"]:
            covered = min(len(items), ITEMS_AT_ONCE) + 2 - len(context["window"]["item_ids"])
            return {**context["summary"], "messages": covered}
        time.sleep(1)
    raise TimeoutError(f"conversation {conversation.id} has no summary after {WAIT_S} s")


if __name__ == "__main__":
    main()
