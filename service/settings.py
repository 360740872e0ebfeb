"""Everything that can be set, read from the environment once and checked before anything starts.

Each setting is the variable `BRIDGELOG_<NAME>`; a value can also come from a file, whose path the same name with `_FILE`
gives. docs/settings.md lists them all, and a test holds the two against each other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, cast

from environs import EnvError, FileAwareEnv
from marshmallow.validate import Length, OneOf, Range

MIB = 1024 * 1024

_UNITS = {"d": "days", "h": "hours"}
_LONGEST_RETENTION = timedelta(days=36_500)


class InvalidSettings(Exception):
    """A setting that cannot be used; the text names the variable and what it takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one process; field `x` is the variable BRIDGELOG_X. Times are in seconds, sizes in bytes."""

    database_url: str | None
    data_dir: Path
    host: str
    port: int
    schema: Literal["own", "foreign"]
    migrate: bool
    upkeep: bool
    retention: timedelta
    content_retention: timedelta
    member_read: Literal["own", "none"]
    max_body: int
    pool_size: int
    statement_timeout: float
    drain_seconds: float
    shutdown_timeout: float
    log_format: Literal["auto", "json", "console"]
    log_level: str


def read() -> Settings:
    """The settings of this process's environment; raises InvalidSettings on the first that cannot be used."""
    env = FileAwareEnv(file_suffix="_FILE", strip_whitespace=True)
    try:
        with env.prefixed("BRIDGELOG_"):
            settings = Settings(
                database_url=_database_url(env),
                data_dir=_data_dir(env),
                host=env.str("HOST", "127.0.0.1", validate=Length(min=1)),
                port=env.int("PORT", 8080, validate=Range(0, 65535)),
                schema=cast("Literal['own', 'foreign']", _choice(env, "SCHEMA", "own", "foreign")),
                migrate=env.bool("MIGRATE", False),
                upkeep=env.bool("UPKEEP", True),
                retention=_retention(env, "RETENTION"),
                content_retention=_retention(env, "CONTENT_RETENTION"),
                member_read=cast("Literal['own', 'none']", _choice(env, "MEMBER_READ", "own", "none")),
                max_body=env.int("MAX_BODY", 16 * MIB, validate=Range(min=1024)),
                pool_size=env.int("POOL_SIZE", 10, validate=Range(1, 1000)),
                statement_timeout=env.float("STATEMENT_TIMEOUT", 30.0, validate=Range(min=0.001)),
                drain_seconds=env.float("DRAIN_SECONDS", 1.0, validate=Range(min=0)),
                shutdown_timeout=env.float("SHUTDOWN_TIMEOUT", 30.0, validate=Range(min=0)),
                log_format=cast(
                    "Literal['auto', 'json', 'console']", _choice(env, "LOG_FORMAT", "auto", "json", "console")
                ),
                log_level=_choice(env, "LOG_LEVEL", "info", "debug", "warning", "error"),
            )
    except (EnvError, ValueError) as problem:
        raise InvalidSettings(str(problem)) from problem
    if settings.schema == "foreign" and not settings.database_url:
        message = 'Environment variable "BRIDGELOG_SCHEMA" can be foreign only where BRIDGELOG_DATABASE_URL is set'
        raise InvalidSettings(message)
    if settings.schema == "foreign" and (settings.retention or settings.content_retention):
        message = (
            'Environment variables "BRIDGELOG_RETENTION" and "BRIDGELOG_CONTENT_RETENTION" must be 0 where '
            "BRIDGELOG_SCHEMA is foreign: nothing is deleted from a database that another system owns"
        )
        raise InvalidSettings(message)
    return settings


def _choice(env: FileAwareEnv, name: str, default: str, *others: str) -> str:
    return str(env.str(name, default, validate=OneOf([default, *others])))


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


def _database_url(env: FileAwareEnv) -> str | None:
    url = str(env.str("DATABASE_URL", "")).strip()
    if url and not re.match(r"postgres(ql)?://", url):
        message = 'Environment variable "BRIDGELOG_DATABASE_URL" must begin with postgresql://'
        raise InvalidSettings(message)
    return url or None


def _data_dir(env: FileAwareEnv) -> Path:
    configured = str(env.str("DATA_DIR", ""))
    if configured:
        return Path(configured).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "bridgelog"
