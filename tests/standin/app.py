"""The stand-in's HTTP: routes, faults, and the way in which a body is written."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import json
import random
import socket
import struct
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aiohttp import web

from . import anthropic, openai
from .plan import Plan, Wishes

_KEPT = 10_000


@dataclass(slots=True)
class Exchange:
    """What was answered, and under which request id. The headers are for tests in this process, and not told to others."""

    request_id: str
    path: str
    model: str
    status: int = 0
    streaming: bool = False
    sha256: str = ""  # of the body's bytes that were sent
    sha256_without_usage: str = ""  # the same, without the chunk that include_usage asked for
    headers: dict[str, list[str]] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)  # as it came


EXCHANGES = web.AppKey("exchanges", deque[Exchange])
_FAILED = web.AppKey("failed", Counter[str])
_NUMBERS = web.AppKey("numbers", Iterator[int])


@dataclass(frozen=True, slots=True)
class Shape:
    """How a protocol is answered."""

    planned: Callable[[dict[str, Any]], Plan]
    whole: Callable[[Plan, dict[str, Any]], dict[str, Any]]
    events: Callable[[Plan, dict[str, Any]], Iterable[dict[str, Any]]]
    failure: Callable[[Plan, dict[str, Any]], dict[str, Any]]
    error: Callable[[int, str], dict[str, Any]]
    request_id: str
    named: bool = True  # its events have names


MESSAGES = Shape(
    planned=anthropic.planned,
    whole=lambda plan, _: anthropic.message(plan),
    events=lambda plan, _: anthropic.events(plan),
    failure=lambda *_: anthropic.error(529, "Overloaded"),
    error=anthropic.error,
    request_id="request-id",
)
CHAT = Shape(
    planned=openai.chat_planned,
    whole=lambda plan, _: openai.completion(plan),
    events=lambda plan, body: openai.chunks(
        plan,
        include_usage=bool((body.get("stream_options") or {}).get("include_usage"))
        and "no-usage" not in Wishes.of(plan.model),
        usage_last="usage-last" in Wishes.of(plan.model),
    ),
    failure=lambda *_: openai.error(500, "The stand-in was told to fail."),
    error=openai.error,
    request_id="x-request-id",
    named=False,
)
RESPONSES = Shape(
    planned=openai.responses_planned,
    whole=openai.response,
    events=openai.events,
    failure=openai.failed,
    error=openai.error,
    request_id="x-request-id",
)


@web.middleware
async def _client_may_leave(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Who leaves in the middle of an answer is no defect, and leaves no traceback."""
    try:
        return await handler(request)
    except ConnectionResetError:
        return web.Response(status=499)


def build_app() -> web.Application:
    """The stand-in; `app[EXCHANGES]` is what it answered, the newest last."""
    app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[_client_may_leave])
    app[EXCHANGES] = deque(maxlen=_KEPT)
    app[_FAILED] = Counter()
    app[_NUMBERS] = itertools.count(1)
    app.add_routes(
        [
            web.post("/anthropic/v1/messages", _answering(MESSAGES)),
            web.post("/anthropic/v1/messages/count_tokens", _plain(MESSAGES, _count_tokens)),
            web.get("/anthropic/v1/models", _plain(MESSAGES, _anthropic_models)),
            web.get("/anthropic/v1/models/{id}", _plain(MESSAGES, _anthropic_models)),
            web.post("/anthropic/api/event_logging/{rest:.*}", _plain(MESSAGES, lambda *_: {})),
            web.post("/openai/v1/chat/completions", _answering(CHAT)),
            web.post("/openai/v1/responses", _answering(RESPONSES)),
            web.get("/openai/v1/responses/{id}", _plain(RESPONSES, _stored)),
            web.get("/openai/v1/models", _plain(CHAT, _openai_models)),
            web.get("/openai/v1/models/{id}", _plain(CHAT, _openai_models)),
            web.post("/openai/v1/conversations", _plain(RESPONSES, _conversation)),
            web.get("/openai/v1/conversations/{id}", _plain(RESPONSES, _conversation)),
            web.get("/exchanges", _exchanges),
        ]
    )
    return app


async def _exchanges(request: web.Request) -> web.Response:
    told = [asdict(exchange) for exchange in request.app[EXCHANGES]]
    return web.json_response(
        [{name: value for name, value in one.items() if name not in ("headers", "body")} for one in told]
    )


# -- recorded routes -------------------------------------------------------------------------------------------------


