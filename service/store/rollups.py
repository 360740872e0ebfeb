"""The upkeep of the rollups: sealing the live tail, folding changes into buckets, verifying and rebuilding.

One process at a time does this, whoever comes first. migrations/0005 tells how the rollups work.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from service.db import Connection


@dataclass(frozen=True, slots=True)
class Difference:
    """A bucket that does not hold what a full count finds; the all-zero initiator is everyone."""

    initiator_id: UUID
    level: str
    starts_at: datetime
    provider: str
    provider_name: str
    model: str
    client: str
    rolled_up: int
    counted: int


async def read_sealed_until(connection: Connection) -> datetime:
    """Up to where the rollups reach."""
    found: datetime = await connection.value("rollups/read_sealed_until")
    return found


async def seal(connection: Connection, *, until: datetime, patience: timedelta = timedelta(milliseconds=100)) -> bool:
    """Seal what started before `until`, or a day of it; whether there is more.

    This waits for the transactions that are writing interceptions, and those that come next wait for this one. Raises
    Contention where they would have to for longer than `patience`, for somebody keeps a transaction open; nothing is
    sealed then.
    """
    if not await connection.value("rollups/try_upkeep"):
        return False
    sealed_until = await read_sealed_until(connection)
    first: datetime | None = await connection.value("rollups/find_first_unsealed", sealed_until=sealed_until)
    if first is None or first >= until:
        return False
    day = first.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    seal_until = min(day, until)
    await connection.value("rollups/set_patience", milliseconds=patience // timedelta(milliseconds=1))
    await connection.value("rollups/lock_sealing")
    await connection.run("rollups/seal", sealed_until=sealed_until, seal_until=seal_until)
    await connection.run("rollups/set_sealed_until", seal_until=seal_until)
    return seal_until < until


async def first_unsealed(connection: Connection) -> datetime | None:
    """When the earliest ended interception started that is not sealed; None where all are."""
    sealed_until = await connection.value("rollups/read_sealed_until")
    found: datetime | None = await connection.value("rollups/find_first_unsealed", sealed_until=sealed_until)
    return found


async def fold(connection: Connection) -> bool:
    """Fold the changes into the buckets; False where there was nothing to do, or another process is about it."""
    if not await connection.value("rollups/any_change") or not await connection.value("rollups/try_upkeep"):
        return False
    await connection.run("rollups/insert_kinds")
    await connection.run("rollups/fold")
    return True


async def verify(connection: Connection, *, most: int) -> list[Difference]:
    """Compare the rollups with a full count, and tell the first `most` differences, the latest first."""
    return [Difference(**dict(row)) for row in await connection.rows("rollups/verify", most=most)]


async def rebuild(connection: Connection) -> None:
    """Set every bucket right. Who reads and writes goes on meanwhile, and totals that were exact stay so."""
    await connection.value("rollups/take_upkeep")
    await connection.run("rollups/insert_kinds")
    await connection.run("rollups/insert_all_kinds")
    await connection.run("rollups/rebuild")
