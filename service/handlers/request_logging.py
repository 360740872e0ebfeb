"""…/log-requests: the switch for logging upstream requests."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from service import errors, instants
from service.answers import json_answer
from service.bodies import read_body
from service.context import DATABASE, SHARE, caller
from service.schemas import records
from service.store import request_logging

MAX_BODY = 64 * 1024


async def set_request_logging(request: web.Request) -> web.Response:
    """Turn the logging of upstream requests on or off, for every replica."""
    who = caller(request)
    if not who.can_toggle:
        raise errors.RequestLoggingForbidden
    body = records.load_body(records.RequestLogging(), await read_body(request, most=MAX_BODY, share=request[SHARE]))
    async with request.app[DATABASE].transaction() as connection:
        await request_logging.turn(
            connection, enabled=body["enabled"], changed_at=datetime.now(UTC), changed_by=who.user_id
        )
    return json_answer({"message": "Request logging state updated successfully."})


async def get_request_logging(request: web.Request) -> web.Response:
    """Whether upstream requests are logged, since when, and who said so."""
    if not caller(request).can_audit:
        raise errors.RequestLoggingHidden
    if not request.app[DATABASE].writable:
        raise errors.ReadOnlyDatabase
    state = await request.app[DATABASE].read(request_logging.read)
    return json_answer(
        {
            "enabled": state.enabled,
            "changed_at": instants.format(state.changed_at) if state.changed_at else None,
            "changed_by": str(state.changed_by) if state.changed_by else None,
        }
    )
