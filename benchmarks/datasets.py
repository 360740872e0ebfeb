"""The data sets: one database a size on the embedded server of .data/bench, built once and used again.

Up to a million interceptions are the demo's. A larger one is the demo's million ten times over: see sql/set_aside.sql and
its neighbours. Only its newest and its oldest million are sure to
have children.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import click

from benchmarks.tools import ROOT
from service import db, migrations, settings, statements, upkeep
from service.db import Database
from service.store import demo, tokens, users

SCRIPTS = Path(__file__).parent / "sql"
SIZES = ("10000", "100000", "1000000", "10000000")
DEMO_AT_MOST = 1_000_000
_DAYS = 10


@dataclass(frozen=True)
class Dataset:
    """A filled database, its rollups kept up; `total` is how many interceptions have ended."""

    size: int
    url: str
    total: int
    token: str
    built: str


def script(name: str) -> str:
    """A script of ours."""
    return (SCRIPTS / f"{name}.sql").read_text(encoding="utf-8")


def beside(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    head, _, tail = url.partition("?")
    return f"{head.rpartition('/')[0]}/{database}?{tail}"


async def provide(url: str, *, size: int, keep: bool = False) -> Dataset:
    """The data set of that size, built if it is not there, or was made for another schema and `keep` is not set."""
    name, marked = f"bench_{size}", _fingerprint()
    admin = await asyncpg.connect(beside(url, "postgres"))
    try:
        comment = await admin.fetchval(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", name
        )
        if not comment or not (keep or comment.startswith(marked)):
            await _build(url, admin, size=size)
            await admin.execute(f"COMMENT ON DATABASE {name} IS '{marked} {await _seal(beside(url, name))}'")
    finally:
        await admin.close()
    async with opened(beside(url, name)) as database:
        await upkeep.catch_up(database, until=datetime.now(UTC))
        now = datetime.now(UTC)
        async with database.transaction() as connection:
            owner = uuid4()
            await users.add(
                connection, user_id=owner, username=f"bench-{owner}", name="", roles=["owner"], created_at=now
            )
            token = await tokens.create(connection, user_id=owner, created_at=now)
    raw = await asyncpg.connect(beside(url, name))
    try:
        built = await raw.fetchval(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1", name
        )
        total = await raw.fetchval("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL")
    finally:
        await raw.close()
    return Dataset(size=size, url=beside(url, name), total=total, token=token, built=built.partition(" ")[2])


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database as the service has it."""
    database = await db.connect(settings.read(), url, statements.load())
    try:
        yield database
    finally:
        await database.close()


async def _build(url: str, admin: asyncpg.Connection[Any], *, size: int) -> None:
    name = f"bench_{size}"
    await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    if size <= DEMO_AT_MOST:
        await admin.execute(f"CREATE DATABASE {name}")
        migrations.apply(beside(url, name))
        newest = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        async with opened(beside(url, name)) as database:
            with click.progressbar(length=size, label=f"inventing {size:,} interceptions", file=sys.stderr) as bar:
                await demo.fill(
                    database,
                    interceptions=size,
                    seed=1,
                    newest=newest,
                    progress=lambda done: bar.update(done - bar.pos),
                )
        return
    if size != 10 * DEMO_AT_MOST:
        raise click.ClickException(f"{size:,} is not a size: up to {DEMO_AT_MOST:,}, or ten times that")
    await provide(url, size=DEMO_AT_MOST)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE bench_{DEMO_AT_MOST} STRATEGY FILE_COPY")
    raw = await asyncpg.connect(beside(url, name))
    try:
        await _grow(raw)
    finally:
        await raw.close()


async def _grow(raw: asyncpg.Connection[Any]) -> None:
    """Make ten interceptions of each: the tables written first, their indexes made at the end."""
    await raw.execute("SET work_mem = '512MB'; SET maintenance_work_mem = '1GB'; SET synchronous_commit = off")
    definitions = await raw.fetch(script("read_definitions"))
    for row in reversed(definitions):
        await raw.execute(row["drops"])
    await raw.execute(script("set_aside"))
    first, last = await raw.fetchrow("SELECT min(started_at), max(started_at) FROM bench_template")  # type: ignore[misc]
    windows = [first + number * timedelta(days=_DAYS) for number in range((last - first).days // _DAYS + 1)]
    with click.progressbar(windows, label="copying interceptions", file=sys.stderr) as bar:
        for begins in bar:
            await raw.execute(script("copy_interceptions"), begins, begins + timedelta(days=_DAYS))
    await raw.execute(script("copy_children"))
    with click.progressbar(definitions, label="indexing", file=sys.stderr) as bar:
        for row in bar:
            await raw.execute(row["makes"])


async def _seal(url: str) -> str:
    """Build the rollups, and tidy up; what that took, for the report."""
    started = time.monotonic()
    async with opened(url) as database:
        await upkeep.catch_up(database, until=datetime.now(UTC))
    taken = time.monotonic() - started
    raw = await asyncpg.connect(url)
    try:
        await raw.execute("VACUUM ANALYZE")
        await raw.execute("CHECKPOINT")
    finally:
        await raw.close()
    return f"rollups built in {taken:.0f} s"


def _fingerprint() -> str:
    digest = hashlib.sha256()
    ours = [SCRIPTS / f"{name}.sql" for name in ("set_aside", "copy_interceptions", "copy_children")]
    for path in [*sorted((ROOT / "migrations").glob("*.sql")), *sorted((ROOT / "sql" / "demo").glob("*.sql")), *ours]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
