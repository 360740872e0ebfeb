"""What a handler can reach: the keys under which the application and the request hold things."""

from __future__ import annotations

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


SETTINGS = web.AppKey("settings", Settings)
DATABASE = web.AppKey("database", Database)
STANDBYS = web.AppKey("standbys", Standbys)
AUTHENTICATOR = web.AppKey("authenticator", Authenticator)
METRICS = web.AppKey("metrics", Metrics)
TRACING = web.AppKey("tracing", Tracing)
OPENAPI = web.AppKey("openapi", bytes)
HELD = web.AppKey("held", Held)
LIFECYCLE = web.AppKey("lifecycle", Lifecycle)

RATE = web.AppKey("rate", Rate)
SLOTS = web.AppKey("slots", Slots)

ADDRESS = web.RequestKey[Address | None]("address")
STANDING = web.RequestKey("standing", Standing)
CALLER = web.RequestKey("caller", Caller)
REQUEST_ID = web.RequestKey("request_id", str)
SHARE = web.RequestKey("share", Share)


def caller(request: web.Request) -> Caller:
    """Who is calling; the middleware has signed them in."""
    return request[CALLER]
