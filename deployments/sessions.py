"""The durable log of conversations and responses. Replicas are caches of it: the database is the truth."""

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from deployments.replica import Replica
from serve_app.config import AppConfig
from serve_app.conversation.log import ConversationLog
from serve_app.storage.database import open_database
from serve_app.storage.schema import logs
from serve_app.vitals import Releasable


class Sessions(Replica):
    def __init__(self, config: AppConfig) -> None:
        super().__init__()
        self._database = open_database(config.storage.resolved_database_url)
        self._log = ConversationLog(
            self._database,
            config.sessions.max_cached_conversations,
            stale_after_s=config.api.request_timeout_s + config.api.call_timeout_s,
        )

    # What comes back has the type of the log's method.
    async def run(self, method: str, arguments: tuple[object, ...]) -> Any:
        """A method of `ConversationLog`, on a thread. `parts.Sessions` lists them."""
        return await asyncio.to_thread(getattr(self._log, method), *arguments)

    def caches(self) -> Sequence[Releasable]:
        return (self._log.fences, *super().caches())

    async def ready(self) -> None:
        """Returns if the database answers; raises otherwise."""
        await asyncio.to_thread(self._read_a_log)

    def _read_a_log(self) -> None:
        with self._database.read() as connection:
            connection.execute(select(logs.c.id).limit(1))
