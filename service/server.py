"""The listening socket: aiohttp's server, whose own refusals speak the API's envelope too, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Sequence

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from service import answers, errors
from service.connections import Connection, Connections
from service.context import HELD, LIFECYCLE, SETTINGS

log = structlog.get_logger("bridgelog.server")

# Each line of a request's head is read up to this size.
_MAX_LINE = 64 * 1024


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`, all on one port, any that is free where `port` is 0. Raises OSError.

    Nothing can connect to them yet, so the port can be taken before anything else is begun.
    """
    bound: list[socket.socket] = []
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            bound.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address[0], port, *address[2:]))
            port = port_of(bound)
    except BaseException:
        close(bound)
        raise
    return bound


def port_of(sockets: Sequence[socket.socket]) -> int:
    """The port on which they listen."""
    return int(sockets[0].getsockname()[1])


def close(sockets: Sequence[socket.socket]) -> None:
    """Close this process's hold on them; another one's stays."""
    for listening in sockets:
        listening.close()


async def serve(
    app: web.Application,
    *,
    sockets: Sequence[socket.socket],
    drain_seconds: float,
    shutdown_timeout: float,
    ready: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called with the port once connections are accepted.

    The sockets may be shared with other processes; this one's hold on them ends here.

    At the signal /readyz turns 503 for `drain_seconds`, while everything is still answered; then the socket closes, open
    requests get up to `shutdown_timeout` seconds to finish, and the application is taken down. A second signal ends the
    draining at once; a third ends the process.
    """
    port = port_of(sockets)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=shutdown_timeout)
    loop = asyncio.get_running_loop()
    stopping, hurried = asyncio.Event(), asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        if stopping.is_set():
            hurried.set()
            for number in signals:
                loop.remove_signal_handler(number)
        stopping.set()

    try:
        await runner.setup()
        for number in signals:
            loop.add_signal_handler(number, stop)
        bounds = Connections(app[SETTINGS], app[HELD])
        for listening in sockets:
            await Site(runner, listening, bounds=bounds).start()
        ready(port)
        await stopping.wait()
        app[LIFECYCLE].draining = True
        log.info("stopping", drain_seconds=drain_seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hurried.wait(), timeout=drain_seconds)
    finally:
        await runner.cleanup()
        close(sockets)
    log.info("stopped")


class Site(web.BaseSite):
    """A bound socket whose connections speak `Protocol`."""

    def __init__(self, runner: web.AppRunner, listening: socket.socket, *, bounds: Connections) -> None:
        super().__init__(runner)
        self._bounds = bounds
        self._listening = listening

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"http://{self._listening.getsockname()[0]}:{port_of([self._listening])}"

    async def start(self) -> None:
        """Begin to accept connections."""
        await super().start()
        loop = asyncio.get_running_loop()
        manager = self._runner.server
        if manager is None:
            message = "the runner must be set up first"
            raise RuntimeError(message)
        self._server = await loop.create_server(
            lambda: Protocol(
                manager,
                bounds=self._bounds,
                loop=loop,
                access_log=None,  # none: the middleware writes it
                max_line_size=_MAX_LINE,
                max_field_size=_MAX_LINE,
            ),
            sock=self._listening,
            backlog=1024,
        )


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
        headers=answers.bare_headers(),
    )
    answer.force_close()
    return answer


class _Bare(web.Response):
    """An answer made outside the application, whose signals would have taken the banner away."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)
