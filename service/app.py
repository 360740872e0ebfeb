"""The composition root: the application and everything it holds, built from the settings. Nothing else builds anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from service import db, middleware, openapi, routes, statements
from service.auth import Authenticator
from service.context import AUTHENTICATOR, DATABASE, LIFECYCLE, METRICS, OPENAPI, SETTINGS, Lifecycle
from service.metrics import Metrics
from service.settings import Settings
from service.switch import follow_request_logging
from service.upkeep import keep_rollups


def build_app(settings: Settings, *, database_url: str) -> web.Application:
    """The application on a database whose schema is current; it opens its connections when it starts.

    `database_url` is where the database is, given or embedded. Raises StatementError on a bad file below sql/.
    """
    # A body's size is bounded where it is read, call by call.
    app = web.Application(middlewares=[middleware.observe, middleware.sign_in], client_max_size=0)
    app[SETTINGS] = settings
    app[LIFECYCLE] = Lifecycle()
    app[OPENAPI] = openapi.document_text()
    loaded = statements.load()

    async def connections(app: web.Application) -> AsyncIterator[None]:
        database = await db.connect(settings, database_url, loaded)
        app[DATABASE] = database
        app[AUTHENTICATOR] = Authenticator(database, member_read=settings.member_read)
        app[METRICS] = Metrics(database)
        yield
        await database.close()

    async def request_logging(app: web.Application) -> AsyncIterator[None]:
        if settings.schema == "foreign":
            yield
            return
        follower = asyncio.create_task(
            follow_request_logging(database_url, app[DATABASE], gauge=app[METRICS].request_logging)
        )
        yield
        await _end(follower)

    async def upkeep(app: web.Application) -> AsyncIterator[None]:
        if settings.schema == "foreign":
            yield
            return
        keeper = asyncio.create_task(keep_rollups(app[DATABASE]))
        yield
        await _end(keeper)

    app.cleanup_ctx.extend([connections, request_logging, upkeep])
    app.on_response_prepare.append(middleware.without_banner)
    for route in routes.all_routes():
        app.router.add_route(route.method, route.path, route.handler)
    return app


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
