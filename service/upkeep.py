"""Keeps the rollups up while the service runs: seals what has become quiet, and folds what has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from service import errors
from service.db import Database
from service.store import rollups

log = structlog.get_logger("bridgelog.upkeep")

_EVERY_SECONDS = 5.0
# What started so long ago has ended by now, as a rule; what ends later costs a change of its own.
_LAG = timedelta(minutes=2)
# For how long everybody who writes may have to wait for those who are writing: so long at first, and twice that each time
# that it was not enough.
_LEAST_PATIENCE = timedelta(milliseconds=100)
_MOST_PATIENCE = timedelta(seconds=2)


async def keep_rollups(database: Database, *, saw_unsealed: Callable[[datetime | None], None] = lambda _: None) -> None:
    """Until cancelled; a process of several does the work, and another one where that is gone.

    `saw_unsealed` is told by each when the earliest interception started that is not sealed.
    """
    patience = _LEAST_PATIENCE
    while True:
        try:
            await catch_up(database, until=datetime.now(UTC) - _LAG, patience=patience)
            patience = _LEAST_PATIENCE
            async with database.connection() as connection:
                saw_unsealed(await rollups.first_unsealed(connection))
        except errors.Refusal as problem:
            # Writers who never leave a gap of this length would keep the live tail growing.
            patience = min(2 * patience, _MOST_PATIENCE)
            log.warning("the rollups could not be kept up; trying again", reason=problem.message)
        await asyncio.sleep(_EVERY_SECONDS)


async def catch_up(database: Database, *, until: datetime, patience: timedelta = _LEAST_PATIENCE) -> None:
    """Fold all changes, and seal everything that started before `until`, a day at a time."""
    more = True
    while more:
        # Before sealing, which may have to give way to somebody who writes at length.
        async with database.transaction() as connection:
            await rollups.fold(connection)
        async with database.transaction() as connection:
            more = await rollups.seal(connection, until=until, patience=patience)
    async with database.transaction() as connection:
        await rollups.fold(connection)
