"""The database fails in every way that could be thought of, while clients record and read: nothing acknowledged is lost,
nothing is doubled, every total is exact, and the service goes on by itself.

`make test` runs a few of these, `make test-faults` all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from aiohttp.test_utils import TestClient, TestServer
from faults import Clients, Postgres, Served, Wire, check_ledger, cleaned, served, until, url_through

from service import db, migrations, statements
from service.app import build_app
from service.settings import Settings
from service.store import tokens, users

all_of_them = pytest.mark.skipif(os.environ.get("BRIDGELOG_TEST_FAULTS") != "1", reason="make test-faults runs it")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Time-outs as short as a test wants them; the rollups are kept up, as they are in earnest."""
    return replace(
        settings, upkeep=True, statement_timeout=2.0, lock_timeout=1.0, pool_timeout=2.0, request_timeout=15.0
    )


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server of this test's own, its database migrated."""
    server = Postgres(tmp_path / "one", max_connections="30", superuser_reserved_connections="0")
    with cleaned(server):
        server.make()
        migrations.apply(server.url)
        yield server


async def add_owner(settings: Settings, url: str) -> str:
    """Their token."""
    database = await db.connect(settings, url, statements.load())
    now = datetime.now(UTC)
    async with database.transaction() as connection:
        owner = uuid4()
        await users.add(connection, user_id=owner, username="olivia", name="", roles=["owner"], created_at=now)
        token = await tokens.create(connection, user_id=owner, created_at=now)
    await database.close()
    return token


@pytest.fixture
async def token(quick: Settings, postgres: Postgres) -> str:
    return await add_owner(quick, postgres.url)


@pytest.fixture
async def service(quick: Settings, postgres: Postgres, token: str) -> AsyncIterator[Served]:  # before it
    async with served(quick, postgres.url) as one:
        yield one


# -- one server ------------------------------------------------------------------------------------------------------

Fault = Callable[[Postgres, Clients], Awaitable[None]]


async def restarted(postgres: Postgres, clients: Clients) -> None:
    for _ in range(2):
        postgres.stop()
        await clients.meet("write", 503)
        postgres.start()
        await clients.go_on()


async def killed(postgres: Postgres, clients: Clients) -> None:
    for _ in range(2):
        postgres.kill()
        await clients.meet("write", 503)
        postgres.start()
        await clients.go_on()


async def a_backend_killed(postgres: Postgres, clients: Clients) -> None:
    """Then the postmaster ends all the others, and begins anew."""
    for _ in range(3):
        [(pid,)] = postgres.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'bridgelog' LIMIT 1")
        os.kill(pid, signal.SIGKILL)
        await until(postgres.answers)
        await clients.go_on()


async def connections_cut(postgres: Postgres, clients: Clients) -> None:
    cut = 0
    for _ in range(20):
        found = postgres.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'bridgelog%'"
        )
        cut += len(found)
        await clients.go_on(recorded=3, pages=3)
    assert cut > 20


async def hung(postgres: Postgres, clients: Clients) -> None:
    """Nothing of it answers, and nothing of it is gone."""
    postgres.signal(signal.SIGSTOP)
    await clients.meet("write", 503, times=8)
    await clients.meet("list", 503, times=6)
    postgres.signal(signal.SIGCONT)


async def slow(postgres: Postgres, clients: Clients) -> None:
    """What is written takes longer than a statement may."""
    postgres.ask(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$"
    )
    postgres.ask("CREATE TRIGGER slow AFTER INSERT ON aibridge_user_prompts FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    await clients.meet("write", 503, times=4)
    await clients.meet("list", 200, times=4)
    postgres.ask("DROP TRIGGER slow ON aibridge_user_prompts")


async def locked(postgres: Postgres, clients: Clients) -> None:
    with psycopg.connect(postgres.url) as other:
        other.execute("LOCK TABLE aibridge_interceptions")
        await clients.meet("write", 503, times=4)
        await clients.meet("list", 503, times=4)


async def read_only(postgres: Postgres, clients: Clients) -> None:
    postgres.ask("ALTER SYSTEM SET default_transaction_read_only = on")
    postgres.ask("SELECT pg_reload_conf()")
    await clients.meet("write", 503, times=4)
    await clients.meet("list", 200, times=4)
    with psycopg.connect(postgres.url, autocommit=True, options="-c default_transaction_read_only=off") as other:
        other.execute("ALTER SYSTEM RESET default_transaction_read_only")
        other.execute("SELECT pg_reload_conf()")


async def out_of_connections(postgres: Postgres, clients: Clients) -> None:
    taken: list[psycopg.Connection] = []
    try:
        while not any(status == 503 for _, status in clients.ledger.statuses):
            postgres_is_full = False
            while not postgres_is_full:
                try:
                    taken.append(await asyncio.to_thread(psycopg.connect, postgres.url, autocommit=True))
                except psycopg.OperationalError:
                    postgres_is_full = True
            taken[0].execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bridgelog'"
            )
            await asyncio.sleep(0.1)
    finally:
        for connection in taken:
            connection.close()


