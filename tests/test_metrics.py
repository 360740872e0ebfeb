"""The files in which several processes count. No database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families
from served import environment

from service.metrics import Metrics

# One process of the slot counts; the folder is read by the one that runs last.
_COUNT = """
import sys
from pathlib import Path
from service import metrics

folder, slot = Path(sys.argv[1]), int(sys.argv[2])
metrics.share(folder, slot)
mine = metrics.Metrics(pool_size=10, folder=folder)
mine.recorded.labels("created").inc(float(sys.argv[3]))
mine._sample()
for other in sys.argv[4:]:
    metrics.forget(folder, int(other))
sys.stdout.write(mine.render().decode())
"""

_ALONE = """
from service.metrics import Metrics

mine = Metrics(pool_size=10)
mine.recorded.labels("created").inc()
print(mine.render().decode())
"""


def count(folder: Path, slot: int, amount: int, *forgotten: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, str(folder), str(slot), str(amount), *map(str, forgotten)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        sample.name: sample.value for family in text_string_to_metric_families(done.stdout) for sample in family.samples
    }


def test_what_a_process_has_counted_outlives_it_and_what_it_was_does_not(tmp_path: Path) -> None:
    count(tmp_path, 0, 5)
    told = count(tmp_path, 1, 2)
    assert told["bridgelog_recorded_interceptions_total"] == 7
    assert told["bridgelog_workers"] == 2, "nobody has said yet that the first is gone"
    told = count(tmp_path, 1, 1, 0)
    assert told["bridgelog_recorded_interceptions_total"] == 8
    assert (told["bridgelog_workers"], told["bridgelog_database_connections_max"]) == (1, 10)
    told = count(tmp_path, 0, 1)
    assert told["bridgelog_recorded_interceptions_total"] == 9, "its successor goes on where it was"
    assert told["bridgelog_workers"] == 2


def test_one_process_tells_the_same_metrics_as_several(tmp_path: Path) -> None:
    alone = subprocess.run(
        [
            sys.executable,
            "-c",
            _ALONE,
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = {
        sample.name
        for family in text_string_to_metric_families(alone)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert set(count(tmp_path, 0, 1)) == names


def test_every_gauge_says_how_those_of_several_workers_are_joined_and_goes_with_its_worker() -> None:
    gauges = [found for found in Metrics(pool_size=1).registry._collector_to_names if isinstance(found, Gauge)]
    assert gauges
    # The library's own way is a label with the slot, and what a dead worker said stays.
    assert [gauge._name for gauge in gauges if not gauge._multiprocess_mode.startswith("live")] == []
