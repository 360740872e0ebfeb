"""How answers are written: JSON bodies, the error envelope, and the links between pages."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import simplejson
from aiohttp import web
from yarl import URL

from service.errors import Refusal
from service.schemas.queries import Page

JSON = "application/json"

# Proxies and clients read header lines of some 8 kB; a long search must not make a page unreadable.
_MAX_LINK = 4096


def json_answer(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A value as JSON."""
    return json_text(dump(value), status=status, headers=headers)


def json_text(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON text as it is; content-bearing, so that no cache may keep it."""
    answer = web.Response(body=body, status=status, content_type=JSON, charset="utf-8", headers=headers)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def bare_headers() -> dict[str, str]:
    """What an answer has that is made outside of the application, which puts it on all others."""
    return {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Request-Id": uuid.uuid4().hex}


def dump(value: object) -> bytes:
    """UTF-8 JSON text."""
    return simplejson.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def envelope(refusal: Refusal) -> dict[str, object]:
    """The one shape of an error: message, and detail and validations where there is something to say."""
    body: dict[str, object] = {"message": refusal.message}
    if refusal.detail:
        body["detail"] = refusal.detail
    if refusal.validations:
        body["validations"] = [{"field": wrong.field, "detail": wrong.detail} for wrong in refusal.validations]
    return body


def offset_links(page: Page, *, total: int) -> dict[str, str]:
    """The Link header (RFC 8288) of a page by offset: first, prev, next and last, relative to the request."""
    last = max(0, (total - 1) // page.limit * page.limit)
    targets = {"first": 0}
    if page.offset > 0:
        targets["prev"] = max(0, min(page.offset - page.limit, last))
    if page.offset + page.limit < total:
        targets["next"] = page.offset + page.limit
    targets["last"] = last
    return _link({name: {"offset": str(offset)} for name, offset in targets.items()}, page=page)


def cursor_links(page: Page, *, following: str | None) -> dict[str, str]:
    """The Link header of a page by cursor: next, where anything follows the interception of that id."""
    return _link({"next": {"after_id": following}} if following else {}, page=page)


def _link(targets: Mapping[str, dict[str, str]], *, page: Page) -> dict[str, str]:
    # Of the request only what the call knows: whatever else its URL holds would come back four times in a header.
    kept = {"q": page.q, "limit": str(page.limit)} if page.q else {"limit": str(page.limit)}
    links = {relation: f'<{URL.build(query=kept | target)}>; rel="{relation}"' for relation, target in targets.items()}
    for told in (links, {relation: link for relation, link in links.items() if relation == "next"}):
        line = ", ".join(told.values())
        if line and len(line) <= _MAX_LINK:
            return {"Link": line}
    return {}
