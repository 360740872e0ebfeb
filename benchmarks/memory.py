"""The service's memory over minutes of load, and what the rollups take on disk."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import click

from benchmarks import datasets
from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import API, ROOT, TOKEN_HEADER, run, served

CLIENTS = 16
_SAMPLES = 300
_WARM_UP = 0.2
_FLAT = 1.05
_SCRIPT = ROOT / "deploy" / "load" / "pages.lua"


async def measure(sets: Sequence[Dataset], *, seconds: float) -> Section:
    """On the largest size; the pages of deploy/load/pages.lua: filters, offsets, all with totals."""
    one = sets[-1]
    started = datetime.now(UTC)
    with served(one.url) as service:
        load = asyncio.create_task(asyncio.to_thread(_load, service.address, one.token, one.total, seconds))
        samples: list[tuple[float, float]] = []
        begun = asyncio.get_running_loop().time()
        while not load.done():
            samples.append((asyncio.get_running_loop().time() - begun, resident(service.pid)))
            await asyncio.wait([load], timeout=seconds / _SAMPLES)
        rate = await load
    click.echo(".", nl=False, err=True)
    return _section(one, samples, await _sizes(one.url), rate=rate, seconds=seconds, started=started)


def resident(pid: int) -> float:
    """The resident memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        sys.exit(
            "the memory of a process is read from /proc, which this system does not have: leave out the part memory"
        )
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def _load(address: str, token: str, total: int, seconds: float) -> float:
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds:g}s", "--timeout", "60s", "-s", str(_SCRIPT)]
    output = run(
        [*command, "-H", f"{TOKEN_HEADER}: {token}", f"{address}{API}/interceptions"],
        env=os.environ | {"LOAD_TOTAL": str(total)},
    )
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"wrk met errors:\n{output}")
    return float(output.partition("Requests/sec:")[2].split()[0])


async def _sizes(url: str) -> list[list[str]]:
    raw = await asyncpg.connect(url)
    try:
        rows = await raw.fetch(datasets.script("read_sizes"))
    finally:
        await raw.close()
    return [[row["name"], f"{row['rows']:,}", f"{row['data']:,.1f}", f"{row['indexes']:,.1f}"] for row in rows]


def _section(
    one: Dataset,
    samples: Sequence[tuple[float, float]],
    sizes: list[list[str]],
    *,
    rate: float,
    seconds: float,
    started: datetime,
) -> Section:
    length = samples[-1][0]
    fifths = [
        statistics.median(
            [size for at, size in samples if number * _WARM_UP * length <= at <= (number + 1) * _WARM_UP * length]
        )
        for number in range(5)
    ]
    growth = fifths[-1] / fifths[1]
    return Section(
        name="memory",
        title="Memory and disk",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {seconds:g} s",
        lines=[
            (
                f"{one.size:,} interceptions, {CLIENTS} clients, the pages of "
                f"[deploy/load/pages.lua](../deploy/load/pages.lua) at {rate:,.0f} a second. The service's resident "
                f"memory began with {samples[0][1]:.0f} MiB; the medians of the fifths of the time: "
                f"{', '.join(f'{size:.1f}' for size in fifths)} MiB."
            ),
            "",
            f"{(one.built or 'rollups built beforehand').capitalize()}.",
            "",
            *table(["table", "rows", "data, MiB", "indexes, MiB"], sizes),
        ],
        bars=[
            Bar(
                f"memory flat over ten minutes of load (the last fifth at most {_FLAT:g} times the second)",
                f"{growth:.3f} times in {seconds / 60:.1f} minutes"
                + (", too short a time to tell" if seconds < 600 else ""),
                growth <= _FLAT and seconds >= 600,
            )
        ],
    )
