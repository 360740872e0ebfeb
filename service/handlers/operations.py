"""What operators and machines ask outside the API: health, readiness, metrics, documentation."""

from __future__ import annotations

from aiohttp import web

from service import errors, migrations
from service.answers import json_answer
from service.context import DATABASE, LIFECYCLE, METRICS, SETTINGS
from service.db import Connection
from service.store import schema

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def healthz(request: web.Request) -> web.Response:
    """The process is alive."""
    return json_answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """The service can answer: the database is reachable, its schema is current, and the process is not shutting down."""
    if request.app[LIFECYCLE].draining:
        raise errors.NotReady("The service is shutting down.", retry_after=1)
    is_own = request.app[SETTINGS].schema == "own"

    async def ask(connection: Connection) -> None:
        await schema.ping(connection)
        if is_own and await schema.missing_migrations(connection, known=migrations.names()):
            raise errors.SchemaBehind("The operator must run bridgelog migrate.", retry_after=10)

    try:
        await request.app[DATABASE].probe(ask)
    except errors.DatabaseUnavailable as problem:
        raise errors.NotReady("The database cannot be reached.", retry_after=problem.retry_after) from problem
    return json_answer({"status": "ready"})


async def metrics(request: web.Request) -> web.Response:
    """The metrics in Prometheus's text format."""
    headers = {"Content-Type": _METRICS_TYPE, "Cache-Control": "no-store"}
    return web.Response(body=await request.app[METRICS].expose(), headers=headers)
