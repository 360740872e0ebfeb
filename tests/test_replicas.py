"""Reading from standbys: real ones, made by pg_basebackup, that stream from the server of the tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import API, Client, MakeClient, Person, interception
from rows import Sql, numbered, put

from service import db, standbys, statements
from service import settings as configuration
from service.app import build_app
from service.embedded import Embedded, binaries_directory
from service.settings import Settings

AddPerson = Callable[..., Awaitable[Person]]
Page = dict[str, Any]

PATIENCE = 30.0  # for what comes by itself


class Standby:
    """A standby of the server at `source`, run as an embedded server is."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self._embedded: Embedded | None = None
        folder.mkdir(mode=0o700)
        # The socket's folder, which a Python URL parser takes for no host.
        [host] = parse_qs(urlsplit(source).query)["host"]
        command = [
            str(binaries_directory() / "pg_basebackup"),
            "--pgdata",
            str(folder / "pgdata"),
            "--write-recovery-conf",
        ]
        command += ["--host", host, "--port", "5432", "--username", "bridgelog", "--checkpoint=fast", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def start(self) -> None:
        self._embedded = Embedded(self.folder, settings={"fsync": "off"})
        self._embedded.start()

    def stop(self) -> None:
        if self._embedded:
            self._embedded.close()
        self._embedded = None

    def url(self, database: str = "bridgelog") -> str:
        return Embedded(self.folder).url.replace("/bridgelog?", f"/{database}?", 1)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nothing in the block, and ends nothing either."""
        postmaster = int((self.folder / "pgdata" / "postmaster.pid").read_text().partition("\n")[0])
        os.kill(postmaster, signal.SIGSTOP)  # it starts no others from here on
        processes = [postmaster]
        try:
            for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGSTOP)
                    processes.append(int(child))
            yield
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)


@pytest.fixture
def standby(tmp_path: Path, server_url: str, database_url: str) -> Iterator[Standby]:
    """A standby of the server that this test's database is on."""
    made = Standby(tmp_path / "standby", server_url)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def read_url(standby: Standby, database_url: str) -> str:
    """This test's database, on the standby."""
    return standby.url(urlsplit(database_url).path[1:])


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standbys, "_EVERY_SECONDS", 0.05)


@pytest.fixture
async def reader(make_client: MakeClient, read_url: str) -> Client:
    """The application with the standby."""
    made = await make_client(read_database_url=read_url, max_replication_lag=PATIENCE * 2)
    await eventually(lambda: in_use(made))
    return made


@pytest.fixture
async def auditor(add_person: AddPerson) -> Person:
    """Somebody who reads everything, and records nothing."""
    return await add_person("audrey", "auditor")


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await holds():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.02)


async def metrics(client: Client, name: str) -> dict[str, float]:
    """The values of a metric, by its one label."""
    text = await (await client.get("/metrics")).text()
    return {found[1]: float(found[2]) for found in re.finditer(rf'^{name}{{\w+="(.*)"}} (\S+)$', text, re.MULTILINE)}


async def in_use(client: Client) -> bool:
    return 1.0 in (await metrics(client, "bridgelog_standby_in_use")).values()


async def out_of_use(client: Client) -> bool:
    return not await in_use(client)


@asynccontextmanager
async def reads(client: Client) -> AsyncIterator[dict[str, float]]:
    """What the reads of the block came to, by outcome; filled in at its end."""
    before = await metrics(client, "bridgelog_standby_reads_total")
    counted: dict[str, float] = {}
    yield counted
    for outcome, number in (await metrics(client, "bridgelog_standby_reads_total")).items():
        if number > before.get(outcome, 0):
            counted[outcome] = number - before.get(outcome, 0)


async def get(client: Client, person: Person, path: str = "/interceptions", status: int = 200) -> Any:
    response = await client.get(f"{API}{path}", headers=person.headers)
    body = await response.json()
    assert response.status == status, body
    return body


async def post(at: Client, person: Person, **members: Any) -> str:
    """Record an interception, and tell its id."""
    response = await at.post(f"{API}/interceptions", json=interception(**members), headers=person.headers)
    body = await response.json()
    assert response.status == 201, body
    return str(body["id"])


def ids(page: Page) -> list[str]:
    return [result["id"] for result in page["results"]]


async def caught_up(standby: Standby, sql: Sql) -> None:
    [(position,)] = sql("SELECT pg_current_wal_flush_lsn()::text")

    async def replayed() -> bool:
        return standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == [(True,)]

    await eventually(replayed)


