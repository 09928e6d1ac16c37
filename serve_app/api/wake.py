"""Telling the indexer that there is something to do."""

import logging

from serve_app.api.context import Context
from serve_app.errors import RayconteurError

log = logging.getLogger(__name__)


async def wake_indexer(context: Context) -> None:
    # The work is in the database, where the indexer looks by itself every few seconds: this only saves the wait.
    try:
        await context.parts.indexer.wake()
    except RayconteurError as error:
        log.warning("the indexer could not be woken and will find its work later: %s", error)
