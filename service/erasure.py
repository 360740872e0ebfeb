"""Erasing a person: their account, and in small batches the content of all that they initiated. The counts stay.

The name goes first: it can be interrupted and done again at any time, by the person's id. It goes once more at the end,
for whoever was recording as it began.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service import errors
from service.batches import Pace
from service.db import Connection, Database
from service.store import erasure

# For how long everybody who writes may have to wait for those who are writing: so long at first, and twice that each time.
_LEAST_PATIENCE = timedelta(milliseconds=100)
_MOST_PATIENCE = timedelta(seconds=2)
_ATTEMPTS = 30


async def erase(
    database: Database, *, user_id: UUID, progress: Callable[[Mapping[str, int]], None] = lambda _: None
) -> Mapping[str, int]:
    """Erase a person, and tell in how many records of each kind, and how many tokens, there was something to remove.

    Raises Contention where a transaction that has written interceptions stays open; done again, this goes on.
    """
    removed: Counter[str] = Counter()

    async def close(connection: Connection) -> tuple[datetime, int]:
        now = datetime.now(UTC)
        erased_until = await erasure.mark(connection, user_id=user_id, now=now)
        return erased_until, await erasure.close_account(connection, user_id=user_id, now=now)

    async def batch(
        connection: Connection, *, running: bool, after: erasure.Place | None, most: int
    ) -> tuple[list[erasure.Place], Mapping[str, int]]:
        places = await erasure.interceptions(
            connection, user_id=user_id, erased_until=erased_until, running=running, after=after, most=most
        )
        ids = [interception_id for _, interception_id in places]
        return places, await erasure.erase(connection, ids=ids) if ids else {}

    erased_until, removed["tokens"] = await database.settle(close)
    await _wait_for_writers(database)
    # Whatever ends meanwhile is then among those that have ended.
    for running in (True, False):
        after: erasure.Place | None = None
        pace, more = Pace(), True
        while more:
            async with pace.batch() as most:
                places, found = await database.settle(functools.partial(batch, running=running, after=after, most=most))
                more = bool(places)
                if places:
                    removed.update(found)
                    progress(found)
                    after = places[-1]
    await database.settle(functools.partial(erasure.anonymise, user_id=user_id, now=datetime.now(UTC)))
    return removed


async def _wait_for_writers(database: Database) -> None:
    patience = _LEAST_PATIENCE
    for _ in range(_ATTEMPTS):
        try:
            async with database.transaction() as connection:
                await erasure.wait_for_writers(connection, patience=patience)
        except errors.Contention:
            patience = min(2 * patience, _MOST_PATIENCE)
        else:
            return
    raise errors.Contention("A transaction that has written interceptions stays open.", retry_after=10)
