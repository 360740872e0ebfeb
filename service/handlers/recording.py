"""…/interceptions, its children and its end: what a bridge records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from aiohttp import web

from service import errors
from service.answers import json_answer, json_text
from service.bodies import load_body
from service.context import DATABASE, METRICS, SETTINGS, SHARE, caller
from service.db import Connection
from service.schemas import records
from service.store import interceptions, recording, users
from service.store.recording import Kind, Outcome

T = TypeVar("T")


async def record_interception(request: web.Request) -> web.Response:
    """Record an interception, running or finished, with whatever it owns; again with the same content is fine."""
    key = _key(request)
    sent = await _load(request, lambda value: records.load_interception(value, key=key))

    async def work(connection: Connection) -> tuple[Outcome, bytes]:
        if sent.initiator is not None:
            await users.refresh(
                connection,
                initiator=sent.initiator,
                seen_at=datetime.now(UTC),
                started_at=sent.sent["started_at"],
            )
        outcome = await recording.record(connection, interception=sent)
        return outcome, await interceptions.read_one(connection, interception_id=sent.id)

    try:
        outcome, body = await request.app[DATABASE].settle(work)
    except errors.UsernameTaken as taken:
        raise recording.username_conflict() from taken
    request.app[METRICS].recorded.labels(outcome.value).inc()
    status = 201 if outcome is Outcome.CREATED else 200
    return json_text(body, status=status, headers={"Location": f"interceptions/{sent.id}"})


async def end_interception(request: web.Request) -> web.Response:
    """End an interception; the first end wins."""
    body = await _load(request, records.load_end)
    interception_id = _interception_id(request)

    async def work(connection: Connection) -> bytes:
        await recording.end(
            connection, interception_id=interception_id, ended_at=body["ended_at"], metadata=body.get("metadata")
        )
        return await interceptions.read_one(connection, interception_id=interception_id)

    answer = await request.app[DATABASE].settle(work)
    return json_text(answer, headers={"Location": f"../{interception_id}"})


async def record_token_usages(request: web.Request) -> web.Response:
    """Record token usages of an interception: one, or an array of them."""
    return await _record_children(request, "token_usages")


async def record_user_prompts(request: web.Request) -> web.Response:
    """Record prompts of an interception: one, or an array of them."""
    return await _record_children(request, "user_prompts")


async def record_tool_usages(request: web.Request) -> web.Response:
    """Record tool calls of an interception: one, or an array of them."""
    return await _record_children(request, "tool_usages")


async def record_model_thoughts(request: web.Request) -> web.Response:
    """Record thoughts of an interception's model: one, or an array of them. They have no ids to answer."""
    return await _record_children(request, "model_thoughts")


async def _record_children(request: web.Request, kind: Kind) -> web.Response:
    interception_id = _interception_id(request)
    key = _key(request)

    def load(value: object) -> tuple[list[dict[str, Any]], bool]:
        children = records.load_children(value, kind=kind, interception_id=interception_id, key=key)
        return children, isinstance(value, list)

    children, listed = await _load(request, load)

    async def work(connection: Connection) -> bool:
        return await recording.record_children(
            connection, interception_id=interception_id, kind=kind, children=children, listed=listed
        )

    anything_new = await request.app[DATABASE].settle(work)
    ids = [str(child["id"]) for child in children if "id" in child]
    return json_answer({"ids": ids}, status=201 if anything_new else 200)


async def _load(request: web.Request, load: Callable[[object], T]) -> T:
    if not caller(request).can_record:
        raise errors.RecordingForbidden
    return await load_body(request, load, most=request.app[SETTINGS].max_body, share=request[SHARE])


def _key(request: web.Request) -> str | None:
    """What tells that a request is the same one, sent again: the caller's Idempotency-Key, theirs alone."""
    given = request.headers.get("Idempotency-Key")
    return f"{caller(request).user_id} {given!a}" if given else None  # !a: a header may hold bytes that are no text


def _interception_id(request: web.Request) -> UUID:
    return UUID(request.match_info["interception_id"])
