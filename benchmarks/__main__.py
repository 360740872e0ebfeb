"""python -m benchmarks: build the data sets, measure, and write docs/benchmarks.md and its plot."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from benchmarks import bridge, datasets, first_page, ingest, memory, offsets, pages, report, sections, totals
from benchmarks.datasets import Dataset
from benchmarks.sections import Section
from benchmarks.tools import ROOT
from service.embedded import Embedded

Part = Callable[[list[Dataset]], Awaitable[Section]]
PARTS = ("totals", "offsets", "pages", "ingest", "memory", "first_page", "bridge")


def _split(allowed: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def split(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
        chosen = [part.strip().replace("_", "" if part.strip()[0].isdigit() else "_") for part in text.split(",")]
        for part in chosen:
            if part not in allowed:
                raise click.BadParameter(f"{part} is none of {', '.join(allowed)}")
        return [part for part in allowed if part in chosen]

    return split


@click.command()
@click.option("--sizes", default="100000,1000000,10000000", show_default=True, callback=_split(datasets.SIZES))
@click.option("--keep", is_flag=True, help="take data sets as they are, though the schema has changed since")
@click.option("--parts", default=",".join(PARTS), show_default=True, callback=_split(PARTS))
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=2.0, show_default=True, help="of load for one figure")
@click.option("--memory-seconds", type=click.FloatRange(min=10), default=600.0, show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=ROOT / "docs" / "benchmarks.md",
    show_default="docs/benchmarks.md",
)
def main(
    *, sizes: list[str], parts: list[str], rounds: int, seconds: float, memory_seconds: float, keep: bool, output: Path
) -> None:
    """Measure the service on data sets of several sizes, beside the peer's way, and write the report.

    The data sets lie in .data/bench, and are built where they are missing. Parts that are left out keep the figures of
    their last run in the report.
    """
    if shutil.which("wrk") is None and {"pages", "memory", "first_page", "bridge"} & set(parts):
        raise click.ClickException("wrk is missing; on Debian and Ubuntu: apt install wrk")
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("matplotlib is missing, which draws the plot: python -m pip install matplotlib")
    measures: dict[str, Part] = {
        "totals": lambda sets: totals.measure(sets, rounds=rounds),
        "offsets": lambda sets: offsets.measure(sets, rounds=rounds),
        "pages": lambda sets: pages.measure(sets, rounds=rounds, seconds=seconds),
        "ingest": lambda sets: ingest.measure(sets, rounds=rounds, seconds=seconds),
        "memory": lambda sets: memory.measure(sets, seconds=memory_seconds),
        "first_page": lambda sets: first_page.measure(sets, rounds=rounds, seconds=seconds),
        "bridge": lambda sets: bridge.measure(sets, rounds=rounds, seconds=seconds),
    }
    # Room for the pools of the services on every size, and for as many clients of pgbench.
    with Embedded(ROOT / ".data" / "bench", settings={"max_connections": "200"}) as embedded:
        asyncio.run(_measure(embedded.url, sizes, keep=keep, parts={name: measures[name] for name in parts}))
    report.write([section for name in PARTS if (section := sections.kept(name))], output)
    click.echo(f"written to {output}")


async def _measure(url: str, sizes: list[str], *, keep: bool, parts: dict[str, Part]) -> None:
    sets = [await datasets.provide(url, size=int(size), keep=keep) for size in sizes]
    for name, part in parts.items():
        click.echo(f"measuring {name} ", nl=False, err=True)
        (await part(sets)).keep()
        click.echo(err=True)


if __name__ == "__main__":
    main()
