"""An answer on its way from the provider to the client: event by event, as fast as the client takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import structlog
from aiohttp import web

from service.bridge import encodings, sse
from service.bridge.protocols import Reader
from service.bridge.upstream import Answer, headers_to_return
from service.context import LEFT, REQUEST_ID, SETTINGS, SHARE

log = structlog.get_logger("bridgelog.relay")

# A longer event, or whole answer, is relayed like any, but not read.
_MOST_EVENT: Final = 8 * 1024 * 1024
_MOST_WHOLE: Final = 32 * 1024 * 1024
PARSED_AT_ONCE: Final = 64 * 1024
"""What is longer takes longer to parse than others should wait: in a thread."""
# What is less than this, with all that waits, a connection takes without making anybody wait: its limit is 64 KiB.
_SENT_AT_ONCE: Final = 32 * 1024
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


class while_client_stays:  # noqa: N801  # reads as what it does, and costs half of what a generator would
    """Raises ClientLeft, wherever the block is waiting, once the client has gone."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._task: asyncio.Task[Any] | None = None
        self._left = False

    def __enter__(self) -> None:
        if self._request.transport is None or self._request.transport.is_closing():
            raise ClientLeft
        self._task = asyncio.current_task()
        self._request[LEFT] = self._leave

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        self._request[LEFT] = _nobody_waits
        cancelled = isinstance(problem, asyncio.CancelledError) and self._left
        if cancelled and (self._task is None or self._task.uncancel() == 0):
            raise ClientLeft from None

    def _leave(self) -> None:
        self._left = True
        if self._task:
            self._task.cancel()


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
        if _has_room(request, len(data)):
            await response.write(data)
            return
        async with asyncio.timeout(request.app[SETTINGS].send_timeout):
            await response.write(data)
    except TimeoutError as problem:
        log.warning("an answer was not taken in time", bytes=len(data))
        if request.transport:
            request.transport.abort()
        raise ClientLeft from problem
    except ConnectionError as problem:
        raise ClientLeft from problem


def _has_room(request: web.Request, size: int) -> bool:
    """Whether so much can be sent without a wait for the client, and so without a timer."""
    transport = request.transport
    return (
        transport is not None
        and not request.protocol.writing_paused
        and transport.get_write_buffer_size() + size <= _SENT_AT_ONCE
    )


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
        if upstream.content.total_bytes:
            # The head goes with the beginning of the body, which is there already.
            response._send_headers_immediately = False  # noqa: SLF001  # as in aiohttp's own Response
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
    if kept and len(whole) <= PARSED_AT_ONCE:
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
        if raw:
            await self._relay(None, raw=True)
        else:
            with _Patience(self._request.app[SETTINGS].bridge_keep_alive) as patience:
                await self._relay(patience, raw=False)

    async def _relay(self, patience: _Patience | None, *, raw: bool) -> None:
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


class _Patience:
    """How long one wait after the other may take: as `asyncio.timeout` for each, with one timer for all of them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        self._since: float | None = None
        self._ran_out = False

    def __enter__(self) -> _Patience:
        self._timer = self._loop.call_later(self._seconds, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def have(self, waiting: Coroutine[Any, Any, bytes]) -> bytes | None:
        """What is waited for; None where that takes too long."""
        self._since = self._loop.time()
        try:
            return await waiting
        except asyncio.CancelledError:
            if not self._ran_out or self._task is None or self._task.uncancel() > self._cancelling:
                raise
            return None
        finally:
            self._since, self._ran_out = None, False

    def _look(self) -> None:
        now = self._loop.time()
        since = now if self._since is None else self._since
        left = since + self._seconds - now
        if left <= 0 and self._task and not self._ran_out:
            self._ran_out = True
            self._task.cancel()
        self._timer = self._loop.call_later(left if left > 0 else self._seconds, self._look)


async def _next(answer: Answer, *, patience: _Patience | None = None) -> bytes | None:
    """The next bytes of an answer; none at its end; None where it is silent for too long. Raises ProviderBroke."""
    reading = answer.response.content.readany()
    try:
        chunk = await reading if patience is None else await patience.have(reading)
    except (aiohttp.ClientError, OSError, TimeoutError) as problem:
        if answer.exchange:
            answer.exchange.fail(type(problem).__name__)
        reason = "provider_silent" if isinstance(problem, aiohttp.SocketTimeoutError) else "provider_connection_lost"
        raise ProviderBroke(reason) from problem
    if answer.exchange and chunk:
        answer.exchange.add(chunk)
    return chunk
