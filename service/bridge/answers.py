"""An answer on its way from the provider to the client: event by event, as fast as the client takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import structlog
from aiohttp import web

from service.bridge import encodings, sse
from service.bridge.protocols import Reader
from service.bridge.upstream import Answer, headers_to_return
from service.context import LEFT, REQUEST_ID, SETTINGS, SHARE

log = structlog.get_logger("bridgelog.answers")

# A longer event, or whole answer, is relayed like any, but not read.
_MOST_EVENT: Final = 8 * 1024 * 1024
_MOST_WHOLE: Final = 32 * 1024 * 1024
# What takes longer to parse than others should wait.
_AT_ONCE: Final = 64 * 1024
# As nginx logs a client that went away before the answer.
_CLIENT_LEFT: Final = 499


class ClientLeft(Exception):
    """The client has gone, or takes nothing any more."""


class ProviderBroke(Exception):
    """The answer broke off."""


@dataclass(slots=True)
class Reading:
    """Who reads an answer while it is relayed, and what may be done to it."""

    reader: Reader
    observe: Callable[[], None]  # called whenever more has been read
    keep_alive: bytes  # what may be said between two events
    hides_usage: bool  # an event is to be left out
    unread: bool = False  # nothing could be read of it: all that can be said is that it came


@asynccontextmanager
async def while_client_stays(request: web.Request) -> AsyncIterator[None]:
    """Raises ClientLeft, wherever the block is waiting, once the client has gone."""
    if request.transport is None or request.transport.is_closing():
        raise ClientLeft
    task, left = asyncio.current_task(), False

    def leave() -> None:
        nonlocal left
        left = True
        if task:
            task.cancel()

    request[LEFT] = leave
    try:
        yield
    except asyncio.CancelledError:
        if not left or (task and task.uncancel() > 0):
            raise
        raise ClientLeft from None
    finally:
        request[LEFT] = _nobody_waits


def _nobody_waits() -> None:
    """The client of a request that is as good as done has gone."""


def left() -> web.StreamResponse:
    """What is logged of a request whose client has gone; nobody gets it."""
    return web.Response(status=_CLIENT_LEFT)


def cut(request: web.Request) -> web.StreamResponse:
    """End an answer that broke off so that the client knows: what was sent is sent, and the connection closed."""
    if transport := request.transport:
        transport.close()
        asyncio.get_running_loop().call_later(request.app[SETTINGS].send_timeout, transport.abort)
    return left()


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Waits until the client has taken most of it: so long nothing more is read from the provider."""
    try:
        async with asyncio.timeout(request.app[SETTINGS].send_timeout):
            await response.write(data)
    except TimeoutError as problem:
        log.warning("an answer was not taken in time", bytes=len(data))
        if request.transport:
            request.transport.abort()
        raise ClientLeft from problem
    except ConnectionError as problem:
        raise ClientLeft from problem


async def relay(request: web.Request, answer: Answer, reading: Reading | None) -> web.StreamResponse:
    """Send the answer on as it comes, and have it read. Raises ClientLeft and ProviderBroke."""
    upstream = answer.response
    response = web.StreamResponse(
        status=upstream.status, reason=upstream.reason, headers=headers_to_return(upstream.headers)
    )
    response.headers["X-Bridgelog-Request-Id"] = request[REQUEST_ID]
    response.headers.setdefault("Cache-Control", "no-store")
    streaming = upstream.content_type == "text/event-stream"
    unpacker = encodings.unpacker(upstream.headers.get("Content-Encoding", ""))
    packed = upstream.headers.get("Content-Encoding", "identity").strip().lower() != "identity"
    # The only stream that cannot go as it comes: an event is to be left out of it.
    opened = bool(streaming and packed and unpacker and reading and reading.hides_usage)
    if opened:
        response.headers.popall("Content-Encoding", None)
    if streaming:
        # For nginx, which would collect them.
        response.headers["X-Accel-Buffering"] = "no"
    elif (length := upstream.headers.get("Content-Length", "")).isascii() and length.isdigit():
        response.content_length = int(length)
    try:
        try:
            await response.prepare(request)
        except ConnectionError as problem:
            raise ClientLeft from problem
        if reading is None or unpacker is None:
            if reading:
                reading.unread = True
            await _pass_on(request, response, answer)
        elif streaming:
            await _Stream(request, response, answer, reading, unpacker, packed=packed, opened=opened).relay()
        else:
            reading.unread = not await _pass_on_whole(request, response, answer, reading.reader, unpacker)
    except (ClientLeft, ProviderBroke, asyncio.CancelledError):
        raise
    except BaseException:
        # No other answer can follow what has been sent of this one.
        cut(request)
        raise
    return response


