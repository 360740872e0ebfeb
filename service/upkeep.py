"""Keeps the rollups up while the service runs: seals what has become quiet, and folds what has changed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from service import errors
from service.db import Database, UnforeseenError
from service.store import rollups

log = structlog.get_logger("bridgelog.upkeep")

_EVERY_SECONDS = 5.0
# What started so long ago has ended by now, as a rule; what ends later costs a change of its own.
_LAG = timedelta(minutes=2)


async def keep_rollups(database: Database) -> None:
    """Until cancelled; a process of several does the work, and another one where that is gone."""
    while True:
        try:
            await catch_up(database, until=datetime.now(UTC) - _LAG)
        except errors.Refusal as problem:
            log.warning("the rollups could not be kept up; trying again", reason=problem.message)
        except UnforeseenError:
            log.exception("the rollups cannot be kept up; trying again")
        await asyncio.sleep(_EVERY_SECONDS)


async def catch_up(database: Database, *, until: datetime) -> None:
    """Fold all changes, and seal everything that started before `until`, a day at a time."""
    more = True
    while more:
        # Before sealing, which may have to give way to somebody who writes at length.
        async with database.transaction() as connection:
            await rollups.fold(connection)
        async with database.transaction() as connection:
            more = await rollups.seal(connection, until=until)
    async with database.transaction() as connection:
        await rollups.fold(connection)
