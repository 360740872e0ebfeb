"""What is older than it may be: deleting interceptions, removing content, and counting what is due.

Each of these takes a batch and tells how far it came. migrations/0006 tells how a removal is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.db import Connection

Content = Literal["user_prompts", "tool_usages", "model_thoughts"]

CONTENTS: tuple[Content, ...] = ("user_prompts", "tool_usages", "model_thoughts")


@dataclass(frozen=True, slots=True)
class Batch:
    """What a batch removed, by kind, and the instant that it reached; None where nothing was due."""

    removed: Mapping[str, int]
    reached: datetime | None


@dataclass(frozen=True, slots=True)
class Due:
    """How many of a kind are due, and from when to when."""

    kind: str
    found: int
    oldest: datetime
    newest: datetime


async def try_take(connection: Connection) -> bool:
    """Take the right to remove until the transaction ends; False if another process has it."""
    return bool(await connection.value("retention/try_retention"))


async def delete_interceptions(
    connection: Connection, *, running: bool, since: datetime | None, before: datetime, most: int
) -> Batch:
    """Delete the oldest interceptions that started before an instant, ended or running, and all that they own."""
    row = await connection.row(
        "retention/delete_interceptions", running=running or None, since=since, before=before, most=most
    )
    removed = dict(row or {})
    return Batch(reached=removed.pop("reached", None), removed=removed)


async def note_removal(connection: Connection, *, before: datetime) -> None:
    """Let content that was created before an instant count as removed where it is empty."""
    await connection.run("retention/note_removal", before=before)


async def remove_content(
    connection: Connection, *, kind: Content, since: datetime | None, before: datetime, most: int
) -> Batch:
    """Empty the oldest content of a kind that was created before an instant."""
    row = await connection.row(f"retention/remove_{kind}", since=since, before=before, most=most)
    removed = dict(row or {})
    return Batch(reached=removed.get("reached"), removed={kind: removed.get("removed", 0)})


async def oldest(connection: Connection) -> tuple[datetime | None, datetime | None]:
    """The start of the oldest interception, and the instant of the oldest content."""
    row = await connection.row("retention/find_oldest")
    return (row["interception"], row["content"]) if row else (None, None)


async def due_interceptions(connection: Connection, *, before: datetime) -> list[Due]:
    """What would be deleted, by kind."""
    rows = await connection.rows("retention/count_interceptions", before=before)
    return [Due(**dict(row)) for row in rows if row["found"]]


async def due_content(connection: Connection, *, before: datetime, kept_since: datetime | None) -> list[Due]:
    """What content would be removed, by kind; not of interceptions that started before `kept_since`."""
    rows = await connection.rows("retention/count_content", before=before, kept_since=kept_since)
    return [Due(**dict(row)) for row in rows]
