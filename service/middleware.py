"""Around every request: its id, sign-in, the error envelope, headers, the access log and the metrics."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from http import HTTPStatus

import structlog
from aiohttp import web

from service import errors
from service.answers import envelope, json_answer, json_text
from service.auth import presented_token
from service.bridge.callers import bridge_token
from service.context import (
    ADDRESS,
    AUTHENTICATOR,
    BRIDGED,
    CALLER,
    HELD,
    LIFECYCLE,
    METRICS,
    RATE,
    REQUEST_ID,
    SETTINGS,
    SHARE,
    SLOTS,
    STANDING,
    TRACING,
    Shape,
)
from service.peers import client_address
from service.routes import ENDLESS, PREFIXES, label

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

access = structlog.get_logger("bridgelog.access")
log = structlog.get_logger("bridgelog")

_BELOW = tuple(f"{prefix}/" for prefix in PREFIXES)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost: gives the request its id, turns whatever is raised into the envelope, logs and counts."""
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    request[REQUEST_ID] = request_id
    request[ADDRESS] = address = client_address(
        request.remote, request.headers.getall("X-Forwarded-For", ()), trusted=request.app[SETTINGS].trusted_proxies
    )
    route, method = label(request), request.method if request.method in _METHODS else "other"
    tracing = request.app.get(TRACING)
    began = time.perf_counter()
    share = request[SHARE] = request.app[HELD].share()
    with (
        tracing.request(request.headers, method=method, route=route) if tracing else nullcontext() as span,
        structlog.contextvars.bound_contextvars(
            request_id=request_id, **({"trace_id": span.trace_id} if span is not None else {})
        ),
    ):
        try:
            response = await _answered(request, handler)
        finally:
            share.give_back()
        # Kept by the answer itself, so that a streamed one has it too.
        # What the bridge relays has the provider's.
        response.headers["X-Bridgelog-Request-Id" if _shape(request) else "X-Request-Id"] = request_id
        if standing := request.get(STANDING):
            response.headers.update(standing.headers())
        took = time.perf_counter() - began
        if span is not None:
            span.answered(response.status)
        metrics = request.app[METRICS]
        metrics.of(metrics.requests, route, method, response.status).inc()
        metrics.of(metrics.duration, route, method).observe(took)
        who = request.get(CALLER)
        access.info(
            "request",
            method=method,
            route=route,
            status=response.status,
            seconds=round(took, 6),
            user_id=str(who.user_id) if who else None,
            address=str(address) if address else None,
        )
    return response


