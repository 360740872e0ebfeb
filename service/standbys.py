"""Reading from standbys: which of them may answer now, and what the primary answers instead.

A standby answers pages, totals and names while it is at most `max_replication_lag` behind. Whoever may record reads their
own write: the primary tells where its log is, and a standby that has not replayed up to there is passed over. What a
standby refuses, and what is lost with it, the primary is asked again, once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import structlog

from service import db, errors
from service.auth import Caller
from service.db import Connection, Database
from service.metrics import Metrics
from service.settings import Settings
from service.statements import Statement
from service.store import replication

T = TypeVar("T")

log = structlog.get_logger("bridgelog.standbys")

_EVERY_SECONDS = 0.5
_REMEMBERED = 7200
# A standby is some milliseconds behind, as a rule: waiting for it so long is cheaper than to load the primary.
_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.0)
# The primary would take as long, or compose as much, once more; and it has enough to do without a standby's queue.
_FINAL = (errors.TookTooLong, errors.TooLarge, errors.Overloaded)


class Standbys:
    """The standbys of `read_database_url`, and the primary for what they do not answer. One per process."""

    def __init__(
        self,
        settings: Settings,
        primary: Database,
        statements: Mapping[str, Statement],
        *,
        metrics: Metrics,
        observer: db.Observer | None = None,
    ) -> None:
        self._primary = primary
        self._metrics = metrics
        self._past: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)
        self._turn = 0
        self._standbys = [
            Standby(
                name,
                partial(db.connect_later, settings, url, statements, observer=observer),
                max_lag=settings.max_replication_lag,
                metrics=metrics,
            )
            for name, url in (db.each_host(settings.read_database_url) if settings.read_database_url else ())
        ]

    async def read(self, work: Callable[[Connection], Awaitable[T]], *, caller: Caller, snapshot: bool = False) -> T:
        """Do `work`, which only reads, on a standby where one may answer this caller, else on the primary.

        With `snapshot` all its statements see the same data. Nothing of what an attempt read may have left the process:
        `work` returns it.
        """
        if not self._standbys:
            return await self._primary.read(work, snapshot=snapshot)
        outcome = "none_in_use"
        if (found := self._next()) is not None:
            standby, database = found
            # Only who may record can have recorded, by whatever process, and misses it.
            position = await self._position() if caller.can_record and self._primary.writable else 0
            try:
                if await _has_replayed(database, position):
                    async with database.snapshot() if snapshot else database.connection() as connection:
                        answer = await work(connection)
                    self._metrics.reads.labels("standby").inc()
                    return answer
                outcome = "behind"
            except _FINAL:
                self._metrics.reads.labels("standby").inc()
                raise
            except errors.Refusal as refusal:
                # It went away, its recovery got in the way, or it has not heard of a cursor, a user or a table yet.
                if isinstance(refusal, errors.DatabaseUnavailable):
                    standby.leave(reason=refusal.message)
                outcome = "refused"
        answer = await self._primary.read(work, snapshot=snapshot)
        self._metrics.reads.labels(outcome).inc()
        return answer

    async def watch(self) -> None:
        """Keep looking at the primary and the standbys, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_SECONDS)

    async def look(self) -> None:
        """Find out where everyone is in the log, and by that who may answer."""
        if not self._standbys:
            return
        position = await self._look_at_primary()
        await asyncio.gather(*(standby.look(position, self._past) for standby in self._standbys))

    async def close(self) -> None:
        """Close every connection to the standbys."""
        await asyncio.gather(*(standby.close() for standby in self._standbys))

    def _next(self) -> tuple[Standby, Database] | None:
        self._turn += 1
        for place in range(len(self._standbys)):
            standby = self._standbys[(self._turn + place) % len(self._standbys)]
            if standby.in_use and standby.database:
                return standby, standby.database
        return None

    async def _position(self) -> int | None:
        return await self._primary.read(replication.read_position)

    async def _look_at_primary(self) -> int | None:
        try:
            position = await self._primary.probe(replication.read_position)
        except errors.Refusal:
            return None
        if position is not None:
            if self._past and position < self._past[-1][1]:
                self._past.clear()  # another primary, which was behind the one before
            self._past.append((time.monotonic(), position))
        return position


class Standby:
    """One host of `read_database_url`. `database` is None while it cannot be reached."""

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[Database]], *, max_lag: float, metrics: Metrics
    ) -> None:
        self.name = name
        self.in_use = False
        self.database: Database | None = None
        self._connect = connect
        self._max_lag = max_lag
        self._metrics = metrics
        self._replayed: int | None = None
        self._astray: int | None = None
        self._tell(math.inf, math.inf)

    async def look(self, position: int | None, past: deque[tuple[float, int]]) -> None:
        """See how far it has come, against where the primary is now and was in the `past`."""
        # Its last answer is older than the primary's: it cannot be ahead, unless it follows a primary that is no more.
        if position is not None and self._replayed is not None and self._replayed > position:
            self._astray = self._replayed
        if self.database is None:
            self.database = await self._connect()
        try:
            self._replayed = await self.database.probe(replication.read_replayed)
        except errors.Refusal as problem:
            # Who still waits for it is told at once, and asks the primary.
            self.database.cut()
            self.database = None
            self._tell(math.inf, math.inf)
            self.leave(reason=problem.message)
            return
        if self._replayed is None:
            self._tell(math.inf, math.inf)
            self.leave(reason="It is no standby.")
            return
        lag = _lag(self._replayed, past)
        self._tell(lag, max(0, past[-1][1] - self._replayed) if past else math.inf)
        if self._astray == self._replayed:
            self.leave(reason="It is ahead of the primary.")
        elif lag > self._max_lag:
            self.leave(reason="It is behind the primary.")
        else:
            self._astray = None
            self._enter()

    def leave(self, *, reason: str) -> None:
        """Take it out of use, until a look finds it fit again."""
        if self.in_use:
            log.warning("a standby is out of use", host=self.name, reason=reason)
        self.in_use = False
        self._metrics.standby_in_use.labels(self.name).set(0)

    async def close(self) -> None:
        """Close every connection to it."""
        if self.database:
            await self.database.close()

    def _enter(self) -> None:
        if not self.in_use:
            log.info("a standby is in use", host=self.name)
        self.in_use = True
        self._metrics.standby_in_use.labels(self.name).set(1)

    def _tell(self, seconds: float, size: float) -> None:
        self._metrics.standby_lag_seconds.labels(self.name).set(seconds)
        self._metrics.standby_lag_bytes.labels(self.name).set(size)


async def _has_replayed(standby: Database, position: int | None) -> bool:
    """Whether it shows what is committed up to `position`; waits a moment for it. None is a position that is not known.

    Asked before the reading begins: a snapshot may be older than what its own transaction is told here.
    """
    if not position:
        return position == 0
    for pause in _PAUSES:
        async with standby.connection() as connection:
            replayed = await replication.read_replayed(connection)
        if replayed is None:
            return False
        if replayed >= position:
            return True
        await asyncio.sleep(pause)
    return False


def _lag(replayed: int, past: deque[tuple[float, int]]) -> float:
    """For how many seconds the primary has been ahead of what is replayed; infinite where that is not known."""
    if past and replayed >= past[-1][1]:
        return 0.0
    for seen_at, position in reversed(past):
        if position <= replayed:
            return time.monotonic() - seen_at
    return math.inf
