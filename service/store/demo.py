"""A log that looks like that of a real engineering organisation, made inside PostgreSQL and the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from service.db import Connection, Database

BLOCK = 24
"""Interceptions come in blocks of so many ordinals; a batch is whole blocks (see sql/demo/insert_interceptions.sql)."""

BATCH = 800 * BLOCK
"""Interceptions in one transaction."""

SEEDS = range(2**31)
"""The seeds that there are: the statements multiply them within 64 bits."""

_NAMESPACE = UUID("0f5be8e6-6c0e-5a7b-9c35-5f2f3f6d7a51")
_MOST_PEOPLE = 200
_FEWEST_PEOPLE = 12


class ForeignRecords(Exception):
    """The database holds interceptions that the demo with this seed did not make."""


async def fill(
    database: Database,
    *,
    interceptions: int,
    seed: int,
    newest: datetime,
    progress: Callable[[int], None],
    beside_others: bool = False,
) -> None:
    """Let the database hold the demo's first `interceptions`, over a period that ends at `newest`.

    Raises ForeignRecords where others have recorded, unless `beside_others`, and ValueError for a seed outside `SEEDS`,
    fewer than one interception or a naive `newest`. What is there already stays as it is: a fill that was interrupted is
    taken up by another, a repeat changes nothing, and a larger number adds the difference. `progress` is told, after each
    batch, how many there are so far.

    This takes the database and not a connection, since each batch is a unit of work of its own: whoever stops a fill
    keeps whole interceptions, and no transaction lasts for minutes.
    """
    if seed not in SEEDS or interceptions < 1 or newest.tzinfo is None:
        message = "a demo needs a seed of 31 bits, at least one interception, and an instant with its zone"
        raise ValueError(message)
    recorder, *people = _user_ids(seed)
    busy = people[: min(_MOST_PEOPLE, max(_FEWEST_PEOPLE, interceptions // 400))]
    async with database.transaction() as connection:
        if not beside_others and await is_foreign(connection, seed=seed):
            raise ForeignRecords
        await connection.run("demo/insert_users", user_ids=[recorder, *busy], seed=seed, newest=newest)
    for first in range(1, interceptions + 1, BATCH):
        last = min(first + BATCH - 1, interceptions)
        async with database.transaction() as connection:
            added = await connection.rows(
                "demo/insert_interceptions",
                seed=seed,
                first_ordinal=first,
                last_ordinal=last,
                interceptions=interceptions,
                user_ids=busy,
                newest=newest,
                days=period(interceptions).days,
            )
            await _insert_children(connection, [row["id"] for row in added])
        progress(last)
    async with database.connection() as connection:
        await connection.run("demo/analyze_records")
        await connection.run("demo/vacuum_interceptions")


async def is_foreign(connection: Connection, *, seed: int) -> bool:
    """Whether there is an interception whose initiator is none of the users of the demo with this seed.

    The ids of those users follow from the seed alone, so that no record needs a mark.
    """
    return bool(await connection.value("demo/has_foreign_interceptions", user_ids=_user_ids(seed)))


def period(interceptions: int) -> timedelta:
    """How long a time so many interceptions cover: 90 days for up to 100,000, 300 for a million and more."""
    return timedelta(days=min(300, 90 + max(0, interceptions - 100_000) * 210 // 900_000))


async def _insert_children(connection: Connection, interception_ids: list[UUID]) -> None:
    await connection.run("demo/insert_token_usages", interception_ids=interception_ids)
    await connection.run("demo/insert_user_prompts", interception_ids=interception_ids)
    await connection.run("demo/insert_tool_usages", interception_ids=interception_ids)
    await connection.run("demo/insert_model_thoughts", interception_ids=interception_ids)


def _user_ids(seed: int) -> list[UUID]:
    """The recorder's id, and those of as many people as the largest demo has, the busiest first."""
    return [uuid5(_NAMESPACE, f"{seed} {place}") for place in range(1 + _MOST_PEOPLE)]
