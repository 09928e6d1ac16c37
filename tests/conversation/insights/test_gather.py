"""Facts are computed once: what a second call embeds is only what is new."""

import asyncio
from collections.abc import Sequence

import pytest

from serve_app.conversation.insights.gather import BATCH_MESSAGES, gather_facts
from serve_app.conversation.log import ConversationLog
from serve_app.errors import Unavailable
from serve_app.types import FloatMatrix, new_id
from serve_app.types.conversation import AppendItems, RecentMessages
from tests.conversation.messages import message
from tests.fakes import FakeEmbedder, LocalSessions


class FailingEmbedder(FakeEmbedder):
    """Fails from its second call on."""

    async def embed(self, texts: Sequence[str], model: str | None = None) -> FloatMatrix:
        if self.texts:
            raise Unavailable("the embedder is gone", retry_after_s=1)
        return await super().embed(texts)


def gather(log: ConversationLog, conversation_id: str, embedder: FakeEmbedder) -> RecentMessages:
    return asyncio.run(gather_facts(conversation_id, "encoder-a", LocalSessions(log), embedder))


def talk(log: ConversationLog, count: int) -> str:
    items = tuple(message(f"number {index}", ("user", "assistant")[index % 2]) for index in range(count))
    return log.create_conversation(new_id("conv"), {}, items).id


def test_every_message_comes_back_with_facts_in_order(log: ConversationLog) -> None:
    conversation_id = talk(log, BATCH_MESSAGES + 3)

    found = gather(log, conversation_id, FakeEmbedder())

    assert [each.seq for each in found.messages] == list(range(1, BATCH_MESSAGES + 4))
    assert [each.facts.role for each in found.messages if each.facts][:2] == ["user", "assistant"]
    assert all(each.facts and each.body is None for each in found.messages)


def test_a_second_call_embeds_only_what_is_new(log: ConversationLog) -> None:
    conversation_id = talk(log, 5)
    embedder = FakeEmbedder()
    first = gather(log, conversation_id, embedder)

    log.append_items(AppendItems(conversation_id, (message("something new"),), "k"))
    second = gather(log, conversation_id, embedder)

    assert embedder.texts == [*(f"number {index}" for index in range(5)), "something new"]
    assert second.messages[:5] == first.messages


def test_what_was_computed_before_a_failure_is_kept(log: ConversationLog) -> None:
    conversation_id = talk(log, BATCH_MESSAGES + 1)
    with pytest.raises(Unavailable):
        gather(log, conversation_id, FailingEmbedder())
    embedder = FakeEmbedder()

    gather(log, conversation_id, embedder)

    assert embedder.texts == [f"number {BATCH_MESSAGES}"]


def test_the_beginning_of_a_very_long_message_is_embedded(log: ConversationLog) -> None:
    conversation_id = log.create_conversation(new_id("conv"), {}, (message("x" * 1_000_000),)).id
    embedder = FakeEmbedder()

    gather(log, conversation_id, embedder)

    assert [len(text) for text in embedder.texts] == [600]
