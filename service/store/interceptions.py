"""The list: a page of interceptions, and how many there are in all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from service.db import Connection


@dataclass(frozen=True, slots=True)
class Criteria:
    """Which interceptions: those that match every field that is set. `visible_to` is whose a caller may see."""

    visible_to: UUID | None = None
    initiator_id: UUID | None = None
    provider: str | None = None
    provider_name: str | None = None
    model: str | None = None
    client: str | None = None
    started_after: datetime | None = None
    started_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the order of the list: what follows is strictly after it."""

    started_at: datetime
    interception_id: UUID


async def count(connection: Connection, *, criteria: Criteria) -> int:
    """How many ended interceptions match."""
    return int(await connection.value("interceptions/count_matching", **asdict(criteria)))


async def read_page(
    connection: Connection, *, criteria: Criteria, page_size: int, offset: int = 0, cursor: Cursor | None = None
) -> tuple[int, list[bytes]]:
    """How many ended interceptions match, and a page of them, counted and skipped one by one: for where no rollups are."""
    total = await count(connection, criteria=criteria)
    if offset >= total:
        return total, []
    return total, await list_page(connection, criteria=criteria, page_size=page_size, skip=offset, cursor=cursor)


async def list_page(
    connection: Connection,
    *,
    criteria: Criteria,
    page_size: int,
    skip: int = 0,
    cursor: Cursor | None = None,
    started_until: datetime | None = None,
) -> list[bytes]:
    """The matching interceptions, newest first, each as the JSON text of API section `Interceptions`."""
    values = page_values(criteria, page_size=page_size, skip=skip, cursor=cursor, started_until=started_until)
    return [row["interception"] for row in await connection.rows("interceptions/list_matching", **values)]


def page_values(
    criteria: Criteria,
    *,
    page_size: int,
    skip: int = 0,
    cursor: Cursor | None = None,
    started_until: datetime | None = None,
) -> dict[str, object]:
    """What `interceptions/list_matching` takes for a page."""
    return asdict(criteria) | {
        "page_size": page_size,
        "skip": skip or None,
        "started_until": started_until,
        "cursor_started_at": cursor.started_at if cursor else None,
        "cursor_id": cursor.interception_id if cursor else None,
    }


async def find_cursor(connection: Connection, *, interception_id: UUID, visible_to: UUID | None) -> Cursor | None:
    """Where the page after an interception begins; None if it is unknown, still running, or not to be seen."""
    started_at = await connection.value(
        "interceptions/find_cursor", interception_id=interception_id, visible_to=visible_to
    )
    return None if started_at is None else Cursor(started_at=started_at, interception_id=interception_id)


async def read_one(connection: Connection, *, interception_id: UUID) -> bytes:
    """One interception, ended or not, as the JSON text that a list would show."""
    rows = await connection.rows("interceptions/list_matching", interception_id=interception_id, page_size=1)
    return bytes(rows[0][0])


async def any_exists(connection: Connection) -> bool:
    """Whether anything is recorded at all, ended or not."""
    return bool(await connection.value("interceptions/any_interception"))
