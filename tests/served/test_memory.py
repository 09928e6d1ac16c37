"""What a conversation remembers, with the model itself: the engine's cache, and the summary that it writes."""

import secrets
from typing import Any

import openai

from tests.served.application import wait_until

LONG = "The ferry sails at nine, the bakery is closed on Tuesdays, and the lamp shines for twenty-two miles. " * 12


def ask(client: openai.OpenAI, text: str, conversation_id: str, **fields: Any) -> Any:
    return client.responses.create(input=text, conversation=conversation_id, max_output_tokens=16, **fields)


def context_of(client: openai.OpenAI, conversation_id: str) -> Any:
    return client.get(f"/conversations/{conversation_id}/context", cast_to=object)


def test_the_engine_has_the_beginning_of_the_next_prompt_in_its_cache(client: openai.OpenAI) -> None:
    conversation_id = client.conversations.create().id
    ask(client, f"{secrets.token_hex(8)}: {LONG}", conversation_id)

    usage = ask(client, "And when does it come back?", conversation_id).usage

    assert usage.input_tokens_details.cached_tokens > 0.5 * usage.input_tokens


def test_what_leaves_the_window_is_summed_up(client: openai.OpenAI) -> None:
    conversation_id = client.conversations.create().id
    for number in range(1, 7):
        ask(client, f"Question {number}: at what time does the ferry number {number} sail?", conversation_id)

    wait_until(lambda: context_of(client, conversation_id)["summary"] is not None, 120, "there is a summary")
    context = context_of(client, conversation_id)
    items = client.conversations.items.list(conversation_id, order="asc").data
    first = [each.id for each in items].index(context["summary"]["last_item_id"]) + 1
    assert context["window"]["item_ids"] == [each.id for each in items[first:]]
    assert context["summary"]["tokens"] <= 256
