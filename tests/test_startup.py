"""What a start waits for, and what it says about it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from served import PATIENCE, StartService, environment, until

from service import migrations

Sql = Callable[..., list[tuple[Any, ...]]]


class Door:
    """A TCP port on which the database can be reached from the moment that it is opened."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket_path = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self.url = f"postgresql://{parts.username}@127.0.0.1:{self._listening.getsockname()[1]}{parts.path}"
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(64)

    def open(self) -> None:
        self._listening.listen()
        self._listening.settimeout(0.1)
        self._threads.submit(self._accept)

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self._threads.submit(self._carry, self._listening.accept()[0])

    def _carry(self, here: socket.socket) -> None:
        with here, socket.socket(socket.AF_UNIX) as there, selectors.DefaultSelector() as ready:
            there.connect(self._socket_path)
            ready.register(here, selectors.EVENT_READ, there)
            ready.register(there, selectors.EVENT_READ, here)
            while not self._over.is_set():
                for key, _ in ready.select(0.1):
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]  # a socket
                    if not data:
                        return
                    key.data.sendall(data)

    def close(self) -> None:
        self._over.set()
        self._threads.shutdown()
        self._listening.close()


@pytest.fixture
def door(database_url: str) -> Iterator[Door]:
    door = Door(database_url)
    yield door
    door.close()


def command(url: str, *arguments: str, timeout: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        env=environment(
            BRIDGELOG_DATABASE_URL=url,
            BRIDGELOG_STARTUP_TIMEOUT=timeout,
            BRIDGELOG_LOG_FORMAT="json",
            BRIDGELOG_PORT="0",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_waits_for_a_database_that_is_not_up_yet(start_service: StartService, door: Door, workers: str) -> None:
    service = start_service("--workers", workers, BRIDGELOG_DATABASE_URL=door.url, BRIDGELOG_STARTUP_TIMEOUT="600")
    [waiting] = until(lambda: service.logged("waiting"), "it says what it waits for")
    assert (waiting["what"], waiting["seconds_left"]) == ("the database", 600)
    assert "Connection refused" in waiting["reason"]
    assert service.output == ""
    door.open()
    service.wait_ready()
    assert service.get("/readyz")[0] == 200


def test_migrate_waits_too(empty_database_url: str) -> None:
    door = Door(empty_database_url)
    try:
        with command(door.url, "migrate", timeout="600") as process:
            assert process.stderr
            assert "waiting" in process.stderr.readline()
            door.open()
            assert "applied 0001.create-users" in process.communicate(timeout=PATIENCE)[0]
    finally:
        door.close()


@pytest.mark.parametrize("name", ["serve", "migrate"])
def test_the_wait_has_an_end(door: Door, name: str) -> None:
    with command(door.url, name, timeout="0.2") as process:
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    told = errors.splitlines()[-1]
    assert told.startswith("Error: the database cannot be reached: ")
    assert "Connection refused" in told
    assert "Traceback" not in errors


def test_serve_waits_for_a_schema_that_somebody_else_migrates(
    start_service: StartService, empty_database_url: str
) -> None:
    service = start_service(
        "--workers", "2", BRIDGELOG_DATABASE_URL=empty_database_url, BRIDGELOG_STARTUP_TIMEOUT="600"
    )
    [waiting] = until(lambda: service.logged("waiting"), "it says what it waits for")
    assert waiting["what"] == "the schema"
    assert "run bridgelog migrate" in waiting["reason"]
    migrations.apply(empty_database_url)
    assert service.wait_ready().get("/readyz")[0] == 200


def test_replicas_and_workers_that_start_at_once_migrate_once(
    start_service: StartService, empty_database_url: str
) -> None:
    replicas = [
        start_service("--migrate", "--workers", "2", BRIDGELOG_DATABASE_URL=empty_database_url) for _ in range(4)
    ]
    for replica in replicas:
        assert replica.wait_ready().get("/readyz")[0] == 200
    with psycopg.connect(empty_database_url) as connection:
        applied = connection.execute(
            "SELECT migration_id, count(*) FROM _yoyo_log WHERE operation = 'apply' GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert applied == [(name, 1) for name in migrations.names()]


def test_who_waits_to_migrate_is_in_no_transaction(database_url: str) -> None:
    """CREATE INDEX CONCURRENTLY, of a migration under the lock, waits for every transaction; one of them waited for it."""
    with psycopg.connect(database_url, autocommit=True) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute("SELECT pg_advisory_lock(%s)", [migrations._LOCK])
        waiting = threads.submit(migrations.apply, database_url)
        try:
            until(
                lambda: holder.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = 'bridgelog migrate'"
                    " AND datname = current_database() AND query LIKE '%advisory_lock%'"
                ).fetchone(),
                "somebody waits",
            )
            holder.execute("SET statement_timeout = '30s'")
            holder.execute("CREATE INDEX CONCURRENTLY test_idx ON users (name)")
            assert not waiting.done()
        finally:
            holder.execute("SELECT pg_advisory_unlock(%s)", [migrations._LOCK])
        assert waiting.result(PATIENCE) == []


def connection_limit(sql: Sql) -> int:
    names = ("max_connections", "superuser_reserved_connections", "reserved_connections")
    most, *kept = (int(sql("SELECT current_setting(%s)", name)[0][0]) for name in names)
    return most - sum(kept)


def test_pools_that_do_not_fit_are_told(start_service: StartService, sql: Sql) -> None:
    limit = connection_limit(sql)
    fits = start_service(BRIDGELOG_POOL_SIZE=str(limit - 2)).wait_ready()
    assert fits.logged("the pools do not fit the server: lower BRIDGELOG_POOL_SIZE or BRIDGELOG_WORKERS") == []
    over = start_service("--workers", "2", BRIDGELOG_POOL_SIZE=str(limit // 2)).wait_ready()
    [told] = over.logged("the pools do not fit the server: lower BRIDGELOG_POOL_SIZE or BRIDGELOG_WORKERS")
    assert (told["workers"], told["pool_size"]) == (2, limit // 2)
    assert (told["connections"], told["limit"]) == (2 * (limit // 2 + 2), limit)


def test_workers_that_cannot_all_connect_do_not_start(start_service: StartService, sql: Sql) -> None:
    service = start_service("--workers", "64")
    limit = connection_limit(sql)
    assert limit < 192, "what this test takes for granted of the server"
    assert service.process.wait(PATIENCE) == 1
    assert f"64 workers need 192 connections, the server allows {limit}: lower BRIDGELOG_WORKERS" in service.errors
