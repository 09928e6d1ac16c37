"""The facts of a conversation: those that are kept, and those that are still to be computed.

They are computed when they are first needed, each once. A batch is kept as soon as it is there, so that a call that
runs out of time has not worked in vain.
"""

import asyncio
from dataclasses import replace

from serve_app.conversation.insights.message import MAX_EMBEDDED_CHARACTERS, VERSION, build_facts, text_of_message
from serve_app.parts import Embedder, Sessions
from serve_app.types import FloatMatrix
from serve_app.types.conversation import LoggedMessage, RecentMessages, SaveFacts

BATCH_MESSAGES = 64
"""Embedded at once. The embedder has one thread, so that a question waits for so many messages at the most."""


async def gather_facts(conversation_id: str, encoder: str, sessions: Sessions, embedder: Embedder) -> RecentMessages:
    """The newest messages, all with facts. Raises `NotFound` for an unknown conversation."""
    recent = await sessions.read_messages(conversation_id, encoder, VERSION)
    unknown = [message for message in recent.messages if message.facts is None]
    computed: dict[tuple[str, int], LoggedMessage] = {}
    for start in range(0, len(unknown), BATCH_MESSAGES):
        batch = await _compute(unknown[start : start + BATCH_MESSAGES], embedder)
        await sessions.save_facts(SaveFacts(conversation_id, encoder, VERSION, tuple(batch)))
        computed |= {(message.log_id, message.seq): message for message in batch}
    messages = (computed.get((message.log_id, message.seq), message) for message in recent.messages)
    return replace(recent, messages=tuple(messages))


async def _compute(messages: list[LoggedMessage], embedder: Embedder) -> list[LoggedMessage]:
    texts = [text_of_message(message.body or {})[:MAX_EMBEDDED_CHARACTERS] for message in messages]
    vectors = await embedder.embed(texts)
    return await asyncio.to_thread(_build, messages, vectors)


def _build(messages: list[LoggedMessage], vectors: FloatMatrix) -> list[LoggedMessage]:
    return [
        replace(message, body=None, facts=build_facts(message.body or {}, vector))
        for message, vector in zip(messages, vectors, strict=True)
    ]
