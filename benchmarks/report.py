"""docs/benchmarks.md and its plot, from the sections that there are."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.sections import Point, Section
from benchmarks.tools import memory, postgres, processor

_INDEXES = (
    "primary key",
    "(started_at DESC, id DESC)",
    "(initiator_id, started_at DESC, id DESC)",
    "(model, started_at DESC, id DESC)",
    "(coalesce(client, 'Unknown'), started_at DESC, id DESC)",
)
_CURVES = {
    "peer": ("the peer's way: count(*), OFFSET, a query a kind of child", "#b3261e", "s"),
    "whole": ("the service: page and exact total, over HTTP", "#0b57d0", "o"),
    "page": ("the service without the total, over HTTP", "#7f8c8d", "^"),
}


def write(sections: Sequence[Section], output: Path) -> None:
    """The report, and beside it the plot, where pages were measured."""
    points = [point for section in sections for point in section.points]
    plot = output.with_suffix(".svg")
    if points:
        _draw(points, plot)
    output.write_text("\n".join(_lines(sections, plot=plot.name if points else None)), encoding="utf-8")


def _lines(sections: Sequence[Section], *, plot: str | None) -> list[str]:
    lines = [
        "# Benchmarks",
        "",
        (
            "Written by `make bench` (the package `benchmarks`). Look at the ratios: they come from runs that took "
            "turns, and are medians over the rounds of what was measured in the same round. The absolute figures "
            "are one machine's on one day; other work may have shared it."
        ),
        "",
        f"- {datetime.now(UTC):%Y-%m-%d}; {processor()}, {memory()}; {platform.system()} {platform.machine()}",
        (
            f"- {postgres()}, set up as the embedded server is (shared_buffers 128 MB, fsync on); Python "
            f"{platform.python_version()}"
        ),
        "- PostgreSQL, the service (one process) and the programs that make the load share the machine",
        (
            "- 100 thousand and 1 million interceptions are the demo's, over 90 and 300 days; 10 million are that "
            "million ten times over in the same 300 days, with four times as much from the same people and seven "
            "times as many people. Of these the newest and the oldest million have children, and a tenth of the "
            "others"
        ),
        "- the peer's way runs on the same database with our indexes, partial ones of what has ended: "
        + "; ".join(f"`{index}`" if "(" in index else index for index in _INDEXES),
        "",
        "## What was aimed at",
        "",
        "| aim | reached | verdict |",
        "|---|---|---|",
        *(
            f"| {bar.aim} | {bar.reached} | {'met' if bar.met else '**missed**'} |"
            for section in sections
            for bar in section.bars
        ),
    ]
    if plot:
        lines += ["", f"![What a page costs against the size of the table]({plot})"]
    for section in sections:
        lines += ["", f"## {section.title}", "", f"{section.measured}.", "", *section.lines]
    notes = Path(__file__).with_name("notes.md").read_text(encoding="utf-8").rstrip()
    return [*lines, "", notes, ""]


def _draw(points: Sequence[Point], output: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bridgelog"
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 5))
    for who, (label, colour, marker) in _CURVES.items():
        curve = sorted((point.size, point.cost) for point in points if point.who == who)
        if curve:
            axes.loglog(
                [size for size, _ in curve], [cost for _, cost in curve], color=colour, marker=marker, label=label
            )
            for size, cost in curve:
                axes.annotate(
                    f"{cost:,.1f}" if cost < 100 else f"{cost:,.0f}",
                    (size, cost),
                    textcoords="offset points",
                    xytext=(0, -14 if who == "page" else 7),
                    ha="center",
                    fontsize=8,
                    color=colour,
                )
    axes.set(
        title="The first page of 25, one client",
        xlabel="interceptions",
        ylabel="median milliseconds",
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    axes.margins(y=0.2)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None, "Creator": None})
    plt.close(figure)
