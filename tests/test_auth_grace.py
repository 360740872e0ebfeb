"""Signing in to the bridge while the database is away: whom it saw valid a short time ago, and nobody else."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from bridging import API, KEY, MESSAGES, Bridged, listening
from conftest import Person
from faults import Wire, socket_of, through, until
from rows import Sql

from service import auth, db, errors, statements
from service.app import build_app
from service.auth import Authenticator
from service.settings import Settings

Make = Callable[..., Awaitable[Authenticator]]
AddPerson = Callable[..., Awaitable[Person]]


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    wire = Wire(socket_of(database_url))
    await wire.mend()
    yield wire
    await wire.cut()


class Clock:
    """Monotonic time, with what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._whole: Callable[[], float] = time.monotonic

    def __call__(self) -> float:
        return self._whole() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
async def make(wire: Wire, database_url: str, settings: Settings) -> AsyncIterator[Make]:
    """What tells who holds a token, through the wire, with a grace as told."""
    async with AsyncExitStack() as stack:

        async def build(grace: float = 300.0) -> Authenticator:
            database = await db.connect(settings, through(wire, database_url), statements.load())
            stack.push_async_callback(database.close)
            return Authenticator(database, member_read="own", grace=grace)

        yield build


async def test_whom_it_saw_valid_gets_in_while_the_database_is_away(
    make: Make, wire: Wire, clock: Clock, owner: Person, member: Person
) -> None:
    authenticator = await make()
    seen = await authenticator.authenticate(owner.token)
    clock.ahead += 1  # than it is trusted for
    await wire.cut()
    for _ in range(3):
        assert await authenticator.authenticate_for_bridge(owner.token) == seen
        with pytest.raises(errors.DatabaseUnavailable):
            await authenticator.authenticate(owner.token)
        with pytest.raises(errors.DatabaseUnavailable):
            await authenticator.authenticate_for_bridge(member.token)
    with pytest.raises(errors.DatabaseUnavailable):
        await authenticator.authenticate_for_bridge(f"{owner.token[:-1]}{'a' if owner.token[-1] != 'a' else 'b'}")
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate_for_bridge("no token at all")
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate_for_bridge(None)


async def test_the_grace_ends_and_is_not_prolonged_by_its_use(
    make: Make, wire: Wire, clock: Clock, owner: Person
) -> None:
    authenticator = await make(grace=10.0)
    await authenticator.authenticate_for_bridge(owner.token)
    await wire.cut()
    for _ in range(3):
        clock.ahead += 3
        await authenticator.authenticate_for_bridge(owner.token)
    clock.ahead += 3
    with pytest.raises(errors.DatabaseUnavailable):
        await authenticator.authenticate_for_bridge(owner.token)
    await wire.mend()
    await authenticator.authenticate_for_bridge(owner.token)


async def test_a_grace_of_zero_is_none(make: Make, wire: Wire, clock: Clock, owner: Person) -> None:
    authenticator = await make(grace=0.0)
    await authenticator.authenticate_for_bridge(owner.token)
    clock.ahead += 1
    await wire.cut()
    with pytest.raises(errors.DatabaseUnavailable):
        await authenticator.authenticate_for_bridge(owner.token)


async def test_a_token_that_expires_meanwhile_is_out(
    make: Make, wire: Wire, clock: Clock, owner: Person, sql: Sql
) -> None:
    sql("UPDATE api_keys SET expires_at = now() + interval '2 seconds' WHERE user_id = %s", owner.id)
    authenticator = await make()
    await authenticator.authenticate_for_bridge(owner.token)
    clock.ahead += 1
    await wire.cut()
    await authenticator.authenticate_for_bridge(owner.token)
    await asyncio.sleep(2)
    with pytest.raises(errors.DatabaseUnavailable):
        await authenticator.authenticate_for_bridge(owner.token)


@pytest.mark.parametrize("how", ["revoked", "suspended", "deleted", "expired"])
async def test_who_was_seen_invalid_has_no_grace(
    make: Make, wire: Wire, clock: Clock, owner: Person, sql: Sql, *, how: str
) -> None:
    authenticator = await make()
    await authenticator.authenticate_for_bridge(owner.token)
    sql(
        {
            "revoked": "DELETE FROM api_keys WHERE user_id = %s",
            "suspended": "UPDATE users SET status = 'suspended' WHERE id = %s",
            "deleted": "UPDATE users SET deleted = true WHERE id = %s",
            "expired": "UPDATE api_keys SET expires_at = now() WHERE user_id = %s",
        }[how],
        owner.id,
    )
    clock.ahead += 0.6  # within the second that the API promises
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate_for_bridge(owner.token)
    await wire.cut()
    for _ in range(2):
        with pytest.raises((errors.DatabaseUnavailable, errors.SignedOut)):
            await authenticator.authenticate_for_bridge(owner.token)


