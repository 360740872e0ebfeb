"""The distinct names in use: models and clients."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from service.db import Connection


async def list_names(
    connection: Connection,
    *,
    kind: Literal["models", "clients"],
    prefix: str,
    visible_to: UUID | None,
    page_size: int,
    skip: int,
) -> list[str]:
    """Names that begin with `prefix`, by code point; a client that is null reads `Unknown`."""
    rows = await connection.rows(
        f"names/list_{kind}", prefix=prefix, visible_to=visible_to, page_size=page_size, skip=skip
    )
    return [row["name"] for row in rows]
