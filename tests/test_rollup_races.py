"""Writers, readers and sealings at once: totals are exact in every snapshot; and these tests would notice if not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from rows import Sql, put

from service import db, errors, migrations, statements, upkeep
from service.db import Connection, Database
from service.embedded import Embedded
from service.settings import Settings
from service.store import interceptions, rollups, totals
from service.store.interceptions import Criteria

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECONDS = (
    60.0 if os.environ.get("BRIDGELOG_TEST_SOAK") == "1" else float(os.environ.get("BRIDGELOG_TEST_SECONDS", "10"))
)
WRITERS, READERS = 8, 4
PEOPLE = [UUID(int=number) for number in (1, 2, 3)]
INSERT = """
    INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, client, started_at, ended_at)
    VALUES (%s, %s, 'p', %s, 'c', %s, %s)
"""
SEALER = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'
        AND classid = 4770321905514818 >> 32 AND objid = 4770321905514818 & 4294967295
"""


def values(started_at: datetime, *, model: str = "m", person: UUID = PEOPLE[0]) -> tuple[object, ...]:
    return (uuid4(), person, model, started_at, started_at)


async def seal(database: Database, until: datetime) -> None:
    async with database.transaction() as connection:
        await rollups.seal(connection, until=until)


async def totals_and_counts(database: Database) -> tuple[int, int]:
    async with database.snapshot() as connection:
        return (
            await totals.count(connection, criteria=Criteria()),
            await interceptions.count(connection, criteria=Criteria()),
        )


async def differences(database: Database) -> list[rollups.Difference]:
    async with database.snapshot() as connection:
        return await rollups.verify(connection, most=100)


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Another person's connection: `connect("serializable")`; without an argument, each statement commits itself."""
    with contextlib.ExitStack() as stack:

        def opened(isolation: str | None = None) -> psycopg.Connection[Any]:
            raw = stack.enter_context(psycopg.connect(database_url, autocommit=True))
            if isolation:
                raw.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
            return raw

        yield opened


Connect = Callable[..., psycopg.Connection[Any]]


# -- older snapshots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["read uncommitted", "read committed", "repeatable read", "serializable"])
@pytest.mark.parametrize("sealing", [False, True])
@pytest.mark.parametrize("savepoint", [False, True])
async def test_a_writer_whose_snapshot_is_older_than_a_sealing(
    database: Database, sql: Sql, connect: Connect, *, isolation: str, sealing: bool, savepoint: bool
) -> None:
    put(sql, "interceptions", {"started_at": str(NOON - DAY)}, {"started_at": str(NOON)})
    await upkeep.catch_up(database, until=NOON - timedelta(hours=1))
    writer = connect(isolation)
    writer.execute("SELECT count(*) FROM aibridge_interceptions")
    if savepoint:
        writer.execute("SAVEPOINT s")
        writer.execute(INSERT, values(NOON))
        writer.execute("ROLLBACK TO SAVEPOINT s")
    if sealing:
        await upkeep.catch_up(database, until=NOON + timedelta(hours=1))
    late = values(NOON)
    if sealing and isolation in {"repeatable read", "serializable"}:
        with pytest.raises(psycopg.errors.SerializationFailure):
            writer.execute(INSERT, late)
        writer.execute("ROLLBACK")
        expected = 2
    else:
        writer.execute(INSERT, late)
        writer.execute("COMMIT")
        expected = 3
    assert await totals_and_counts(database) == (expected, expected)
    assert await differences(database) == []


# -- the lock, in place and removed ----------------------------------------------------------------------------------


@pytest.fixture
def without_lock(sql: Sql) -> None:
    """Writers hold nothing, and sealing goes on all the same."""
    sql("CREATE OR REPLACE FUNCTION bridgelog_hold_sealing() RETURNS boolean LANGUAGE sql AS 'SELECT TRUE'")


async def write_through_a_sealing(database: Database, connect: Connect) -> bool:
    """Write, have it sealed, and commit; whether it was sealed."""
    writer = connect("read committed")
    writer.execute(INSERT, values(NOON))
    try:
        await seal(database, NOON + DAY)
    except errors.Contention:
        return False
    finally:
        writer.execute("COMMIT")
    return True


async def seal_through_a_write(database: Database, connect: Connect) -> bool:
    """Seal, write before that has committed, and commit; whether the writer had to wait."""
    writer = connect()
    async with database.transaction() as connection:
        await rollups.seal(connection, until=NOON + DAY)
        writing = asyncio.create_task(asyncio.to_thread(writer.execute, INSERT, values(NOON)))
        await asyncio.wait([writing], timeout=0.5)
        waited = not writing.done()
    await writing
    return waited


