"""Users: who may sign in, and as what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from service.db import Connection
from service.store.recording import Initiator

# No user has this id and no record carries it: what is visible to NOBODY is nothing.
NOBODY = UUID(int=0)


@dataclass(frozen=True, slots=True)
class User:
    """A user as `bridgelog users list` shows them."""

    id: UUID
    username: str
    name: str
    status: str
    roles: tuple[str, ...]


async def find_id(connection: Connection, *, username: str, visible_to: UUID | None = None) -> UUID | None:
    """Whose name this is, without regard to case; None if nobody's, or somebody's whom the caller may not see."""
    found: UUID | None = await connection.value("users/find_by_username", username=username, visible_to=visible_to)
    return found


async def add(
    connection: Connection, *, user_id: UUID, username: str, name: str, roles: list[str], created_at: datetime
) -> None:
    """A new user; raises UsernameTaken or UserExists."""
    await connection.run(
        "users/insert_user", user_id=user_id, username=username, name=name, roles=roles, created_at=created_at
    )


async def refresh(connection: Connection, *, initiator: Initiator, seen_at: datetime, started_at: datetime) -> None:
    """Create the initiator's user, or refresh their names where they differ; never roles or status.

    Somebody who was erased stays so, unless they initiated what started later. Raises UsernameTaken where another id
    holds the name.
    """
    await connection.run(
        "users/refresh_user",
        user_id=initiator.id,
        username=initiator.username,
        name=initiator.name,
        avatar_url=initiator.avatar_url,
        seen_at=seen_at,
        started_at=started_at,
    )


async def create_missing(
    connection: Connection, *, initiators: Iterable[Initiator], seen_at: datetime
) -> frozenset[UUID]:
    """Create those initiators' users that do not exist; of several with one id the first.

    Returns the ids that got no user, because one with another id holds the name.
    """
    wanted: dict[UUID, Initiator] = {}
    for initiator in initiators:
        wanted.setdefault(initiator.id, initiator)
    if not wanted:
        return frozenset()
    await connection.run(
        "users/insert_missing_users",
        user_id=list(wanted),
        username=[initiator.username for initiator in wanted.values()],
        name=[initiator.name or "" for initiator in wanted.values()],
        avatar_url=[initiator.avatar_url or "" for initiator in wanted.values()],
        seen_at=seen_at,
    )
    rows = await connection.rows("users/find_missing_users", user_ids=list(wanted))
    return frozenset(row["id"] for row in rows)


async def list_all(connection: Connection) -> list[User]:
    """Everyone who is not deleted, by name."""
    return [
        User(
            id=row["id"],
            username=row["username"],
            name=row["name"],
            status=row["status"],
            roles=tuple(row["roles"] or ()),
        )
        for row in await connection.rows("users/list_users")
    ]


async def set_status(
    connection: Connection, *, username: str, status: Literal["active", "suspended"], updated_at: datetime
) -> bool:
    """Suspend a user or let them in again; False if nobody has that name."""
    found = await connection.value("users/set_status", username=username, status=status, updated_at=updated_at)
    return found is not None


async def any_owner(connection: Connection) -> bool:
    """Whether there is anybody who may do everything."""
    return bool(await connection.value("users/any_owner"))
