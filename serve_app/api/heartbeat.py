"""This gateway says that it lives, so that others know in seconds when it no longer answers."""

import asyncio
import logging
from typing import NoReturn

from anyio import CapacityLimiter, to_thread

from serve_app.api.context import Context
from serve_app.conversation.runners import HEARTBEAT_EVERY_S, beat
from serve_app.errors import RayconteurError

log = logging.getLogger(__name__)


async def keep_beating(context: Context) -> NoReturn:
    # A thread of its own: if it waited for those of the requests, a busy gateway would count as a dead one.
    own = CapacityLimiter(1)
    while True:
        await asyncio.sleep(HEARTBEAT_EVERY_S)
        try:
            await to_thread.run_sync(beat, context.database, context.runner_id, limiter=own)
        except RayconteurError as error:
            log.warning("this gateway may be taken for dead: %s", error)
