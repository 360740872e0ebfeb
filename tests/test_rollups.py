"""Rollups tell what a full count tells, whatever is written, sealed and folded, in whatever order."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rows import Sql, put

from service import db, errors, statements, upkeep
from service.db import Connection, Database
from service.embedded import binaries_directory
from service.store import interceptions, names, rollups, totals
from service.store.interceptions import Criteria
from service.store.totals import Stretch, Unit

NOBODY = UUID(int=0)
MICROSECOND = timedelta(microseconds=1)
FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
HISTORIES = 60 if os.environ.get("BRIDGELOG_TEST_SOAK") == "1" else 10
STEPS = 48


# -- stretches -------------------------------------------------------------------------------------------------------

UNITS: list[tuple[Unit, ...]] = [("hour", "day", "month"), ("day", "month")]
# Near to each other and to borders of every unit, so that they meet; and the ends of what is an instant.
BORDERS = [
    FIRST,
    FIRST + timedelta(hours=1),
    datetime(1, 2, 1, tzinfo=UTC),
    datetime(2024, 2, 29, tzinfo=UTC),
    NEW_YEAR - timedelta(days=31),
    NEW_YEAR - timedelta(hours=1),
    NEW_YEAR,
    NEW_YEAR + timedelta(hours=1),
    NEW_YEAR + timedelta(days=1),
    NEW_YEAR + timedelta(days=31),
    NEW_YEAR + timedelta(days=59, hours=12, minutes=30),
    datetime(9999, 11, 30, 23, tzinfo=UTC),
    LAST,
]


@st.composite
def instants(draw: st.DrawFn, *, latest: datetime = LAST) -> datetime:
    near = draw(st.sampled_from(BORDERS))
    away = timedelta(
        microseconds=draw(st.sampled_from([0, 0, 0, 1, -1, 3_600_000_000]) | st.integers(-(10**14), 10**14))
    )
    try:
        return min(near + away, latest)
    except OverflowError:
        return min(near, latest)


def is_border(instant: datetime, unit: Unit) -> bool:
    return totals._floor(instant, unit) == instant


@hypothesis_settings(derandomize=True, deadline=None, max_examples=2000)
@given(
    begins=instants(),
    ends=instants(),
    # The bucket in which it lies must end before time does.
    sealed_until=instants(latest=datetime(9999, 11, 30, tzinfo=UTC)) | st.just(FIRST),
    units=st.sampled_from(UNITS),
)
def test_stretches_cover_a_range_once(
    begins: datetime, ends: datetime, sealed_until: datetime, units: tuple[Unit, ...]
) -> None:
    stretches = list(totals.divide(begins, ends, sealed_until=sealed_until, units=units))
    if begins >= ends:
        # The last instant of all has none after it to end before.
        assert stretches == ([Stretch(None, LAST, LAST)] if begins == ends == LAST else [])
        return
    assert stretches[0].begins == begins
    assert all(stretch.begins < stretch.ends for stretch in stretches[:-1])
    assert stretches[-1].begins < stretches[-1].ends or stretches[-1] == Stretch(None, LAST, LAST)
    # Whole buckets are one run. Buckets hold nothing from sealed_until on, so that the run may reach beyond it, and what
    # follows begins there.
    reached, unit = begins, None
    for stretch in stretches:
        if stretch.unit:
            assert stretch.unit in units
            assert is_border(stretch.begins, stretch.unit)
            assert is_border(stretch.ends, stretch.unit)
        elif unit:
            reached = min(reached, sealed_until)
        assert stretch.begins == reached
        reached, unit = stretch.ends, stretch.unit
        assert stretch.unit or stretch.begins >= sealed_until or stretch.ends <= sealed_until
    assert reached == ends or (reached >= sealed_until == ends)
    whole = [stretch.unit is not None for stretch in stretches]
    assert [key for key, _ in itertools.groupby(whole)].count(True) <= 1


@hypothesis_settings(derandomize=True, deadline=None, max_examples=500)
@given(begins=instants(), ends=instants(), sealed_until=instants(latest=datetime(9999, 11, 30, tzinfo=UTC)))
def test_stretches_are_few(begins: datetime, ends: datetime, sealed_until: datetime) -> None:
    stretches = list(totals.divide(begins, ends, sealed_until=sealed_until, units=UNITS[0]))
    assert len(stretches) <= 2 * len(UNITS[0]) + 2
    assert sum(stretch.unit is None for stretch in stretches) <= 3


# -- histories -------------------------------------------------------------------------------------------------------

PEOPLE = [UUID(int=1), UUID(int=1 << 120), UUID(int=(1 << 128) - 1)]
STRANGER = UUID(int=77)
MODELS = ["m", "m", "m", "m", "M", "rare", "é\\😀"]
PROVIDERS = ["p", "p", "P"]
CLIENTS = [None, "Unknown", "Unknown", "unknown", "", "c"]
STARTS = [
    FIRST,
    datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
    *(
        NEW_YEAR + timedelta(days=days, hours=hours, minutes=minutes, microseconds=microseconds)
        for days in (-32, -1, 0, 1, 31)
        for hours in (-1, 0)
        for minutes in (0, 20, 40)
        for microseconds in (-1, 0)
    ),
    LAST - MICROSECOND,
    LAST,
]
SEALINGS = STARTS[2:-2]

_COLUMNS = ("id", "initiator_id", "provider", "provider_name", "model", "client", "started_at", "ended_at", "metadata")
_PUT = f"INSERT INTO aibridge_interceptions ({', '.join(_COLUMNS)}) VALUES ({', '.join(['%s'] * len(_COLUMNS))})"  # noqa: S608  # constants
_SOME = (
    "(SELECT id FROM aibridge_interceptions WHERE (ended_at IS NULL) = %s"
    " ORDER BY sha256((id::text || %s)::bytea) LIMIT %s)"
)


@dataclass
class Writer:
    """A connection of a person in psql, who may be in the middle of a transaction."""

    raw: psycopg.Connection[Any]
    random: random.Random
    open: bool = False
    savepoints: int = 0
    done: list[str] = field(default_factory=list)

    def begin(self) -> None:
        self.raw.execute("BEGIN")
        self.open = True

    def end(self) -> None:
        self.raw.execute(self.random.choice([b"COMMIT", b"COMMIT", b"ROLLBACK"]))
        self.open = False
        self.savepoints = 0

    def step(self) -> None:
        """Write something, or begin or end something. Who would have to wait for another one gives up."""
        work = self.random.choice(
            [self.insert] * 4
            + [self.finish] * 3
            + [self.change] * 4
            + [self.delete, self.delete, self.copy, self.begin, self.begin, self.begin, self.savepoint]
        )
        if self.open and (work == self.begin or self.random.random() < 0.2):
            work = self.end
        elif self.random.random() < 0.01:
            work = self.truncate
        self.done.append(work.__name__)
        try:
            work()
        except psycopg.errors.LockNotAvailable:
            if self.open:
                self.raw.execute("ROLLBACK")
            self.open, self.savepoints = False, 0

    def savepoint(self) -> None:
        if not self.open:
            self.begin()
        if self.savepoints and self.random.random() < 0.6:
            self.raw.execute(self.random.choice([b"ROLLBACK TO SAVEPOINT s", b"RELEASE SAVEPOINT s"]))
            self.savepoints -= 1
        else:
            self.raw.execute("SAVEPOINT s")
            self.savepoints += 1

    def row(self) -> tuple[object, ...]:
        pick = self.random.choice
        started_at = pick(STARTS)
        return (
            UUID(int=self.random.getrandbits(128)),
            pick(PEOPLE),
            pick(PROVIDERS),
            pick(PROVIDERS),
            pick(MODELS),
            pick(CLIENTS),
            text(started_at),
            pick([text(started_at), text(started_at), None]),
            "{}",
        )

    def insert(self) -> None:
        with self.raw.cursor() as cursor:
            cursor.executemany(_PUT, [self.row() for _ in range(self.random.randint(1, 3))])

    def copy(self) -> None:
        copied = f"COPY aibridge_interceptions ({', '.join(_COLUMNS)}) FROM STDIN"
        with self.raw.cursor() as cursor, cursor.copy(copied.encode()) as copy:
            for _ in range(12):
                copy.write_row(self.row())

    def finish(self) -> None:
        self.update("ended_at = started_at", running=True)

    def change(self) -> None:
        pick = self.random.choice
        name, value = pick(
            [
                ("started_at", text(pick(STARTS))),
                ("started_at", text(pick(STARTS))),
                ("model", pick(MODELS)),
                ("client", pick(CLIENTS)),
                ("initiator_id", pick(PEOPLE)),
                ("provider", pick(PROVIDERS)),
                ("provider_name", pick(PROVIDERS)),
                ("ended_at", None),
                ("metadata", '{"a": 1}'),
            ]
        )
        self.update(f"{name} = %s", value, running=False)

    def update(self, assignment: str, *values: object, running: bool) -> None:
        self.some(f"UPDATE aibridge_interceptions SET {assignment} WHERE id IN {_SOME}", *values, running=running)  # noqa: S608  # constants

    def delete(self) -> None:
        self.some(f"DELETE FROM aibridge_interceptions WHERE id IN {_SOME}", running=False)  # noqa: S608  # constants

    def some(self, statement: str, *values: object, running: bool) -> None:
        salt = str(self.random.random())
        self.raw.execute(statement.encode(), [*values, running, salt, self.random.randint(1, 4)])

    def truncate(self) -> None:
        self.raw.execute("TRUNCATE aibridge_interceptions CASCADE")
        if self.open:  # nobody could read until then
            self.end()


def text(instant: datetime) -> str:
    return instant.replace(tzinfo=None).isoformat() + "Z"


def searches(rng: random.Random) -> Iterator[Criteria]:
    """Each filter alone, each kind of visibility, and some of each kind together."""
    pick = rng.choice
    single: list[dict[str, Any]] = [
        {},
        {"visible_to": pick(PEOPLE)},
        {"visible_to": NOBODY},
        {"initiator_id": pick(PEOPLE)},
        {"initiator_id": STRANGER},
        {"initiator_id": NOBODY},
        {"provider": pick(PROVIDERS)},
        {"provider_name": pick(PROVIDERS)},
        {"model": "rare"},
        {"model": pick(MODELS)},
        {"model": "never"},
        {"client": pick(["Unknown", "c", ""])},
        {"started_after": ragged(rng)},
        {"started_before": ragged(rng)},
    ]
    for some in single:
        yield Criteria(**some)
    for _ in range(6):
        one, two, three = rng.sample(single, 3)
        after, before = sorted([ragged(rng), ragged(rng)])
        yield Criteria(**(one | two | three | pick([{}, {"started_after": after, "started_before": before}])))


def ragged(rng: random.Random) -> datetime:
    instant = rng.choice(STARTS)
    away = rng.choice([timedelta(), MICROSECOND, -MICROSECOND, timedelta(minutes=30)])
    return min(instant, LAST - away) + away if away > timedelta() else max(instant, FIRST - away) + away


async def check(database: Database, rng: random.Random) -> None:
    """Every total, page and name is what a plain count, OFFSET and DISTINCT tell in the same snapshot."""
    async with database.snapshot() as connection:
        for criteria in searches(rng):
            await check_one(connection, criteria, offsets=[0, rng.randint(0, 6), rng.randint(0, 40)])
        await check_names(connection, visible_to=rng.choice([None, None, *PEOPLE, NOBODY]))
        assert await rollups.verify(connection, most=5) == []


async def check_one(connection: Connection, criteria: Criteria, *, offsets: list[int]) -> None:
    counted = await interceptions.count(connection, criteria=criteria)
    assert await totals.count(connection, criteria=criteria) == counted, criteria
    if criteria.visible_to == NOBODY:
        assert counted == 0
    for offset in {*offsets, max(0, counted - 1), counted}:
        expected = await interceptions.list_page(connection, criteria=criteria, page_size=3, skip=offset)
        found = await totals.read_page(connection, criteria=criteria, page_size=3, offset=offset)
        assert found == (counted, expected), (criteria, offset)


async def check_names(connection: Connection, *, visible_to: UUID | None) -> None:
    for kind in ("models", "clients"):
        plain, rolled_up = [
            await names.list_names(
                connection,
                kind=kind,
                prefix="",
                visible_to=visible_to,
                page_size=100,
                skip=0,
                rolled_up=which,
            )
            for which in (False, True)
        ]
        assert rolled_up == plain


async def seal(database: Database, until: datetime) -> bool:
    """A sealing, or none since somebody is writing: whether it came to its end."""
    try:
        async with database.transaction() as connection:
            while await rollups.seal(connection, until=until):
                pass
    except errors.Contention:
        return False
    return True


async def fold(database: Database) -> bool:
    async with database.transaction() as connection:
        return await rollups.fold(connection)


def sealed_until(sql: Sql) -> datetime:
    [(found,)] = sql("SELECT greatest(sealed_until, '0001-01-01Z') FROM bridgelog_rollup_state")
    assert isinstance(found, datetime)
    return found


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page by offset is located by the buckets."""
    monkeypatch.setattr(totals, "_DEEP", 0)


