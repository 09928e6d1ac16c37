"""What has expired goes: conversations and uploads at once, stores after a week in which any update keeps them."""

import asyncio
import logging
from typing import NoReturn

from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context
from serve_app.api.files import delete_everywhere
from serve_app.api.vector_stores import delete_with_passages
from serve_app.errors import NotFound, RayconteurError

log = logging.getLogger(__name__)

KEEP_EXPIRED_STORES_S = 7 * 86_400
_EVERY_S = 600


async def sweep_expired(context: Context) -> NoReturn:
    while True:
        await sweep(context)
        await asyncio.sleep(_EVERY_S)


async def sweep(context: Context) -> None:
    """Free the bytes of expired uploads, which nobody sees any more, with their passages; of uploads that have no row;
    of expired stores; and of conversations that have been idle for too long.
    """
    try:
        while await context.parts.sessions.delete_expired(context.config.sessions.expire_after_s):
            pass
        for file_id in await run_in_threadpool(context.files.expired_ids):
            await delete_everywhere(context, file_id)
        await run_in_threadpool(context.files.remove_orphans)
        for store_id in await run_in_threadpool(context.catalog.expired_for, KEEP_EXPIRED_STORES_S):
            await delete_with_passages(context, store_id)
    except NotFound:
        # Another gateway sweeps, too.
        return
    except (RayconteurError, OSError) as error:
        log.warning("what has expired is still here, and will be looked at again: %s", error)
