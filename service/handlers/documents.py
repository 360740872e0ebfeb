"""The API's own description: /openapi.json for machines, /docs for people."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from aiohttp import web

from service import errors, resources
from service.answers import json_text
from service.context import OPENAPI

# What /docs/{asset} serves, and as what; the page itself is /docs. No other file can be asked for.
ASSETS = {
    "init.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui-bundle.js.LICENSE.txt": "text/plain",
    "swagger-ui.css": "text/css",
}

_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
# Their names stay the same from one version to the next.
_ASSET_CACHING = "public, max-age=3600"
_PAGE_CACHING = "no-cache"


async def openapi(request: web.Request) -> web.Response:
    """The OpenAPI 3.1 document of this service."""
    return json_text(request.app[OPENAPI])


async def docs(request: web.Request) -> web.Response:
    """The API's documentation as a page that can try the calls."""
    return _answer(request, _file("index.html"), content_type="text/html", caching=_PAGE_CACHING)


async def docs_asset(request: web.Request) -> web.Response:
    """A script or style sheet of the documentation page."""
    name = request.match_info["asset"]
    if name not in ASSETS:
        raise errors.UnknownPath
    return _answer(request, _file(name), content_type=ASSETS[name], caching=_ASSET_CACHING)


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    digest: str


@cache
def _file(name: str) -> _File:
    body = (resources.directory("docs_ui") / name).read_bytes()
    return _File(body=body, digest=hashlib.sha256(body).hexdigest()[:32])


def _answer(request: web.Request, file: _File, *, content_type: str, caching: str) -> web.Response:
    known = request.if_none_match or ()
    if any(tag.value in (file.digest, "*") for tag in known):
        answer = web.Response(status=304)
    else:
        answer = web.Response(body=file.body, content_type=content_type, charset="utf-8")
    answer.headers.update(_HEADERS)
    answer.headers["Cache-Control"] = caching
    answer.etag = file.digest
    return answer