@pytest.mark.usefixtures("deep")
@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_totals_pages_and_names_through_a_history(
    seed: int, database: Database, database_url: str, sql: Sql
) -> None:
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        writers = []
        for _ in range(3):
            raw = stack.enter_context(psycopg.connect(database_url, autocommit=True))
            raw.execute("SET lock_timeout = '30ms'")
            writers.append(Writer(raw, rng))
        writers[0].copy()
        sealings = 0
        for step in range(STEPS):
            what = rng.random()
            if what < 0.7:
                rng.choice(writers).step()
            elif what < 0.9:
                for writer in writers:
                    if writer.open and rng.random() < 0.4:
                        writer.end()
                # Not far, so that there is always a tail, with writers in the middle of it.
                reached = sealed_until(sql)
                ahead = sorted(start for start in SEALINGS if start > reached)[:8] or SEALINGS
                sealings += await seal(database, rng.choice(ahead) + rng.choice([timedelta(), MICROSECOND]))
            else:
                await fold(database)
            if step % 6 == 5:
                await check(database, rng)
        for writer in writers:
            if writer.open:
                writer.end()
        await upkeep.catch_up(database, until=max(SEALINGS))
        assert sealings
        await check(database, rng)
        assert not await fold(database)


@pytest.mark.usefixtures("deep")
async def test_every_offset_of_a_log_across_the_borders_of_buckets(database: Database, sql: Sql) -> None:
    """Sealed in the middle of an hour, with interceptions of that hour, day and month on both sides."""
    begins = NEW_YEAR - timedelta(hours=30)
    put(
        sql,
        "interceptions",
        *(
            {
                "id": UUID(int=number),
                "initiator_id": PEOPLE[number % 2],
                "model": "rare" if number % 17 == 3 else "m",
                "started_at": text(begins + timedelta(minutes=20 * (number // 2))),
            }
            for number in range(240)
        ),
    )
    assert await seal(database, begins + timedelta(minutes=20 * 100 + 30))
    for folded in (False, True):
        if folded:
            assert await fold(database)
        async with database.snapshot() as connection:
            for criteria in (
                Criteria(),
                Criteria(visible_to=PEOPLE[0]),
                Criteria(model="rare"),
                Criteria(initiator_id=PEOPLE[1], model="rare"),
                Criteria(started_before=begins + timedelta(minutes=20 * 105)),
            ):
                await check_one(connection, criteria, offsets=list(range(0, 241, 1 if folded else 7)))


async def test_one_microsecond_before_the_last_instant(database: Database, sql: Sql) -> None:
    put(sql, "interceptions", {"started_at": text(LAST)}, {"started_at": text(LAST - MICROSECOND)})
    async with database.snapshot() as connection:
        for before in (LAST - 2 * MICROSECOND, LAST - MICROSECOND, LAST):
            await check_one(connection, Criteria(started_before=before), offsets=[1])
            await check_one(connection, Criteria(started_after=before), offsets=[1])


# -- dumps -----------------------------------------------------------------------------------------------------------


def pg(program: str, *arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run(
        [str(binaries_directory() / program), *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def fill(database: Database, sql: Sql) -> None:
    """Some in buckets, some in changes, some in neither."""
    for day in range(5):
        put(
            sql,
            "interceptions",
            *({"initiator_id": person, "started_at": text(NEW_YEAR + timedelta(days=day))} for person in PEOPLE),
            {"client": None, "started_at": text(NEW_YEAR + timedelta(days=day)), "model": f"model {day}"},
        )
    assert await seal(database, NEW_YEAR + timedelta(days=2, minutes=30))
    assert await fold(database)
    assert await seal(database, NEW_YEAR + timedelta(days=3, minutes=30))
    assert sql("SELECT count(*) > 0 FROM bridgelog_rollup_changes") == [(True,)]


async def test_a_restored_dump_agrees(
    database: Database, sql: Sql, database_url: str, empty_database_url: str, settings: Any
) -> None:
    await fill(database, sql)
    script = pg("pg_dump", database_url)
    pg("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database_url, stdin=script)
    await agrees(empty_database_url, settings, total=20)


async def test_a_restored_archive_agrees(  # noqa: PLR0917  # fixtures
    database: Database, sql: Sql, database_url: str, empty_database_url: str, settings: Any, tmp_path: Any
) -> None:
    await fill(database, sql)
    archive = str(tmp_path / "archive")
    pg("pg_dump", "-Fd", "-f", archive, database_url)
    pg("pg_restore", "-j", "2", "--exit-on-error", "-d", empty_database_url, archive)
    await agrees(empty_database_url, settings, total=20)


async def test_records_restored_beside_others_are_counted(
    database: Database, sql: Sql, database_url: str, settings: Any
) -> None:
    """The script of a dump sets an empty search_path, and its COPY fires the triggers."""
    await fill(database, sql)
    script = pg("pg_dump", "--data-only", "--table=aibridge_interceptions", database_url)
    sql("DELETE FROM aibridge_interceptions WHERE model = 'claude-sonnet-4-5'")
    sql("DELETE FROM aibridge_interceptions")
    decoys = put(sql, "interceptions", {"started_at": text(NEW_YEAR), "model": "decoy"})
    pg("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", database_url, stdin=script)
    await agrees(database_url, settings, total=20 + len(decoys))


async def agrees(url: str, settings: Any, *, total: int) -> None:
    database = await db.connect(settings, url, statements.load())
    try:
        async with database.snapshot() as connection:
            assert await rollups.verify(connection, most=5) == []
            assert await totals.count(connection, criteria=Criteria()) == total
            assert await interceptions.count(connection, criteria=Criteria()) == total
        await upkeep.catch_up(database, until=NEW_YEAR + timedelta(days=10))
        async with database.snapshot() as connection:
            assert await rollups.verify(connection, most=5) == []
            assert await totals.count(connection, criteria=Criteria()) == total
    finally:
        await database.close()
