"""What /metrics tells, and where it is counted.

With several worker processes each keeps its values in files of a folder that they share, under the number of its slot. A
scrape of any of them adds up the files of all. A worker that takes the place of a dead one goes on in its files, so
nothing that was counted is lost and no counter goes back.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BRIDGE_BUCKETS = (0.5, 2, 5, 15, 30, 60, 120)
# Fewer, since there are five dozen statements.
_STATEMENT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10)
# The others are added up.
_PROCESS_MODES = {"process_start_time_seconds": "livemax"}
_SAMPLE_SECONDS = 1.0


M = TypeVar("M", Counter, Gauge, Histogram)


class Pool(Protocol):
    """What is watched of the connections to the database."""

    @property
    def size(self) -> int:
        """How many are open."""

    @property
    def idle(self) -> int:
        """How many of them are not in use."""


def share(folder: Path, slot: int) -> None:
    """Keep what this process counts in `folder`, as slot number `slot`; to be called before any metric is made."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # Chosen by the library when it is imported; here only the forked process knows its slot.
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: slot)  # type: ignore[no-untyped-call]


def forget(folder: Path, slot: int) -> None:
    """Take away what was true only while the process of the slot lived; what it has counted stays."""
    mark_process_dead(slot, str(folder))  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one application, in a registry of their own. `folder` is what several processes share."""

    def __init__(self, *, pool_size: int, folder: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[object, ...], Counter | Gauge | Histogram] = {}
        self._folder = folder
        self._pool: Pool | None = None
        self._unsealed_since: datetime | None = None
        self.requests = Counter(
            "bridgelog_http_requests",
            "Requests answered, by route (without its prefix), method and status.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "bridgelog_http_request_duration_seconds",
            "From the parsed head of a request until its answer is ready to be sent, by route and method.",
            ("route", "method"),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.refusals = Counter(
            "bridgelog_refusals",
            "Requests refused, by the class of the refusal.",
            ("refusal",),
            registry=self.registry,
        )
        self._add_bridge()
        self.recorded = Counter(
            "bridgelog_recorded_interceptions",
            "Interceptions that recording calls and imports received, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
        self.reads = Counter(
            "bridgelog_standby_reads",
            "Reads where there are standbys, by who answered: a standby, or why it was the primary.",
            ("outcome",),
            registry=self.registry,
        )
        self.standby_in_use = Gauge(
            "bridgelog_standby_in_use",
            "Whether a standby is read from (1) or not (0).",
            ("host",),
            multiprocess_mode="livemin",
            registry=self.registry,
        )
        self.standby_lag_seconds = Gauge(
            "bridgelog_standby_lag_seconds",
            "For how long the primary has been ahead of a standby.",
            ("host",),
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.standby_lag_bytes = Gauge(
            "bridgelog_standby_lag_bytes",
            "How much of its primary's log a standby has not replayed.",
            ("host",),
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        self.retention_deleted = Counter(
            "bridgelog_retention_deleted_rows",
            "Rows that retention has deleted, by kind.",
            ("kind",),
            registry=self.registry,
        )
        self.retention_emptied = Counter(
            "bridgelog_retention_removed_content",
            "Prompts, tool inputs and thoughts whose content retention has removed, by kind.",
            ("kind",),
            registry=self.registry,
        )
        self.retention_behind = Gauge(
            "bridgelog_retention_behind_seconds",
            "For how long the oldest of what is still there has been due to be removed; 0 where nothing is.",
            ("what",),
            multiprocess_mode="livemostrecent",
            registry=self.registry,
        )
        self.statements = Histogram(
            "bridgelog_statement_duration_seconds",
            "From sending a statement to PostgreSQL until its last row, or its failure, by the statement's name.",
            ("statement",),
            buckets=_STATEMENT_BUCKETS,
            registry=self.registry,
        )
        self.pool_wait = Histogram(
            "bridgelog_pool_wait_seconds",
            "How long a unit of work waited for its turn at the pool, also where it gave up.",
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.connections = Gauge(
            "bridgelog_database_connections",
            "Connections of the pool to PostgreSQL, by state.",
            ("state",),
            multiprocess_mode="livesum",
            registry=self.registry,
        )
        for state in ("idle", "busy"):
            self.connections.labels(state).set(0)
        self.connection_limit = self._gauge(
            "bridgelog_database_connections_max", "The most connections that the pool opens.", "livesum"
        )
        self.connection_limit.set(pool_size)
        self.request_logging = self._gauge(
            "bridgelog_request_logging_enabled",
            "Whether the switch for logging upstream requests is on (1) or off (0), as this process knows it.",
            "livemax",
        )
        self.listening = self._gauge(
            "bridgelog_listener_connected",
            "Whether the connection that listens for the switch of request logging stands (1) or not (0).",
            "livemin",
        )
        self.rollup_lag = self._gauge(
            "bridgelog_rollup_lag_seconds",
            "How long ago the earliest ended interception started that the rollups do not hold yet; 0 where there is none.",
            "livemostrecent",
        )
        self.workers = self._gauge("bridgelog_workers", "Processes that serve.", "livesum")
        self.workers.set(1)
        Gauge(
            "bridgelog_build_info",
            "1, with the version of this service.",
            ("version",),
            multiprocess_mode="livemax",
            registry=self.registry,
        ).labels(version("bridgelog")).set(1)
        self._process = ProcessCollector(registry=None)
        self._processes: dict[str, Gauge] = {}
        self._cpu: Counter | None = None
        self._cpu_seconds = 0.0
        for family in self._process.collect():  # none of them where there is no /proc
            if family.type == "counter":
                self._cpu = Counter(family.name, family.documentation, registry=self.registry)
            else:
                mode = _PROCESS_MODES.get(family.name, "livesum")
                self._processes[family.name] = self._gauge(family.name, family.documentation, mode)

    def _add_bridge(self) -> None:
        self.interceptions = Counter(
            "bridgelog_interceptions",
            "Interceptions that the bridge has served, by how they ended.",
            ("provider", "model", "status", "route", "client"),
            registry=self.registry,
        )
        self.interceptions_inflight = Gauge(
            "bridgelog_interceptions_inflight",
            "Interceptions that the bridge is serving.",
            ("provider", "route"),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.interceptions_duration = Histogram(
            "bridgelog_interceptions_duration_seconds",
            "From the request of a client, read, until its answer is relayed.",
            ("provider", "model"),
            buckets=_BRIDGE_BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "bridgelog_tokens",
            "Tokens that answers used, by type: input, output, cache_read, cache_write.",
            ("provider", "model", "type"),
            registry=self.registry,
        )
        self.prompts = Counter(
            "bridgelog_prompts", "Prompts that were recorded.", ("provider", "model"), registry=self.registry
        )
        self.tool_calls = Counter(
            "bridgelog_tool_calls",
            "Tool calls that models made.",
            ("provider", "model"),
            registry=self.registry,
        )
        self.passthrough = Counter(
            "bridgelog_passthrough",
            "Requests that the bridge passed through, unrecorded.",
            ("provider", "route", "status"),
            registry=self.registry,
        )
        self.upstream_retries = Counter(
            "bridgelog_upstream_retries",
            "Requests that were sent to a provider again.",
            ("provider",),
            registry=self.registry,
        )
        self.breaker_state = Gauge(
            "bridgelog_circuit_breaker_state",
            "0 closed, 1 half open, 2 open; none where the last answer was none of those that count.",
            ("provider", "endpoint", "model"),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.recorder_waiting = Gauge(
            "bridgelog_recorder_waiting_records",
            "Records of the bridge that wait to be written to the database.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.recorder_oldest = Gauge(
            "bridgelog_recorder_oldest_seconds",
            "How long the oldest of them has waited.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.recorder_records = Counter(
            "bridgelog_recorder_records",
            "Records that the database has taken (written), and that it will never take (buried: in the dead letters).",
            ("outcome",),
            registry=self.registry,
        )
        self.recorder_retries = Counter(
            "bridgelog_recorder_retries",
            "Attempts to write records that failed, and were to be made again.",
            registry=self.registry,
        )
        self.spool_bytes = Gauge(
            "bridgelog_spool_bytes",
            "Size of the spool, with what other processes have there.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.spool_limit = Gauge(
            "bridgelog_spool_limit_bytes",
            "Where the spool takes no new interceptions.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def of(self, metric: M, *values: object) -> M:
        """As `metric.labels(*values)`, which takes five times as long; for a metric of which nothing is ever removed."""
        child = self._children.get((metric, *values))
        if child is None:
            child = self._children[(metric, *values)] = metric.labels(*values)
        return cast("M", child)

    def watch(self, pool: Pool) -> None:
        """Tell from now on how many of its connections are in use."""
        self._pool = pool

    def ran(self, statement: str, seconds: float) -> None:
        """A statement took so long."""
        self.of(self.statements, statement).observe(seconds)

    def waited(self, seconds: float) -> None:
        """A unit of work waited so long for its connection."""
        self.pool_wait.observe(seconds)

    def saw_unsealed(self, since: datetime | None) -> None:
        """The earliest ended interception that is not sealed started then; None: all are."""
        self._unsealed_since = since

    async def keep_sampling(self) -> None:
        """Until cancelled, bring up to date what is only looked at: a scrape may be another process's."""
        while True:
            self._sample()
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def expose(self) -> bytes:
        """All of it, in Prometheus's text format."""
        self._sample()
        # Of several processes it is read from files.
        return await asyncio.to_thread(self.render) if self._folder else self.render()

    def render(self) -> bytes:
        """As it stands, without a look at what changes by itself."""
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def _gauge(self, name: str, documentation: str, mode: str) -> Gauge:
        return Gauge(name, documentation, multiprocess_mode=mode, registry=self.registry)  # type: ignore[arg-type]

    def _sample(self) -> None:
        if self._pool is not None:
            self.connections.labels("idle").set(self._pool.idle)
            self.connections.labels("busy").set(self._pool.size - self._pool.idle)
        since = self._unsealed_since
        self.rollup_lag.set(0 if since is None else max(0.0, (datetime.now(UTC) - since).total_seconds()))
        for family in self._process.collect():
            value = family.samples[0].value
            if gauge := self._processes.get(family.name):
                gauge.set(value)
            elif self._cpu:
                self._cpu.inc(max(0.0, value - self._cpu_seconds))
                self._cpu_seconds = value
