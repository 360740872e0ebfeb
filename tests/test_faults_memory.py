"""What clients can make the service hold in memory, and that others are served meanwhile. `make test-faults` runs these."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import Counter
from dataclasses import replace
from urllib.parse import urlsplit

import aiohttp
import pytest
from conftest import API, Person
from faults import Served, served
from rows import Sql, put

from service.settings import Settings

pytestmark = [
    pytest.mark.skipif(os.environ.get("BRIDGELOG_TEST_FAULTS") != "1", reason="make test-faults runs it"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
MIB = 1024 * 1024


async def connect(stack: contextlib.AsyncExitStack, service: Served) -> asyncio.Transport:
    """A connection, cut at the end."""
    port = urlsplit(service.root).port or 0
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
    stack.callback(transport.abort)
    return transport


async def pages(service: Served, person: Person, number: int) -> Counter[int]:
    """So many small pages, one after the other: their statuses."""
    found: Counter[int] = Counter()
    async with aiohttp.ClientSession(headers=person.headers) as session:
        for _ in range(number):
            async with session.get(f"{service.root}{API}/interceptions?limit=1") as response:
                await response.read()
                found[response.status] += 1
    return found


async def test_five_hundred_slow_connections_stop_nobody(
    settings: Settings, database_url: str, owner: Person, sql: Sql
) -> None:
    put(sql, "interceptions", {})
    async with served(settings, database_url) as service, contextlib.AsyncExitStack() as stack:
        await pages(service, owner, 20)
        before = service.memory
        slow = [await connect(stack, service) for _ in range(500)]
        head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 60
        for sent in range(20):
            for client in slow:
                client.write(head[sent : sent + 1])
            assert await pages(service, owner, 10) == {200: 10}
        print(f"500 connections, a byte each now and then: {(service.memory - before) // 1024} KiB")
        assert service.memory - before < 100 * MIB


async def peak(settings: Settings, database_url: str, owner: Person) -> int:
    """The memory that forty readers of a page of 16 MB take, who do not read it."""
    async with served(settings, database_url) as service, contextlib.AsyncExitStack() as stack:
        await pages(service, owner, 20)
        before = service.memory
        for _ in range(40):
            client = await connect(stack, service)
            client.pause_reading()
            client.write(
                f"GET {API}/interceptions HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {owner.token}\r\n\r\n".encode()
            )
            assert await pages(service, owner, 1) == {200: 1}
        # Those that are still being composed get their turn.
        await asyncio.sleep(3)
        assert await pages(service, owner, 20) == {200: 20}
        return service.memory - before


async def test_large_pages_that_nobody_reads_are_bounded_together(
    settings: Settings, database_url: str, owner: Person, sql: Sql
) -> None:
    for one in put(sql, "interceptions", *({} for _ in range(16))):
        put(sql, "user_prompts", {"interception_id": one["id"], "prompt": "x" * 1_000_000})
    # Small pages of these are large too: the newest is a small one.
    put(sql, "interceptions", {"started_at": "2026-03-02T10:00:00Z", "ended_at": "2026-03-02T10:00:01Z"})
    bounded = await peak(replace(settings, max_held=48 * MIB), database_url, owner)
    unbounded = await peak(replace(settings, max_held=100_000 * MIB), database_url, owner)
    print(f"forty unread pages of 16 MB: {bounded // MIB} MiB where 48 MiB may be held, {unbounded // MIB} MiB else")
    assert bounded < unbounded / 2
