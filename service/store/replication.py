"""Where a primary is in its log, and how far a standby has come; in bytes, which grow for as long as there is a cluster."""

from __future__ import annotations

from service.db import Connection


async def read_position(connection: Connection) -> int | None:
    """Up to where this primary has written its log: what is committed lies before it. None where it is a standby."""
    position: int | None = await connection.value("replication/read_position")
    return position


async def read_replayed(connection: Connection) -> int | None:
    """Up to where this standby has replayed the log: what lies before it can be read here. None where it is none."""
    replayed: int | None = await connection.value("replication/read_replayed")
    return replayed
