"""The service behind a real pgbouncer that gives a server connection to a transaction, and takes it back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner
from conftest import API, NOW, Client, Person, interception
from recorder import Recorder, count
from rows import Sql

from service import db, errors, migrations, startup, statements, upkeep
from service import settings as configuration
from service.__main__ import main
from service.app import build_app
from service.settings import Settings
from service.store import demo, rollups

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs the program pgbouncer (Debian's package of that name)")

CONNECTIONS = 2  # to PostgreSQL, for each database: fewer than there are clients, so that they have to share

# What somebody else may have left in a server connection; pgbouncer itself looks after the first two.
POISON = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "jit": "on",
    "plan_cache_mode": "force_custom_plan",
    "statement_timeout": "12345s",
    "lock_timeout": "12345s",
    "idle_in_transaction_session_timeout": "12345s",
}


@pytest.fixture(scope="module")
def bouncer(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket's folder of a pgbouncer before the server of the tests, in transaction mode."""
    assert PGBOUNCER
    folder = tmp_path_factory.mktemp("pgbouncer", numbered=True)
    [host] = parse_qs(urlsplit(server_url).query)["host"]
    (folder / "users").write_text('"bridgelog" ""\n')
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={host} port=5432
        [pgbouncer]
        listen_addr =
        listen_port = 6432
        unix_socket_dir = {folder}
        auth_type = trust
        auth_file = {folder}/users
        pool_mode = transaction
        default_pool_size = {CONNECTIONS}
        max_client_conn = 500
        logfile = {folder}/log
        """
    )
    command = [PGBOUNCER, str(folder / "pgbouncer.ini")]
    if os.geteuid() == 0:
        # It refuses to run as root, and the server's socket is open to root alone.
        user = pwd.getpwnam("nobody")
        command = ["unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}", *command]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (folder / ".s.PGSQL.6432").exists():
            if running.poll() is not None or time.monotonic() > deadline:
                pytest.fail((folder / "log").read_text() if (folder / "log").exists() else "pgbouncer does not start")
            time.sleep(0.02)
        yield str(folder)
    finally:
        running.terminate()
        running.wait(30)


@pytest.fixture
def pooled_url(bouncer: str, database_url: str) -> str:
    """This test's database, through pgbouncer."""
    return f"postgresql://bridgelog@{urlsplit(database_url).path}?host={quote(bouncer, safe='')}&port=6432"


@pytest.fixture
def pooled(pooled_url: str, settings: Settings) -> Callable[..., contextlib.AbstractAsyncContextManager[Client]]:
    """The application on pgbouncer: `async with pooled(direct_database_url=…) as client`."""

    @contextlib.asynccontextmanager
    async def make(**changes: Any) -> AsyncIterator[Client]:
        app = build_app(replace(settings, pgbouncer=True, **changes), database_url=pooled_url)
        async with TestClient(TestServer(app)) as client:
            yield client

    return make


