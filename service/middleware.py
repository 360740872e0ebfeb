"""Around every request: its id, sign-in, the error envelope, headers, the access log and the metrics."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import web

from service import errors
from service.answers import envelope, json_answer
from service.auth import presented_token
from service.context import (
    ADDRESS,
    AUTHENTICATOR,
    CALLER,
    METRICS,
    RATE,
    REQUEST_ID,
    SETTINGS,
    SLOTS,
    STANDING,
)
from service.peers import client_address
from service.routes import PREFIXES, label

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
    began = time.perf_counter()
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        response = await _answered(request, handler)
        # Kept by the answer itself, so that a streamed one has it too.
        response.headers["X-Request-Id"] = request_id
        if standing := request.get(STANDING):
            response.headers.update(standing.headers())
        took = time.perf_counter() - began
        route, method = label(request), request.method if request.method in _METHODS else "other"
        metrics = request.app[METRICS]
        metrics.requests.labels(route, method, response.status).inc()
        metrics.duration.labels(route, method).observe(took)
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
    """Below the prefixes everybody is signed in, before it matters whether the path exists."""
    if f"{request.path}/".startswith(_BELOW):
        token = presented_token(request.headers, request.cookies, safe=request.method in _SAFE)
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


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        # Whoever stands between may make something else of any other one, and then of where a request ends.
        if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            raise errors.MalformedRequest("The only transfer encoding is chunked.")
        if request.method == "CONNECT":
            raise errors.MalformedRequest("There are no tunnels here.")
        return await handler(request)
    except errors.Refusal as problem:
        refusal, headers = problem, dict[str, str]()
    except web.HTTPException as raised:
        refusal, headers = _refusal_of(raised)
    except ConnectionError:
        raise  # the client is gone: nobody is left to answer
    except Exception:
        log.exception("unforeseen error", route=label(request))
        refusal, headers = errors.InternalError(f"The log tells more under request id {request[REQUEST_ID]}."), {}
    request.app[METRICS].refusals.labels(type(refusal).__name__).inc()
    return _refused(refusal, headers)


def _refused(refusal: errors.Refusal, headers: dict[str, str]) -> web.Response:
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    answer = json_answer(envelope(refusal), status=refusal.status, headers=headers)
    if isinstance(refusal, errors.MalformedRequest):
        answer.force_close()  # where the next request would begin is not known
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
