"""What a part hands to the report: lines of Markdown, bars with a verdict, points of the plot; kept between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.tools import ROOT

FOLDER = ROOT / ".data" / "bench" / "results"


@dataclass(frozen=True)
class Bar:
    """What was aimed at, and what was reached."""

    aim: str
    reached: str
    met: bool


@dataclass(frozen=True)
class Point:
    """The median cost of a page with its total on a table of that size, in milliseconds."""

    who: str
    size: int
    cost: float


@dataclass(frozen=True)
class Section:
    """One part of the report. `measured` says when and how often."""

    name: str
    title: str
    measured: str
    lines: list[str]
    bars: list[Bar] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    def keep(self) -> None:
        """Put it beside the data, for a later run that measures other parts."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        _path(self.name).write_text(json.dumps(asdict(self)), encoding="utf-8")


def kept(name: str) -> Section | None:
    """What the last run of that part gave."""
    try:
        found = json.loads(_path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    bars = [Bar(**bar) for bar in found.pop("bars")]
    points = [Point(**point) for point in found.pop("points")]
    return Section(**found, bars=bars, points=points)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of Markdown: the first column is text, the others are figures."""
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _path(name: str) -> Path:
    return FOLDER / f"{name}.json"
