"""Pages of 25 by offset and after a cursor, at several depths, beside the peer's way and pgbench."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

import click

from benchmarks import cases, datasets, peer, recorded
from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import Measurement, median, pgbench, ratio, summary
from service.db import Connection, Database
from service.store import interceptions, totals
from service.store.interceptions import Criteria, Cursor

DEPTHS = (0, 10_000, 100_000, 900_000, 9_000_000)
SEARCHES = ("no filter", "client", "common model", "heavy initiator")
OURS_A_ROUND = 30
PAGE_SIZE = 25
_AIM = 3.0

WAYS = ("offset", "cursor", "peer", "pgbench")

# The total, and the ids of a page.
Found = tuple[int, list[UUID]]
Page = Callable[[Connection], Awaitable[Found]]
Key = tuple[str, int, str]


async def measure(sets: Sequence[Dataset], *, rounds: int) -> Section:
    """On the largest size."""
    one = sets[-1]
    started = datetime.now(UTC)
    searches = await cases.find(one.url)
    found: dict[Key, list[Measurement]] = {}
    async with datasets.opened(one.url) as database:
        pages: dict[Key, Page] = {}
        for name in SEARCHES:
            pages |= await _pages(database, name, searches[name])
        for _ in range(rounds):
            for (name, depth, way), page in pages.items():
                measured = await _timed(database, page, times=1 if way == "peer" else OURS_A_ROUND)
                found.setdefault((name, depth, way), []).append(measured)
                if way == "offset":
                    script = await _script(database, page)
                    bare = pgbench(one.url, [script.text], clients=1, seconds=1, variables=script.variables)
                    found.setdefault((name, depth, "pgbench"), []).append(bare)
            click.echo(".", nl=False, err=True)
    return _section(one, found, rounds=rounds, started=started)


async def _pages(database: Database, name: str, criteria: Criteria) -> dict[Key, Page]:
    """What is measured for one search, as far down as it reaches; checked to be the same page each way."""
    pages: dict[Key, Page] = {}
    async with database.snapshot() as connection:
        total = await totals.count(connection, criteria=criteria)
        for depth in (depth for depth in DEPTHS if depth + PAGE_SIZE < total):
            cursor = await _cursor(connection, criteria, depth) if depth else None
            pages[name, depth, "offset"] = _by_offset(criteria, depth)
            pages[name, depth, "cursor"] = _by_cursor(criteria, cursor)
            pages[name, depth, "peer"] = _peers(criteria, depth)
            seen = [await pages[name, depth, way](connection) for way in ("offset", "cursor", "peer")]
            if not seen[0] == seen[1] == seen[2]:
                raise click.ClickException(f"{name}, offset {depth:,}: the ways differ")
    return pages


async def _script(database: Database, page: Page) -> recorded.Script:
    async with database.snapshot() as connection:
        recorder = recorded.Recorder(connection)
        await page(recorder)
    return recorder.script()


async def _cursor(connection: Connection, criteria: Criteria, depth: int) -> Cursor:
    [before] = await interceptions.list_page(connection, criteria=criteria, page_size=1, skip=depth - 1)
    cursor = await interceptions.find_cursor(
        connection, interception_id=UUID(json.loads(before)["id"]), visible_to=criteria.visible_to
    )
    assert cursor is not None
    return cursor


def _by_offset(criteria: Criteria, depth: int) -> Page:
    async def page(connection: Connection) -> Found:
        total, found = await totals.read_page(connection, criteria=criteria, page_size=PAGE_SIZE, offset=depth)
        return total, [_id(one) for one in found]

    return page


def _by_cursor(criteria: Criteria, cursor: Cursor | None) -> Page:
    async def page(connection: Connection) -> Found:
        total, found = await totals.read_page(connection, criteria=criteria, page_size=PAGE_SIZE, cursor=cursor)
        return total, [_id(one) for one in found]

    return page


def _peers(criteria: Criteria, depth: int) -> Page:
    async def page(connection: Connection) -> Found:
        return await peer.read_page(
            peer.PeerConnection(connection), criteria=criteria, page_size=PAGE_SIZE, offset=depth
        )

    return page


def _id(result: bytes) -> UUID:
    return UUID(result[7:43].decode("ascii"))


async def _timed(database: Database, page: Page, *, times: int) -> Measurement:
    samples = []
    for number in range(times + 1):
        async with database.snapshot() as connection:
            begun = time.perf_counter()
            await page(connection)
            if number or times == 1:  # the first prepares; what takes long is not done for that
                samples.append(1000 * (time.perf_counter() - begun))
    return summary(samples)


def _section(one: Dataset, found: dict[Key, list[Measurement]], *, rounds: int, started: datetime) -> Section:
    rows = []
    worst = (0.0, "")
    for name in SEARCHES:
        for depth in (depth for depth in DEPTHS if (name, depth, "offset") in found):
            of = {way: found[name, depth, way] for way in WAYS}
            grown = ratio(of["offset"], found[name, 0, "offset"], "p50")
            worst = max(worst, (grown, f"{name}, offset {depth:,}"))
            rows.append(
                [
                    name,
                    f"{depth:,}",
                    f"{median(of['offset'], 'p50'):.2f}",
                    f"{median(of['offset'], 'p99'):.2f}",
                    f"{grown:.2f}",
                    f"{median(of['pgbench'], 'rate'):,.0f}",
                    f"{ratio(of['offset'], of['pgbench']):.2f}",
                    f"{median(of['cursor'], 'p50'):.2f}",
                    f"{median(of['peer'], 'p50'):,.1f}",
                    f"{ratio(of['peer'], of['offset'], 'p50'):,.0f}",
                ]
            )
    head = [
        *("search", "offset", "by offset: ms", "p99", "of offset 0", "pgbench, the same statements: /s"),
        *("ours / pgbench", "by cursor: ms", "peer: ms", "peer / by offset"),
    ]
    return Section(
        name="offsets",
        title="Deep pages",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds, {OURS_A_ROUND} pages for each figure in each "
        "(1 of the peer's; 1 s of pgbench)",
        lines=[
            (
                f"{one.size:,} interceptions, pages of {PAGE_SIZE} with all their children and the total, measured as "
                "the totals are. The peer's way is count(*), the page by OFFSET and one query for each kind of child. "
                "Every page and total was the same each way. A search is measured as far down as it has matches."
            ),
            "",
            *table(head, rows),
        ],
        bars=[
            Bar(
                f"any offset at most {_AIM:g} times the cost of offset 0, total included",
                f"at most {worst[0]:.2f} ({worst[1]})",
                worst[0] <= _AIM,
            ),
        ],
    )
