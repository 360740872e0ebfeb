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
from uuid import UUID

from service.db import Connection
from service.store import interceptions
from service.store.interceptions import Criteria, Cursor

Unit = Literal["hour", "day", "month"]

# Whose buckets those of everyone are. Their levels have names of their own, so that a caller who may see nobody's
# interceptions, and nobody is this UUID too, does not meet them.
EVERYONE = UUID(int=0)
# Up to here it is cheaper to skip rows than to find out where to begin.
_DEEP = 200
_SEALED_UNTIL = "rollups: sealed until"
_MICROSECOND = timedelta(microseconds=1)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
# From the finest to the coarsest. An initiator's hours are not kept: a day of one person is soon counted.
_EVERYONES_UNITS: tuple[Unit, ...] = ("hour", "day", "month")
_INITIATORS_UNITS: tuple[Unit, ...] = ("day", "month")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time from `begins` up to `ends`, that instant left out: in buckets of `unit`, or to be counted one by one."""

    unit: Unit | None
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


async def read_page(
    connection: Connection,
    *,
    criteria: Criteria,
    page_size: int,
    offset: int = 0,
    cursor: Cursor | None = None,
    rolled_up: bool = True,
) -> tuple[int, list[bytes]]:
    """How many ended interceptions match, and a page of them, by offset or after a cursor.

    Without rollups, in a database of others, everything is counted and skipped one by one.
    """
    if not rolled_up:
        total = await interceptions.count(connection, criteria=criteria)
    else:
        total = await count(connection, criteria=criteria)
    if cursor is None and offset >= total:
        return total, []
    until = None
    if rolled_up and offset >= _DEEP:
        place = await locate(connection, criteria=criteria, offset=offset)
        if place is None:
            return total, []
        until, offset = place.until, place.skip
    page = await interceptions.list_page(
        connection, criteria=criteria, page_size=page_size, skip=offset, cursor=cursor, started_until=until
    )
    return total, page


async def count(connection: Connection, *, criteria: Criteria) -> int:
    """How many ended interceptions match. Up to where the rollups reach is asked only where that has changed."""
    sealed_until = connection.hints.get(_SEALED_UNTIL) or await read_sealed_until(connection)
    stretches = list(_stretches(criteria, sealed_until))
    whole = [stretch for stretch in stretches if stretch.unit]
    exact = [stretch for stretch in stretches if not stretch.unit]
    [row] = await connection.rows(
        "rollups/sum_buckets",
        **_filters(criteria),
        scope=_scope(criteria),
        level=[_level(criteria, stretch.unit) for stretch in whole],
        begins=[stretch.begins for stretch in whole],
        ends=[stretch.ends for stretch in whole],
        whole_begins=whole[0].begins if whole else _FIRST,
        whole_ends=whole[-1].ends if whole else _FIRST,
        exact_begins=[stretch.begins for stretch in exact],
        exact_ends=[_last(stretch, criteria) for stretch in exact],
    )
    if row["sealed_until"] != sealed_until:
        connection.hints[_SEALED_UNTIL] = row["sealed_until"]
        return await count(connection, criteria=criteria)
    return int(row["total"])


async def locate(connection: Connection, *, criteria: Criteria, offset: int) -> Place | None:
    """Where the match is that `offset` others come before; None if there are not so many."""
    sealed_until = await read_sealed_until(connection)
    for stretch in reversed(list(_stretches(criteria, sealed_until))):
        if stretch.unit is None:
            found = await interceptions.count(
                connection,
                criteria=replace(criteria, started_after=stretch.begins, started_before=_last(stretch, criteria)),
            )
            if offset < found:
                return Place(until=stretch.last, skip=offset)
            offset -= found
        else:
            place, offset = await _locate_within(connection, stretch, stretch.unit, criteria=criteria, offset=offset)
            if place:
                # The bucket in which sealed_until lies reaches into the live tail, which the offset has passed already.
                return replace(place, until=min(place.until, sealed_until - _MICROSECOND))
    return None


async def _locate_within(
    connection: Connection, stretch: Stretch, unit: Unit, *, criteria: Criteria, offset: int
) -> tuple[Place | None, int]:
    """The place within a stretch of buckets; or None, and what is left of the offset behind it."""
    for starts_at, found in await _list_buckets(connection, stretch, unit, criteria=criteria):
        if offset >= found:
            offset -= found
            continue
        ends = _following(starts_at, unit)
        units = _units(criteria)
        if unit == units[0]:
            return Place(until=ends - _MICROSECOND, skip=offset), 0
        finer = units[units.index(unit) - 1]
        return await _locate_within(
            connection, Stretch(finer, starts_at, ends), finer, criteria=criteria, offset=offset
        )
    return None, offset


async def read_sealed_until(connection: Connection) -> datetime:
    """Up to where the rollups reach."""
    found: datetime = await connection.value("rollups/read_sealed_until")
    connection.hints[_SEALED_UNTIL] = found
    return found


async def _list_buckets(
    connection: Connection, stretch: Stretch, unit: Unit, *, criteria: Criteria
) -> list[tuple[datetime, int]]:
    rows = await connection.rows(
        "rollups/list_buckets",
        **_filters(criteria),
        scope=_scope(criteria),
        level=_level(criteria, unit),
        unit=unit,
        begins=stretch.begins,
        ends=stretch.ends,
    )
    return [(row["starts_at"], row["interceptions"]) for row in rows]


def _stretches(criteria: Criteria, sealed_until: datetime) -> Iterator[Stretch]:
    begins = criteria.started_after or _FIRST
    last = criteria.started_before or _LAST
    ends = last if last == _LAST else last + _MICROSECOND
    return divide(begins, ends, sealed_until=sealed_until, units=_units(criteria))


def _last(stretch: Stretch, criteria: Criteria) -> datetime:
    """The last instant of it that is asked for: one microsecond before the last of all, a stretch still ends there."""
    return min(stretch.last, criteria.started_before or _LAST)


def divide(begins: datetime, ends: datetime, *, sealed_until: datetime, units: Sequence[Unit]) -> Iterator[Stretch]:
    """A stretch of time as stretches of buckets, as coarse as they fit, and of single interceptions; in order of time.

    `units` are those that there are, the finest first.
    """
    if begins < min(ends, sealed_until):
        if ends < sealed_until:
            yield from _ragged(begins, ends, units)
        else:
            # The coarsest bucket in which sealed_until lies holds nothing after it.
            first = _ceiling(begins, units[0])
            if first < sealed_until:
                if begins < first:
                    yield Stretch(None, begins, first)
                yield from _climb(first, _ceiling(sealed_until, units[-1]), units)
            else:
                yield Stretch(None, begins, sealed_until)
    if ends > sealed_until:
        begins = max(begins, sealed_until)
        if begins < ends or ends == _LAST:  # the last instant of all belongs to it: see Stretch.last
            yield Stretch(None, begins, ends)


def _ragged(begins: datetime, ends: datetime, units: Sequence[Unit]) -> Iterator[Stretch]:
    first, last = _ceiling(begins, units[0]), _floor(ends, units[0])
    if first >= last:
        yield Stretch(None, begins, ends)
        return
    if begins < first:
        yield Stretch(None, begins, first)
    yield from _climb(first, last, units)
    if last < ends:
        yield Stretch(None, last, ends)


def _climb(begins: datetime, ends: datetime, units: Sequence[Unit]) -> Iterator[Stretch]:
    """From and to borders of the finest unit, by way of the coarser ones where they fit."""
    marks: list[tuple[datetime, Unit]] = []
    rising, falling = begins, ends
    after: list[tuple[datetime, datetime, Unit]] = []
    for unit, coarser in pairwise(units):
        up, down = _ceiling(rising, coarser), _floor(falling, coarser)
        if up >= down:
            break
        marks.append((rising, unit))
        after.append((down, falling, unit))
        rising, falling = up, down
    top = units[len(marks)]
    borders = [*(mark for mark, _ in marks), rising]
    for (mark, unit), following in zip(marks, borders[1:], strict=True):
        if mark < following:
            yield Stretch(unit, mark, following)
    if rising < falling:
        yield Stretch(top, rising, falling)
    for down, up, unit in reversed(after):
        if down < up:
            yield Stretch(unit, down, up)


def _floor(instant: datetime, unit: Unit) -> datetime:
    if unit == "hour":
        return instant.replace(minute=0, second=0, microsecond=0)
    day = instant.replace(hour=0, minute=0, second=0, microsecond=0)
    return day if unit == "day" else day.replace(day=1)


def _ceiling(instant: datetime, unit: Unit) -> datetime:
    floor = _floor(instant, unit)
    return floor if floor == instant else _following(floor, unit)


def _following(start: datetime, unit: Unit) -> datetime:
    if unit == "hour":
        return start + timedelta(hours=1)
    if unit == "day":
        return start + timedelta(days=1)
    return _floor(start + timedelta(days=31), "month")


def _is_of_everyone(criteria: Criteria) -> bool:
    return criteria.initiator_id is None and criteria.visible_to is None


def _units(criteria: Criteria) -> tuple[Unit, ...]:
    return _EVERYONES_UNITS if _is_of_everyone(criteria) else _INITIATORS_UNITS


def _level(criteria: Criteria, unit: Unit | None) -> str:
    return str(unit) if _is_of_everyone(criteria) else f"own {unit}"


def _scope(criteria: Criteria) -> UUID:
    # No UUID is false, the all-zero one neither.
    return criteria.initiator_id or criteria.visible_to or EVERYONE


def _filters(criteria: Criteria) -> dict[str, object]:
    return {name: value for name, value in asdict(criteria).items() if name not in {"started_after", "started_before"}}