@web.middleware
async def sign_in(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Below the prefixes everybody is signed in, before it matters whether the path exists; the bridge does so itself."""
    if f"{request.path}/".startswith(_BELOW) and not _shape(request):
        # Who has a wrong path below the bridge in mind may send the token as its clients do.
        astray = bridge_token(request.headers) if request.match_info.http_exception else None
        token = astray or presented_token(request.headers, request.cookies, safe=request.method in _SAFE)
        request[CALLER] = await request.app[AUTHENTICATOR].authenticate(token, address=request[ADDRESS])
    return await handler(request)


@web.middleware
async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Of each token only so many requests a second, and only so many at once: from sign-in until the answer is made."""
    who = request.get(CALLER)
    if who is None:
        return await handler(request)
    if rate := request.app.get(RATE):
        request[STANDING] = standing = rate.take(who.token_id)
        if not standing.granted:
            raise errors.RateExceeded(retry_after=standing.retry_after)
    slots = request.app.get(SLOTS)
    if slots is None:
        return await handler(request)
    with slots.hold(who.token_id) as held:
        if not held:
            raise errors.TooManyAtOnce(retry_after=1)
        return await handler(request)


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """What server this is, and its version, is nobody's business; nor is an answer anything but what it says it is."""
    response.headers.popall("Server", None)
    response.headers["X-Content-Type-Options"] = "nosniff"


async def closing_while_draining(request: web.Request, response: web.StreamResponse) -> None:
    """On the way out each answer ends its connection: the next request of whoever keeps it open goes to another replica."""
    if request.app[LIFECYCLE].draining:
        response.force_close()
        response.headers["Connection"] = "close"  # aiohttp has written its own headers by now


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    endless = request.match_info.handler in ENDLESS or _shape(request)
    limit = None if endless else request.app[SETTINGS].request_timeout
    try:
        # Whoever stands between may make something else of any other one, and then of where a request ends.
        if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            raise errors.MalformedRequest("The only transfer encoding is chunked.")
        if request.method == "CONNECT":
            raise errors.MalformedRequest("There are no tunnels here.")
        if limit is None:
            return _bounded(request, await handler(request))
        async with asyncio.timeout(limit) as bound:
            return _bounded(request, await handler(request))
    except TimeoutError:
        if limit is None or not bound.expired():
            raise
        refusal, headers = _late(request), dict[str, str]()
    except errors.Refusal as problem:
        refusal, headers = problem, {}
    except web.HTTPException as raised:
        refusal, headers = _refusal_of(raised)
    except ConnectionError:
        raise  # the client is gone: nobody is left to answer
    except Exception:
        log.exception("unforeseen error", route=label(request))
        refusal, headers = errors.InternalError(f"The log tells more under request id {request[REQUEST_ID]}."), {}
    request.app[METRICS].refusals.labels(type(refusal).__name__).inc()
    return _refused(refusal, headers, shape=None if isinstance(refusal, errors.UnknownPath) else _shape(request))


def _shape(request: web.Request) -> Shape | None:
    """How the bridge's clients want an error on this route; None where it is not the bridge's."""
    return request.app[BRIDGED].get(request.match_info.handler)


def _bounded(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """The answer, if it may be held until the client has taken it: sending, which counts it, comes next.

    What was recorded is told in any case: nobody is to send it again for want of room.
    """
    body = response.body if isinstance(response, web.Response) and request.method in _SAFE else None
    if isinstance(body, bytes) and not request.app[HELD].has_room(len(body)):
        raise errors.Overloaded("Too many large bodies and answers are under way.", retry_after=1)
    return response


def _late(request: web.Request) -> errors.Refusal:
    """What a request over its time is answered: whose time it was."""
    if request.can_read_body and not request.content.at_eof():
        return errors.RequestTooSlow("Its body did not arrive in time.")
    return errors.TookTooLong(retry_after=10)


def _refused(refusal: errors.Refusal, headers: dict[str, str], *, shape: Shape | None = None) -> web.Response:
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if shape:
        sentences = f"{refusal.message} {refusal.detail}".strip()
        answer = json_text(shape(refusal.status, sentences), status=refusal.status, headers=headers)
    else:
        answer = json_answer(envelope(refusal), status=refusal.status, headers=headers)
    if isinstance(refusal, errors.MalformedRequest | errors.RequestTooSlow):
        answer.force_close()  # where the next request would begin is not known
    elif isinstance(refusal, errors.TooManyFailedSignIns):
        answer.force_close()  # who guesses keeps no connection for the next one
    return answer


def _refusal_of(raised: web.HTTPException) -> tuple[errors.Refusal, dict[str, str]]:
    if isinstance(raised, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(raised.allowed_methods))
        return errors.MethodNotAllowed(f"Use one of: {allowed}."), {"Allow": allowed}
    if isinstance(raised, web.HTTPNotFound):
        return errors.UnknownPath("Check the path against /openapi.json."), {}
    if isinstance(raised, web.HTTPRequestEntityTooLarge):
        return errors.BodyTooLarge(), {}
    if isinstance(raised, web.HTTPExpectationFailed):
        return errors.MalformedRequest("The only expectation that can be met is 100-continue."), {}
    log.error("unforeseen HTTP exception", status=raised.status)
    return errors.InternalError(), {}