def _answering(shape: Shape) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        exchange = _begin(request, shape, raw)
        if refused := _without_key(request, shape, exchange):
            return refused
        try:
            body = json.loads(raw)
            plan = shape.planned(body)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return _json(
                shape, exchange, shape.error(400, "The stand-in does not understand this request."), status=400
            )
        exchange.model, exchange.streaming = plan.model, bool(body.get("stream"))
        wishes = Wishes.of(plan.model)
        if answer := await _fault(request, shape, exchange, plan, wishes):
            return answer
        parts, hidden = (
            _parts(shape, plan, body, wishes) if exchange.streaming else _one_part(shape, plan, body, wishes)
        )
        return await _write(request, shape, exchange, wishes, parts, hidden=hidden)

    return handler


def _begin(request: web.Request, shape: Shape, raw: bytes) -> Exchange:
    headers: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), []).append(value)
    numbers = request.app[_NUMBERS]
    number = next(numbers)
    exchange = Exchange(f"req_standin_{number:08}", request.path, "", headers=headers, body=raw)
    request.app[EXCHANGES].append(exchange)
    return exchange


def _without_key(request: web.Request, shape: Shape, exchange: Exchange) -> web.Response | None:
    given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer").strip()
    return None if given else _json(shape, exchange, shape.error(401, "No key came."), status=401)


async def _fault(
    request: web.Request, shape: Shape, exchange: Exchange, plan: Plan, wishes: Wishes
) -> web.StreamResponse | None:
    """What comes instead of an answer, if anything does."""
    if "reset" in wishes:
        _reset(request)
        return web.Response()
    if "stall" in wishes:
        # Nothing wakes a handler when its client goes away.
        while request.transport and not request.transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return web.Response()
    if "redirect" in wishes:
        return web.Response(
            status=307, headers={"Location": "http://stand-in.invalid/", shape.request_id: exchange.request_id}
        )
    status = wishes.number("error", 0)
    if "error" in wishes and not exchange.streaming:
        status = status or (529 if shape is MESSAGES else 500)
    if "flaky" in wishes:
        failed = request.app[_FAILED]
        failed[plan.key] += 1
        if failed[plan.key] > wishes.number("flaky", 1):
            failed[plan.key] = 0
        else:
            status = 503
    if status:
        after = {"retry-after": str(wishes.number("after", 1))} if status in (429, 503) else {}
        return _json(
            shape, exchange, shape.error(status, "The stand-in was told to fail."), status=status, headers=after
        )
    return None