@contextmanager
def paused(standby: Standby) -> Iterator[None]:
    """Nothing is replayed in the block."""
    standby.sql("SELECT pg_wal_replay_pause()")
    try:
        while standby.sql("SELECT pg_get_wal_replay_pause_state()") != [("paused",)]:
            pass
        yield
    finally:
        standby.sql("SELECT pg_wal_replay_resume()")


# -- who answers -----------------------------------------------------------------------------------------------------


async def test_pages_totals_and_names_come_from_the_standby(
    reader: Client, owner: Person, auditor: Person, standby: Standby, sql: Sql
) -> None:
    before = await post(reader, owner, model="before")
    await caught_up(standby, sql)
    with paused(standby):
        await post(reader, owner, model="after", client="New")
        async with reads(reader) as counted:
            page = await get(reader, auditor)
            assert (ids(page), page["total"], page["count"]) == ([before], 1, 1)
            assert await get(reader, auditor, "/models") == ["before"]
            assert await get(reader, auditor, "/clients") == ["Claude Code"]
        assert counted == {"standby": 3}
    await caught_up(standby, sql)
    assert (await get(reader, auditor))["total"] == 2


async def test_deep_pages_come_from_the_standby_too(
    reader: Client, auditor: Person, standby: Standby, sql: Sql
) -> None:
    put(sql, "interceptions", *({"id": numbered(number)} for number in range(1, 301)))
    sql("UPDATE bridgelog_rollup_state SET sealed_until = '2026-02-01Z'")
    await caught_up(standby, sql)
    async with reads(reader) as counted:
        page = await get(reader, auditor, "/interceptions?offset=250&limit=10")
    assert ids(page) == [str(numbered(number)) for number in range(50, 40, -1)]
    assert page["total"] == 300
    assert counted == {"standby": 1}


async def test_total_and_page_are_of_one_snapshot_there(
    reader: Client, auditor: Person, standby: Standby, sql: Sql, database_url: str
) -> None:
    stop = asyncio.Event()

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
            for number in itertools.count(1):
                if stop.is_set():
                    break
                if number % 500 == 0:  # a page holds all there is
                    await connection.execute("DELETE FROM aibridge_interceptions")
                await connection.execute(
                    "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at, ended_at)"
                    " VALUES (gen_random_uuid(), gen_random_uuid(), 'p', 'm', now(), now())"
                )

    writing = asyncio.create_task(write())
    seen = set()
    async with reads(reader) as counted:
        for _ in range(40):
            page = await get(reader, auditor, "/interceptions?limit=1000")
            assert page["total"] == len(page["results"])
            seen.add(page["total"])
    stop.set()
    await writing
    assert counted == {"standby": 40}
    assert len(seen) > 3, "nothing was recorded meanwhile"


