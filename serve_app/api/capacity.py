"""What this gateway may give to the models: its share of what their engines can have under way."""

import asyncio
import logging
from typing import NoReturn

from starlette.concurrency import run_in_threadpool

from serve_app.api.context import Context
from serve_app.conversation.runners import count_living
from serve_app.errors import RayconteurError

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_LOOK_AGAIN_S = 0.5
"""While an engine is not there: once it is, all are let in until it is known how many it can take."""


async def keep_capacities(context: Context) -> NoReturn:
    """See how many replicas and gateways there are, for as long as this one lives."""
    while True:
        await refresh_capacities(context)
        context.parts.admissions.show()
        await asyncio.sleep(_LOOK_EVERY_S if context.parts.admissions.are_measured() else _LOOK_AGAIN_S)


async def refresh_capacities(context: Context) -> None:
    try:
        gateways = await run_in_threadpool(count_living, context.database)
        context.parts.admissions.set_capacities(await context.parts.read_capacities(), max(gateways, 1))
    # What was known holds on, and somebody has to look again.
    except RayconteurError as error:
        log.warning("what the models can take may be out of date: %s", error)
    except Exception:
        log.exception("what the models can take may be out of date")
