"""A PostgreSQL for the tests, a database for each of them, and the real application on it."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bridging import KEY, OPENAI_KEY, Bridged, listening
from served import Service
from standin.app import build_app as standin_app

from service import db, migrations, statements
from service.app import build_app
from service.embedded import Embedded
from service.instants import parse as instant
from service.settings import Settings
from service.store import tokens, users

API = "/api/v2/aibridge"
NOW = instant("2026-03-01T12:00:00Z")

Client = TestClient[web.Request, web.Application]
MakeClient = Callable[..., Awaitable[Client]]

SETTINGS = Settings(
    database_url=None,
    read_database_url=None,
    direct_database_url=None,
    pgbouncer=False,
    max_replication_lag=5.0,
    data_dir=Path("unused"),
    host="127.0.0.1",
    port=0,
    workers=1,
    worker_timeout=60.0,
    startup_timeout=0.0,
    schema="own",
    migrate=False,
    # What a test does to the database, on this thread, must not wait for a sealing that waits for this thread.
    upkeep=False,
    retention=timedelta(),
    content_retention=timedelta(),
    bridge="off",
    anthropic_key=None,
    anthropic_base_url=None,
    openai_key=None,
    openai_base_url=None,
    providers_file=None,
    allow_byok=False,
    bridge_max_body=32 * 1024 * 1024,
    bridge_rate_limit=0.0,
    bridge_concurrency=0,
    bridge_keep_alive=10.0,
    upstream_retries=2,
    upstream_connect_timeout=10.0,
    upstream_timeout=600.0,
    breaker_failures=0,
    breaker_seconds=30.0,
    request_log_dir=Path("unused"),
    request_log_limit=1024 * 1024 * 1024,
    request_log_age=timedelta(days=7),
    spool_dir=Path("unused"),
    spool_limit=1024 * 1024 * 1024,
    auth_grace=300.0,
    member_read="own",
    max_body=16 * 1024 * 1024,
    rate_limit=0.0,
    rate_burst=0,
    concurrency_limit=0,
    failed_sign_ins=300,
    trusted_proxies=(),
    pool_size=5,
    max_waiting=200,
    pool_timeout=10.0,
    statement_timeout=30.0,
    lock_timeout=10.0,
    request_timeout=60.0,
    head_timeout=10.0,
    send_timeout=60.0,
    max_connections=900,
    max_page=32 * 1024 * 1024,
    max_held=128 * 1024 * 1024,
    drain_seconds=0.0,
    shutdown_timeout=5.0,
    tracing="off",
    log_format="json",
    log_level="error",
)
_counter = itertools.count()


@dataclass(frozen=True)
class Person:
    """A user with a token."""

    id: UUID
    username: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What signs them in."""
        return {"Coder-Session-Token": self.token}


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of database `bridgelog` on a server of this test process's own, or on the one that TEST_SERVER_URL names."""
    if given := os.environ.get("TEST_SERVER_URL"):
        yield given
        return
    with Embedded(tmp_path_factory.mktemp("postgres"), settings={"fsync": "off"}) as embedded:
        yield embedded.url


@pytest.fixture(scope="session")
def url_of(server_url: str) -> Callable[[str], str]:
    """The URL of a database of that server, by name."""
    return lambda name: server_url.replace("/bridgelog?", f"/{name}?", 1)


@pytest.fixture(scope="session")
def template(url_of: Callable[[str], str]) -> str:
    """A migrated database to clone."""
    name = f"template_{os.getpid()}"
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}".encode())
        connection.execute(f"CREATE DATABASE {name}".encode())
    migrations.apply(url_of(name))
    return name


@pytest.fixture
def empty_database_url(url_of: Callable[[str], str]) -> Iterator[str]:
    """A database without any tables."""
    yield from _database(url_of, "template1")


@pytest.fixture
def database_url(template: str, url_of: Callable[[str], str]) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    yield from _database(url_of, template)


