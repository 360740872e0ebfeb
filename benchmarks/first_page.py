"""The first page of the list, measured: the service beside PostgreSQL alone and beside aiohttp alone.

    python -m benchmarks.first_page [--interceptions N] [--rounds N] [--seconds N]

Every cell (a limit, a number of clients) is measured in each of its variants in turn, round after round, so that a machine
whose speed drifts slows them all; medians over the rounds are told, and ratios within a round. wrk makes the HTTP requests
and pgbench runs the statement. The result is docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import click

from service import db, migrations, settings, statements
from service.embedded import Embedded, binaries_directory
from service.store import demo, interceptions, tokens, users

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "benchmarks.md"
LIMITS = (10, 25, 100)
CLIENTS = (1, 16, 64)
API = "/api/v2/aibridge"

# In the order in which they are measured; the first is what the others are compared with.
VARIANTS = {
    "statement": "pgbench, the page's statement alone",
    "page": "the service, no total, no sign-in",
    "page_signed_in": "the service, no total, signed in",
    "static": "the service's aiohttp, a fixed answer of the same length",
    "counted": "pgbench, total and page in one snapshot",
    "whole": "the service as it is: signed in, total, page",
}


@dataclass(frozen=True)
class Measurement:
    """What one run of one variant gave; latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Bench:
    """A filled database, and the service on it."""

    url: str
    address: str
    token: str
    seconds: int
    scripts: Path
    page_bytes: dict[int, int]

    def run(self, variant: str, *, limit: int, clients: int) -> Measurement:
        """Measure one variant once."""
        if variant in {"statement", "counted"}:
            return self._pgbench(self.scripts / f"{variant}.sql", limit=limit, clients=clients)
        path = {
            "page": f"/page?limit={limit}",
            "page_signed_in": f"{API}/page?limit={limit}",
            "static": f"/static?size={self.page_bytes[limit]}",
            "whole": f"{API}/interceptions?limit={limit}",
        }[variant]
        return self._wrk(self.address + path, clients=clients)

    def _wrk(self, url: str, *, clients: int) -> Measurement:
        command = ["wrk", "-t1", f"-c{clients}", f"-d{self.seconds}s", "--timeout", "60s", "--latency"]
        output = run([*command, "-H", f"Coder-Session-Token: {self.token}", url])
        if "Non-2xx" in output or "Socket errors" in output:
            sys.exit(f"wrk met errors at {url}:\n{output}")
        percentile = {found[1]: milliseconds(found[2]) for found in re.finditer(r"(\d+)%\s+([\d.]+\w+)", output)}
        rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
        assert rate is not None, output
        return Measurement(float(rate[1]), percentile["50"], percentile["99"])

    def _pgbench(self, script: Path, *, limit: int, clients: int) -> Measurement:
        with tempfile.TemporaryDirectory() as folder:
            output = run(
                [
                    *(str(binaries_directory() / "pgbench"), "-n", "-M", "prepared", "-f", str(script)),
                    *("-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1)), "-T", str(self.seconds)),
                    *("-D", f"page_size={limit}", "-l", self.url),
                ],
                cwd=folder,
                env=os.environ
                | {"PGOPTIONS": " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in db.SESSION.items())},
            )
            # Per transaction: client, number, microseconds, …
            taken = sorted(
                int(line.split()[2]) / 1000
                for log in Path(folder).glob("pgbench_log.*")
                for line in log.read_text().splitlines()
            )
        rate = re.search(r"tps = ([\d.]+)", output)
        assert rate is not None, output
        return Measurement(float(rate[1]), taken[len(taken) // 2], taken[len(taken) * 99 // 100])


def run(command: list[str], *, cwd: str | None = None, env: dict[str, str] | None = None) -> str:
    """What a program prints; the benchmark ends where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def milliseconds(text: str) -> float:
    """wrk's `713.00us`, `1.35ms`, `2.10s` as milliseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


async def prepare(url: str, *, size: int) -> tuple[str, int]:
    """Fill the database as far as it is not; an owner's token, and how many interceptions there are."""
    database = await db.connect(settings.read(), url, statements.load())
    try:
        now = datetime.now(UTC)
        async with database.transaction() as connection:
            total = await interceptions.count(connection, criteria=interceptions.Criteria())
            owner = uuid4()
            await users.add(
                connection, user_id=owner, username=f"bench-{owner}", name="", roles=["owner"], created_at=now
            )
            token = await tokens.create(connection, user_id=owner, created_at=now)
        if total < size * 0.98:  # 1 in 100 of the demo's is still running
            with click.progressbar(length=size, label="inventing interceptions", file=sys.stderr) as bar:
                await demo.fill(
                    database,
                    interceptions=size,
                    seed=1,
                    newest=now.replace(minute=0, second=0, microsecond=0),
                    progress=lambda done: bar.update(done - bar.pos),
                )
        async with database.connection() as connection:
            return token, await interceptions.count(connection, criteria=interceptions.Criteria())
    finally:
        await database.close()


def write_scripts(folder: Path) -> None:
    """The service's own statements, for pgbench."""
    loaded = statements.load()
    page, _ = loaded["interceptions/list_matching"].render(frozenset({"page_size"}))
    count, _ = loaded["interceptions/count_matching"].render(frozenset())
    page = page.replace("$1", ":page_size")
    (folder / "statement.sql").write_text(f"{page};\n")
    (folder / "counted.sql").write_text(
        f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n{count};\n{page};\nCOMMIT;\n"
    )


@contextmanager
def served(url: str) -> Iterator[str]:
    """The service as a process of its own; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.served"],
        env=os.environ | {"BRIDGELOG_DATABASE_URL": url, "BRIDGELOG_LOG_LEVEL": "warning", "BRIDGELOG_POOL_SIZE": "16"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def page_bytes(address: str, token: str, *, limit: int) -> int:
    """How long a page is."""
    request = urllib.request.Request(
        f"{address}{API}/interceptions?limit={limit}", headers={"Coder-Session-Token": token}
    )
    with urllib.request.urlopen(request) as response:
        body = response.read()
    assert len(json.loads(body)["results"]) == limit
    return len(body)


def measure(bench: Bench, *, rounds: int) -> dict[tuple[int, int, str], list[Measurement]]:
    """Every variant of every cell, `rounds` times, interleaved."""
    results: dict[tuple[int, int, str], list[Measurement]] = {}
    cells = [(limit, clients) for limit in LIMITS for clients in CLIENTS]
    with click.progressbar(length=rounds * len(cells), label="measuring", file=sys.stderr) as bar:
        for _ in range(rounds):
            for limit, clients in cells:
                for variant in VARIANTS:
                    found = bench.run(variant, limit=limit, clients=clients)
                    results.setdefault((limit, clients, variant), []).append(found)
                bar.update(1)
    return results


def ratio(results: dict[tuple[int, int, str], list[Measurement]], limit: int, clients: int, a: str, b: str) -> float:
    """The median, over the rounds, of one variant's rate by another's in the same round."""
    pairs = zip(results[limit, clients, a], results[limit, clients, b], strict=True)
    return statistics.median(one.rate / other.rate for one, other in pairs)


def table(results: dict[tuple[int, int, str], list[Measurement]]) -> Iterator[str]:
    """One table a limit."""
    for limit in LIMITS:
        yield f"\n### limit={limit}\n"
        yield "| clients | variant | requests/s | of the statement's rate | p50 ms | p99 ms |"
        yield "|---|---|---|---|---|---|"
        for clients in CLIENTS:
            for variant, title in VARIANTS.items():
                runs = results[limit, clients, variant]
                rate, p50, p99 = (
                    statistics.median(getattr(found, name) for found in runs) for name in ("rate", "p50", "p99")
                )
                share = ratio(results, limit, clients, variant, "statement")
                yield f"| {clients} | {title} | {rate:,.0f} | {share:.2f} | {p50:.2f} | {p99:.2f} |"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return f"{os.cpu_count()} cores ({names[0] if names else platform.machine()})"


def report(
    results: dict[tuple[int, int, str], list[Measurement]], *, total: int, rounds: int, seconds: int, postgres: str
) -> str:
    """docs/benchmarks.md."""
    aims = [
        ("no total, no sign-in", "page", 0.6),
        ("no total, signed in", "page_signed_in", 0.5),
    ]
    verdicts = []
    for what, variant, aim in aims:
        reached = ratio(results, 25, 16, variant, "statement")
        verdicts.append(
            f"- limit 25, 16 clients, {what}: **{reached:.2f}** of pgbench's rate for the same statement; the aim is "
            f"{aim}: {'reached' if reached >= aim else 'missed'}."
        )
    share = ratio(results, 25, 16, "whole", "page_signed_in")
    head = f"""\
# Benchmarks

Written by `make bench` (benchmarks/first_page.py). Look at the ratios: they come from runs that took turns. The absolute
figures are one machine's on one day.

- {datetime.now(UTC):%Y-%m-%d}; {processor()}; {platform.system()} {platform.machine()}
- {postgres}, set up as the embedded server is; Python {platform.python_version()}
- {total:,} ended demo interceptions with their children
- {rounds} rounds of {seconds} s for each figure; medians
- PostgreSQL, the service (one process, a pool of 16, a unix socket), and wrk or pgbench, which make the load, share them

## The first page
"""
    tail = (
        f"- The exact total is what costs: with it the service reaches {share:.3f} of its own rate without it "
        "(limit 25, 16 clients), for it counts every interception each time."
    )
    return "\n".join([head, *verdicts, tail, *table(results), ""])


@click.command()
@click.option("--interceptions", "size", type=click.IntRange(min=1000), default=1_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=REPORT, show_default=True)
def main(size: int, rounds: int, seconds: int, output: Path) -> None:
    """Measure the first page, and write docs/benchmarks.md."""
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is missing; on Debian and Ubuntu: apt install wrk")
    with Embedded(ROOT / ".data" / "bench") as embedded, tempfile.TemporaryDirectory() as scripts:
        migrations.apply(embedded.url)
        token, total = asyncio.run(prepare(embedded.url, size=size))
        write_scripts(Path(scripts))
        postgres = run([str(binaries_directory() / "postgres"), "--version"]).strip()
        with served(embedded.url) as address:
            bench = Bench(
                url=embedded.url,
                address=address,
                token=token,
                seconds=seconds,
                scripts=Path(scripts),
                page_bytes={limit: page_bytes(address, token, limit=limit) for limit in LIMITS},
            )
            results = measure(bench, rounds=rounds)
    output.write_text(report(results, total=total, rounds=rounds, seconds=seconds, postgres=postgres), encoding="utf-8")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
