"""The switch for logging upstream requests: its state is its newest change, and every change is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.db import Connection

# What PostgreSQL notifies, by a trigger, after every change.
CHANNEL = "bridgelog_request_logging"


@dataclass(frozen=True, slots=True)
class State:
    """Whether requests are logged, since when and by whom; the latter two are None before the first change."""

    enabled: bool = False
    changed_at: datetime | None = None
    changed_by: UUID | None = None


async def read(connection: Connection) -> State:
    """The state now."""
    row = await connection.row("request_logging/read_state")
    if row is None:
        return State()
    return State(enabled=row["enabled"], changed_at=row["changed_at"], changed_by=row["changed_by"])


async def turn(connection: Connection, *, enabled: bool, changed_at: datetime, changed_by: UUID) -> None:
    """Turn the switch; no change where it already stands so. Callers wait for each other."""
    await connection.run("request_logging/lock_state")
    if (await read(connection)).enabled == enabled:
        return
    await connection.run("request_logging/insert_change", enabled=enabled, changed_at=changed_at, changed_by=changed_by)