async def _pass_on(request: web.Request, response: web.StreamResponse, answer: Answer) -> None:
    while chunk := await _next(answer):
        await _send(request, response, chunk)


async def _pass_on_whole(
    request: web.Request,
    response: web.StreamResponse,
    answer: Answer,
    reader: Reader,
    unpacker: encodings.Unpacker,
) -> bool:
    """Whether it could be read: it is sent on, whatever it is."""
    whole, kept = bytearray(), True
    while chunk := await _next(answer):
        if kept:
            for piece in unpacker.feed(chunk):
                whole += piece
                if len(whole) > _MOST_WHOLE:
                    whole, kept = bytearray(), False
                    break
            request[SHARE].keep(len(whole))
        await _send(request, response, chunk)
    # Who has it all and goes is no matter any more.
    request[LEFT] = _nobody_waits
    if kept and len(whole) <= _AT_ONCE:
        reader.whole(bytes(whole), answer.response.status)
    elif kept:
        await asyncio.to_thread(reader.whole, bytes(whole), answer.response.status)
    return kept


class _Stream:
    """A stream of events on its way to the client."""

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: Answer,
        reading: Reading,
        unpacker: encodings.Unpacker,
        *,
        packed: bool,
        opened: bool,
    ) -> None:
        self._request = request
        self._response = response
        self._answer = answer
        self._reading = reading
        self._unpacker = unpacker
        self._packed = packed
        self._opened = opened
        self._decoder = sse.Decoder(_MOST_EVENT)
        self._between = True  # two events, where something may be said

    async def relay(self) -> None:
        """To its end."""
        raw = self._packed and not self._opened
        patience = None if raw else self._request.app[SETTINGS].bridge_keep_alive
        while True:
            chunk = await _next(self._answer, patience=patience)
            if chunk is None:
                out = self._reading.keep_alive if self._between else b""
            elif chunk and self._packed:
                # However much it unpacks to, no more than a piece of that is held, and others have their turn.
                for piece in self._unpacker.feed(chunk):
                    out = self._shown(self._decoder.feed(piece))
                    self._reading.observe()
                    if out and not raw:
                        await _send(self._request, self._response, out)
                    await asyncio.sleep(0)
                out = b""
            elif chunk:
                out = self._shown(self._decoder.feed(chunk))
                self._reading.observe()
            else:
                out = self._shown(self._decoder.close())
            if raw and chunk is not None:
                out = chunk
            if out:
                await _send(self._request, self._response, out)
            if chunk == b"":
                return

    def _shown(self, events: Iterator[sse.Event]) -> bytes:
        """What the client sees of these events; the reader sees them all."""
        shown = []
        for event in events:
            self._between = not event.open
            if self._reading.reader.event(event):
                shown.append(event.raw)
        return b"".join(shown)


async def _next(answer: Answer, *, patience: float | None = None) -> bytes | None:
    """The next bytes of an answer; none at its end; None where it is silent for so long. Raises ProviderBroke."""
    try:
        async with asyncio.timeout(patience) as bound:
            chunk = await answer.response.content.readany()
    except (aiohttp.ClientError, OSError, TimeoutError) as problem:
        if bound.expired() and not isinstance(problem, aiohttp.ClientError):
            return None
        if answer.exchange:
            answer.exchange.fail(type(problem).__name__)
        reason = "provider_silent" if isinstance(problem, aiohttp.SocketTimeoutError) else "provider_connection_lost"
        raise ProviderBroke(reason) from problem
    if answer.exchange and chunk:
        answer.exchange.add(chunk)
    return chunk
