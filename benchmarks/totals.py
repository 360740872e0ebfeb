"""Exact totals: the service's statements beside a plain count, in the same kind of snapshot on the same connection."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import click

from benchmarks import cases, datasets, recorded
from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import Measurement, median, pgbench, ratio, summary
from service.db import Connection, Database
from service.store import interceptions, totals
from service.store.interceptions import Criteria

OURS_A_ROUND = 60
PEERS_A_ROUND = 1
_AIM = 3.0
_GROWTH, _GROWTH_MS = 3.0, 1.0

Count = Callable[[Connection, Criteria], Awaitable[int]]


async def measure(sets: Sequence[Dataset], *, rounds: int) -> Section:
    """Every search on the two largest sizes."""
    sizes = [one for one in sets if one.size > 100_000] or list(sets)
    found: dict[tuple[int, str, str], list[Measurement]] = {}
    counted: dict[tuple[int, str], int] = {}
    started = datetime.now(UTC)
    searches = {one.size: await cases.find(one.url) for one in sizes}
    for _ in range(rounds):
        for one in sizes:
            async with datasets.opened(one.url) as database:
                await _round(database, searches[one.size], url=one.url, size=one.size, found=found, counted=counted)
        click.echo(".", nl=False, err=True)
    return _section(sizes, list(searches[sizes[0].size]), found, counted, rounds=rounds, started=started)


async def _round(
    database: Database,
    searches: dict[str, Criteria],
    *,
    url: str,
    size: int,
    found: dict[tuple[int, str, str], list[Measurement]],
    counted: dict[tuple[int, str], int],
) -> None:
    for name, criteria in searches.items():
        ours, total = await timed(database, _ours, criteria, times=OURS_A_ROUND)
        peers, plain = await timed(database, _peers, criteria, times=PEERS_A_ROUND)
        if total != plain:
            raise click.ClickException(f"{name} of {size:,}: the rollups say {total}, a count says {plain}")
        counted[size, name] = total
        found.setdefault((size, name, "ours"), []).append(ours)
        found.setdefault((size, name, "peer"), []).append(peers)
        script = await _script(database, criteria)
        bare = pgbench(url, [script.text], clients=1, seconds=1, variables=script.variables)
        found.setdefault((size, name, "pgbench"), []).append(bare)


async def _script(database: Database, criteria: Criteria) -> recorded.Script:
    async with database.connection() as connection:
        recorder = recorded.Recorder(connection)
        await totals.count(recorder, criteria=criteria)
    return recorder.script()


async def timed(database: Database, count: Count, criteria: Criteria, *, times: int) -> tuple[Measurement, int]:
    """The time from the first statement of a snapshot to the last answer; what came before is not measured."""
    samples, total = [], 0
    async with database.snapshot() as connection:
        await count(connection, criteria)  # the statements are prepared, and the pages are in memory
    for _ in range(times):
        async with database.snapshot() as connection:
            begun = time.perf_counter()
            total = await count(connection, criteria)
            samples.append(1000 * (time.perf_counter() - begun))
    return summary(samples), total


async def _ours(connection: Connection, criteria: Criteria) -> int:
    return await totals.count(connection, criteria=criteria)


async def _peers(connection: Connection, criteria: Criteria) -> int:
    return await interceptions.count(connection, criteria=criteria)


def _section(
    sizes: Sequence[Dataset],
    names: Sequence[str],
    found: dict[tuple[int, str, str], list[Measurement]],
    counted: dict[tuple[int, str], int],
    *,
    rounds: int,
    started: datetime,
) -> Section:
    small, large = sizes[0].size, sizes[-1].size
    rows = []
    slowest, grown = ("", 0.0), []
    for name in names:
        ours = {size: found[size, name, "ours"] for size in (small, large)}
        peers = {size: found[size, name, "peer"] for size in (small, large)}
        cost = {size: median(ours[size], "p50") for size in ours}
        growth = ratio(ours[large], ours[small], "p50")
        slowest = max(slowest, (name, cost[large]), key=lambda pair: pair[1])
        if growth > _GROWTH and cost[large] - cost[small] > _GROWTH_MS:
            grown.append(f"{name} ({growth:.1f} times)")
        rows.append(
            [
                name,
                f"{counted[large, name]:,}",
                f"{cost[small]:.2f}",
                f"{cost[large]:.2f}",
                f"{median(ours[large], 'p99'):.2f}",
                f"{growth:.2f}",
                f"{median(found[large, name, 'pgbench'], 'rate'):,.0f}",
                f"{ratio(ours[large], found[large, name, 'pgbench']):.2f}",
                f"{median(peers[small], 'p50'):,.1f}",
                f"{median(peers[large], 'p50'):,.1f}",
                f"{ratio(peers[large], peers[small], 'p50'):.1f}",
                f"{ratio(peers[large], ours[large], 'p50'):,.0f}",
            ]
        )
    head = [
        *("search", "total", f"{small:,}: ms", f"{large:,}: ms", "p99", "growth"),
        *("pgbench, the same statement: /s", "ours / pgbench"),
        *("peer, " + f"{small:,}: ms", f"peer, {large:,}: ms", "growth", "peer / ours"),
    ]
    return Section(
        name="totals",
        title="Totals",
        measured=(
            f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds, {OURS_A_ROUND} totals of ours and {PEERS_A_ROUND} of the "
            "peer's for each figure in each"
        ),
        lines=[
            (
                "All that is between the first statement and the last answer, over asyncpg on one connection and a "
                "unix socket, inside a repeatable-read transaction. The peer is `count(*)` with the same filter on "
                "the same connection; it may use parallel workers. Both told the same number each time. pgbench runs "
                "our statement on one connection, on the larger size; beside it is the rate of ours by itself."
            ),
            "",
            *table(head, rows),
        ],
        bars=[
            Bar(
                f"every total at {large:,} at most {_AIM:g} ms",
                f"the slowest, {slowest[0]}: {slowest[1]:.2f} ms",
                slowest[1] <= _AIM,
            ),
            Bar(
                f"at most {_GROWTH:g} times, or {_GROWTH_MS:g} ms more than, the same at {small:,}",
                f"beyond: {', '.join(grown)}" if grown else "every one",
                not grown,
            ),
        ],
    )