async def test_who_is_revoked_meanwhile_is_out_once_the_database_is_back(
    make: Make, wire: Wire, clock: Clock, owner: Person, sql: Sql
) -> None:
    authenticator = await make()
    await authenticator.authenticate_for_bridge(owner.token)
    clock.ahead += 1
    await wire.cut()
    await authenticator.authenticate_for_bridge(owner.token)
    sql("DELETE FROM api_keys WHERE user_id = %s", owner.id)
    await authenticator.authenticate_for_bridge(owner.token)
    await wire.mend()
    clock.ahead += 0.6
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate_for_bridge(owner.token)


async def test_a_database_that_hangs_is_waited_for_once_and_heard_when_it_answers(
    make: Make, clock: Clock, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = await make()
    await authenticator.authenticate_for_bridge(owner.token)
    clock.ahead += 1
    monkeypatch.setattr(auth, "_GRACE_PATIENCE", 0.3)
    sql("BEGIN")
    sql("LOCK TABLE api_keys")
    waits = []
    whole = asyncio.wait

    async def count(*arguments: Any, **named: Any) -> Any:
        waits.append(arguments)
        return await whole(*arguments, **named)

    monkeypatch.setattr(asyncio, "wait", count)
    for _ in range(20):
        await authenticator.authenticate_for_bridge(owner.token)
    assert len(waits) == 1
    sql("DELETE FROM api_keys WHERE user_id = %s", owner.id)
    sql("COMMIT")
    await until(lambda: authenticator._late is None)
    with pytest.raises(errors.SignedOut):
        await authenticator.authenticate_for_bridge(owner.token)


async def test_who_is_remembered_is_bounded_and_the_latest_are_kept(
    make: Make, wire: Wire, clock: Clock, add_person: AddPerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_MOST_REMEMBERED", 3)
    authenticator = await make()
    people = [await add_person(f"person{number}") for number in range(5)]
    for person in people:
        await authenticator.authenticate_for_bridge(person.token)
    clock.ahead += 1
    await wire.cut()
    for person, kept in zip(people, itertools.chain([False] * 2, [True] * 3), strict=True):
        if kept:
            await authenticator.authenticate_for_bridge(person.token)
        else:
            with pytest.raises(errors.DatabaseUnavailable):
                await authenticator.authenticate_for_bridge(person.token)


async def test_the_bridge_serves_and_records_without_the_database(
    wire: Wire, settings: Settings, provider: TestServer, *, database_url: str, member: Person, tmp_path: Path
) -> None:
    """The whole service: requests go on, the API says that the database is away, and all is recorded once it is back."""
    chosen = replace(
        settings,
        bridge="on",
        spool_dir=tmp_path / "spool",
        anthropic_key=KEY,
        anthropic_base_url=str(provider.make_url("/anthropic")),
    )
    async with (
        listening(build_app(chosen, database_url=through(wire, database_url))) as url,
        aiohttp.ClientSession() as session,
    ):
        bridge = Bridged(url, member.token, database_url, session)

        async def ask() -> int:
            async with bridge.ask(MESSAGES, "standin-tools", stream=True) as response:
                await response.read()
                return int(response.status)

        assert await ask() == 200
        await bridge.recorded()
        await asyncio.sleep(0.6)
        await wire.cut()
        assert await asyncio.gather(*(ask() for _ in range(50))) == [200] * 50
        async with session.get(f"{url}{API}/interceptions", headers=member.headers) as response:
            assert response.status == 503
        async with session.get(f"{url}/readyz") as response:
            ready = await response.json()
            assert (response.status, ready["status"]) == (200, "without the database")
            assert ready["recorder"]["waiting_records"] >= 150
        assert len(bridge.rows()) == 1
        spooled = b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*.log"))
        assert spooled.count(b"How are you?") >= 50
        assert KEY.encode() not in spooled
        assert member.token.partition("-")[2].encode() not in spooled
        await wire.mend()
        rows = await bridge.recorded(51)
    assert {row["metadata"]["status"] for row in rows} == {"completed"}
    assert {row["api_key_id"] for row in rows} == {member.token.partition("-")[0]}
    assert [len(row["token_usages"]) for row in rows] == [1] * 51
