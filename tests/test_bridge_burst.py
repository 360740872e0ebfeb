"""A burst through the whole service, in the middle of which the database goes away and the service is killed with -9."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from bridging import API, KEY, OPENAI_KEY, WAYS
from conftest import Person
from faults import Wire, socket_of, through, until
from served import Service
from standin.app import EXCHANGES

TOTAL = 1_000
AT_ONCE = 40


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    wire = Wire(socket_of(database_url))
    await wire.mend()
    yield wire
    await wire.cut()


@dataclass
class Burst:
    """Many who ask, one after another at each of so many places; a number in the prompt tells a request from others."""

    url: str
    token: str
    finished: set[int] = field(default_factory=set)  # the client has the whole answer
    refused: Counter[int] = field(default_factory=Counter)

    def streams(self, number: int) -> bool:
        return number % 2 == 0

    async def run(self) -> None:
        numbers = iter(range(TOTAL))

        async def place(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                try:
                    await self._ask(session, number)
                except aiohttp.ClientError:
                    await asyncio.sleep(0.01)

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(place(session) for _ in range(AT_ONCE)))

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        way = WAYS[number % 3]
        body = json.dumps(way.body("standin-tools") | {"stream": self.streams(number)})
        async with session.post(
            f"{self.url}{API}{way.path}",
            data=body.replace("How are you?", f"Number {number}."),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        ) as response:
            await response.read()
            if response.status == 200:
                self.finished.add(number)
            else:
                self.refused[response.status] += 1


async def test_what_was_accepted_is_recorded_once_and_ended(
    wire: Wire, provider: TestServer, member: Person, *, database_url: str, tmp_path: Path, sql: Callable[..., Any]
) -> None:
    def start(name: str, url: str) -> Service:
        return Service(
            tmp_path / name,
            BRIDGELOG_DATABASE_URL=url,
            BRIDGELOG_SPOOL_DIR=str(tmp_path / "spool"),
            BRIDGELOG_ANTHROPIC_KEY=KEY,
            BRIDGELOG_ANTHROPIC_BASE_URL=str(provider.make_url("/anthropic")),
            BRIDGELOG_OPENAI_KEY=OPENAI_KEY,
            BRIDGELOG_OPENAI_BASE_URL=str(provider.make_url("/openai/v1")),
        )

    first = start("first", through(wire, database_url))
    try:
        await asyncio.to_thread(first.wait_ready)
        burst = Burst(f"http://127.0.0.1:{first.port}", member.token)
        running = asyncio.create_task(burst.run())
        await until(lambda: len(burst.finished) >= 300)
        await wire.cut()
        await until(lambda: len(burst.finished) >= 700)
    finally:
        first.process.kill()
        await asyncio.to_thread(first.process.wait)
    await running
    assert not burst.refused, "the database away refuses nobody"
    assert len(burst.finished) < TOTAL, "it was killed in the middle"
    second = start("second", database_url)
    try:
        await asyncio.to_thread(second.wait_ready)

        def all_ended() -> bool:
            logs = [path for path in (tmp_path / "spool").iterdir() if path.is_dir()]
            return len(logs) == 1 and sql("SELECT 1 FROM aibridge_interceptions WHERE ended_at IS NULL LIMIT 1") == []

        await until(all_ended)
    finally:
        second.process.terminate()
        assert await asyncio.to_thread(second.process.wait, 60) == 0

    asked = Counter(
        int(found[1]) for exchange in provider.app[EXCHANGES] if (found := re.search(rb"Number (\d+)\.", exchange.body))
    )
    assert set(asked.values()) == {1}, "no answer was paid for twice"
    rows = sql("""
        SELECT substring(p.prompt FROM '\\d+')::integer, i.metadata ->> 'status', i.metadata ->> 'error_type',
            (SELECT count(*) FROM aibridge_token_usages AS u WHERE u.interception_id = i.id),
            (SELECT count(*) FROM aibridge_tool_usages AS t WHERE t.interception_id = i.id)
        FROM aibridge_interceptions AS i LEFT JOIN aibridge_user_prompts AS p ON p.interception_id = i.id
        """)
    recorded = {number: told for number, *told in rows}
    assert len(recorded) == len(rows), "each once"
    assert asked.keys() | burst.finished <= recorded.keys(), "nothing was used that is not recorded"
    lost = [number for number, told in recorded.items() if told[:2] == ["failed", "bridge_lost"]]
    assert len(lost) <= AT_ONCE
    for number, (status, _, usages, tools) in recorded.items():
        if number in lost:
            assert (usages, tools) <= (1, 2)
            if number in burst.finished and burst.streams(number):
                assert (usages, tools) == (1, 2), "it was noted before the client had the last event"
        else:
            assert (status, usages, tools) == ("completed", 1, 2)
