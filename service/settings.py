"""Everything that can be set, read from the environment once and checked before anything starts.

Each setting is the variable `BRIDGELOG_<NAME>`; a value can also come from a file, whose path the same name with `_FILE`
gives. docs/settings.md lists them all, and a test holds the two against each other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal, cast
from urllib.parse import parse_qs, urlsplit

from environs import EnvError, FileAwareEnv
from marshmallow import ValidationError
from marshmallow.validate import Length, OneOf, Range

MIB = 1024 * 1024
MOST_WORKERS = 64
MOST_OF_IMPORT = 20 * MIB  # a record and a batch
# PostgreSQL counts time-outs in milliseconds, of which there are 2,147,483,647 at most.
_LONGEST_TIMEOUT = 2_147_000.0
# Requests a second: one in a quarter of an hour, and more than a process can answer.
_SLOWEST = 0.001
_FASTEST = 1_000_000.0

# What the drivers cannot read they quote in what they raise: half a password, where its characters end a part of the URL
# early. So only what both of them read as it is meant reaches them.
_PLAIN = r"(?:(?=[!-~])[^:/?#\[\]@%]|%[0-9A-Fa-f]{2})"
_VALUE = r"(?:(?=[!-~])[^&#%]|%[0-9A-Fa-f]{2})"
_HOST = rf"(?:\[[0-9A-Fa-f:.]+\]|{_PLAIN}*)(?::[0-9]*)?"
_URL = re.compile(
    rf"postgres(?:ql)?://(?:{_PLAIN}*(?::(?:{_PLAIN}|:)*)?@)?{_HOST}(?:,{_HOST})*"
    rf"(?:/{_PLAIN}*)?(?:\?[a-z_]+={_VALUE}*(?:&[a-z_]+={_VALUE}*)*)?"
)

_UNITS = {"d": "days", "h": "hours"}
_LONGEST_RETENTION = timedelta(days=36_500)


class InvalidSettings(Exception):
    """A setting that cannot be used; the text names the variable and what it takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one process; field `x` is the variable BRIDGELOG_X. Times are in seconds, sizes in bytes."""

    # They hold passwords.
    database_url: str | None = field(repr=False)
    read_database_url: str | None = field(repr=False)
    direct_database_url: str | None = field(repr=False)
    pgbouncer: bool
    max_replication_lag: float
    data_dir: Path
    host: str
    port: int
    workers: int
    worker_timeout: float
    startup_timeout: float
    schema: Literal["own", "foreign"]
    migrate: bool
    upkeep: bool
    retention: timedelta
    content_retention: timedelta
    bridge: Literal["on", "off", "only"]
    anthropic_key: str | None = field(repr=False)
    anthropic_base_url: str | None
    openai_key: str | None = field(repr=False)
    openai_base_url: str | None
    providers_file: Path | None
    allow_byok: bool
    bridge_max_body: int
    bridge_rate_limit: float
    bridge_concurrency: int
    bridge_keep_alive: float
    upstream_retries: int
    upstream_connect_timeout: float
    upstream_timeout: float
    breaker_failures: int
    breaker_seconds: float
    request_log_dir: Path
    request_log_limit: int
    request_log_age: timedelta
    spool_dir: Path
    spool_limit: int
    auth_grace: float
    member_read: Literal["own", "none"]
    max_body: int
    rate_limit: float
    rate_burst: int
    concurrency_limit: int
    failed_sign_ins: int
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...]
    pool_size: int
    max_waiting: int
    pool_timeout: float
    statement_timeout: float
    lock_timeout: float
    request_timeout: float
    head_timeout: float
    send_timeout: float
    max_connections: int
    max_page: int
    max_held: int
    drain_seconds: float
    shutdown_timeout: float
    tracing: Literal["off", "otlp"]
    log_format: Literal["auto", "json", "console"]
    log_level: str

    def session_url(self, url: str) -> str | None:
        """Where sessions last, for notifications, migrations and their locks; None where there is but a pooler."""
        return self.direct_database_url or (None if self.pgbouncer else url)


def read() -> Settings:
    """The settings of this process's environment; raises InvalidSettings on the first that cannot be used."""
    env = FileAwareEnv(file_suffix="_FILE", strip_whitespace=True)
    try:
        with env.prefixed("BRIDGELOG_"):
            settings = Settings(
                database_url=_url(env, "DATABASE_URL"),
                read_database_url=_url(env, "READ_DATABASE_URL"),
                direct_database_url=_url(env, "DIRECT_DATABASE_URL"),
                pgbouncer=env.bool("PGBOUNCER", False),
                max_replication_lag=env.float("MAX_REPLICATION_LAG", 5.0, validate=Range(min=1)),
                data_dir=_data_dir(env),
                host=env.str("HOST", "127.0.0.1", validate=Length(min=1)),
                port=env.int("PORT", 8080, validate=Range(0, 65535)),
                workers=env.int("WORKERS", 1, validate=Range(1, MOST_WORKERS)),
                worker_timeout=env.float("WORKER_TIMEOUT", 60.0, validate=Range(min=0)),
                startup_timeout=env.float("STARTUP_TIMEOUT", 30.0, validate=Range(min=0)),
                schema=cast("Literal['own', 'foreign']", _choice(env, "SCHEMA", "own", "foreign")),
                migrate=env.bool("MIGRATE", False),
                upkeep=env.bool("UPKEEP", True),
                retention=_retention(env, "RETENTION"),
                content_retention=_retention(env, "CONTENT_RETENTION"),
                bridge=cast("Literal['on', 'off', 'only']", _choice(env, "BRIDGE", "on", "off", "only")),
                anthropic_key=_provider_key(env, "ANTHROPIC_KEY"),
                anthropic_base_url=str(env.str("ANTHROPIC_BASE_URL", "")) or None,
                openai_key=_provider_key(env, "OPENAI_KEY"),
                openai_base_url=str(env.str("OPENAI_BASE_URL", "")) or None,
                providers_file=_path(env, "PROVIDERS_FILE"),
                allow_byok=env.bool("ALLOW_BYOK", False),
                bridge_max_body=env.int("BRIDGE_MAX_BODY", 32 * MIB, validate=Range(min=1024)),
                bridge_rate_limit=env.float("BRIDGE_RATE_LIMIT", 0.0, validate=_rate),
                bridge_concurrency=env.int("BRIDGE_CONCURRENCY", 0, validate=Range(min=0)),
                bridge_keep_alive=env.float("BRIDGE_KEEP_ALIVE", 10.0, validate=Range(min=0.001)),
                upstream_retries=env.int("UPSTREAM_RETRIES", 2, validate=Range(0, 10)),
                upstream_connect_timeout=env.float("UPSTREAM_CONNECT_TIMEOUT", 10.0, validate=Range(min=0.001)),
                upstream_timeout=env.float("UPSTREAM_TIMEOUT", 600.0, validate=Range(min=0.001)),
                breaker_failures=env.int("BREAKER_FAILURES", 0, validate=Range(min=0)),
                breaker_seconds=env.float("BREAKER_SECONDS", 30.0, validate=Range(min=0.001)),
                request_log_dir=_path(env, "REQUEST_LOG_DIR") or _data_dir(env) / "request-log",
                request_log_limit=env.int("REQUEST_LOG_LIMIT", 1024 * MIB, validate=Range(min=MIB)),
                request_log_age=timedelta(days=env.float("REQUEST_LOG_AGE", 7.0, validate=Range(0.001, 36_500))),
                spool_dir=_path(env, "SPOOL_DIR") or _data_dir(env) / "spool",
                spool_limit=env.int("SPOOL_LIMIT", 1024 * MIB, validate=Range(min=MIB)),
                auth_grace=env.float("AUTH_GRACE", 300.0, validate=Range(min=0)),
                member_read=cast("Literal['own', 'none']", _choice(env, "MEMBER_READ", "own", "none")),
                max_body=env.int("MAX_BODY", 16 * MIB, validate=Range(min=1024)),
                rate_limit=env.float("RATE_LIMIT", 0.0, validate=_rate),
                rate_burst=env.int("RATE_BURST", 0, validate=Range(0, 1_000_000)),
                concurrency_limit=env.int("CONCURRENCY_LIMIT", 0, validate=Range(min=0)),
                failed_sign_ins=env.int("FAILED_SIGN_INS", 300, validate=Range(0, 1_000_000)),
                trusted_proxies=_networks(env, "TRUSTED_PROXIES"),
                pool_size=env.int("POOL_SIZE", 10, validate=Range(1, 1000)),
                max_waiting=env.int("MAX_WAITING", 200, validate=Range(0, 100_000)),
                pool_timeout=env.float("POOL_TIMEOUT", 5.0, validate=Range(min=0.001)),
                statement_timeout=env.float("STATEMENT_TIMEOUT", 30.0, validate=Range(0.001, _LONGEST_TIMEOUT)),
                lock_timeout=env.float("LOCK_TIMEOUT", 10.0, validate=Range(0.001, _LONGEST_TIMEOUT)),
                request_timeout=env.float("REQUEST_TIMEOUT", 50.0, validate=Range(0.001, _LONGEST_TIMEOUT)),
                head_timeout=env.float("HEAD_TIMEOUT", 10.0, validate=Range(min=0.001)),
                send_timeout=env.float("SEND_TIMEOUT", 60.0, validate=Range(min=0.001)),
                max_connections=env.int("MAX_CONNECTIONS", 900, validate=Range(1, 1_000_000)),
                max_page=env.int("MAX_PAGE", 32 * MIB, validate=Range(min=1024)),
                max_held=env.int("MAX_HELD", 128 * MIB, validate=Range(min=1024)),
                drain_seconds=env.float("DRAIN_SECONDS", 1.0, validate=Range(min=0)),
                shutdown_timeout=env.float("SHUTDOWN_TIMEOUT", 30.0, validate=Range(min=0)),
                tracing=cast("Literal['off', 'otlp']", _choice(env, "TRACING", "off", "otlp")),
                log_format=cast(
                    "Literal['auto', 'json', 'console']", _choice(env, "LOG_FORMAT", "auto", "json", "console")
                ),
                log_level=_choice(env, "LOG_LEVEL", "info", "debug", "warning", "error"),
            )
    except (EnvError, ValueError) as problem:
        raise InvalidSettings(str(problem)) from problem
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    for name, url in (("DATABASE_URL", settings.database_url), ("DIRECT_DATABASE_URL", settings.direct_database_url)):
        if url and _wanted(url) in {"standby", "prefer-standby", "read-only"}:
            message = f"BRIDGELOG_{name} names the primary: its target_session_attrs cannot ask for a standby"
            raise InvalidSettings(message)
    if url := settings.read_database_url:
        query = parse_qs(urlsplit(url).query)
        if _wanted(url) in {"read-write", "primary"}:
            message = "BRIDGELOG_READ_DATABASE_URL names standbys: its target_session_attrs cannot ask for a primary"
            raise InvalidSettings(message)
        if not urlsplit(url).netloc.rpartition("@")[2] and "host" not in query:
            message = "BRIDGELOG_READ_DATABASE_URL must name a host"
            raise InvalidSettings(message)
    _check_ports(settings)
    least = 2 * max(settings.max_body, settings.max_page, MOST_OF_IMPORT)
    if settings.max_held < least:
        message = (
            f'Environment variable "BRIDGELOG_MAX_HELD" must be at least {least} here: twice BRIDGELOG_MAX_BODY, '
            f"BRIDGELOG_MAX_PAGE and the {MOST_OF_IMPORT} of an import, for half of it is kept for answers"
        )
        raise InvalidSettings(message)
    if settings.rate_burst and not settings.rate_limit:
        message = 'Environment variable "BRIDGELOG_RATE_BURST" can be set only where BRIDGELOG_RATE_LIMIT is set'
        raise InvalidSettings(message)
    if settings.schema == "foreign" and (settings.retention or settings.content_retention):
        message = (
            'Environment variables "BRIDGELOG_RETENTION" and "BRIDGELOG_CONTENT_RETENTION" must be 0 where '
            "BRIDGELOG_SCHEMA is foreign: nothing is deleted from a database that another system owns"
        )
        raise InvalidSettings(message)
    if settings.database_url:
        return
    for name, is_set in (
        ("SCHEMA", settings.schema == "foreign"),
        ("READ_DATABASE_URL", settings.read_database_url is not None),
        ("DIRECT_DATABASE_URL", settings.direct_database_url is not None),
        ("PGBOUNCER", settings.pgbouncer),
    ):
        if is_set:
            value = "foreign" if name == "SCHEMA" else "set"
            message = f'Environment variable "BRIDGELOG_{name}" can be {value} only where BRIDGELOG_DATABASE_URL is set'
            raise InvalidSettings(message)


