"""Totals and deep pages from the rollups: whole buckets where they fit, and single interceptions at the ragged edges.

The rollups hold everything that started before `sealed_until` (UTC); the bucket in which that instant lies holds what is
before it. migrations/0005 says how they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal
from uuid import UUID

from service.db import Connection
from service.store import interceptions, rollups
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
_INITIATORS_UNITS = _EVERYONES_UNITS[1:]


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


def is_deep(offset: int) -> bool:
    """Whether a page there takes several statements, which then need a snapshot in common; another one takes one."""
    return offset >= _DEEP


async def read_page(
    connection: Connection, *, criteria: Criteria, page_size: int, offset: int = 0, cursor: Cursor | None = None
) -> tuple[int, list[bytes]]:
    """How many ended interceptions match, and a page of them, by offset or after a cursor."""
    if not is_deep(offset):
        return await _read_at_once(connection, criteria=criteria, page_size=page_size, offset=offset, cursor=cursor)
    counts = await _count_stretches(connection, criteria=criteria)
    place = await _locate(connection, counts, criteria=criteria, offset=offset)
    if place is None:
        page = []
    else:
        page = await interceptions.list_page(
            connection, criteria=criteria, page_size=page_size, skip=place.skip, started_until=place.until
        )
    return sum(counts.found), page


async def count(connection: Connection, *, criteria: Criteria) -> int:
    """How many ended interceptions match."""
    counts = await _count_stretches(connection, criteria=criteria)
    return sum(counts.found)


@dataclass(frozen=True, slots=True)
class _Counts:
    """The stretches that a search is divided into, and how many matches each of them holds."""

    sealed_until: datetime
    stretches: Sequence[Stretch]
    found: Sequence[int]


async def _count_stretches(connection: Connection, *, criteria: Criteria) -> _Counts:
    sealed_until = await _sealed_until(connection)
    while True:
        stretches = list(_stretches(criteria, sealed_until))
        [row] = await connection.rows("rollups/count_stretches", **_dividing(criteria, stretches))
        if row["sealed_until"] == sealed_until:
            return _Counts(sealed_until, stretches, row["interceptions"] or ())
        sealed_until = connection.hints[_SEALED_UNTIL] = row["sealed_until"]


async def _read_at_once(
    connection: Connection, *, criteria: Criteria, page_size: int, offset: int, cursor: Cursor | None
) -> tuple[int, list[bytes]]:
    """Total and page by one statement, whose snapshot they share."""
    sealed_until = await _sealed_until(connection)
    page = interceptions.page_values(criteria, page_size=page_size, skip=offset, cursor=cursor)
    while True:
        stretches = list(_stretches(criteria, sealed_until))
        rows = await connection.rows_beside(
            ("rollups/count_stretches", _dividing(criteria, stretches)), ("interceptions/list_matching", page)
        )
        if rows[0]["sealed_until"] == sealed_until:
            found = [row["interception"] for row in rows]
            return sum(rows[0]["interceptions"] or ()), found if found[0] is not None else []
        sealed_until = connection.hints[_SEALED_UNTIL] = rows[0]["sealed_until"]


async def _sealed_until(connection: Connection) -> datetime:
    """Up to where the rollups reach; as far as is known, for what counts by it finds out whether that still holds."""
    known: datetime | None = connection.hints.get(_SEALED_UNTIL)
    return known or await rollups.read_sealed_until(connection)


async def _locate(connection: Connection, counts: _Counts, *, criteria: Criteria, offset: int) -> Place | None:
    for stretch, found in zip(reversed(counts.stretches), reversed(counts.found), strict=True):
        if offset >= found:
            offset -= found
        elif stretch.unit is None:
            return Place(until=stretch.last, skip=offset)
        else:
            return await _locate_within(
                connection, stretch, stretch.unit, counts.sealed_until, criteria=criteria, offset=offset
            )
    return None


async def _locate_within(
    connection: Connection, stretch: Stretch, unit: Unit, sealed_until: datetime, *, criteria: Criteria, offset: int
) -> Place:
    known = _units(criteria)
    units = list(reversed(known[: known.index(unit) + 1]))
    [row] = await connection.rows(
        "rollups/find_bucket",
        **_filters(criteria),
        scope=_scope(criteria),
        level=[_level(criteria, unit) for unit in units],
        unit=units,
        begins=stretch.begins,
        ends=stretch.ends,
        skip=offset,
    )
    # The bucket in which sealed_until lies reaches into the live tail, which the offset has passed already.
    return Place(until=min(row["ends"], sealed_until) - _MICROSECOND, skip=row["skip"])


def _dividing(criteria: Criteria, stretches: Sequence[Stretch]) -> dict[str, object]:
    whole = [stretch for stretch in stretches if stretch.unit]
    return _filters(criteria) | {
        "scope": _scope(criteria),
        "level": [_level(criteria, stretch.unit) for stretch in stretches],
        "begins": [stretch.begins for stretch in stretches],
        "ends": [stretch.ends if stretch.unit else _last(stretch, criteria) for stretch in stretches],
        "whole_begins": whole[0].begins if whole else _FIRST,
        "whole_ends": whole[-1].ends if whole else _FIRST,
    }


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
    if unit is None:
        return ""
    return unit if _is_of_everyone(criteria) else f"own {unit}"


def _scope(criteria: Criteria) -> UUID:
    # No UUID is false, the all-zero one neither.
    return criteria.initiator_id or criteria.visible_to or EVERYONE


def _filters(criteria: Criteria) -> dict[str, object]:
    return {name: value for name, value in asdict(criteria).items() if name not in {"started_after", "started_before"}}
