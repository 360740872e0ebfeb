"""The composition root: the application and everything it holds, built from the settings. Nothing else builds anything."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from service import db, middleware, openapi, routes, statements, tracing
from service.auth import Authenticator
from service.bridge import providers
from service.bridge.recorder import RECORDER, Recorder
from service.bridge.request_log import RequestLog
from service.bridge.routes import doors
from service.bridge.serving import BRIDGE, Bridge, Models
from service.bridge.upstream import Breaker, Upstream
from service.context import (
    AUTHENTICATOR,
    BACKLOG,
    BRIDGED,
    DATABASE,
    HELD,
    LIFECYCLE,
    METRICS,
    OPENAPI,
    RATE,
    SETTINGS,
    SLOTS,
    STANDBYS,
    TRACING,
    Lifecycle,
    Shape,
)
from service.held import Held
from service.limits import Rate, Slots
from service.metrics import Metrics
from service.retention import keep_retention
from service.settings import Settings
from service.standbys import Standbys
from service.switch import follow_request_logging
from service.tracing import Tracing
from service.upkeep import keep_rollups

log = structlog.get_logger("bridgelog")

_REST_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Observer:
    """Tells what the database took to those who want to know."""

    metrics: Metrics
    tracing: Tracing | None

    def ran(self, statement: str, seconds: float) -> None:
        self.metrics.ran(statement, seconds)
        if self.tracing:
            self.tracing.ran(statement, seconds)

    def waited(self, seconds: float) -> None:
        self.metrics.waited(seconds)


def build_app(settings: Settings, *, database_url: str, metrics_folder: Path | None = None) -> web.Application:
    """The application on a database whose schema is current; it opens its connections when it starts.

    `database_url` is where the database is, given or embedded; `metrics_folder` is that of several workers. Raises
    StatementError on a bad file below sql/, and InvalidSettings on providers that cannot be used.
    """
    # A body's size is bounded where it is read, call by call.
    app = web.Application(middlewares=[middleware.observe, middleware.sign_in, middleware.limit], client_max_size=0)
    app[SETTINGS] = settings
    if rate := _per_second(settings.rate_limit, burst=settings.rate_burst):
        app[RATE] = rate
    if settings.concurrency_limit:
        app[SLOTS] = Slots(settings.concurrency_limit)
    app[LIFECYCLE] = Lifecycle()
    app[OPENAPI] = openapi.document_text()
    app[HELD] = Held(settings.max_held)
    loaded = statements.load()
    serves_bridge = settings.bridge != "off" and settings.schema == "own"
    instances = providers.configured(settings, reserved=routes.RESERVED) if serves_bridge else ()
    request_log = RequestLog(settings)

    async def observation(app: web.Application) -> AsyncIterator[None]:
        app[METRICS] = Metrics(pool_size=settings.pool_size, folder=metrics_folder)
        if settings.tracing == "otlp":
            app[TRACING] = Tracing(tracing.otlp_provider())
        yield
        if TRACING in app:
            await asyncio.to_thread(app[TRACING].close)

    async def connections(app: web.Application) -> AsyncIterator[None]:
        observer = _Observer(app[METRICS], app.get(TRACING))
        database = await db.connect(settings, database_url, loaded, observer=observer)
        app[DATABASE] = database
        app[AUTHENTICATOR] = Authenticator(
            database,
            member_read=settings.member_read,
            failures=_failures(settings.failed_sign_ins),
            grace=settings.auth_grace,
            most_delayed=max(1, settings.max_connections // 4),
        )
        app[METRICS].watch(database)
        standbys = Standbys(settings, database, loaded, metrics=app[METRICS], observer=observer)
        app[STANDBYS] = standbys
        await standbys.look()
        yield
        await standbys.close()
        await database.close()

    async def background(app: web.Application) -> AsyncIterator[None]:
        """What goes on besides requests."""
        works = _background(
            app, settings, database_url=database_url, sampled=metrics_folder is not None, request_log=request_log
        )
        tasks = [asyncio.create_task(_for_ever(what, work)) for what, work in works]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app.cleanup_ctx.extend([observation, connections, background])
    if instances:
        app.cleanup_ctx.append(functools.partial(_bridge, settings=settings, request_log=request_log))
    app.on_response_prepare.append(middleware.harden)
    app.on_response_prepare.append(middleware.closing_while_draining)
    bridged = [*doors(instances)]
    app[BRIDGED] = dict[object, Shape]((door.handler, door.shape) for door in bridged)
    for route in routes.all_routes(doors=bridged, api=settings.bridge != "only"):
        app.router.add_route(route.method, route.path, route.handler)
    return app


def _background(
    app: web.Application, settings: Settings, *, database_url: str, sampled: bool, request_log: RequestLog
) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """Each by its name for the log."""
    database, metrics = app[DATABASE], app[METRICS]
    if sampled:
        yield "metrics", metrics.keep_sampling
    if settings.read_database_url:
        yield "standbys", app[STANDBYS].watch
    if settings.schema == "foreign":
        metrics.listening.set(1)  # nothing is listened to
        return
    told_at = settings.session_url(database_url)
    follow = functools.partial(follow_request_logging, told_at, database, metrics=metrics, tell=request_log.turn)
    yield "request logging", follow
    if settings.upkeep:
        yield "rollups", functools.partial(keep_rollups, database, saw_unsealed=metrics.saw_unsealed)
        if settings.retention or settings.content_retention:
            yield "retention", functools.partial(keep_retention, database, settings, metrics=metrics)


async def _bridge(app: web.Application, *, settings: Settings, request_log: RequestLog) -> AsyncIterator[None]:
    """What the bridge works with."""
    metrics = app[METRICS]
    app[RECORDER] = recorder = await Recorder.open(app[DATABASE], settings=settings, metrics=metrics)
    app[BACKLOG] = recorder.backlog
    models = Models()
    breaker = Breaker(
        failures=settings.breaker_failures,
        seconds=settings.breaker_seconds,
        gauge=metrics.breaker_state,
        label=models.label,
    )
    upstream = Upstream(settings, breaker=breaker, retried=metrics.upstream_retries)
    app[BRIDGE] = Bridge(
        settings=settings,
        recorder=recorder,
        upstream=upstream,
        request_log=request_log,
        metrics=metrics,
        models=models,
        rate=_per_second(settings.bridge_rate_limit),
        slots=Slots(settings.bridge_concurrency) if settings.bridge_concurrency else None,
    )
    tidying = asyncio.create_task(_for_ever("request log", request_log.keep_tidy))
    yield
    tidying.cancel()
    await asyncio.gather(tidying, return_exceptions=True)
    await upstream.close()
    await recorder.close()
    await asyncio.to_thread(request_log.close)


def _per_second(limit: float, *, burst: int = 0) -> Rate | None:
    return Rate(per_second=limit, burst=burst or max(1, math.ceil(limit))) if limit else None


def _failures(a_minute: int) -> Rate | None:
    return Rate(per_second=a_minute / 60, burst=a_minute) if a_minute else None


async def _for_ever(what: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do what never ends, again whenever it does: a defect in it must neither go unnoticed nor stop it for good."""
    while True:
        try:
            await work()
        except Exception:  # of a task nobody waits for: told here, or nowhere
            log.exception("a background task failed; starting it again", task=what)
        await asyncio.sleep(_REST_SECONDS)
