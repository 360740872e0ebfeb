"""Whether the database is there, and has the tables that this version needs."""

from __future__ import annotations

from collections.abc import Sequence

from service.db import Connection


async def ping(connection: Connection) -> None:
    """One round trip; raises DatabaseUnavailable."""
    await connection.value("schema/ping")


async def missing_migrations(connection: Connection, *, known: Sequence[str]) -> list[str]:
    """Which of the `known` migrations the database lacks."""
    applied = {row["migration_id"] for row in await connection.rows("schema/applied_migrations")}
    return [name for name in known if name not in applied]


async def connection_limit(connection: Connection) -> int:
    """How many connections the server allows to ordinary roles, all of them together."""
    return int(await connection.value("schema/read_connection_limit"))
