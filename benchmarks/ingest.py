"""Recording: transactions that write an interception and its token usage, with the rollups and without."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import click

from benchmarks import datasets
from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import Measurement, median, pgbench, ratio
from service import upkeep
from service.db import Database

WRITERS = (1, 16)
_AIM = 0.9
_SCRATCH = "bench_scratch"

# What one transaction records.
RECORDS = {
    "with its children": "ingest_whole",
    "with one token usage": "ingest",
}

# Whether the triggers are on, and how long ago what is recorded has started.
VARIANTS = {
    "without rollups": (False, "1 second"),
    "with rollups and their upkeep": (True, "1 second"),
    "with rollups, all of it long sealed": (True, "30 days"),
}


# Writers, what is recorded, variant.
Key = tuple[int, str, str]


async def measure(sets: Sequence[Dataset], *, rounds: int, seconds: float) -> Section:
    """In a copy of the smallest data set, which is thrown away."""
    one = sets[0]
    url = datasets.beside(one.url, _SCRATCH)
    started = datetime.now(UTC)
    found: dict[Key, list[Measurement]] = {}
    admin = await asyncpg.connect(datasets.beside(one.url, "postgres"))
    try:
        await admin.execute(f"DROP DATABASE IF EXISTS {_SCRATCH} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {_SCRATCH} TEMPLATE bench_{one.size} STRATEGY FILE_COPY")
        async with datasets.opened(url) as database:
            for number in range(rounds):
                for writers, record in itertools.product(WRITERS, RECORDS):
                    # Each round begins with another one, so that none is always the first after a pause.
                    names = list(VARIANTS)
                    for name in names[number % len(names) :] + names[: number % len(names)]:
                        measured = await _run(url, database, name, record=record, writers=writers, seconds=seconds)
                        found.setdefault((writers, record, name), []).append(measured)
                    click.echo(".", nl=False, err=True)
        await admin.execute(f"DROP DATABASE {_SCRATCH} WITH (FORCE)")
    finally:
        await admin.close()
    return _section(one, found, rounds=rounds, seconds=seconds, started=started)


async def _run(url: str, database: Database, variant: str, *, record: str, writers: int, seconds: float) -> Measurement:
    script = (Path(__file__).parent / "scripts" / f"{RECORDS[record]}.sql").read_text(encoding="utf-8")
    enabled, age = VARIANTS[variant]
    raw = await asyncpg.connect(url)
    try:
        await raw.execute(f"ALTER TABLE aibridge_interceptions {'ENABLE' if enabled else 'DISABLE'} TRIGGER USER")
    finally:
        await raw.close()
    load = asyncio.to_thread(
        pgbench, url, [script], clients=writers, seconds=seconds, variables={"age": age}, session={}
    )
    if not enabled:
        return await load
    async with _kept_up(database):
        return await load


@asynccontextmanager
async def _kept_up(database: Database) -> AsyncIterator[None]:
    """The upkeep that a service would do meanwhile."""
    task = asyncio.create_task(upkeep.keep_rollups(database))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _section(
    one: Dataset,
    found: dict[Key, list[Measurement]],
    *,
    rounds: int,
    seconds: float,
    started: datetime,
) -> Section:
    without, with_them, _ = VARIANTS
    reached = {record: ratio(found[16, record, with_them], found[16, record, without]) for record in RECORDS}
    rows = [
        [
            f"{writers} writer{'s' * (writers > 1)}, {record}, {name}",
            f"{median(runs, 'rate'):,.0f}",
            f"{ratio(runs, found[writers, record, without]):.2f}",
            f"{median(runs, 'p50'):.2f}",
            f"{median(runs, 'p99'):.2f}",
        ]
        for (writers, record, name), runs in found.items()
    ]
    return Section(
        name="ingest",
        title="Recording",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds of {seconds:g} s for each figure, the order rotated",
        lines=[
            (
                "Transactions of pgbench that insert an interception already ended, with its children (two token "
                "usages, a prompt and two tool usages, near the demo's average) or with one token usage and nothing "
                f"else, into a copy of the {one.size:,}; fsync on, all indexes of the schema there. Without rollups: "
                "their triggers disabled. What is long sealed (an import, a late end) writes a change for each row, "
                "and is no aim."
            ),
            "",
            *table(
                ["writers, variant", "transactions/s", "of without", "p50 ms", "p99 ms"], sorted(rows, key=_writers)
            ),
        ],
        bars=[
            Bar(
                f"ingest with rollups at least {_AIM} of ingest without, 16 writers, an interception {record}",
                f"{share:.2f}",
                share >= _AIM,
            )
            for record, share in reached.items()
        ],
    )


def _writers(row: Sequence[str]) -> int:
    return int(row[0].partition(" ")[0])