def _wanted(url: str) -> str | None:
    return parse_qs(urlsplit(url).query).get("target_session_attrs", [None])[-1]


def _check_ports(settings: Settings) -> None:
    """As PostgreSQL has it: where ports stand apart from the hosts, one is for all, or each host has its own."""
    for name, url in (
        ("DATABASE_URL", settings.database_url),
        ("READ_DATABASE_URL", settings.read_database_url),
        ("DIRECT_DATABASE_URL", settings.direct_database_url),
    ):
        parts = urlsplit(url or "")
        query = parse_qs(parts.query, keep_blank_values=True)
        hosts = query.get("host", [parts.netloc.rpartition("@")[2]])[-1].split(",")
        ports = query.get("port", [""])[-1].split(",")
        if len(ports) not in (1, len(hosts)):
            message = (
                f'Environment variable "BRIDGELOG_{name}" has {len(ports)} ports for {len(hosts)} hosts: '
                "it takes one port for all of them, or one for each"
            )
            raise InvalidSettings(message)


def _choice(env: FileAwareEnv, name: str, default: str, *others: str) -> str:
    return str(env.str(name, default, validate=OneOf([default, *others])))


def _rate(value: float) -> None:
    if value and not _SLOWEST <= value <= _FASTEST:
        message = f"Must be 0, or from {_SLOWEST} to {_FASTEST:,.0f}."
        raise ValidationError(message)