async def test_who_may_record_reads_what_they_recorded_by_whatever_process(  # noqa: PLR0917 - fixtures
    make_client: MakeClient,
    reader: Client,
    owner: Person,
    standby: Standby,
    read_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = await make_client(read_database_url=read_url, max_replication_lag=PATIENCE * 2)
    await eventually(lambda: in_use(other))
    with paused(standby):
        recorded = await post(reader, owner)
        for client in (reader, other):
            async with reads(client) as counted:
                assert ids(await get(client, owner)) == [recorded]
            assert counted == {"behind": 1}

        async def ask_nothing(*_: object) -> bool:
            return True

        # This is what the question is worth.
        monkeypatch.setattr(standbys, "_has_replayed", ask_nothing)
        for client in (reader, other):
            assert ids(await get(client, owner)) == []


async def test_who_may_record_reads_from_a_standby_that_has_what_they_recorded(
    reader: Client, owner: Person, standby: Standby, sql: Sql
) -> None:
    recorded = await post(reader, owner)
    await caught_up(standby, sql)
    async with reads(reader) as counted:
        assert ids(await get(reader, owner)) == [recorded]
    assert counted == {"standby": 1}


async def test_what_a_standby_does_not_know_yet_the_primary_is_asked(
    reader: Client, owner: Person, auditor: Person, add_person: AddPerson, standby: Standby
) -> None:
    with paused(standby):
        first = await post(reader, owner, started_at="2026-03-01T09:00:00Z")
        second = await post(reader, owner)
        newcomer = await add_person("newcomer")
        third = await post(reader, owner, initiator_id=str(newcomer.id), started_at="2026-03-01T08:00:00Z")
        async with reads(reader) as counted:
            assert ids(await get(reader, auditor, f"/interceptions?after_id={second}")) == [first, third]
            assert ids(await get(reader, auditor, "/interceptions?q=newcomer")) == [third]
            assert ids(await get(reader, auditor)) == []
            # Wrong for both is wrong.
            body = await get(reader, auditor, "/interceptions?q=nobody", status=400)
            assert [wrong["field"] for wrong in body["validations"]] == ["initiator"]
    assert counted == {"refused": 2, "standby": 1}


async def test_who_is_suspended_is_out_although_the_standby_has_not_heard_of_it(
    reader: Client, auditor: Person, standby: Standby, sql: Sql
) -> None:
    with paused(standby):
        await get(reader, auditor)
        sql("UPDATE users SET status = 'suspended' WHERE id = %s", auditor.id)
        await asyncio.sleep(1)
        await get(reader, auditor, status=401)


# -- too far behind --------------------------------------------------------------------------------------------------


async def test_a_standby_behind_is_out_of_use_until_it_has_caught_up(
    make_client: MakeClient, read_url: str, owner: Person, auditor: Person, standby: Standby
) -> None:
    client = await make_client(read_database_url=read_url, max_replication_lag=1.0)
    await eventually(lambda: in_use(client))
    with paused(standby):
        recorded = await post(client, owner)
        await eventually(lambda: out_of_use(client))
        async with reads(client) as counted:
            assert ids(await get(client, auditor)) == [recorded]
        assert counted == {"none_in_use": 1}
        [seconds] = (await metrics(client, "bridgelog_standby_lag_seconds")).values()
        [size] = (await metrics(client, "bridgelog_standby_lag_bytes")).values()
        assert 1 < seconds < PATIENCE
        assert 100 < size < 100_000_000
    await eventually(lambda: in_use(client))

    async def level() -> bool:
        found = await metrics(client, "bridgelog_standby_lag_seconds") | await metrics(
            client, "bridgelog_standby_lag_bytes"
        )
        return set(found.values()) == {0.0}

    await eventually(level)


async def test_a_standby_that_is_behind_from_the_start_is_not_used(
    make_client: MakeClient, read_url: str, standby: Standby, sql: Sql, auditor: Person
) -> None:
    with paused(standby):
        [row] = put(sql, "interceptions", {})
        client = await make_client(read_database_url=read_url)
        assert ids(await get(client, auditor)) == [str(row["id"])]
        assert set((await metrics(client, "bridgelog_standby_lag_seconds")).values()) == {float("inf")}
    await eventually(lambda: in_use(client))


# -- going away ------------------------------------------------------------------------------------------------------


async def hold(standby: Standby, sql: Sql) -> None:
    """From now on reads of interceptions hang on the standby, and nothing is replayed there; the primary goes on."""
    sql("BEGIN")
    sql("LOCK TABLE aibridge_interceptions IN ACCESS EXCLUSIVE MODE")
    sql("SELECT pg_switch_wal()")  # sends it at once

    async def locked() -> bool:
        return standby.sql("SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted") != [(0,)]

    await eventually(locked)
    standby.sql("SELECT pg_wal_replay_pause()")
    sql("COMMIT")


async def waits(standby: Standby) -> bool:
    return standby.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == [(1,)]


async def test_a_standby_that_stops_in_the_middle_of_a_read(
    reader: Client, owner: Person, auditor: Person, standby: Standby, sql: Sql
) -> None:
    recorded = await post(reader, owner)
    await caught_up(standby, sql)
    await hold(standby, sql)
    async with reads(reader) as counted:
        reading = asyncio.create_task(get(reader, auditor))
        await eventually(lambda: waits(standby))
        await asyncio.to_thread(standby.stop)
        assert ids(await reading) == [recorded]
    assert counted == {"refused": 1}
    await eventually(lambda: out_of_use(reader))
    async with reads(reader) as counted:
        assert ids(await get(reader, auditor)) == [recorded]
    assert counted == {"none_in_use": 1}
    await asyncio.to_thread(standby.start)
    await eventually(lambda: in_use(reader))


async def test_a_standby_that_stops_answering_in_the_middle_of_a_read(  # noqa: PLR0917 - fixtures
    reader: Client,
    owner: Person,
    auditor: Person,
    standby: Standby,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = await post(reader, owner)
    await caught_up(standby, sql)
    await hold(standby, sql)
    monkeypatch.setattr(db, "_PROBE_SECONDS", 0.3)
    async with reads(reader) as counted:
        reading = asyncio.create_task(get(reader, auditor))
        await eventually(lambda: waits(standby))
        # No word of its end comes from there: without a look at it, this would last as long as a statement may.
        with standby.frozen():
            async with asyncio.timeout(PATIENCE - 5):
                assert ids(await reading) == [recorded]
    assert counted == {"refused": 1}
    standby.sql("SELECT pg_wal_replay_resume()")
    await eventually(lambda: in_use(reader))


async def test_a_read_that_recovery_ends_is_answered_by_the_primary(
    reader: Client, owner: Person, auditor: Person, standby: Standby, sql: Sql
) -> None:
    recorded = await post(reader, owner)
    await caught_up(standby, sql)
    await hold(standby, sql)
    async with reads(reader) as counted:
        reading = asyncio.create_task(get(reader, auditor))
        await eventually(lambda: waits(standby))
        # What PostgreSQL does where replaying has waited for a read for max_standby_streaming_delay.
        standby.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        assert ids(await reading) == [recorded]
    assert counted == {"refused": 1}
    standby.sql("SELECT pg_wal_replay_resume()")
    await eventually(lambda: in_use(reader))


async def test_a_promoted_standby_is_read_from_no_more(
    reader: Client, owner: Person, auditor: Person, standby: Standby, read_url: str
) -> None:
    recorded = await post(reader, owner)
    standby.sql("SELECT pg_promote()")
    await eventually(lambda: out_of_use(reader))
    with psycopg.connect(read_url, autocommit=True) as apart:
        apart.execute("DELETE FROM aibridge_interceptions")
    async with reads(reader) as counted:
        assert ids(await get(reader, auditor)) == [recorded]
        assert ids(await get(reader, owner)) == [recorded]
    assert counted == {"none_in_use": 2}


async def test_a_promoted_standby_is_not_taken_for_one_before_it_is_looked_at(
    reader: Client, owner: Person, standby: Standby, read_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(*_: object) -> None:
        pass

    monkeypatch.setattr(standbys.Standbys, "look", look)
    recorded = await post(reader, owner)
    standby.sql("SELECT pg_promote()")
    with psycopg.connect(read_url, autocommit=True) as apart:
        apart.execute("DELETE FROM aibridge_interceptions")
    async with reads(reader) as counted:
        assert ids(await get(reader, owner)) == [recorded]
    assert counted == {"behind": 1}


async def test_a_standby_of_a_primary_that_is_no_more_is_not_used(  # noqa: PLR0917 - fixtures
    tmp_path: Path, settings: Settings, auditor: Person, standby: Standby, database_url: str, sql: Sql
) -> None:
    """Two standbys: the one that has less is promoted, and the other one has what nobody else has."""
    chosen = Standby(tmp_path / "chosen", database_url)
    put(sql, "interceptions", {}, {})
    # More log than what the promoted one will write by itself.
    sql("CREATE TABLE bulk AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 20000)")
    await caught_up(standby, sql)
    # As if the primary were gone: this one hears no more of it.
    chosen_settings = chosen.folder / "pgdata" / "postgresql.auto.conf"
    chosen_settings.write_text(chosen_settings.read_text() + "primary_conninfo = ''\n")
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
    standby.sql("SELECT pg_reload_conf()")
    chosen.start()
    try:
        chosen.sql("SELECT pg_promote()")
        name = urlsplit(database_url).path[1:]
        changed = replace(settings, read_database_url=standby.url(name))
        app = build_app(changed, database_url=chosen.url(name))
        async with TestClient(TestServer(app)) as client:
            await asyncio.sleep(0.5)
            await eventually(lambda: out_of_use(client))
            page = await get(client, auditor)
            assert page["total"] == 0
            # Also when the new primary has written more than it.
            chosen.sql("CREATE TABLE bulk AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 40000)")
            await asyncio.sleep(0.5)
            assert (await get(client, auditor))["total"] == 0
            assert await out_of_use(client)
    finally:
        chosen.stop()


# -- starting, and several -------------------------------------------------------------------------------------------


async def test_the_service_starts_without_its_standby(
    make_client: MakeClient, auditor: Person, owner: Person, standby: Standby, read_url: str
) -> None:
    await asyncio.to_thread(standby.stop)
    client = await make_client(read_database_url=read_url)
    recorded = await post(client, owner)
    assert ids(await get(client, auditor)) == [recorded]
    await asyncio.to_thread(standby.start)
    await eventually(lambda: in_use(client))
    async with reads(client) as counted:
        await get(client, auditor)
    assert counted == {"standby": 1}


async def test_of_several_hosts_those_that_are_fit_take_turns(
    tmp_path: Path, make_client: MakeClient, auditor: Person, standby: Standby, database_url: str
) -> None:
    second = Standby(tmp_path / "second", database_url)
    second.start()
    try:
        name = urlsplit(database_url).path[1:]
        folders = [
            str(standby.folder),
            str(second.folder),
            "/nowhere",
            parse_qs(urlsplit(database_url).query)["host"][0],
        ]
        url = f"postgresql://bridgelog@/{name}?host={','.join(folders)}&port=5432&target_session_attrs=prefer-standby"
        client = await make_client(read_database_url=url)

        async def fit() -> list[str]:
            return [host for host, used in (await metrics(client, "bridgelog_standby_in_use")).items() if used]

        async def both() -> bool:
            return len(await fit()) == 2

        await eventually(both)
        # The primary is named there too, and is no standby.
        assert sorted(await fit()) == sorted(f"{folder}:5432" for folder in folders[:2])
        async with reads(client) as counted:
            for _ in range(4):
                await get(client, auditor)
        assert counted == {"standby": 4}
        asked = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bridgelog' AND query ~ 'count_|WITH|json'"
        )
        assert [found.sql(asked)[0][0] >= 1 for found in (standby, second)] == [True, True]
    finally:
        second.stop()


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        (
            "postgresql://u:p%40@a,b:6000/d",
            [("a", "postgresql://u:p%40@a/d"), ("b:6000", "postgresql://u:p%40@b:6000/d")],
        ),
        (
            "postgresql://a:1,[::1]:2/d?target_session_attrs=prefer-standby&sslmode=require",
            [("a:1", "postgresql://a:1/d?sslmode=require"), ("[::1]:2", "postgresql://[::1]:2/d?sslmode=require")],
        ),
        (
            "postgresql://u@/d?host=/x,/y&port=1,2",
            [
                ("/x:1", "postgresql://u@/d?host=%2Fx&port=1"),
                ("/y:2", "postgresql://u@/d?host=%2Fy&port=2"),
            ],
        ),
        (
            "postgres://u@/d?host=a,b",
            [("a:5432", "postgres://u@/d?host=a&port=5432"), ("b:5432", "postgres://u@/d?host=b&port=5432")],
        ),
        ("postgresql:///d?sslmode=require", [("", "postgresql:///d?sslmode=require")]),
    ],
)
def test_each_host_of_a_url_has_a_url_of_its_own(url: str, hosts: list[tuple[str, str]]) -> None:
    assert db.each_host(url) == hosts


