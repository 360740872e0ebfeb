"""What a handler can reach: the keys under which the application and the request hold things."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from service.auth import Authenticator, Caller
from service.db import Database
from service.held import Held, Share
from service.limits import Rate, Slots, Standing
from service.metrics import Metrics
from service.peers import Address
from service.settings import Settings
from service.standbys import Standbys
from service.tracing import Tracing


@dataclass(slots=True)
class Lifecycle:
    """Whether the process is on its way out: then it still answers, but no longer calls itself ready."""

    draining: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the bridge has yet to write to the database, and whether it would record another request, as far as it knows."""

    records: int
    oldest_seconds: float
    spool_bytes: int
    spool_limit: int
    takes_more: bool


SETTINGS = web.AppKey("settings", Settings)
DATABASE = web.AppKey("database", Database)
STANDBYS = web.AppKey("standbys", Standbys)
AUTHENTICATOR = web.AppKey("authenticator", Authenticator)
METRICS = web.AppKey("metrics", Metrics)
TRACING = web.AppKey("tracing", Tracing)
OPENAPI = web.AppKey("openapi", bytes)
HELD = web.AppKey("held", Held)
BACKLOG = web.AppKey[Callable[[], Backlog]]("backlog")
LIFECYCLE = web.AppKey("lifecycle", Lifecycle)

RATE = web.AppKey("rate", Rate)
SLOTS = web.AppKey("slots", Slots)

# What makes an error's body of a status and a sentence, as the clients of a route want it; of each handler of the bridge.
Shape = Callable[[int, str], bytes]
BRIDGED = web.AppKey[Mapping[object, Shape]]("bridged")

ADDRESS = web.RequestKey[Address | None]("address")
STANDING = web.RequestKey("standing", Standing)
CALLER = web.RequestKey("caller", Caller)
REQUEST_ID = web.RequestKey("request_id", str)
SHARE = web.RequestKey("share", Share)
# What to call when the client has gone, where the handler wants to know.
LEFT = web.RequestKey[Callable[[], None]]("left")


def caller(request: web.Request) -> Caller:
    """Who is calling; the middleware has signed them in."""
    return request[CALLER]