def _networks(env: FileAwareEnv, name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    given = str(env.str(name, ""))
    try:
        return tuple(ip_network(part.strip()) for part in given.split(",") if part.strip())
    except ValueError:
        message = (
            f'Environment variable "BRIDGELOG_{name}" must be networks such as 10.0.0.0/8, with commas between them'
        )
        raise InvalidSettings(message) from None


def _retention(env: FileAwareEnv, name: str) -> timedelta:
    """How long to keep something; zero is for ever."""
    found = re.fullmatch(r"0|([0-9]{1,7})([dh])", str(env.str(name, "0")))
    kept = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found and found[2] else timedelta()
    if not found or kept > _LONGEST_RETENTION:
        message = (
            f'Environment variable "BRIDGELOG_{name}" must be a whole number of days or hours such as 90d or 36h, at most '
            f"{_LONGEST_RETENTION.days}d, or 0 to keep everything for ever"
        )
        raise InvalidSettings(message)
    return kept


def _url(env: FileAwareEnv, name: str) -> str | None:
    url = str(env.str(name, "")).strip()
    if url and not re.match(r"postgres(ql)?://", url):
        message = f'Environment variable "BRIDGELOG_{name}" must begin with postgresql://'
        raise InvalidSettings(message)
    if url and not _URL.fullmatch(url):
        message = (
            f'Environment variable "BRIDGELOG_{name}" must have the form '
            "postgresql://USER:PASSWORD@HOST:PORT/NAME?KEY=VALUE; "
            "what is neither letter nor digit in a user or a password is percent-encoded"
        )
        raise InvalidSettings(message)
    return url or None


def _data_dir(env: FileAwareEnv) -> Path:
    configured = str(env.str("DATA_DIR", ""))
    if configured:
        return Path(configured).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "bridgelog"


def _path(env: FileAwareEnv, name: str) -> Path | None:
    configured = str(env.str(name, ""))
    return Path(configured).expanduser().absolute() if configured else None


def _provider_key(env: FileAwareEnv, name: str) -> str | None:
    return provider_key(str(env.str(name, "")), where=f'Environment variable "BRIDGELOG_{name}"')


def provider_key(text: str, *, where: str) -> str | None:
    """A key for a provider; None for an empty one. Raises InvalidSettings, which does not quote it."""
    key = text.strip()
    if not re.fullmatch(r"[!-~]*", key):
        message = f"{where} must be a key: printable ASCII characters without spaces"
        raise InvalidSettings(message)
    return key or None
