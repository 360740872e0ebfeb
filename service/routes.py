"""The URL table: every route of the service, on one screen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from aiohttp import web

from service.bridge.routes import Door
from service.handlers import documents, importing, interceptions, names, operations, recording, request_logging

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Every published form of the URL: the reference pages, their curl lines as printed, released clients, and the later name.
PREFIXES = (
    "/api/experimental/aibridge",
    "/api/v2/api/experimental/aibridge",
    "/api/v2/aibridge",
    "/api/v2/ai-gateway",
)

# 8-4-4-4-12 in either case; a path with anything else there does not exist.
_ID = "{interception_id:[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}}"


@dataclass(frozen=True, slots=True)
class Route:
    """One call: `path` is below each prefix in API, and whole in OPERATIONS."""

    method: str
    path: str
    handler: Handler


API = (
    Route("GET", "/interceptions", interceptions.list_interceptions),
    Route("GET", "/models", names.list_models),
    Route("GET", "/clients", names.list_clients),
    Route("GET", "/log-requests", request_logging.get_request_logging),
    Route("POST", "/log-requests", request_logging.set_request_logging),
    Route("POST", "/interceptions", recording.record_interception),
    Route("POST", "/interceptions/import", importing.import_interceptions),
    Route("POST", f"/interceptions/{_ID}/token-usages", recording.record_token_usages),
    Route("POST", f"/interceptions/{_ID}/user-prompts", recording.record_user_prompts),
    Route("POST", f"/interceptions/{_ID}/tool-usages", recording.record_tool_usages),
    Route("POST", f"/interceptions/{_ID}/model-thoughts", recording.record_model_thoughts),
    Route("POST", f"/interceptions/{_ID}/end", recording.end_interception),
)

# What takes as long as its body is long: bounded where it reads and stores, piece by piece.
ENDLESS: frozenset[Handler] = frozenset({importing.import_interceptions})

OPERATIONS = (
    Route("GET", "/healthz", operations.healthz),
    Route("GET", "/readyz", operations.readyz),
    Route("GET", "/metrics", operations.metrics),
    Route("GET", "/openapi.json", documents.openapi),
    Route("GET", "/docs", documents.docs),
    Route("GET", "/docs/{asset}", documents.docs_asset),
)


# What no provider may be named: the first part of every path.
RESERVED = frozenset(route.path.split("/")[1] for route in API)


def all_routes(*, doors: Iterable[Door] = (), api: bool = True) -> Iterator[Route]:
    """Every route with its whole path, the API's and the bridge's once for each prefix."""
    for prefix in PREFIXES:
        for route in API if api else ():
            yield Route(route.method, prefix + route.path, route.handler)
        for door in doors:
            yield Route(door.method, prefix + door.path, door.handler)
    yield from OPERATIONS


def label(request: web.Request) -> str:
    """The route of a request for logs and metrics: its pattern, without the prefix; `unknown` where there is none."""
    resource = request.match_info.route.resource
    if resource is None:
        return "unknown"
    path = resource.canonical
    for prefix in PREFIXES:
        if path.startswith(prefix + "/"):
            return path[len(prefix) :]
    return path
