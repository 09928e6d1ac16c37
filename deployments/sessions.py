"""The durable log of conversations and responses. Replicas are caches of it: the database is the truth."""

import asyncio

from sqlalchemy import select

from serve_app.config import AppConfig
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from serve_app.storage.schema import logs
from serve_app.types import (
    AppendItems,
    CloseTurn,
    Conversation,
    Json,
    OpenedTurn,
    OpenTurn,
    Page,
    PageQuery,
    WithdrawTurn,
)


class Sessions:
    def __init__(self, config: AppConfig) -> None:
        self._database = open_database(config.storage.resolved_database_url)
        self._log = ConversationLog(
            self._database,
            config.sessions.max_cached_conversations,
            stale_after_s=config.api.request_timeout_s + config.api.call_timeout_s,
        )

    async def create_conversation(
        self, conversation_id: str, metadata: dict[str, str], items: tuple[Json, ...]
    ) -> Conversation:
        return await asyncio.to_thread(self._log.create_conversation, conversation_id, metadata, items)

    async def get_conversation(self, conversation_id: str) -> Conversation:
        return await asyncio.to_thread(self._log.get_conversation, conversation_id)

    async def update_conversation(self, conversation_id: str, metadata: dict[str, str]) -> Conversation:
        return await asyncio.to_thread(self._log.update_conversation, conversation_id, metadata)

    async def delete_conversation(self, conversation_id: str) -> None:
        await asyncio.to_thread(self._log.delete_conversation, conversation_id)

    async def append_items(self, append: AppendItems) -> tuple[Json, ...]:
        return await asyncio.to_thread(self._log.append_items, append)

    async def list_items(self, conversation_id: str, page: PageQuery) -> Page:
        return await asyncio.to_thread(self._log.list_items, conversation_id, page)

    async def get_item(self, conversation_id: str, item_id: str) -> Json:
        return await asyncio.to_thread(self._log.get_item, conversation_id, item_id)

    async def delete_item(self, conversation_id: str, item_id: str) -> Conversation:
        return await asyncio.to_thread(self._log.delete_item, conversation_id, item_id)

    async def open_turn(self, turn: OpenTurn) -> OpenedTurn:
        return await asyncio.to_thread(self._log.open_turn, turn)

    async def close_turn(self, turn: CloseTurn) -> None:
        await asyncio.to_thread(self._log.close_turn, turn)

    async def withdraw_turn(self, turn: WithdrawTurn) -> None:
        await asyncio.to_thread(self._log.withdraw_turn, turn)

    async def get_response(self, response_id: str) -> Json:
        return await asyncio.to_thread(self._log.get_response, response_id)

    async def delete_response(self, response_id: str) -> None:
        await asyncio.to_thread(self._log.delete_response, response_id)

    async def list_input_items(self, response_id: str, page: PageQuery) -> Page:
        return await asyncio.to_thread(self._log.list_input_items, response_id, page)

    async def ready(self) -> None:
        """Returns if the database answers; raises otherwise."""
        await asyncio.to_thread(self._read_a_log)

    def _read_a_log(self) -> None:
        with self._database.read() as connection:
            connection.execute(select(logs.c.id).limit(1))
