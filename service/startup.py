"""What a start waits for, each for BRIDGELOG_STARTUP_TIMEOUT at most: a database, its schema. And whether its pools fit."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from service import migrations
from service.db import Database
from service.settings import Settings
from service.store import schema

log = structlog.get_logger("bridgelog.startup")

_RETRY_SECONDS = 0.5
_REPEAT_SECONDS = 5.0


class StartupError(Exception):
    """What was waited for did not come, or cannot be; the text says what to do."""


def wait_for_database(settings: Settings, url: str) -> None:
    """Until a connection can be made."""

    def lacking() -> str | None:
        try:
            migrations.reach(url)
        except migrations.MigrationError as problem:
            return str(problem)
        return None

    _wait("the database", lacking, seconds=settings.startup_timeout)


def wait_for_schema(settings: Settings, url: str) -> None:
    """Until another process has brought the schema to this version."""

    def lacking() -> str | None:
        missing = migrations.pending(settings.session_url(url) or url)
        if not missing:
            return None
        return f"the database lacks {len(missing)} migrations, {missing[0]} first: run bridgelog migrate"

    _wait("the schema", lacking, seconds=settings.startup_timeout)


async def check_connections(database: Database, settings: Settings) -> None:
    """Warn where the pools of all workers are larger than the server; raises StartupError where none can be.

    Behind a pooler it is the pooler's business.
    """
    if settings.pgbouncer:
        return
    async with database.connection() as connection:
        limit = await schema.connection_limit(connection)
    # Two more each: one that listens, and one for /readyz.
    least, most = settings.workers * 3, settings.workers * (settings.pool_size + 2)
    if least > limit:
        message = (
            f"{settings.workers} workers need {least} connections, the server allows {limit}: lower BRIDGELOG_WORKERS"
        )
        raise StartupError(message)
    if most > limit:
        log.warning(
            "the pools do not fit the server: lower BRIDGELOG_POOL_SIZE or BRIDGELOG_WORKERS",
            workers=settings.workers,
            pool_size=settings.pool_size,
            connections=most,
            limit=limit,
        )


def _wait(what: str, lacking: Callable[[], str | None], *, seconds: float) -> None:
    """Ask again and again what is `lacking`; raises StartupError with that text when the time is over."""
    began = time.monotonic()
    told: float | None = None
    while reason := lacking():
        waited = time.monotonic() - began
        if waited >= seconds:
            raise StartupError(f"{reason} (waited {waited:.0f} seconds for {what})")
        if told is None or waited - told >= _REPEAT_SECONDS:
            told = waited
            log.warning("waiting", what=what, reason=reason, seconds_left=round(seconds - waited))
        time.sleep(min(_RETRY_SECONDS, seconds - waited))
