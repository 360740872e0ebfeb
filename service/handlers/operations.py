"""What operators and machines ask outside the API: health, readiness, metrics, documentation."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from service import errors, migrations
from service.answers import json_answer
from service.context import BACKLOG, DATABASE, LIFECYCLE, METRICS, SETTINGS, Backlog
from service.db import Connection
from service.store import schema

# The share of its limit from which on a spool is told to be near it.
_NEAR = 0.8
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def healthz(request: web.Request) -> web.Response:
    """The process is alive."""
    return json_answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """The service can answer: the database is reachable, its schema is current, and the process is not shutting down.

    The bridge can without the database, as long as the spool takes what there is to record.
    """
    if request.app[LIFECYCLE].draining:
        raise errors.NotReady("The service is shutting down.", retry_after=1)
    is_own = request.app[SETTINGS].schema == "own"

    async def ask(connection: Connection) -> None:
        await schema.ping(connection)
        if is_own and await schema.missing_migrations(connection, known=migrations.names()):
            raise errors.SchemaBehind("The operator must run bridgelog migrate.", retry_after=10)

    backlog = request.app[BACKLOG]() if BACKLOG in request.app else None
    state = "ready"
    try:
        await request.app[DATABASE].probe(ask)
    except errors.DatabaseUnavailable as problem:
        if backlog is None:
            raise errors.NotReady("The database cannot be reached.", retry_after=problem.retry_after) from problem
        if backlog.spool_bytes >= backlog.spool_limit or not backlog.takes_more:
            raise errors.NotReady(
                "The database cannot be reached, and the spool is full.", retry_after=problem.retry_after
            ) from problem
        state = "without the database"
    if backlog is None:
        return json_answer({"status": state})
    return json_answer({"status": state, "recorder": _shown(backlog)})


def _shown(backlog: Backlog) -> dict[str, Any]:
    share = backlog.spool_bytes / backlog.spool_limit
    return {
        "spool": "full" if share >= 1 else "near its limit" if share >= _NEAR else "ok",
        "spool_bytes": backlog.spool_bytes,
        "spool_limit": backlog.spool_limit,
        "waiting_records": backlog.records,
        "oldest_seconds": round(backlog.oldest_seconds, 3),
    }


async def metrics(request: web.Request) -> web.Response:
    """The metrics in Prometheus's text format."""
    headers = {"Content-Type": _METRICS_TYPE, "Cache-Control": "no-store"}
    return web.Response(body=await request.app[METRICS].expose(), headers=headers)
