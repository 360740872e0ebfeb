"""The request-logging switch as this process sees it: told by notifications, re-read after a lost connection.

Where there is no connection that can be told, it is read twice a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from service import db, errors
from service.db import Database
from service.metrics import Metrics
from service.store import request_logging

log = structlog.get_logger("bridgelog.switch")

_RETRY_SECONDS = 0.5
_POLL_SECONDS = 0.5


async def follow_request_logging(
    url: str | None, database: Database, *, metrics: Metrics, tell: Callable[[bool], None] = lambda _: None
) -> None:
    """Keep the metrics of the switch, and of this listening itself, at what they are, and `tell` the switch's state.

    Until cancelled. `url` is where notifications come, None where none do.
    """
    while True:
        try:
            async with db.listen(url, request_logging.CHANNEL) if url else _polling() as notified:
                metrics.listening.set(1)
                while True:
                    async with database.connection() as connection:
                        state = await request_logging.read(connection)
                    metrics.request_logging.set(state.enabled)
                    tell(state.enabled)
                    await notified()
        except errors.Refusal as problem:
            metrics.listening.set(0)
            log.warning("the switch cannot be followed; trying again", reason=problem.message, seconds=_RETRY_SECONDS)
            await asyncio.sleep(_RETRY_SECONDS)


@asynccontextmanager
async def _polling() -> AsyncIterator[Callable[[], Awaitable[None]]]:
    async def rested() -> None:
        await asyncio.sleep(_POLL_SECONDS)

    yield rested
