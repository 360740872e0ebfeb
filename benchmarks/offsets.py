"""Pages of 25 by offset and after a cursor, at several depths: the service's statements beside a plain OFFSET."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

import click

from benchmarks import cases, datasets
from benchmarks.datasets import Dataset
from benchmarks.sections import Bar, Section, table
from benchmarks.tools import Measurement, median, ratio, summary
from service.db import Connection, Database
from service.store import interceptions, totals
from service.store.interceptions import Criteria, Cursor

DEPTHS = (0, 10_000, 100_000, 900_000, 9_000_000)
SEARCHES = ("no filter", "client", "common model", "heavy initiator")
OURS_A_ROUND = 30
PAGE_SIZE = 25
_AIM = 3.0

Page = Callable[[Connection], Awaitable[list[bytes]]]
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
            for key, page in pages.items():
                times = 1 if key[2] == "plain" and key[1] >= 10_000 else OURS_A_ROUND
                found.setdefault(key, []).append(await _timed(database, page, times=times))
            click.echo(".", nl=False, err=True)
    return _section(one, found, rounds=rounds, started=started)


async def _pages(database: Database, name: str, criteria: Criteria) -> dict[Key, Page]:
    """What is measured for one search, as far down as it reaches; checked to be the same page each way."""
    pages: dict[Key, Page] = {}
    async with database.snapshot() as connection:
        total = await totals.count(connection, criteria=criteria)
        for depth in (depth for depth in DEPTHS if depth + PAGE_SIZE < total):
            cursor = await _cursor(connection, criteria, depth) if depth else None
            pages[name, depth, "whole"] = _whole(criteria, depth)
            pages[name, depth, "page"] = _located(criteria, depth)
            pages[name, depth, "cursor"] = _after(criteria, cursor)
            pages[name, depth, "plain"] = _plain(criteria, depth)
            seen = [await pages[name, depth, way](connection) for way in ("whole", "page", "cursor", "plain")]
            if not seen[0] == seen[1] == seen[2] == seen[3]:
                raise click.ClickException(f"{name}, offset {depth:,}: the ways differ")
    return pages


async def _cursor(connection: Connection, criteria: Criteria, depth: int) -> Cursor:
    [before] = await interceptions.list_page(connection, criteria=criteria, page_size=1, skip=depth - 1)
    cursor = await interceptions.find_cursor(
        connection, interception_id=UUID(json.loads(before)["id"]), visible_to=criteria.visible_to
    )
    assert cursor is not None
    return cursor


def _whole(criteria: Criteria, depth: int) -> Page:
    async def page(connection: Connection) -> list[bytes]:
        _, found = await totals.read_page(connection, criteria=criteria, page_size=PAGE_SIZE, offset=depth)
        return found

    return page


def _located(criteria: Criteria, depth: int) -> Page:
    async def page(connection: Connection) -> list[bytes]:
        until, skip = None, depth
        if depth:
            place = await totals.locate(connection, criteria=criteria, offset=depth)
            assert place is not None
            until, skip = place.until, place.skip
        return await interceptions.list_page(
            connection, criteria=criteria, page_size=PAGE_SIZE, skip=skip, started_until=until
        )

    return page


def _after(criteria: Criteria, cursor: Cursor | None) -> Page:
    async def page(connection: Connection) -> list[bytes]:
        return await interceptions.list_page(connection, criteria=criteria, page_size=PAGE_SIZE, cursor=cursor)

    return page


def _plain(criteria: Criteria, depth: int) -> Page:
    async def page(connection: Connection) -> list[bytes]:
        return await interceptions.list_page(connection, criteria=criteria, page_size=PAGE_SIZE, skip=depth)

    return page


async def _timed(database: Database, page: Page, *, times: int) -> Measurement:
    samples = []
    for number in range(times + 1):
        async with database.snapshot() as connection:
            begun = time.perf_counter()
            await page(connection)
            if number:  # the first prepares
                samples.append(1000 * (time.perf_counter() - begun))
    return summary(samples)


def _section(one: Dataset, found: dict[Key, list[Measurement]], *, rounds: int, started: datetime) -> Section:
    rows = []
    worst: dict[str, tuple[float, str]] = {"whole": (0, ""), "page": (0, "")}
    for name in SEARCHES:
        for depth in (depth for depth in DEPTHS if (name, depth, "whole") in found):
            of = {way: found[name, depth, way] for way in ("whole", "page", "cursor", "plain")}
            grown = {way: ratio(of[way], found[name, 0, way], "p50") for way in ("whole", "page")}
            for way, times in grown.items():
                worst[way] = max(worst[way], (times, f"{name}, offset {depth:,}"))
            rows.append(
                [
                    name,
                    f"{depth:,}",
                    f"{median(of['whole'], 'p50'):.2f}",
                    f"{median(of['whole'], 'p99'):.2f}",
                    f"{grown['whole']:.2f}",
                    f"{median(of['page'], 'p50'):.2f}",
                    f"{grown['page']:.2f}",
                    f"{median(of['cursor'], 'p50'):.2f}",
                    f"{median(of['plain'], 'p50'):,.2f}",
                    f"{ratio(of['plain'], of['page'], 'p50'):,.1f}",
                ]
            )
    head = [
        *("search", "offset", "with total: ms", "p99", "of offset 0", "without total: ms", "of offset 0"),
        *("cursor: ms", "plain OFFSET: ms", "plain / ours without total"),
    ]
    return Section(
        name="offsets",
        title="Deep pages",
        measured=f"{started:%Y-%m-%d %H:%M} UTC; {rounds} rounds, {OURS_A_ROUND} pages for each figure in each "
        "(1 of a deep plain OFFSET)",
        lines=[
            (
                f"{one.size:,} interceptions, pages of {PAGE_SIZE} with all their children, measured as the totals "
                "are. Cursors and plain OFFSET are without total. Every page was the same each way. A search is "
                "measured as far down as it has matches."
            ),
            "",
            *table(head, rows),
        ],
        bars=[
            Bar(
                f"any offset at most {_AIM:g} times the cost of offset 0, total included",
                f"at most {worst['whole'][0]:.2f} ({worst['whole'][1]})",
                worst["whole"][0] <= _AIM,
            ),
            Bar(
                f"the same with the total left out of both ({_AIM:g} times)",
                f"at most {worst['page'][0]:.2f} ({worst['page'][1]})",
                worst["page"][0] <= _AIM,
            ),
        ],
    )
