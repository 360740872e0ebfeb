"""Whole pages over HTTP, total included, on every size: beside the peer's way, and beside parts of themselves."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import click

from benchmarks import datasets, peer, recorded
from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Point, Section, table
from benchmarks.tools import API, TOKEN_HEADER, Measurement, median, pgbench, ratio, served, wrk
from service.store import totals
from service.store.interceptions import Criteria

PAGE_SIZE = 25
CLIENTS = (1, 16, 64)
_PEER_AIM, _SHARE_AIM, _GROWTH_AIM = 50, 0.6, 1.3

# In the order in which they are measured.
VARIANTS = {
    "whole": "the service: signed in, total and page",
    "page": "the service without the total",
    "statements": "pgbench, the service's statements with the total",
    "peer": "pgbench, the peer's way",
}

Key = tuple[int, int, str]


@dataclass(frozen=True)
class Target:
    """One size, served."""

    dataset: Dataset
    address: str
    scripts: dict[str, recorded.Script]
    page_bytes: int

    def run(self, variant: str, *, clients: int, seconds: float) -> Measurement:
        """Measure one variant once."""
        if variant in self.scripts:
            script = self.scripts[variant]
            return pgbench(
                self.dataset.url, [script.text], clients=clients, seconds=seconds, variables=script.variables
            )
        path = {"whole": "interceptions", "page": "page"}[variant]
        url = f"{self.address}{API}/{path}?limit={PAGE_SIZE}"
        return wrk(url, token=self.dataset.token, clients=clients, seconds=seconds)


async def measure(sets: Sequence[Dataset], *, rounds: int, seconds: float) -> Section:
    """One client on every size, more on the largest."""
    started = datetime.now(UTC)
    found: dict[Key, list[Measurement]] = {}
    with ExitStack() as stack:
        targets = []
        for one in sets:
            address = stack.enter_context(served(one.url)).address
            scripts = await _scripts(one.url)
            targets.append(Target(one, address, scripts, _page_bytes(address, one.token)))
        cells = [
            (target, clients) for target in targets for clients in (CLIENTS if target is targets[-1] else CLIENTS[:1])
        ]
        for target in targets:  # every connection of the pool has met the statements
            target.run("whole", clients=CLIENTS[-1], seconds=2)
        for _ in range(rounds):
            for target, clients in cells:
                for variant in VARIANTS:
                    measured = target.run(variant, clients=clients, seconds=seconds)
                    found.setdefault((target.dataset.size, clients, variant), []).append(measured)
                click.echo(".", nl=False, err=True)
    return _section(targets, found, rounds=rounds, seconds=seconds, started=started)


async def _scripts(url: str) -> dict[str, recorded.Script]:
    """Ours and the peer's, for the first page; the peer's children are those of the page as it is now."""
    async with datasets.opened(url) as database, database.snapshot() as connection:
        ours = recorded.Recorder(connection)
        await totals.read_page(ours, criteria=Criteria(), page_size=PAGE_SIZE)
        peers = recorded.Recorder(peer.PeerConnection(connection))
        await peer.read_page(peers, criteria=Criteria(), page_size=PAGE_SIZE, offset=0)
    return {"statements": ours.script(), "peer": peers.script()}


def _page_bytes(address: str, token: str) -> int:
    request = urllib.request.Request(f"{address}{API}/interceptions?limit={PAGE_SIZE}", headers={TOKEN_HEADER: token})
    with urllib.request.urlopen(request) as response:
        return len(response.read())


def _section(
    targets: Sequence[Target],
    found: Mapping[Key, list[Measurement]],
    *,
    rounds: int,
    seconds: float,
    started: datetime,
) -> Section:
    small, large = targets[0].dataset.size, targets[-1].dataset.size
    rows = [
        [
            f"{size:,}, {clients} client{'s' * (clients > 1)}, {VARIANTS[variant]}",
            f"{median(runs, 'rate'):,.1f}",
            f"{median(runs, 'p50'):,.2f}",
            f"{median(runs, 'p99'):,.2f}",
            f"{ratio(found[size, clients, 'whole'], runs):,.2f}",
        ]
        for (size, clients, variant), runs in found.items()
    ]
    peer = ratio(found[large, 16, "whole"], found[large, 16, "peer"])
    share = ratio(found[large, 16, "whole"], found[large, 16, "page"])
    growth = ratio(found[large, 1, "whole"], found[small, 1, "whole"], "p50")
    bytes_told = ", ".join(f"{target.page_bytes:,} at {target.dataset.size:,}" for target in targets)
    return Section(
        name="pages",
        title="Whole pages over HTTP",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds of {seconds:g} s for each figure (a transaction of the "
        "peer's that has begun is waited for)",
        lines=[
            (
                f"The first page, limit {PAGE_SIZE}, no filter; wrk on the service (one process, a pool of 16), and "
                "pgbench, which spares the peer HTTP and all code of its own. The peer's way is count(*), the page "
                "by OFFSET and one query for each kind of child, in one repeatable-read transaction. The pages are "
                f"of nearly the same length, in bytes: {bytes_told}."
            ),
            "",
            *table(["interceptions, load, variant", "pages/s", "p50 ms", "p99 ms", "the service / this"], rows),
        ],
        bars=[
            Bar(
                f"whole pages at {large:,}, 16 clients: at least {_PEER_AIM} times the peer's way",
                f"{peer:,.0f} times",
                peer >= _PEER_AIM,
            ),
            Bar(
                f"… and at least {_SHARE_AIM} of the same page without its total",
                f"{share:.2f}",
                share >= _SHARE_AIM,
            ),
            Bar(
                f"the first page at {large:,} at most {_GROWTH_AIM} times the cost at {small:,} (one client, p50)",
                f"{growth:.2f} times",
                growth <= _GROWTH_AIM,
            ),
        ],
        points=[
            Point(who=variant, size=size, cost=median(runs, "p50"))
            for (size, clients, variant), runs in found.items()
            if clients == 1 and variant in {"whole", "page", "peer"}
        ],
    )
