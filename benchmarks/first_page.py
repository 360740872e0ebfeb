"""The first page without its total: the service beside PostgreSQL alone and beside aiohttp alone.

Every cell (a limit, a number of clients) is measured in each of its variants in turn, round after round, so that a machine
whose speed drifts slows them all; medians over the rounds are told, and ratios within a round.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import API, TOKEN_HEADER, Measurement, median, pgbench, ratio, served, wrk
from service import statements

LIMITS = (10, 25, 100)
CLIENTS = (1, 16, 64)

# In the order in which they are measured; the first is what the others are compared with.
VARIANTS = {
    "statement": "pgbench, the page's statement alone",
    "page": "the service, no total, no sign-in",
    "page_signed_in": "the service, no total, signed in",
    "static": "the service's aiohttp, a fixed answer of the same length",
}
_AIMS = {"page": 0.6, "page_signed_in": 0.5}

Cell = tuple[int, int, str]


@dataclass(frozen=True)
class Bench:
    """A filled database, and the service on it."""

    dataset: Dataset
    address: str
    seconds: float
    statement: str
    page_bytes: dict[int, int]

    def run(self, variant: str, *, limit: int, clients: int) -> Measurement:
        """Measure one variant once."""
        if variant == "statement":
            return pgbench(
                self.dataset.url,
                [self.statement],
                clients=clients,
                seconds=self.seconds,
                variables={"page_size": limit},
            )
        path = {
            "page": f"/page?limit={limit}",
            "page_signed_in": f"{API}/page?limit={limit}",
            "static": f"/static?size={self.page_bytes[limit]}",
        }[variant]
        return wrk(self.address + path, token=self.dataset.token, clients=clients, seconds=self.seconds)


async def measure(sets: Sequence[Dataset], *, rounds: int, seconds: float) -> Section:
    """On the largest of the demo's sizes."""
    one = next((one for one in reversed(sets) if one.size <= 1_000_000), sets[0])
    started = datetime.now(UTC)
    results: dict[Cell, list[Measurement]] = {}
    with served(one.url) as service:
        bench = Bench(
            dataset=one,
            address=service.address,
            seconds=seconds,
            statement=_statement(),
            page_bytes={limit: _page_bytes(service.address, one.token, limit=limit) for limit in LIMITS},
        )
        for _ in range(rounds):
            for limit in LIMITS:
                for clients in CLIENTS:
                    for variant in VARIANTS:
                        found = bench.run(variant, limit=limit, clients=clients)
                        results.setdefault((limit, clients, variant), []).append(found)
            click.echo(".", nl=False, err=True)
    return _section(one, results, rounds=rounds, seconds=seconds, started=started)


def _statement() -> str:
    page, _ = statements.load()["interceptions/list_matching"].render(frozenset({"page_size"}))
    text = "\n".join(line.partition("--")[0] for line in page.splitlines())
    return f"{text.replace('$1', ':page_size')};\n"


def _page_bytes(address: str, token: str, *, limit: int) -> int:
    request = urllib.request.Request(f"{address}{API}/interceptions?limit={limit}", headers={TOKEN_HEADER: token})
    with urllib.request.urlopen(request) as response:
        body = response.read()
    assert len(json.loads(body)["results"]) == limit
    return len(body)


def _section(
    one: Dataset, results: dict[Cell, list[Measurement]], *, rounds: int, seconds: float, started: datetime
) -> Section:
    rows = [
        [
            f"limit {limit}, {clients} client{'s' * (clients > 1)}, {VARIANTS[variant]}",
            f"{median(runs, 'rate'):,.0f}",
            f"{ratio(runs, results[limit, clients, 'statement']):.2f}",
            f"{median(runs, 'p50'):.2f}",
            f"{median(runs, 'p99'):.2f}",
        ]
        for (limit, clients, variant), runs in results.items()
    ]
    reached = {variant: ratio(results[25, 16, variant], results[25, 16, "statement"]) for variant in _AIMS}
    return Section(
        name="first_page",
        title="The first page without its total",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds of {seconds:g} s for each figure",
        lines=[
            f"{one.size:,} interceptions.",
            "",
            *table(["load, variant", "pages/s", "of the statement's rate", "p50 ms", "p99 ms"], rows),
        ],
        bars=[
            Bar(
                f"limit 25, 16 clients, {VARIANTS[variant].removeprefix('the service, ')}: at least {aim} of pgbench's "
                "rate for the same statement",
                f"{reached[variant]:.2f}",
                reached[variant] >= aim,
            )
            for variant, aim in _AIMS.items()
        ],
    )