FAULTS: dict[Fault, tuple[pytest.MarkDecorator, ...]] = {
    restarted: (),
    killed: (),
    a_backend_killed: (all_of_them, linux),
    connections_cut: (),
    hung: (all_of_them, linux),
    slow: (all_of_them,),
    locked: (all_of_them,),
    read_only: (all_of_them,),
    out_of_connections: (all_of_them,),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=marks, id=fault.__name__) for fault, marks in FAULTS.items()]
)
async def test_nothing_is_lost_by(fault: Fault, postgres: Postgres, service: Served, token: str) -> None:
    async with Clients(service, token) as clients:
        await fault(postgres, clients)
        await clients.go_on()
    print(fault.__name__, dict(clients.ledger.statuses), "sent again:", clients.ledger.sent_again)
    check_ledger(clients.ledger, postgres)


async def test_the_ledger_notices(postgres: Postgres, service: Served, token: str) -> None:
    async with Clients(service, token) as clients:
        await clients.go_on()
    folded = (
        "SELECT EXISTS (SELECT FROM bridgelog_rollup_buckets) AND NOT EXISTS (SELECT FROM bridgelog_rollup_changes)"
    )
    await until(lambda: postgres.ask(folded) == [(True,)])
    doubled = (
        "INSERT INTO aibridge_model_thoughts (interception_id, content, created_at)"
        " SELECT id, 'x', started_at FROM aibridge_interceptions LIMIT 1"
    )
    thinned = "DELETE FROM aibridge_user_prompts WHERE id = (SELECT id FROM aibridge_user_prompts LIMIT 1)"
    wrong = "UPDATE bridgelog_rollup_buckets SET interceptions = interceptions + 1"
    for harm, amends in (
        (doubled, "DELETE FROM aibridge_model_thoughts WHERE content = 'x'"),
        (wrong, wrong.replace("+", "-")),
        (thinned, ""),
    ):
        check_ledger(clients.ledger, postgres)
        postgres.ask(harm)
        with pytest.raises(AssertionError):
            check_ledger(clients.ledger, postgres)
        if amends:
            postgres.ask(amends)


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m,mode=0700", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@all_of_them
async def test_nothing_is_lost_by_a_full_disk(small_disk: Path, quick: Settings) -> None:
    postgres = Postgres(small_disk / "one", max_wal_size="64MB", min_wal_size="32MB", wal_keep_size="0")
    ballast = small_disk / "ballast"
    with cleaned(postgres):
        postgres.make()
        migrations.apply(postgres.url)
        token = await add_owner(quick, postgres.url)
        async with served(quick, postgres.url) as service, Clients(service, token) as clients:
            with ballast.open("wb", buffering=0) as file:
                while not clients.ledger.statuses["write", 503]:
                    try:
                        file.write(bytes(65536))
                    except OSError:
                        await asyncio.sleep(0.02)
            await clients.meet("write", 503, times=4)
            ballast.unlink()
            # What cannot write its log ends, and is for its keeper to start again.
            if not postgres.answers():
                postgres.kill()
                postgres.start()
            await clients.go_on()
        print("full disk", dict(clients.ledger.statuses), "sent again:", clients.ledger.sent_again)
        check_ledger(clients.ledger, postgres)


@linux
@pytest.mark.parametrize("connected", [True, False], ids=["connected before", "not connected yet"])
async def test_readiness_does_not_wait_for_a_server_that_hangs(
    postgres: Postgres, settings: Settings, monkeypatch: pytest.MonkeyPatch, *, connected: bool
) -> None:
    # But for the probe's own bound this would last ten minutes.
    monkeypatch.setattr(db, "_GRACE", 600.0)
    app = build_app(replace(settings, pool_timeout=600.0), database_url=postgres.url)
    async with TestClient(TestServer(app)) as client:
        if connected:
            assert (await client.get("/readyz")).status == 200
        postgres.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                answer = await client.get("/readyz")
                assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (503, True)
                assert (await answer.json())["detail"] == "The database cannot be reached."
        finally:
            postgres.signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).status != 200:  # noqa: ASYNC110 - as a load balancer asks
                await asyncio.sleep(0.02)


# -- another host ----------------------------------------------------------------------------------------------------


async def dead(primary: Postgres) -> None:
    primary.kill()


async def silent(primary: Postgres) -> None:
    """As a host without power: it takes connections, thanks to the kernel here, and never answers."""
    primary.signal(signal.SIGSTOP)


@all_of_them
@linux
@pytest.mark.parametrize("end", [dead, silent], ids=lambda end: end.__name__)
async def test_nothing_is_lost_by_a_failover(
    end: Callable[[Postgres], Awaitable[None]], tmp_path: Path, quick: Settings
) -> None:
    primary = Postgres(tmp_path / "one")
    standby = Postgres(tmp_path / "two")
    with cleaned(standby, primary):
        primary.make()
        migrations.apply(primary.url)
        token = await add_owner(quick, primary.url)
        standby.copy_of(primary)
        # What is acknowledged is on both.
        primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.ask("SELECT pg_reload_conf()")
        await until(lambda: primary.ask("SELECT sync_state FROM pg_stat_replication") == [("sync",)])
        wires = [Wire(server.socket) for server in (primary, standby)]
        for wire in wires:
            await wire.mend()
        async with served(quick, url_through(*wires)) as service, Clients(service, token) as clients:
            await end(primary)
            await clients.meet("write", 503)
            await asyncio.to_thread(standby.ask, "SELECT pg_promote()")
            await clients.go_on()
        print("failover", end.__name__, dict(clients.ledger.statuses), "sent again:", clients.ledger.sent_again)
        check_ledger(clients.ledger, standby)
        for wire in wires:
            await wire.cut()
