"""Retention: removes what is older than it may be, in small batches, while others read and write.

A batch is a transaction of its own, under an advisory lock, so that one process at a time does this. After each there is a
pause as long as the batch took: readers and writers have the database to themselves half of the time at least.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from service import errors
from service.batches import Pace
from service.db import Connection, Database
from service.metrics import Metrics
from service.settings import Settings
from service.store import retention
from service.store.retention import Batch, Due

log = structlog.get_logger("bridgelog.retention")

_EVERY_SECONDS = 60.0
_FIRST = datetime.min.replace(tzinfo=UTC)


Remove = Callable[..., Awaitable[Batch]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What started before `interceptions` goes whole, of what was created before `content` the content; None keeps it."""

    interceptions: datetime | None
    content: datetime | None

    @classmethod
    def of(cls, settings: Settings, *, now: datetime) -> Limits:
        """The limits at an instant. A retention of zero keeps everything, and so does one from before the first year."""

        def limit(kept: timedelta) -> datetime | None:
            return now - kept if timedelta() < kept < now - _FIRST else None

        return cls(interceptions=limit(settings.retention), content=limit(settings.content_retention))


@dataclass(slots=True)
class Removed:
    """What has been removed so far, by kind."""

    deleted: Counter[str] = field(default_factory=Counter)
    emptied: Counter[str] = field(default_factory=Counter)


async def keep_retention(database: Database, settings: Settings, *, metrics: Metrics) -> None:
    """Until cancelled: remove what is due, and tell by metrics what was removed and how far behind this is."""

    def count(removed: Removed) -> None:
        for kind, number in removed.deleted.items():
            metrics.retention_deleted.labels(kind).inc(number)
        for kind, number in removed.emptied.items():
            metrics.retention_emptied.labels(kind).inc(number)

    while True:
        try:
            limits = Limits.of(settings, now=datetime.now(UTC))
            await _tell_how_far_behind(database, limits, metrics=metrics)
            await remove(database, limits, patient=False, progress=count)
            await _tell_how_far_behind(database, limits, metrics=metrics)
        except errors.Refusal as problem:
            log.warning("retention was interrupted; trying again", reason=problem.message)
        await asyncio.sleep(_EVERY_SECONDS)


async def remove(
    database: Database, limits: Limits, *, patient: bool, progress: Callable[[Removed], None] = lambda _: None
) -> Removed:
    """Remove all that is due now, and tell what that was; `progress` hears what each batch removed.

    While another process removes, this one waits where it is `patient`, and leaves it all to that one where it is not.
    Raises DatabaseUnavailable; what was removed until then stays so.
    """
    whole = Removed()

    def deleted(batch: Batch) -> None:
        whole.deleted.update(batch.removed)
        progress(Removed(deleted=Counter(batch.removed)))

    def emptied(batch: Batch) -> None:
        whole.emptied.update(batch.removed)
        progress(Removed(emptied=Counter(batch.removed)))

    steps: list[tuple[Remove, Callable[[Batch], None]]] = []
    if limits.interceptions:
        delete = functools.partial(retention.delete_interceptions, before=limits.interceptions)
        steps += [(functools.partial(delete, running=running), deleted) for running in (False, True)]
    if limits.content:
        async with database.transaction() as connection:
            await retention.note_removal(connection, before=limits.content)
        empty = functools.partial(retention.remove_content, before=limits.content)
        steps += [(functools.partial(empty, kind=kind), emptied) for kind in retention.CONTENTS]
    for work, done in steps:
        if not await _in_batches(database, work, patient=patient, done=done):
            break
    return whole


async def due(database: Database, limits: Limits) -> tuple[list[Due], list[Due]]:
    """What would be deleted, and what content of the rest would be removed."""
    async with database.snapshot() as connection:
        rows = (
            await retention.due_interceptions(connection, before=limits.interceptions) if limits.interceptions else []
        )
        content = (
            await retention.due_content(connection, before=limits.content, kept_since=limits.interceptions)
            if limits.content
            else []
        )
    return rows, content


async def _in_batches(database: Database, work: Remove, *, patient: bool, done: Callable[[Batch], None]) -> bool:
    """Batch after batch until one finds nothing; False where another process is about it."""
    since: datetime | None = None
    pace = Pace()
    while True:

        async def batch(connection: Connection, most: int, since: datetime | None = since) -> Batch | None:
            return await work(connection, since=since, most=most) if await retention.try_take(connection) else None

        async with pace.batch() as most:
            found = await database.settle(functools.partial(batch, most=most))
            if found is None:
                if not patient:
                    return False
            elif found.reached is None:
                return True
            else:
                done(found)
                since = found.reached


async def _tell_how_far_behind(database: Database, limits: Limits, *, metrics: Metrics) -> None:
    async with database.connection() as connection:
        interception, content = await retention.oldest(connection)
    for what, limit, oldest in (
        ("interceptions", limits.interceptions, interception),
        ("content", limits.content, content),
    ):
        overdue = limit - oldest if limit and oldest else timedelta()
        metrics.retention_behind.labels(what).set(max(0.0, overdue.total_seconds()))
