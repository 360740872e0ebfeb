"""The API's own description: /openapi.json."""

from __future__ import annotations

from aiohttp import web

from service.answers import json_text
from service.context import OPENAPI


async def openapi(request: web.Request) -> web.Response:
    """The OpenAPI 3.1 document of this service."""
    return json_text(request.app[OPENAPI])
