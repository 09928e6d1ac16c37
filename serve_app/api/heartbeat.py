"""This gateway says that it lives, so that others know in seconds when it no longer answers."""

import asyncio
import logging
from typing import NoReturn

from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context
from serve_app.conversation.runners import HEARTBEAT_EVERY_S, beat
from serve_app.errors import RayconteurError

log = logging.getLogger(__name__)


async def keep_beating(context: Context) -> NoReturn:
    while True:
        await asyncio.sleep(HEARTBEAT_EVERY_S)
        try:
            await run_in_threadpool(beat, context.database, context.runner_id)
        except RayconteurError as error:
            log.warning("this gateway may be taken for dead: %s", error)
