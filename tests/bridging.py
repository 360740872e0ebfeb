"""The bridge as a test uses it: a provider behind it, clients in front, and what was recorded.

The service runs behind its own socket, not that of aiohttp's test server: only that one tells that a client has left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psycopg
from aiohttp import web

from service import server
from service.connections import Connections
from service.context import HELD, SETTINGS

API = "/api/v2/aibridge"
KEY = "sk-test-central-0123456789abcdef-WXYZ"
OPENAI_KEY = "sk-proj-central-0123456789abcdef-QRST"


@dataclass(frozen=True)
class Way:
    """How a protocol is asked: its name, where below the prefix, and the body that asks for an answer by a model."""

    name: str
    path: str
    standin: str
    body: Callable[[str], dict[str, Any]]


MESSAGES = Way(
    "anthropic-messages",
    "/anthropic/v1/messages",
    "/anthropic/v1/messages",
    lambda model: {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "How are you?"}]},
)
CHAT = Way(
    "openai-chat-completions",
    "/openai/v1/chat/completions",
    "/openai/v1/chat/completions",
    lambda model: {"model": model, "messages": [{"role": "user", "content": "How are you?"}]},
)
RESPONSES = Way(
    "openai-responses",
    "/openai/v1/responses",
    "/openai/v1/responses",
    lambda model: {"model": model, "input": "How are you?"},
)
WAYS = (MESSAGES, CHAT, RESPONSES)


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """The service behind its own socket; its URL."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        [listening_at] = server.bind("127.0.0.1", 0)
        site = server.Site(runner, listening_at, bounds=Connections(app[SETTINGS], app[HELD]))
        await site.start()
        yield site.name
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_provider(
    answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A provider that does with a connection what a test likes, once a request has come: its URL."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                await answer(head + await reader.readexactly(length), writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            if task:
                task.cancel()
        await asyncio.gather(*[task for task in tasks if task], return_exceptions=True)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nRequest-Id: req_raw\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    """A chunk as HTTP frames it; of nothing, the last."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Bridged:
    """A bridge, with somebody who may use it."""

    url: str
    token: str
    database_url: str
    session: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    def ask(
        self, way: Way, model: str, *, stream: bool = False, headers: dict[str, str] | None = None, **members: Any
    ) -> Any:
        """Ask a model by a protocol."""
        body = way.body(model) | ({"stream": True} if stream else {}) | members
        return self.session.post(
            f"{self.url}{API}{way.path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}", **(headers or {})},
        )

    async def recorded(self, count: int = 1) -> list[dict[str, Any]]:
        """That many ended interceptions, the oldest first, once they are in the database; more is a failure."""
        for _ in range(400):
            found = [row for row in self.rows() if row["ended_at"]]
            if len(found) >= count:
                break
            await asyncio.sleep(0.025)
        assert len(found) == count, found
        return found

    def rows(self) -> list[dict[str, Any]]:
        """All interceptions with what they own, running ones too."""
        statement = b"""
            SELECT to_jsonb(i)
                || jsonb_build_object(
                    'token_usages', (SELECT coalesce(jsonb_agg(u ORDER BY u.created_at), '[]') FROM aibridge_token_usages u WHERE u.interception_id = i.id),
                    'user_prompts', (SELECT coalesce(jsonb_agg(u ORDER BY u.created_at), '[]') FROM aibridge_user_prompts u WHERE u.interception_id = i.id),
                    'tool_usages', (SELECT coalesce(jsonb_agg(u ORDER BY u.created_at), '[]') FROM aibridge_tool_usages u WHERE u.interception_id = i.id),
                    'model_thoughts', (SELECT coalesce(jsonb_agg(u ORDER BY u.created_at), '[]') FROM aibridge_model_thoughts u WHERE u.interception_id = i.id))
            FROM aibridge_interceptions i ORDER BY i.started_at, i.id
        """  # noqa: E501
        with psycopg.connect(self.database_url) as connection:
            return [row[0] for row in connection.execute(statement)]

    async def metrics(self) -> str:
        """What /metrics tells."""
        async with self.session.get(f"{self.url}/metrics") as response:
            return await response.text()