def _one_part(shape: Shape, plan: Plan, body: dict[str, Any], wishes: Wishes) -> tuple[list[bytes], int | None]:
    whole = json.dumps(shape.whole(plan, body), ensure_ascii=False, indent=2).encode()
    if "garbage" in wishes:
        whole = b"<html>\xff\xfe this is no JSON {"
    if "half" in wishes:
        whole = whole[: len(whole) // 2]
    return [whole], None


def _parts(shape: Shape, plan: Plan, body: dict[str, Any], wishes: Wishes) -> tuple[list[bytes], int | None]:
    """The events of a stream as they are sent, and which of them is there only because include_usage asked for it."""
    events = [dict(event) for event in shape.events(plan, body)]
    hidden = len(events) - 1 if not shape.named and events[-1]["choices"] == [] else None
    if "error" in wishes:
        events, hidden = [*events[: _middle(events, hidden)], shape.failure(plan, body)], None
    if shape is RESPONSES:
        events = [event | {"sequence_number": number} for number, event in enumerate(events)]
    texts = [json.dumps(event, ensure_ascii=False) for event in events]
    if "garbage" in wishes:
        texts = ["{", "\x00", '"text"', '{"type": 7, "choices": "no", "usage": []}', "]" * 100]
        events, hidden = [{"type": "garbage"}] * len(texts), None
    parts = [
        f"event: {event['type']}\ndata: {text}\n\n" if shape.named else f"data: {text}\n\n"
        for event, text in zip(events, texts, strict=True)
    ]
    if not shape.named and not {"error", "garbage"} & set(wishes.named):
        parts.append("data: [DONE]\n\n")
    if "comments" in wishes:
        parts = [f": {number}\n{part}" for number, part in enumerate(parts)]
        parts[0] = "\ufeff" + parts[0]
    end = "\r\n" if "crlf" in wishes else "\r" if "cr" in wishes else "\n"
    encoded = [part.replace("\n", end).encode() for part in parts]
    if "half" in wishes:
        middle = _middle(encoded, hidden)
        encoded, hidden = [*encoded[:middle], encoded[middle][: len(encoded[middle]) // 2]], None
    return encoded, hidden


def _middle(parts: Sequence[object], hidden: int | None) -> int:
    """Where half of a body is over: the same place, whether the usage was asked for or not."""
    return (len(parts) - (hidden is not None)) // 2


async def _write(
    request: web.Request, shape: Shape, exchange: Exchange, wishes: Wishes, parts: list[bytes], *, hidden: int | None
) -> web.StreamResponse:
    kind = "text/event-stream; charset=utf-8" if exchange.streaming else "application/json"
    response = web.StreamResponse(
        headers=_headers(shape, exchange) | {"Content-Type": kind, "Cache-Control": "no-cache"}
    )
    whole = b"".join(parts)
    if "gzip" in wishes:
        # One piece: what a part is within it cannot be told any more.
        response.headers["Content-Encoding"] = "gzip"
        whole = gzip.compress(whole, mtime=0)
        parts, hidden = [whole], None
    if not exchange.streaming:
        response.content_length = len(whole)
    exchange.status = 200
    exchange.sha256 = hashlib.sha256(whole).hexdigest()
    shown = b"".join(part for number, part in enumerate(parts) if number != hidden)
    exchange.sha256_without_usage = hashlib.sha256(shown).hexdigest()
    await response.prepare(request)
    middle = _middle(parts, hidden)
    if "split" in wishes:
        parts = list(_split(whole, wishes.number("split", 0)))
        middle = len(parts) // 2
    for number, part in enumerate(parts):
        if "broken" in wishes and number >= middle:
            await response.write(part[: len(part) // 2])
            await asyncio.sleep(0.05)  # or else the reset overtakes what was written
            _reset(request)
            return response
        if "silent" in wishes and number == middle:
            await asyncio.sleep(wishes.number("silent", 11_000) / 1_000)
        if "slow" in wishes:
            await asyncio.sleep(wishes.number("slow", 20) / 1_000)
        await response.write(part)
        if "split" in wishes and number % 8 == 0:
            await asyncio.sleep(0)
    await response.write_eof()
    return response


def _split(whole: bytes, seed: int) -> Iterable[bytes]:
    sizes, position = random.Random(seed), 0
    while position < len(whole):
        size = sizes.choice((1, 2, 3, 7, 50, 400))
        yield whole[position : position + size]
        position += size


def _reset(request: web.Request) -> None:
    """Close the connection with a reset rather than an end."""
    if request.transport:
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


# -- the other routes ------------------------------------------------------------------------------------------------


def _plain(
    shape: Shape, answer: Callable[[web.Request, dict[str, Any]], dict[str, Any]]
) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.Response:
        raw = await request.read()
        exchange = _begin(request, shape, raw)
        try:
            return _without_key(request, shape, exchange) or _json(
                shape, exchange, answer(request, json.loads(raw or b"{}"))
            )
        except (ValueError, KeyError, TypeError, IndexError):
            return _json(
                shape, exchange, shape.error(400, "The stand-in does not understand this request."), status=400
            )

    return handler


def _count_tokens(request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    return {"input_tokens": anthropic.planned(body).fresh}


def _anthropic_models(request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    name = request.match_info.get("id", "standin-tools")
    model = {"type": "model", "id": name, "display_name": "Stand-in", "created_at": "2025-11-24T00:00:00Z"}
    return (
        model if "id" in request.match_info else {"data": [model], "has_more": False, "first_id": name, "last_id": name}
    )


def _openai_models(request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    name = request.match_info.get("id", "standin-tools")
    model = {"id": name, "object": "model", "created": openai.CREATED, "owned_by": "standin"}
    return model if "id" in request.match_info else {"object": "list", "data": [model]}


def _stored(request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    made = openai.responses_planned({"model": "standin-stored", "input": request.match_info["id"]})
    return openai.response(made, {}) | {"id": request.match_info["id"]}


def _conversation(request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
    name = request.match_info.get("id", "conv_standin")
    return {"id": name, "object": "conversation", "created_at": openai.CREATED, "metadata": body.get("metadata") or {}}


# -- answers in one piece --------------------------------------------------------------------------------------------


def _json(
    shape: Shape, exchange: Exchange, body: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    encoded = json.dumps(body).encode()
    exchange.status = status
    exchange.sha256 = exchange.sha256_without_usage = hashlib.sha256(encoded).hexdigest()
    told = _headers(shape, exchange) | (headers or {})
    return web.Response(body=encoded, status=status, content_type="application/json", headers=told)


def _headers(shape: Shape, exchange: Exchange) -> dict[str, str]:
    prefix = "anthropic-ratelimit-requests-" if shape is MESSAGES else "x-ratelimit-"
    limit = {f"{prefix}limit": "1000", f"{prefix}remaining": "999"}
    return {shape.request_id: exchange.request_id} | limit