async def test_what_is_being_written_is_not_sealed(database: Database, sql: Sql, connect: Connect) -> None:
    put(sql, "interceptions", {"started_at": str(NOON)})
    assert not await write_through_a_sealing(database, connect)
    assert await totals_and_counts(database) == (2, 2)
    await upkeep.catch_up(database, until=NOON + DAY)
    assert await totals_and_counts(database) == (2, 2)
    assert await differences(database) == []


@pytest.mark.usefixtures("without_lock")
async def test_without_the_lock_it_would_be_lost(database: Database, sql: Sql, connect: Connect) -> None:
    put(sql, "interceptions", {"started_at": str(NOON)})
    assert await write_through_a_sealing(database, connect)
    assert await totals_and_counts(database) == (1, 2)
    assert len(await differences(database)) == 5


async def test_what_is_written_while_sealing_waits(database: Database, sql: Sql, connect: Connect) -> None:
    put(sql, "interceptions", {"started_at": str(NOON)})
    assert await seal_through_a_write(database, connect)
    assert await totals_and_counts(database) == (2, 2)
    assert await differences(database) == []


@pytest.mark.usefixtures("without_lock")
async def test_without_the_lock_it_would_not_wait(database: Database, sql: Sql, connect: Connect) -> None:
    put(sql, "interceptions", {"started_at": str(NOON)})
    assert not await seal_through_a_write(database, connect)
    assert await totals_and_counts(database) == (1, 2)
    assert len(await differences(database)) == 5


# -- a trigger removed, verify and rebuild ---------------------------------------------------------------------------


