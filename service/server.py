"""The listening socket: aiohttp's server, whose own refusals speak the API's envelope too, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import Callable

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from service import answers, errors
from service.connections import Connection, Connections
from service.context import HELD, LIFECYCLE, SETTINGS

log = structlog.get_logger("bridgelog.server")

# Each line of a request's head is read up to this size.
_MAX_LINE = 64 * 1024


async def serve(
    app: web.Application,
    *,
    host: str,
    port: int,
    drain_seconds: float,
    shutdown_timeout: float,
    ready: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the port once connections are accepted.

    At the signal /readyz turns 503 for `drain_seconds`, while everything is still answered; then the socket closes, open
    requests get up to `shutdown_timeout` seconds to finish, and the application is taken down. A second signal ends the
    draining at once; a third ends the process.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown_timeout)
    await runner.setup()
    loop = asyncio.get_running_loop()
    stopping, hurried = asyncio.Event(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        if stopping.is_set():
            hurried.set()
            for number in signals:
                loop.remove_signal_handler(number)
        stopping.set()

    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        site = Site(runner, host, port)
        await site.start()
        ready(site.bound_port)
        await stopping.wait()
        app[LIFECYCLE].draining = True
        log.info("stopping", drain_seconds=drain_seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurried.wait(), timeout=drain_seconds)
    finally:
        await runner.cleanup()
    log.info("stopped")


class Site(web.BaseSite):
    """A TCP socket whose connections speak `Protocol`."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        super().__init__(runner)
        self._bounds = Connections(runner.app[SETTINGS], runner.app[HELD])
        self._host = host
        self.bound_port = port

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"http://{self._host}:{self.bound_port}"

    async def start(self) -> None:
        """Begin to accept connections; from here on `bound_port` is the port, also where 0 asked for any."""
        await super().start()
        loop = asyncio.get_running_loop()
        manager = self._runner.server
        if manager is None:
            message = "the runner must be set up first"
            raise RuntimeError(message)
        server = await loop.create_server(
            lambda: Protocol(
                manager,
                bounds=self._bounds,
                loop=loop,
                access_log=None,  # none: the middleware writes it
                max_line_size=_MAX_LINE,
                max_field_size=_MAX_LINE,
            ),
            self._host,
            self.bound_port,
            backlog=1024,
            reuse_address=True,
        )
        self._server = server
        self.bound_port = server.sockets[0].getsockname()[1]


class Protocol(Connection):
    """A connection, save that what its parser refuses is answered in the envelope: no echo, no banner."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # the parser's text quotes what it could not read
    ) -> web.StreamResponse:
        """The answer to a request that never reached the application; the connection closes after it."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError  # the client has gone: nobody is left to answer
        refusal: errors.Refusal
        if isinstance(exc, LineTooLong):
            refusal = errors.HeadersTooLarge(f"The limit is {_MAX_LINE} bytes a line.")
        elif 400 <= status < 500:
            refusal = errors.MalformedRequest()
        else:
            log.error("unforeseen error outside the application", exc_info=exc)
            refusal = errors.InternalError()
        return _bare(refusal)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. An exception for one comes from before the middleware: the Expect header cannot be met."""
        if isinstance(resp, web.HTTPException):
            resp = _bare(errors.MalformedRequest("The only expectation that can be met is 100-continue."))
        return await super().finish_response(request, resp, start_time)


def _bare(refusal: errors.Refusal) -> web.Response:
    answer = _Bare(
        body=answers.dump(answers.envelope(refusal)),
        status=refusal.status,
        content_type=answers.JSON,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Request-Id": uuid.uuid4().hex},
    )
    answer.force_close()
    return answer


class _Bare(web.Response):
    """An answer made outside the application, whose signals would have taken the banner away."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)
