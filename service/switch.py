"""The request-logging switch as this process sees it: told by notifications, re-read after a lost connection."""

from __future__ import annotations

import asyncio

import structlog
from prometheus_client import Gauge

from service import db, errors
from service.db import Database
from service.store import request_logging

log = structlog.get_logger("bridgelog.switch")

_RETRY_SECONDS = 0.5


async def follow_request_logging(url: str, database: Database, *, gauge: Gauge) -> None:
    """Keep `gauge` at the switch's state, until cancelled."""
    while True:
        try:
            async with db.listen(url, request_logging.CHANNEL) as notified:
                while True:
                    async with database.connection() as connection:
                        state = await request_logging.read(connection)
                    gauge.set(state.enabled)
                    await notified()
        except errors.Refusal as problem:
            log.warning("the switch cannot be followed; trying again", reason=problem.message, seconds=_RETRY_SECONDS)
            await asyncio.sleep(_RETRY_SECONDS)
