"""The distinct names in use: models and clients."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from service.db import Connection
from service.store.totals import EVERYONE


async def list_names(
    connection: Connection,
    *,
    kind: Literal["models", "clients"],
    prefix: str,
    visible_to: UUID | None,
    page_size: int,
    skip: int,
    rolled_up: bool,
) -> list[str]:
    """Names that begin with `prefix`, by code point; a client that is null reads `Unknown`."""
    wanted = {"prefix": prefix, "visible_to": visible_to, "page_size": page_size, "skip": skip}
    if rolled_up:
        level = "month" if visible_to is None else "own month"
        rows = await connection.rows(f"rollups/list_{kind}", **wanted, scope=visible_to or EVERYONE, level=level)
    else:
        rows = await connection.rows(f"names/list_{kind}", **wanted)
    return [row["name"] for row in rows]
