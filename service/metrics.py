"""What /metrics tells, and where it is counted."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.db import Database

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BRIDGE_BUCKETS = (0.5, 2, 5, 15, 30, 60, 120)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
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
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.refusals = Counter(
            "bridgelog_refusals",
            "Requests refused, by the class of the refusal.",
            ("refusal",),
            registry=self.registry,
        )
        self.request_logging = Gauge(
            "bridgelog_request_logging_enabled",
            "Whether the switch for logging upstream requests is on (1) or off (0), as this process knows it.",
            registry=self.registry,
        )
        self.recorded = Counter(
            "bridgelog_recorded_interceptions",
            "Interceptions that recording calls and imports received, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
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
            registry=self.registry,
        )
        self.standby_lag_seconds = Gauge(
            "bridgelog_standby_lag_seconds",
            "For how long the primary has been ahead of a standby.",
            ("host",),
            registry=self.registry,
        )
        self.standby_lag_bytes = Gauge(
            "bridgelog_standby_lag_bytes",
            "How much of its primary's log a standby has not replayed.",
            ("host",),
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
            registry=self.registry,
        )
        connections = Gauge(
            "bridgelog_database_connections",
            "Connections of the pool to PostgreSQL, by state.",
            ("state",),
            registry=self.registry,
        )
        connections.labels("idle").set_function(lambda: database.idle)
        connections.labels("busy").set_function(lambda: database.size - database.idle)

    def expose(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)