def _database(url_of: Callable[[str], str], template: str) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_counter)}"
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        yield url_of(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def settings() -> Settings:
    """Settings as a test wants them; override the fixture, or use dataclasses.replace."""
    return SETTINGS


@pytest.fixture
async def database(database_url: str, settings: Settings) -> AsyncIterator[db.Database]:
    """A pool on this test's database."""
    pool = await db.connect(settings, database_url, statements.load())
    yield pool
    await pool.close()


@pytest.fixture
def sql(database_url: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Run a statement on this test's database, as a person in psql would: `sql("SELECT %s", 1)`."""
    with psycopg.connect(database_url, autocommit=True) as connection:

        def run(statement: str, *arguments: object) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def make_client(database_url: str, aiohttp_client: Any, settings: Settings) -> MakeClient:
    """The application on this test's database, with settings changed as told: `await make_client(member_read="none")`."""

    async def make(**changes: Any) -> Client:
        client: Client = await aiohttp_client(build_app(replace(settings, **changes), database_url=database_url))
        return client

    return make


@pytest.fixture
async def client(make_client: MakeClient) -> Client:
    """The application on this test's database."""
    return await make_client()


@pytest.fixture
def add_person(database: db.Database) -> Callable[..., Awaitable[Person]]:
    """Make a user with a token: `await add_person("ann", "owner")`."""

    async def add(username: str, *roles: str) -> Person:
        user_id = uuid4()
        async with database.transaction() as connection:
            await users.add(
                connection, user_id=user_id, username=username, name=username.title(), roles=list(roles), created_at=NOW
            )
            token = await tokens.create(connection, user_id=user_id, created_at=NOW)
        return Person(id=user_id, username=username, token=token)

    return add


@pytest.fixture
async def owner(add_person: Callable[..., Awaitable[Person]]) -> Person:
    """An owner, who may do everything."""
    return await add_person("olivia", "owner")


@pytest.fixture
async def member(add_person: Callable[..., Awaitable[Person]]) -> Person:
    """A plain member."""
    return await add_person("mallory")


@pytest.fixture
async def provider(aiohttp_server: Any) -> TestServer:
    """The stand-in provider; what it was asked is in `provider.app[EXCHANGES]`."""
    server: TestServer = await aiohttp_server(standin_app())
    return server


@pytest.fixture
async def make_bridge(
    database_url: str, settings: Settings, tmp_path: Path, member: Person
) -> AsyncIterator[Callable[..., Awaitable[Bridged]]]:
    """A bridge to a provider, with settings changed as told: `await make_bridge(provider, allow_byok=True)`.

    The provider is the stand-in, or the URL of one that serves messages only.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))

        async def make(provider: TestServer | str, **changes: Any) -> Bridged:
            if isinstance(provider, str):
                upstreams: dict[str, Any] = {"anthropic_key": KEY, "anthropic_base_url": provider}
            else:
                upstreams = {
                    "anthropic_key": KEY,
                    "anthropic_base_url": str(provider.make_url("/anthropic")),
                    "openai_key": OPENAI_KEY,
                    "openai_base_url": str(provider.make_url("/openai/v1")),
                }
            usual: dict[str, Any] = {
                "bridge": "on",
                "spool_dir": tmp_path / "spool",
                "request_log_dir": tmp_path / "dumps",
            }
            chosen = replace(settings, **(usual | upstreams | changes))
            url = await stack.enter_async_context(listening(build_app(chosen, database_url=database_url)))
            return Bridged(url, member.token, database_url, session)

        yield make


@pytest.fixture
async def bridge(make_bridge: Callable[..., Awaitable[Bridged]], provider: TestServer) -> Bridged:
    """A bridge to the stand-in."""
    return await make_bridge(provider)


def interception(**members: Any) -> dict[str, Any]:
    """The body of a finished interception; `members` replace or add."""
    body: dict[str, Any] = {
        "id": str(uuid4()),
        "initiator_id": str(uuid4()),
        "provider": "anthropic",
        "provider_name": "anthropic",
        "model": "claude-sonnet-4-5",
        "client": "Claude Code",
        "metadata": {},
        "started_at": "2026-03-01T10:00:00Z",
        "ended_at": "2026-03-01T10:00:05.25Z",
    }
    return body | members


@pytest.fixture
def record(client: Client, owner: Person) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Record a finished interception and get it as answered: `await record(model="m")`."""

    async def post(**members: Any) -> dict[str, Any]:
        response = await client.post(f"{API}/interceptions", json=interception(**members), headers=owner.headers)
        body: dict[str, Any] = await response.json()
        assert response.status == 201, body
        return body

    return post


@pytest.fixture
def start_service(tmp_path: Path, database_url: str) -> Iterator[Callable[..., Service]]:
    """Start `bridgelog serve` on this test's database: `start_service("--workers", "3", BRIDGELOG_DRAIN_SECONDS="0")`."""
    started: list[Service] = []

    def start(*arguments: str, **changes: str) -> Service:
        given = {"BRIDGELOG_DATABASE_URL": database_url, "BRIDGELOG_DRAIN_SECONDS": "0"} | changes
        started.append(Service(tmp_path / f"service-{len(started)}", *arguments, **given))
        return started[-1]

    yield start
    for service in started:
        service.stop()
