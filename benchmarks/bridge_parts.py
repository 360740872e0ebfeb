"""What the bridge is measured with, each a process of its own.

pass_on URL    aiohttp that sends a request on to URL, and its answer back piece by piece; it records nothing
clock          a provider whose stream tells, in each event, when the event was sent
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from contextlib import suppress

import aiohttp
import uvloop
from aiohttp import web

EVENTS = 200
_PAUSE = 0.005
_LEFT_OUT = {"host", "content-length", "transfer-encoding", "connection"}

_SESSION = web.AppKey("session", aiohttp.ClientSession)


def pass_on(url: str) -> web.Application:
    """The plain pass-through."""

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _LEFT_OUT}
        async with request.app[_SESSION].post(
            url + request.path, data=await request.read(), headers=headers
        ) as upstream:
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _LEFT_OUT}
            response = web.StreamResponse(status=upstream.status, headers=kept)
            response.content_length = upstream.content_length
            with suppress(ConnectionError):  # the load ends in the middle of a request
                await response.prepare(request)
                async for piece in upstream.content.iter_any():
                    await response.write(piece)
            return response

    async def session(app: web.Application) -> None:
        app[_SESSION] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.on_startup.append(session)
    app.router.add_post("/{path:.*}", handle)
    return app


def clock() -> web.Application:
    """The provider that tells the time; the clock is the same for all processes of a machine."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(EVENTS):
            await asyncio.sleep(_PAUSE)
            delta = f'{{"type":"text_delta","text":"{time.monotonic_ns()}"}}'
            told = f'{{"type":"content_block_delta","index":0,"delta":{delta}}}'
            await response.write(f"event: content_block_delta\ndata: {told}\n\n".encode())
        await response.write(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    return app


async def _serve(app: web.Application) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await web.SockSite(runner, listening).start()
    print(listening.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(pass_on(sys.argv[2]) if sys.argv[1] == "pass_on" else clock()))