def command(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=environment | {"BRIDGELOG_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


UNHEARD_OF = "hour 2026-03-01T12:00:00Z, everyone, anthropic anthropic unheard of Claude Code: 0 rolled up, 1 counted\n"


@contextlib.contextmanager
def trigger_disabled(sql: Sql, event: str) -> Iterator[None]:
    sql(f"ALTER TABLE aibridge_interceptions DISABLE TRIGGER bridgelog_roll_up_{event}")
    yield
    sql(f"ALTER TABLE aibridge_interceptions ENABLE TRIGGER bridgelog_roll_up_{event}")


async def test_what_a_disabled_trigger_missed_is_found_and_repaired(
    database: Database, database_url: str, sql: Sql, connect: Connect
) -> None:
    """While the rollups are rebuilt a writer and a reader go on; what nothing was wrong with stays exact."""
    decoy = {"model": "decoy", "initiator_id": PEOPLE[1]}
    for day in range(4):
        put(sql, "interceptions", {"started_at": str(NOON + day * DAY)}, {"started_at": str(NOON + day * DAY)} | decoy)
    await upkeep.catch_up(database, until=NOON + 10 * DAY)
    # A change that is not folded yet, of a kind that no interception is of any more.
    put(sql, "interceptions", {"started_at": str(NOON), "model": "gone"})
    with trigger_disabled(sql, "insert"):
        put(sql, "interceptions", {"started_at": str(NOON), "model": "unheard of"})
    with trigger_disabled(sql, "delete"):
        sql("DELETE FROM aibridge_interceptions WHERE model = 'gone'")
    with trigger_disabled(sql, "update"):
        sql(
            "UPDATE aibridge_interceptions SET provider = 'else' WHERE model <> 'decoy' AND started_at > %s",
            NOON,
        )
    done = await asyncio.to_thread(command, database_url, "rollups", "verify")
    assert done.returncode == 1, done.stderr
    for told in (UNHEARD_OF, "gone", "else"):
        assert told in done.stdout
    assert "decoy" not in done.stdout
    writer = connect()
    stop = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await asyncio.to_thread(writer.execute, INSERT, values(NOON, model="during"))
            written += 1

    async def read() -> None:
        while not stop.is_set():
            async with database.snapshot() as connection:
                for criteria in (Criteria(model="decoy"), Criteria(visible_to=PEOPLE[1]), Criteria(model="during")):
                    found = await totals.count(connection, criteria=criteria)
                    assert found == await interceptions.count(connection, criteria=criteria)

    others = [asyncio.create_task(write()), asyncio.create_task(read())]
    done = await asyncio.to_thread(command, database_url, "rollups", "rebuild")
    await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*others)
    assert done.returncode == 0, done.stderr
    assert written > 1
    assert await differences(database) == []
    found, counted = await totals_and_counts(database)
    assert found == counted == 9 + written
    await upkeep.catch_up(database, until=NOON + 10 * DAY)
    done = await asyncio.to_thread(command, database_url, "rollups", "verify")
    assert (done.returncode, done.stdout) == (0, "the rollups agree with a full count\n")


# -- a crash ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(settings: Settings, url: str) -> AsyncIterator[Database]:
    pool = await db.connect(settings, url, statements.load())
    try:
        yield pool
    finally:
        await pool.close()


def terminate(sql: Sql) -> None:
    [(pid,)] = sql(SEALER)
    assert sql("SELECT pg_terminate_backend(%s, 5000)", pid) == [(True,)]


def parent(pid: int) -> int:
    """The process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def crash(
    database: Database, monkeypatch: pytest.MonkeyPatch, at: str, kill: Callable[[], Awaitable[None]]
) -> None:
    """A sealing whose backend dies when it has run a statement, or at the end, before it commits."""
    with monkeypatch.context() as patch:
        for verb in ("value", "run"):
            patch.setattr(Connection, verb, killing(getattr(Connection, verb), at, kill))
        with pytest.raises(errors.DatabaseUnavailable):
            await seal(database, NOON + DAY)


def killing(verb: Any, at: str, kill: Callable[[], Awaitable[None]]) -> Any:
    async def run(self: Connection, statement: str, **values: object) -> Any:
        found = await verb(self, statement, **values)
        if statement == f"rollups/{at}":
            await kill()
        return found

    return run


@pytest.mark.parametrize("at", ["lock_sealing", "seal", "set_sealed_until"])
async def test_a_backend_that_ends_in_the_middle_of_sealing(
    database: Database, sql: Sql, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    put(sql, "interceptions", *({"started_at": str(NOON)} for _ in range(3)))

    async def kill() -> None:
        await asyncio.to_thread(terminate, sql)

    await crash(database, monkeypatch, at, kill)
    put(sql, "interceptions", {"started_at": str(NOON)})
    assert await totals_and_counts(database) == (4, 4)
    assert await differences(database) == []
    await upkeep.catch_up(database, until=NOON + DAY)
    assert await totals_and_counts(database) == (4, 4)
    assert await differences(database) == []
    assert sql("SELECT sealed_until > %s FROM bridgelog_rollup_state", NOON) == [(True,)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, to be sure whom it kills")
async def test_a_server_that_crashes_in_the_middle_of_sealing(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of the backend: the server throws everybody out and recovers from its log."""
    with Embedded(tmp_path, settings={"fsync": "off"}) as embedded:
        migrations.apply(embedded.url)

        def sql(statement: str, *arguments: object) -> list[tuple[Any, ...]]:
            with psycopg.connect(embedded.url, autocommit=True) as raw:
                cursor = raw.execute(statement.encode(), arguments or None)
                return cursor.fetchall() if cursor.description else []

        put(sql, "interceptions", *({"started_at": str(NOON)} for _ in range(3)))
        server = int((tmp_path / "pgdata" / "postmaster.pid").read_text().splitlines()[0])

        async def kill() -> None:
            [(pid,)] = sql(SEALER)
            assert parent(pid) == server
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)

        async with opened(settings, embedded.url) as database:
            await crash(database, monkeypatch, "seal", kill)
        deadline = time.monotonic() + 30
        while True:
            try:
                sql("SELECT 1")
                break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        async with opened(settings, embedded.url) as database:
            assert await totals_and_counts(database) == (3, 3)
            await upkeep.catch_up(database, until=NOON + DAY)
            assert await totals_and_counts(database) == (3, 3)
            assert await differences(database) == []


# -- who waits for whom ----------------------------------------------------------------------------------------------


