"""The connections of clients: how many there may be, and how long a head may take to come and an answer to be taken."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import structlog
from aiohttp import web

from service import answers, errors
from service.context import LEFT
from service.held import SMALL, Held
from service.settings import Settings

log = structlog.get_logger("bridgelog.connections")

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# Longer than any usual proxy keeps one: so that it closes first, and sends nothing on a connection that is being closed.
_IDLE_SECONDS = 620.0
# Bytes of a request's head in all.
_MOST_HEAD = 256 * 1024


class Connections:
    """Those that are open, the oldest first, and what bounds them."""

    def __init__(self, settings: Settings, held: Held) -> None:
        self.head_timeout = settings.head_timeout
        self.send_timeout = settings.send_timeout
        self.held = held
        self._most = settings.max_connections
        self._open: dict[Connection, None] = {}

    def add(self, connection: Connection) -> bool:
        """Count one more. Where there are too many, the oldest that waits for its client makes room; False if none does."""
        if len(self._open) >= self._most:
            waiting = next((other for other in self._open if other.is_waiting), None)
            if waiting is None:
                return False
            del self._open[waiting]
            waiting.cut()
        self._open[connection] = None
        return True

    def remove(self, connection: Connection) -> None:
        """It is closed."""
        self._open.pop(connection, None)


class Connection(web.RequestHandler):
    """aiohttp's, with bounds."""

    __slots__ = ("_bounds", "_head_bytes", "_head_timer", "_wire")

    def __init__(self, manager: web.Server, *, bounds: Connections, **options: Any) -> None:
        super().__init__(manager, keepalive_timeout=_IDLE_SECONDS, **options)
        self._bounds = bounds
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the next thing has to come from the client: a request, or the rest of its head."""
        return not self._request_in_progress and not self._messages

    def cut(self) -> None:
        """Close it at once, also where the client has not taken what was sent."""
        self.force_close()
        if self._wire is not None:
            self._wire.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected: now a head is to come."""
        super().connection_made(transport)
        self._wire = cast("asyncio.Transport", transport)
        if self._bounds.add(self):
            self._expect_head()
        else:
            self._refuse(errors.Overloaded("There are too many connections.", retry_after=1))

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        if not self.is_waiting:
            self._head_bytes = 0
            self._expect_nothing()
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MOST_HEAD:
            self._refuse(errors.HeadersTooLarge(f"The limit is {_MOST_HEAD} bytes in all."))
        elif self._head_timer is None:
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone. What only reads for it is cancelled, what it records is finished, and the bridge is told."""
        request, task = self._current_request, self._task_handler
        super().connection_lost(exc)
        self._expect_nothing()
        self._bounds.remove(self)
        self._wire = None
        if request is None:
            return
        if LEFT in request:
            request[LEFT]()
        elif request.method in SAFE and task is not None:
            task.cancel()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """An exception outside of any request; one that comes of a client who has gone is none."""
        if self.transport is not None:
            super().log_exception(*args, **kw)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, to a client that takes it in time."""
        body = resp.body if isinstance(resp, web.Response) else None
        size = len(body) if isinstance(body, bytes) else 0
        if not body and self._wire and not self.writing_paused and not self._wire.get_write_buffer_size():
            # The end of a stream, with nothing before it that has yet to be taken: there is no wait to be bounded.
            return await super().finish_response(request, resp, start_time)
        share = self._bounds.held.share()
        if size > SMALL:
            share.keep(size)
        try:
            async with asyncio.timeout(self._bounds.send_timeout):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            log.warning("an answer was not taken in time", bytes=size)
            self.cut()
            return resp, True
        finally:
            share.give_back()
            if isinstance(resp, web.Response):
                resp.body = None  # aiohttp keeps the last answer of a connection until the next one

    def _expect_head(self) -> None:
        self._expect_nothing()
        self._head_timer = self._loop.call_later(self._bounds.head_timeout, self._head_is_late)

    def _expect_nothing(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.is_waiting:
            self.cut()

    def _refuse(self, refusal: errors.Refusal) -> None:
        """Answer, outside of any request, and close."""
        if self._wire is None:
            return
        body = answers.dump(answers.envelope(refusal))
        headers = answers.bare_headers() | {
            "Content-Type": f"{answers.JSON}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        if refusal.retry_after is not None:
            headers["Retry-After"] = str(refusal.retry_after)
        lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        log.warning("a connection was refused", refusal=type(refusal).__name__)
        self._wire.write("".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii") + body)
        self.force_close()
