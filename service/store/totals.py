"""Totals and deep pages from the rollups: whole buckets where they fit, and single interceptions at the ragged edges.

The rollups hold everything that started before `sealed_until` (UTC); the bucket in which that instant lies holds what is
before it. migrations/0005 says how they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal

from service.db import Connection
from service.store import interceptions
from service.store.interceptions import Criteria
from service.store.users import NOBODY

Level = Literal["hour", "day", "month"]

_MICROSECOND = timedelta(microseconds=1)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
# From the finest to the coarsest. An initiator's hours are not kept: a day of one person is soon counted.
_EVERYONES_LEVELS: tuple[Level, ...] = ("hour", "day", "month")
_INITIATORS_LEVELS: tuple[Level, ...] = ("day", "month")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time from `begins` up to `ends`, that instant left out: in buckets of `level`, or to be counted one by one."""

    level: Level | None
    begins: datetime
    ends: datetime

    @property
    def last(self) -> datetime:
        """The last instant of it."""
        return self.ends if self.ends == _LAST else self.ends - _MICROSECOND


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page by offset begins: `skip` matches down from the latest one that started at `until` or before."""

    until: datetime
    skip: int


async def count(connection: Connection, *, criteria: Criteria, sealed_until: datetime | None = None) -> int:
    """How many ended interceptions match; `sealed_until` may be what was read from another snapshot a while ago."""
    if sealed_until is None:
        sealed_until = await read_sealed_until(connection)
    stretches = list(_stretches(criteria, sealed_until))
    whole = [stretch for stretch in stretches if stretch.level]
    exact = [stretch for stretch in stretches if not stretch.level]
    row = await connection.row(
        "rollups/sum_buckets",
        **_filters(criteria),
        scope=_scope(criteria),
        level=[stretch.level for stretch in whole],
        begins=[stretch.begins for stretch in whole],
        ends=[stretch.ends for stretch in whole],
        whole_begins=whole[0].begins if whole else _FIRST,
        whole_ends=whole[-1].ends if whole else _FIRST,
        exact_begins=[stretch.begins for stretch in exact],
        exact_ends=[stretch.last for stretch in exact],
    )
    assert row is not None
    if row["sealed_until"] != sealed_until:
        return await count(connection, criteria=criteria, sealed_until=row["sealed_until"])
    return int(row["total"])


async def locate(connection: Connection, *, criteria: Criteria, offset: int) -> Place | None:
    """Where the match is that `offset` others come before; None if there are not so many."""
    sealed_until = await read_sealed_until(connection)
    levels = _levels(criteria)
    remaining = offset
    for stretch in reversed(list(_stretches(criteria, sealed_until))):
        if stretch.level is None:
            found = await interceptions.count(
                connection, criteria=replace(criteria, started_after=stretch.begins, started_before=stretch.last)
            )
            if remaining < found:
                return Place(until=stretch.last, skip=remaining)
            remaining -= found
            continue
        within: Stretch | None = stretch
        while within is not None:
            level = within.level
            assert level is not None
            below, within = within, None
            for starts_at, found in await _list_buckets(connection, criteria=criteria, stretch=below):
                if remaining < found:
                    ends = _following(starts_at, level)
                    finer = levels.index(level) - 1
                    if finer < 0:
                        return Place(until=ends - _MICROSECOND, skip=remaining)
                    within = Stretch(levels[finer], starts_at, ends)
                    break
                remaining -= found
    return None


async def read_sealed_until(connection: Connection) -> datetime:
    """Up to where the rollups reach."""
    found: datetime = await connection.value("rollups/read_sealed_until")
    return found


async def _list_buckets(
    connection: Connection, *, criteria: Criteria, stretch: Stretch
) -> Sequence[tuple[datetime, int]]:
    rows = await connection.rows(
        "rollups/list_buckets",
        **_filters(criteria),
        scope=_scope(criteria),
        level=stretch.level,
        begins=stretch.begins,
        ends=stretch.ends,
    )
    return [(row["starts_at"], row["interceptions"]) for row in rows]


def _stretches(criteria: Criteria, sealed_until: datetime) -> Iterator[Stretch]:
    begins = criteria.started_after or _FIRST
    last = criteria.started_before or _LAST
    ends = last if last == _LAST else last + _MICROSECOND
    return divide(begins, ends, sealed_until=sealed_until, levels=_levels(criteria))


def divide(
    begins: datetime, ends: datetime, *, sealed_until: datetime, levels: Sequence[Level]
) -> Iterator[Stretch]:
    """A stretch of time as stretches of buckets, as coarse as they fit, and of single interceptions; in order of time.

    `levels` are those that there are, the finest first.
    """
    if begins < min(ends, sealed_until):
        if ends < sealed_until:
            yield from _ragged(begins, ends, levels)
        else:
            # The coarsest bucket in which sealed_until lies holds nothing after it.
            first = _ceiling(begins, levels[0])
            if first < sealed_until:
                if begins < first:
                    yield Stretch(None, begins, first)
                yield from _climb(first, _ceiling(sealed_until, levels[-1]), levels)
            else:
                yield Stretch(None, begins, sealed_until)
    if ends > sealed_until:
        begins = max(begins, sealed_until)
        if begins < ends:
            yield Stretch(None, begins, ends)


def _ragged(begins: datetime, ends: datetime, levels: Sequence[Level]) -> Iterator[Stretch]:
    first, last = _ceiling(begins, levels[0]), _floor(ends, levels[0])
    if first >= last:
        yield Stretch(None, begins, ends)
        return
    if begins < first:
        yield Stretch(None, begins, first)
    yield from _climb(first, last, levels)
    if last < ends:
        yield Stretch(None, last, ends)


def _climb(begins: datetime, ends: datetime, levels: Sequence[Level]) -> Iterator[Stretch]:
    """From and to borders of the finest level, by way of the coarser ones where they fit."""
    marks: list[tuple[datetime, Level]] = []
    rising, falling = begins, ends
    after: list[tuple[datetime, datetime, Level]] = []
    for level, coarser in pairwise(levels):
        up, down = _ceiling(rising, coarser), _floor(falling, coarser)
        if up >= down:
            break
        marks.append((rising, level))
        after.append((down, falling, level))
        rising, falling = up, down
    top = levels[len(marks)]
    borders = [*(mark for mark, _ in marks), rising]
    for (mark, level), following in zip(marks, borders[1:], strict=True):
        if mark < following:
            yield Stretch(level, mark, following)
    if rising < falling:
        yield Stretch(top, rising, falling)
    for down, up, level in reversed(after):
        if down < up:
            yield Stretch(level, down, up)


def _floor(instant: datetime, level: Level) -> datetime:
    if level == "hour":
        return instant.replace(minute=0, second=0, microsecond=0)
    day = instant.replace(hour=0, minute=0, second=0, microsecond=0)
    return day if level == "day" else day.replace(day=1)


def _ceiling(instant: datetime, level: Level) -> datetime:
    floor = _floor(instant, level)
    return floor if floor == instant else _following(floor, level)


def _following(start: datetime, level: Level) -> datetime:
    if level == "hour":
        return start + timedelta(hours=1)
    if level == "day":
        return start + timedelta(days=1)
    return _floor(start + timedelta(days=31), "month")


def _levels(criteria: Criteria) -> tuple[Level, ...]:
    return _EVERYONES_LEVELS if _scope(criteria) == NOBODY else _INITIATORS_LEVELS


def _scope(criteria: Criteria) -> object:
    return criteria.initiator_id or criteria.visible_to or NOBODY


def _filters(criteria: Criteria) -> dict[str, object]:
    return {name: value for name, value in asdict(criteria).items() if name not in {"started_after", "started_before"}}