async def test_who_leaves_a_transaction_open_holds_up_nobody_but_sealing(
    database: Database, sql: Sql, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(sql, "interceptions", {"started_at": str(NOON)})
    idle = connect("read committed")
    idle.execute(INSERT, values(NOON))
    monkeypatch.setattr(upkeep, "_EVERY_SECONDS", 0.01)
    keeper = asyncio.create_task(upkeep.keep_rollups(database))
    other = connect()
    other.execute("SET lock_timeout = '10s'")  # a bound, not a measure
    try:
        for _ in range(20):
            await asyncio.to_thread(other.execute, INSERT, values(NOON))
            await asyncio.sleep(0.02)
        assert sql("SELECT sealed_until < %s FROM bridgelog_rollup_state", NOON) == [(True,)]
        assert not keeper.done()
        assert await totals_and_counts(database) == (21, 21)
        idle.execute("COMMIT")
        deadline = time.monotonic() + 20
        while sql("SELECT sealed_until < %s FROM bridgelog_rollup_state", NOON) == [(True,)]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
    assert await totals_and_counts(database) == (22, 22)
    assert await differences(database) == []


async def test_of_two_that_seal_and_fold_at_once_one_does_it(
    database: Database, database_url: str, settings: Settings, sql: Sql
) -> None:
    for day in range(10):
        put(sql, "interceptions", *({"started_at": str(NOON + day * DAY)} for _ in range(5)))
    async with opened(settings, database_url) as other:
        await asyncio.gather(*(upkeep.catch_up(one, until=NOON + 20 * DAY) for one in (database, other) * 2))
        # The one that found the other at work did nothing; whoever comes next does the rest.
        await upkeep.catch_up(other, until=NOON + 20 * DAY)
        async with database.transaction() as first, other.transaction() as second:
            put(sql, "interceptions", {"started_at": str(NOON)})
            assert await rollups.fold(first)
            assert not await rollups.fold(second)
            assert not await rollups.seal(second, until=NOON + 20 * DAY)
    assert await totals_and_counts(database) == (51, 51)
    assert await differences(database) == []
    assert sql("SELECT count(*) FROM bridgelog_rollup_changes") == [(0,)]


# -- eight writers and four readers ----------------------------------------------------------------------------------


async def write_on(url: str, number: int, until: float) -> int:
    """Record now and in the past, end, change and delete, until the time is up."""
    rng = random.Random(number)
    mine: list[object] = []
    transactions = 0
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as raw:
        while time.monotonic() < until:
            transactions += 1
            started_at = datetime.now(UTC) - rng.choice([timedelta(), timedelta(minutes=3), 3 * DAY, 40 * DAY])
            row = list(values(started_at, model=rng.choice(["m", "m", "rare"]), person=rng.choice(PEOPLE)))
            mine.append(row[0])
            with contextlib.suppress(psycopg.Rollback):
                async with raw.transaction():
                    if rng.random() < 0.5:
                        row[-1] = None
                    await raw.execute(INSERT, row)
                    one = rng.choice(mine)
                    match rng.randrange(5):
                        case 0 | 1:
                            await raw.execute(
                                "UPDATE aibridge_interceptions SET ended_at = started_at WHERE id = ANY(%s)",
                                [mine[-5:]],
                            )
                        case 2:
                            await raw.execute(
                                "UPDATE aibridge_interceptions SET started_at = %s WHERE id = %s",
                                [datetime.now(UTC) - rng.choice([timedelta(), 40 * DAY]), one],
                            )
                        case 3:
                            await raw.execute("DELETE FROM aibridge_interceptions WHERE id = %s", [one])
                        case _:
                            if rng.random() < 0.5:
                                raise psycopg.Rollback
    return transactions


async def read_on(database: Database, until: float) -> int:
    """Pages, whose total is held against the plain count of the same snapshot."""
    pages = 0
    while time.monotonic() < until:
        now = datetime.now(UTC)
        for criteria in (
            Criteria(),
            Criteria(model="rare"),
            Criteria(visible_to=PEOPLE[0]),
            Criteria(initiator_id=PEOPLE[1], started_after=now - 10 * DAY),
            Criteria(started_before=now - timedelta(minutes=2)),
        ):
            async with database.snapshot() as connection:
                total, page = await totals.read_page(connection, criteria=criteria, page_size=3, offset=pages % 400)
                assert total == await interceptions.count(connection, criteria=criteria)
                assert page == await interceptions.list_page(
                    connection, criteria=criteria, page_size=3, skip=pages % 400
                )
            pages += 1
    return pages


async def keep_on(database: Database, until: float) -> int:
    """Seal up to this instant, and fold, over and over."""
    sealings = 0
    while time.monotonic() < until:
        with contextlib.suppress(errors.Contention):
            await upkeep.catch_up(database, until=datetime.now(UTC))
            sealings += 1
    return sealings


@pytest.mark.timeout(SECONDS * 3 + 120)
async def test_each_total_is_the_count_of_its_snapshot(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "_DEEP", 50)
    async with opened(replace(settings, pool_size=READERS + 3), database_url) as database:
        until = time.monotonic() + SECONDS
        done = await asyncio.gather(
            *(write_on(database_url, number, until) for number in range(WRITERS)),
            *(read_on(database, until) for _ in range(READERS)),
            keep_on(database, until),
        )
        assert all(done), done
        assert await differences(database) == []
        await upkeep.catch_up(database, until=datetime.now(UTC))
        found, counted = await totals_and_counts(database)
        assert found == counted > 0
        assert await differences(database) == []
