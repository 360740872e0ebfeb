"""The service with three more routes, which take parts of the first page away: a process of its own, for first_page.

/static                            a fixed answer, as long as a page: what aiohttp itself can do
/page                              the page without its total, and without sign-in
/api/v2/aibridge/page              the page without its total, signed in
/api/v2/aibridge/interceptions     the service as it is
"""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web

from service import logs, server, settings
from service.answers import json_text
from service.app import build_app
from service.context import DATABASE
from service.store import interceptions


async def page(request: web.Request) -> web.Response:
    """What list_interceptions answers, without counting."""
    async with request.app[DATABASE].connection() as connection:
        found = await interceptions.list_page(
            connection, criteria=interceptions.Criteria(), page_size=int(request.query["limit"])
        )
    return json_text(b'{"results":[%b]}' % b",".join(found))


async def static(request: web.Request) -> web.Response:
    """As many bytes as `size` asks for."""
    return json_text(b"x" * int(request.query["size"]))


def main() -> None:
    """Serve the database of BRIDGELOG_DATABASE_URL; the port is printed once it is open."""
    configured = settings.read()
    logs.configure(configured)
    if configured.database_url is None:
        sys.exit("BRIDGELOG_DATABASE_URL is missing")
    app = build_app(configured, database_url=configured.database_url)
    app.router.add_get("/static", static)
    app.router.add_get("/page", page)
    app.router.add_get("/api/v2/aibridge/page", page)
    uvloop.run(
        server.serve(
            app,
            sockets=server.bind("127.0.0.1", 0),
            drain_seconds=0,
            shutdown_timeout=5,
            ready=lambda port: print(port, flush=True),
        )
    )


if __name__ == "__main__":
    main()
