"""What every part of the benchmark needs: load by wrk and pgbench, the service as a process, figures and their medians."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service import db
from service.embedded import binaries_directory

ROOT = Path(__file__).resolve().parent.parent
API = "/api/v2/aibridge"
TOKEN_HEADER = "Coder-Session-Token"


@dataclass(frozen=True)
class Measurement:
    """What one run gave; the rate by second, latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def summary(samples: Sequence[float], *, rate: float | None = None) -> Measurement:
    """Single latencies in milliseconds as one measurement."""
    ordered = sorted(samples)
    return Measurement(
        rate=rate if rate is not None else 1000 * len(ordered) / sum(ordered),
        p50=statistics.median(ordered),
        p99=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    )


def median(runs: Iterable[Measurement], field: str) -> float:
    """The median of one field over the rounds."""
    return statistics.median(float(getattr(run, field)) for run in runs)


def ratio(ours: Sequence[Measurement], others: Sequence[Measurement], field: str = "rate") -> float:
    """The median, over the rounds, of one by the other in the same round."""
    return statistics.median(
        float(getattr(one, field)) / float(getattr(other, field)) for one, other in zip(ours, others, strict=True)
    )


def run(command: list[str], *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """What a program prints; the benchmark ends where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def wrk(url: str, *, token: str, clients: int, seconds: float) -> Measurement:
    """Load on one URL."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "60s", "--latency"]
    output = run([*command, "-H", f"{TOKEN_HEADER}: {token}", url])
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"wrk met errors at {url}:\n{output}")
    percentile = {found[1]: milliseconds(found[2]) for found in re.finditer(r"(\d+)%\s+([\d.]+\w+)", output)}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate is not None, output
    return Measurement(float(rate[1]), percentile["50"], percentile["99"])


def pgbench(
    url: str,
    scripts: Sequence[str],
    *,
    clients: int,
    seconds: float,
    variables: Mapping[str, object] | None = None,
    session: Mapping[str, str] = db.SESSION,
) -> Measurement:
    """Load by a script of pgbench; by several, in equal shares. The session is set up as the service's are."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, script in enumerate(scripts):
            path = Path(folder) / f"{number}.sql"
            path.write_text(script, encoding="utf-8")
            files += ["-f", str(path)]
        output = run(
            [
                *(str(binaries_directory() / "pgbench"), "-n", "-M", "prepared", *files),
                *("-c", str(clients), "-j", str(min(clients, os.cpu_count() or 1)), "-T", f"{max(1, round(seconds))}"),
                *(part for name, value in (variables or {}).items() for part in ("-D", f"{name}={value}")),
                *("-l", url),
            ],
            cwd=folder,
            env=os.environ
            | {"PGOPTIONS": " ".join(f"-c {name}={value.replace(' ', '')}" for name, value in session.items())},
        )
        # Per transaction: client, number, microseconds, …
        taken = [
            int(line.split()[2]) / 1000
            for log in Path(folder).glob("pgbench_log.*")
            for line in log.read_text().splitlines()
        ]
    rate = re.search(r"tps = ([\d.]+)", output)
    assert rate is not None, output
    return summary(taken, rate=float(rate[1]))


def milliseconds(text: str) -> float:
    """wrk's `713.00us`, `1.35ms`, `2.10s` as milliseconds."""
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


@dataclass(frozen=True)
class Served:
    """The service as a process of its own."""

    address: str
    pid: int


@contextmanager
def served(url: str) -> Iterator[Served]:
    """The service with the further routes of benchmarks/served.py, and its upkeep."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.served"],
        env=os.environ | {"BRIDGELOG_DATABASE_URL": url, "BRIDGELOG_LOG_LEVEL": "warning", "BRIDGELOG_POOL_SIZE": "16"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        yield Served(address=f"http://127.0.0.1:{int(process.stdout.readline())}", pid=process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return f"{os.cpu_count()} cores ({names[0].strip() if names else platform.machine()})"


def memory() -> str:
    """The machine's memory."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"


def postgres() -> str:
    """The version of PostgreSQL."""
    return run([str(binaries_directory() / "postgres"), "--version"]).strip()