@pytest.fixture
def settings(settings: Settings, database_url: str) -> Settings:
    """The database's own defaults are wrong as well, so that nothing is right by accident."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = urlsplit(database_url).path[1:]
        for setting, value in POISON.items():
            connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'".encode())
    return settings


async def poison(pooled_url: str) -> None:
    """Leave settings in all server connections, as a client does who takes them for its own."""
    connections = [
        await psycopg.AsyncConnection.connect(pooled_url, prepare_threshold=None) for _ in range(CONNECTIONS)
    ]
    for connection in connections:
        for setting, value in POISON.items():
            await connection.execute(f"SET {setting} = '{value}'".encode())
    for connection in connections:
        await connection.commit()
        await connection.close()


async def gauge(client: Client) -> float:
    text = await (await client.get("/metrics")).text()
    [line] = [line for line in text.splitlines() if line.startswith("bridgelog_request_logging_enabled ")]
    return float(line.split(" ")[1])


# -- what is read ----------------------------------------------------------------------------------------------------

READS = (
    "/interceptions",
    "/interceptions?limit=1000",
    "/interceptions?limit=7&offset=13",
    "/interceptions?limit=7&offset=250",
    "/interceptions?offset=100000",
    "/interceptions?q=provider:anthropic",
    "/interceptions?q=started_after:%222020-01-01T00:00:00%2B05:45%22",
    "/interceptions?q=me",
    "/interceptions?q=nobody+a:b:c",
    "/interceptions?limit=1001",
    "/models",
    "/models?q=claude",
    "/clients",
    "/log-requests",
)


async def test_every_answer_is_the_same_byte_for_byte(
    pooled: Callable[..., Any], pooled_url: str, client: Client, owner: Person, database: db.Database
) -> None:
    await demo.fill(database, interceptions=300, seed=1, newest=NOW, progress=lambda _: None, beside_others=True)
    await upkeep.catch_up(database, until=NOW)
    await client.post(f"{API}/log-requests", json={"enabled": True}, headers=owner.headers)
    page = await (await client.get(f"{API}/interceptions?limit=3", headers=owner.headers)).json()
    assert page["total"] > 250
    cursor = f"/interceptions?limit=5&after_id={page['results'][-1]['id']}"
    async with pooled() as behind:
        await poison(pooled_url)
        for path in (*READS, cursor):
            answers = []
            for at in (client, behind):
                response = await at.get(f"{API}{path}", headers=owner.headers)
                link, body = response.headers.getall("Link", []), await response.read()
                answers.append((response.status, link, body))
            assert answers[0] == answers[1], path
        assert (await behind.get("/readyz")).status == 200


async def test_the_settings_hold_in_every_transaction(
    settings: Settings, pooled_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def held(database: db.Database) -> list[dict[str, str]]:
        await poison(pooled_url)
        found = []
        for unit in (database.connection, database.snapshot, database.transaction):
            async with unit() as connection:
                names = sorted(POISON)
                found.append({name: await connection._raw.fetchval(f"SHOW {name}") for name in names})
        return found

    async def ask(url: str, **changes: Any) -> list[dict[str, str]]:
        database = await db.connect(replace(settings, **changes), url, statements.load())
        try:
            return await held(database)
        finally:
            await database.close()

    expected = {
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "1min",
    }
    assert await ask(pooled_url, pgbouncer=True) == [expected] * 3
    assert await ask(database_url) == [expected] * 3
    # This is what the test is worth: what pgbouncer does not look after is lost without.
    monkeypatch.setattr(db, "_set_locally", lambda _: "SELECT")
    lost = {name: POISON[name] for name in POISON.keys() - {"TimeZone", "DateStyle"}}
    assert await ask(pooled_url, pgbouncer=True) == [expected | lost] * 3


async def test_without_the_setting_it_does_not_even_start(settings: Settings, pooled_url: str) -> None:
    with pytest.raises(errors.DatabaseUnavailable) as refusal:
        await db.connect(settings, pooled_url, statements.load())
    assert "unsupported startup parameter" in str(refusal.value.__cause__)


async def test_a_statement_over_its_time_is_cancelled(
    pooled: Callable[..., Any], database_url: str, owner: Person
) -> None:
    async with pooled(statement_timeout=0.2) as client:
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE aibridge_interceptions")
            answer = await client.get(f"{API}/interceptions", headers=owner.headers)
        assert answer.status == 503
        assert (await answer.json())["message"].startswith("The database took too long to answer")
        assert (await client.get(f"{API}/interceptions", headers=owner.headers)).status == 200


# -- what is recorded ------------------------------------------------------------------------------------------------


async def test_recording_step_by_step_and_again(
    pooled: Callable[..., Any], pooled_url: str, owner: Person, sql: Sql
) -> None:
    async with pooled() as client:
        await poison(pooled_url)
        recorder = Recorder(client, owner)
        begun = interception(ended_at=None)
        del begun["ended_at"]
        assert [(await recorder.record(begun)).status for _ in range(2)] == [201, 200]
        assert (await recorder.record(begun | {"model": "other"})).status == 409
        usage = {
            "id": "5b7c9a4e-4f0e-4a31-8b1c-111111111111",
            "provider_response_id": "r",
            "created_at": "2026-03-01T10:00:01.123456Z",
            "input_tokens": 3,
            "output_tokens": 4,
            "metadata": {"zone": "keep"},
        }
        assert [(await recorder.add(begun["id"], "token_usages", usage)).status for _ in range(2)] == [201, 200]
        assert (await recorder.end(begun["id"], ended_at="2026-03-01T10:00:05.25Z")).status == 200
        [found] = await recorder.listed()
        assert (found["started_at"], found["ended_at"]) == ("2026-03-01T10:00:00Z", "2026-03-01T10:00:05.25Z")
        assert found["token_usages"][0]["created_at"] == usage["created_at"]
        # What was read can be recorded, and an import finds nothing new in it.
        assert (await recorder.send([found])).body["unchanged"] == 1
        more = [interception() for _ in range(600)]
        assert (await recorder.send(more)).body["imported"] == 600
    assert count(sql, "interceptions") == 601


async def test_many_at_once_share_few_connections(
    pooled: Callable[..., Any], pooled_url: str, owner: Person, sql: Sql
) -> None:
    async with pooled(pool_size=10) as client:
        recorder = Recorder(client, owner)

        async def record_and_read(number: int) -> None:
            for _ in range(10):
                body = interception(model=f"model-{number}", initiator={"id": str(owner.id), "username": "olivia"})
                del body["initiator_id"]
                assert (await recorder.record(body)).status == 201
                assert (await recorder.record(body)).status == 200
                answer = await client.get(f"{API}/interceptions?q=model:model-{number}", headers=owner.headers)
                page = await answer.json()
                assert page["total"] == len(page["results"])
                assert page["results"][0]["model"] == f"model-{number}"

        await asyncio.gather(*(record_and_read(number) for number in range(12)))
        [(servers,)] = sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'bridgelog'"
            " AND query ~ 'SET LOCAL|COMMIT|aibridge'"
        )
    assert servers <= CONNECTIONS + 5  # those of the pool of this test's own, which is no client of pgbouncer's
    assert sql("SELECT model, count(*) FROM aibridge_interceptions GROUP BY 1 ORDER BY count(*), length(model), 1") == [
        (f"model-{number}", 10) for number in range(12)
    ]


async def test_upkeep_goes_through_it(pooled_url: str, settings: Settings, owner: Person, client: Client) -> None:
    response = await client.post(f"{API}/interceptions", json=interception(), headers=owner.headers)
    assert response.status == 201
    database = await db.connect(replace(settings, pgbouncer=True), pooled_url, statements.load())
    try:
        await upkeep.catch_up(database, until=datetime.now(UTC))
        async with database.snapshot() as connection:
            assert await rollups.verify(connection, most=1) == []
        async with database.transaction() as connection:
            await rollups.rebuild(connection)
            assert await rollups.verify(connection, most=1) == []
    finally:
        await database.close()


# -- what does not go through it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False], ids=["told directly", "polled"])
async def test_the_switch_reaches_a_second_application_within_a_second(
    pooled: Callable[..., Any], database_url: str, owner: Person, *, direct: bool
) -> None:
    url = database_url if direct else None
    async with pooled(direct_database_url=url) as first, pooled(direct_database_url=url) as second:
        for enabled in (True, False, True):
            body = {"enabled": enabled}
            answer = await first.post(f"{API}/log-requests", json=body, headers=owner.headers)
            assert answer.status == 200
            turned = time.monotonic()
            while await gauge(second) != float(enabled):
                assert time.monotonic() - turned < 1 + 1  # a busy machine is no broken promise
                await asyncio.sleep(0.02)


def test_migrations_go_past_it(bouncer: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = f"postgresql://bridgelog@{urlsplit(empty_database_url).path}?host={quote(bouncer, safe='')}&port=6432"
    monkeypatch.setenv("BRIDGELOG_DATABASE_URL", pooled)
    monkeypatch.setenv("BRIDGELOG_PGBOUNCER", "on")

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, list(arguments))
        return done.exit_code, done.output

    # What only asks is fine through it; what locks is refused, for the lock would stay with whoever comes next.
    refused = "Error: this does not go through pgbouncer: set BRIDGELOG_DIRECT_DATABASE_URL to PostgreSQL itself\n"
    assert run("migrate", "--check") == (1, "".join(f"pending {name}\n" for name in migrations.names()))
    assert run("migrate") == (1, refused)
    assert run("demo", "--interceptions", "5") == (1, refused)
    assert run("migrate", "--check")[0] == 1
    monkeypatch.setenv("BRIDGELOG_DIRECT_DATABASE_URL", empty_database_url)
    assert run("migrate")[0] == 0
    assert run("demo", "--interceptions", "5")[0] == 0
    monkeypatch.delenv("BRIDGELOG_DIRECT_DATABASE_URL")
    assert run("migrate", "--check") == (0, "the schema is current\n")
    assert run("users", "add", "alice", "--role", "owner")[0] == 0
    code, listed = run("users", "list")
    assert (code, "alice" in listed) == (0, True)
    assert run("rollups", "verify") == (0, "the rollups agree with a full count\n")


def test_what_asks_for_pending_migrations_goes_past_a_pooler_that_is_away(
    empty_database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = "postgresql://bridgelog@127.0.0.1:1/nothing"
    for name, value in (
        ("DATABASE_URL", away),
        ("PGBOUNCER", "on"),
        ("DIRECT_DATABASE_URL", empty_database_url),
        ("STARTUP_TIMEOUT", "0"),
    ):
        monkeypatch.setenv(f"BRIDGELOG_{name}", value)
    pending = CliRunner().invoke(main, ["migrate", "--check"])
    assert (pending.exit_code, pending.output) == (1, "".join(f"pending {name}\n" for name in migrations.names()))
    assert CliRunner().invoke(main, ["migrate"]).exit_code == 0
    current = CliRunner().invoke(main, ["migrate", "--check"])
    assert (current.exit_code, current.output) == (0, "the schema is current\n")
    # And so does what serve waits for.
    behind = replace(settings, direct_database_url=empty_database_url, pgbouncer=True, startup_timeout=0.0)
    startup.wait_for_schema(behind, away)


@pytest.mark.parametrize("name", ["PGBOUNCER", "DIRECT_DATABASE_URL"])
def test_the_settings_need_a_database_url(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRIDGELOG_DATABASE_URL", raising=False)
    monkeypatch.setenv(f"BRIDGELOG_{name}", "on" if name == "PGBOUNCER" else "postgresql://a/d")
    with pytest.raises(configuration.InvalidSettings, match=f"BRIDGELOG_{name}.*only where BRIDGELOG_DATABASE_URL"):
        configuration.read()