@pytest.mark.parametrize("ports", ["5432", "5432,5432"])
async def test_of_several_hosts_in_the_query_the_primary_is_meant(
    ports: str, settings: Settings, database_url: str, read_url: str
) -> None:
    standby, primary = (parse_qs(urlsplit(url).query)["host"][0] for url in (read_url, database_url))
    url = f"postgresql://bridgelog@{urlsplit(database_url).path}?host={standby},{primary}&port={ports}"
    database = await db.connect(settings, url, statements.load())
    try:
        async with database.connection() as connection:
            assert await connection._raw.fetchval("SELECT pg_is_in_recovery()") is False
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"READ_DATABASE_URL": "postgresql://a/d?target_session_attrs=read-write"}, "cannot ask for a primary"),
        ({"DATABASE_URL": "postgresql://a,b/d?target_session_attrs=standby"}, "cannot ask for a standby"),
        ({"DATABASE_URL": "postgresql://a,b/d?target_session_attrs=prefer-standby"}, "cannot ask for a standby"),
        ({"DATABASE_URL": "postgresql://a/d?target_session_attrs=read-only"}, "cannot ask for a standby"),
        ({"DIRECT_DATABASE_URL": "postgresql://a,b/d?target_session_attrs=standby"}, "_DIRECT_.*for a standby"),
        ({"READ_DATABASE_URL": "mysql://a/d"}, "must begin with postgresql://"),
        ({"READ_DATABASE_URL": "postgresql:///d"}, "must name a host"),
        ({"READ_DATABASE_URL": "postgresql://a/d", "DATABASE_URL": ""}, "only where BRIDGELOG_DATABASE_URL is set"),
        ({"MAX_REPLICATION_LAG": "0"}, "Must be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_used_stops_the_start(
    environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"DATABASE_URL": "postgresql://p/d"} | environment).items():
        monkeypatch.setenv(f"BRIDGELOG_{name}", value)
    with pytest.raises(configuration.InvalidSettings, match=told):
        configuration.read()
