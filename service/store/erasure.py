"""Erasure: what a person's interceptions hold besides the counts.

What started up to `erased_until` stays erased: sent again, it is a repeat, and what of it was never stored is stored
without content. migrations/0006 tells how that is remembered.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from service.db import Connection
from service.store import users
from service.store.recording import Initiator

KINDS = ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts")

Place = tuple[datetime, UUID]

_RESERVED = re.compile(r"erased-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def is_reserved(username: str) -> bool:
    """Whether a name begins as the names of those who were erased do: nobody else is called so."""
    return _RESERVED.match(username) is not None


async def is_known(connection: Connection, *, user_id: UUID) -> bool:
    """Whether a person is a user, or has initiated anything."""
    return bool(await connection.value("erasure/is_known", user_id=user_id))


async def mark(connection: Connection, *, user_id: UUID, now: datetime) -> datetime:
    """Note that a person is erased, and tell up to which start of what they initiated."""
    erased_until: datetime = await connection.value("erasure/mark_user", user_id=user_id, now=now)
    return erased_until


async def close_account(connection: Connection, *, user_id: UUID, now: datetime) -> int:
    """Take a user's names, tokens, roles and right to sign in; how many tokens there were.

    Who initiated something and has no user gets one of that kind, so that an import creates none that has a name. Raises
    UsernameTaken where somebody takes the name just then; done again, another one is found.
    """
    for username in _usernames(user_id):
        nameless = Initiator(id=user_id, username=username)
        if not await users.create_missing(connection, initiators=[nameless], seen_at=now):
            break
    await connection.run("erasure/close_account", user_id=user_id, updated_at=now)
    await anonymise(connection, user_id=user_id, now=now)
    return len(await connection.rows("erasure/delete_tokens", user_id=user_id))


async def wait_for_writers(connection: Connection, *, patience: timedelta) -> None:
    """Wait until every transaction that has written interceptions is at its end; what comes later knows of the erasure.

    Raises Contention where that takes longer than `patience`, for which everybody who writes has to wait.
    """
    await connection.value("rollups/set_patience", milliseconds=patience // timedelta(milliseconds=1))
    await connection.run("erasure/lock_interceptions")


async def interceptions(
    connection: Connection, *, user_id: UUID, erased_until: datetime, running: bool, after: Place | None, most: int
) -> list[Place]:
    """Some of what a person initiated up to an instant, from a place in its order."""
    rows = await connection.rows(
        "erasure/list_interceptions",
        user_id=user_id,
        erased_until=erased_until,
        running=running or None,
        after_started_at=after and after[0],
        after_id=after and after[1],
        most=most,
    )
    return [(row["started_at"], row["id"]) for row in rows]


async def erase(connection: Connection, *, ids: Sequence[UUID]) -> Mapping[str, int]:
    """Remove what interceptions and their children hold besides the counts; how many of each kind held anything."""
    await connection.rows("recording/lock_interceptions", ids=ids)
    return {kind: await connection.value(f"erasure/erase_{kind}", ids=ids) for kind in KINDS}


async def anonymise(connection: Connection, *, user_id: UUID, now: datetime) -> None:
    """Take a user's names and picture; raises as `close_account` does."""
    username, other_username = _usernames(user_id)
    await connection.run(
        "erasure/anonymise_user", user_id=user_id, username=username, other_username=other_username, updated_at=now
    )


def _usernames(user_id: UUID) -> tuple[str, str]:
    """What somebody who was erased is called, and what instead where somebody else is called so already."""
    username = f"erased-{user_id}"
    return username, f"{username}-{secrets.token_hex(8)}"
