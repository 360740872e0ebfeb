"""Brings a database to the schema that this version needs: yoyo over migrations/, one process at a time.

yoyo's own lock is a table row that a killed process leaves behind, so an advisory lock of PostgreSQL, which dies with its
holder, stands before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import psycopg
import structlog
import yoyo
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri

from service.resources import directory

log = structlog.get_logger("bridgelog.migrations")

_APPLICATION = "bridgelog migrate"
_LOCK = 4_770_321_905_514_817
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 10


class MigrationError(Exception):
    """The database cannot be reached or migrated; the text says why, for the operator."""


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo is not typed
    """yoyo's backend on a libpq URL as it stands (several hosts, sockets, sslmode), which yoyo's own parser cannot read."""

    def __init__(self, dburi: Any, migration_table: str = "_yoyo_migration") -> None:
        super().__init__(dburi, migration_table)

    @classmethod
    def on(cls, url: str) -> Any:
        """A backend whose connection is made from `url`, not from the parts that yoyo would make of it."""
        return cls(parse_uri("postgresql+psycopg:///")._replace(args={"conninfo": url}))

    def connect(self, dburi: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(dburi.args["conninfo"], application_name=_APPLICATION, autocommit=True)


@cache
def names() -> tuple[str, ...]:
    """The ids of all migrations, in order."""
    return tuple(migration.id for migration in _known())


def pending(url: str) -> list[str]:
    """The ids of the migrations that the database lacks; changes nothing."""
    with _told(), psycopg.connect(url, application_name=_APPLICATION, autocommit=True) as connection:
        if connection.execute("SELECT to_regclass('_yoyo_migration')").fetchone() == (None,):
            return list(names())
        applied = {row[0] for row in connection.execute("SELECT migration_id FROM _yoyo_migration")}
    return [name for name in names() if name not in applied]


def reach(url: str) -> None:
    """Connect, and no more; raises MigrationError with what the server or the network says."""
    try:
        psycopg.connect(url, application_name=_APPLICATION, connect_timeout=_CONNECT_SECONDS).close()
    except psycopg.Error as problem:
        reason = " ".join(str(problem).split())  # of several lines
        raise MigrationError(f"the database cannot be reached: {reason}") from problem


def apply(url: str) -> list[str]:
    """Apply what is pending and tell its ids. Several processes at once: one applies, the others wait and find nothing."""
    with _told(), psycopg.connect(url, application_name=_APPLICATION, autocommit=True) as guard:
        _lock(guard)
        with _Backend.on(url) as backend:
            backend.init_database()
            backend.break_lock()
            migrations = backend.to_apply(_known())
            backend.apply_migrations(migrations)
            return [migration.id for migration in migrations]


def _lock(guard: psycopg.Connection[Any]) -> None:
    """Wait for the lock by asking: CREATE INDEX CONCURRENTLY waits for whoever is within a statement."""
    told = False
    while guard.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK]).fetchone() != (True,):
        if not told:
            log.info("another process is migrating; waiting for it")
            told = True
        time.sleep(_POLL_SECONDS)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as problem:
        message = f"The database cannot be migrated: {str(problem).strip()}"
        raise MigrationError(message) from problem


def _known() -> Any:
    return yoyo.read_migrations(str(directory("migrations")))
