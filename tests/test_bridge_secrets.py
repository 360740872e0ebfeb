"""Keys and tokens come in by every door of a bridge that runs as a process, and are looked for in all that it keeps."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import psycopg
import pytest
from aiohttp.test_utils import TestServer
from bridging import API, CHAT, MESSAGES, WAYS, Bridged, raw_provider
from conftest import Person
from fleet import free_port
from psycopg import sql as composing

CENTRAL = "sk-ant-api03-CENTRAL0123456789abcdefghij-AA"
CENTRAL_OPENAI = "sk-proj-CENTRALOPENAI0123456789abcdefg-BB"
ECHOED = "sk-ant-api03-ECHOED0123456789abcdefghijk-CC"
OWN = "sk-ant-api03-OWN0123456789abcdefghijklmnop-DD"
IN_URL = "sk-ant-api03-INURL0123456789abcdefghijkl-EE"
IN_HEADER = "sk-ant-api03-INHEADER0123456789abcdefgh-FF"
IN_BODY = "sk-ant-api03-INBODY0123456789abcdefghijk-GG"


@dataclass
class Kept:
    """All that a service has kept, by where."""

    log: str
    database: str
    dumps: str
    spool: str
    metrics: str

    def where(self, secret: str) -> set[str]:
        """The places in which that text is found."""
        return {name for name, text in vars(self).items() if secret in text}


async def echo(request: bytes, writer: asyncio.StreamWriter) -> None:
    """A provider that tells whatever it was told, in each part of an error."""
    key = re.search(rb"(?i)x-api-key: (\S+)", request)
    told = key[1] if key else b""
    body = json.dumps(
        {"type": "error", "error": {"type": told.decode(), "message": request.decode("latin-1")}}
    ).encode()
    writer.write(
        b"HTTP/1.1 400 Bad\r\nContent-Type: application/json\r\n"
        b"Request-Id: %s\r\nX-Echo: %s\r\nContent-Length: %d\r\n\r\n%s" % (told, told, len(body), body)
    )


@asynccontextmanager
async def serving(environment: dict[str, str], log: Path) -> AsyncIterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")}
    with log.open("wb") as told:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "service", "serve"], env=kept | environment, stdout=told, stderr=told
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 30)
    assert process.returncode == 0


def whole_database(url: str) -> str:
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return "\n".join(
            str(row)
            for [table] in tables
            for row in connection.execute(
                composing.SQL("SELECT t::text FROM {} AS t").format(composing.Identifier(table))
            )
        )


def whole_folder(folder: Path) -> str:
    return "\n".join(
        f"{file}\n{file.read_bytes().decode('latin-1')}" for file in sorted(folder.rglob("*")) if file.is_file()
    )


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_key_and_no_token_is_where_it_should_not_be(  # noqa: PLR0917 - fixtures
    database_url: str, provider: TestServer, member: Person, owner: Person, tmp_path: Path, log_format: str
) -> None:
    key_file = tmp_path / "echoed-key"
    key_file.write_text(ECHOED, encoding="utf-8")
    port = free_port()
    dumps, spool = tmp_path / "data" / "request-log", tmp_path / "data" / "spool"
    async with raw_provider(echo) as echoing, aiohttp.ClientSession() as session:
        (tmp_path / "providers.toml").write_text(
            f'[[providers]]\nname = "echo"\ntype = "anthropic"\nbase_url = "{echoing}"\nkey_file = "{key_file}"\n'
            f'[[providers]]\nname = "gone"\ntype = "anthropic"\nbase_url = "http://127.0.0.1:1"\nkey_file = "{key_file}"\n',
            encoding="utf-8",
        )
        environment = {
            "BRIDGELOG_DATABASE_URL": database_url,
            "BRIDGELOG_DATA_DIR": str(tmp_path / "data"),
            "BRIDGELOG_PORT": str(port),
            "BRIDGELOG_LOG_FORMAT": log_format,
            "BRIDGELOG_LOG_LEVEL": "debug",
            "BRIDGELOG_DRAIN_SECONDS": "0",
            "BRIDGELOG_ANTHROPIC_KEY": CENTRAL,
            "BRIDGELOG_ANTHROPIC_BASE_URL": str(provider.make_url("/anthropic")),
            "BRIDGELOG_OPENAI_KEY": CENTRAL_OPENAI,
            "BRIDGELOG_OPENAI_BASE_URL": str(provider.make_url("/openai/v1")),
            "BRIDGELOG_PROVIDERS_FILE": str(tmp_path / "providers.toml"),
            "BRIDGELOG_ALLOW_BYOK": "true",
            "BRIDGELOG_UPSTREAM_RETRIES": "1",
        }
        bridge = Bridged(f"http://127.0.0.1:{port}", member.token, database_url, session)
        async with serving(environment, tmp_path / "log"):
            await _until_ready(bridge)
            await _turn(bridge, owner, on=False)
            await _knock_at_every_door(bridge)
            assert not [*dumps.rglob("*.txt")]  # the switch is off
            await _turn(bridge, owner, on=True)
            await _knock_at_every_door(bridge)
            metrics = await bridge.metrics()
        kept = Kept(
            (tmp_path / "log").read_text(encoding="utf-8"),
            whole_database(database_url),
            whole_folder(dumps),
            whole_folder(spool),
            metrics,
        )
    rows = bridge.rows()
    assert len(rows) == 24
    assert all(row["ended_at"] for row in rows)
    # Secrets that are the service's, or that sign in to it or to a provider: nowhere.
    assert kept.where(CENTRAL) == kept.where(CENTRAL_OPENAI) == kept.where(ECHOED) == kept.where(OWN) == set()
    assert kept.where(member.token) == kept.where(member.token.partition("-")[2]) == set()
    assert kept.where(owner.token.partition("-")[2]) == set()
    # What looks like one, where none belongs: not in URLs, headers, logs, metrics. A prompt is a prompt.
    assert kept.where(IN_URL) == set()
    assert kept.where(IN_HEADER) == set()
    assert kept.where(IN_BODY) == {"database", "dumps"}
    # What tells that the search looks where something is.
    assert kept.where("How are you?") == {"database", "dumps"}
    assert kept.where(CENTRAL[:4]) >= {"database"}
    assert "***" in kept.dumps
    for path in [dumps, *dumps.rglob("*"), spool, *spool.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def _until_ready(bridge: Bridged) -> None:
    for _ in range(300):
        try:
            async with bridge.session.get(f"{bridge.url}/readyz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    pytest.fail("the service is not ready")


async def _turn(bridge: Bridged, owner: Person, *, on: bool) -> None:
    url = f"{bridge.url}{API}/log-requests"
    async with bridge.session.post(url, json={"enabled": on}, headers=owner.headers) as response:
        assert response.status == 200
    while f"bridgelog_request_logging_enabled {float(on)}" not in await bridge.metrics():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def _knock_at_every_door(bridge: Bridged) -> None:
    strange = {"X-Client-Token": IN_HEADER, "X-Auth-Token": IN_HEADER, "Api-Key": IN_HEADER, "Cookie": f"k={IN_HEADER}"}
    for way in WAYS:
        for stream in (False, True):
            async with bridge.ask(way, "standin-tools", stream=stream, headers=strange) as response:
                assert response.status == 200
                await response.read()
    # Its own key, and both in one header after the other.
    own = {"Coder-Session-Token": bridge.token, "Authorization": "", "X-Api-Key": OWN}
    async with bridge.ask(MESSAGES, "standin-error-400", headers=own) as response:
        assert response.status == 400
    # In the URL, which is nobody's to read.
    odd = replace(MESSAGES, path=f"{MESSAGES.path}?api_key={IN_URL}&x-api-key={IN_URL}&token={bridge.token}")
    async with bridge.ask(odd, "m") as response:
        assert response.status == 200
    # In the body.
    messages = [{"role": "user", "content": f"Is {IN_BODY} valid?"}]
    async with bridge.ask(CHAT, "m", messages=messages) as response:
        assert response.status == 200
    # In a user agent and in an error: a provider that echoes, and one that is not there.
    echo_way = replace(MESSAGES, path="/echo/v1/messages")
    async with bridge.ask(echo_way, "m", headers={"User-Agent": f"x {bridge.token} {ECHOED}"}) as response:
        assert response.status == 400
        assert ECHOED in await response.text()  # as the provider said it
    async with bridge.ask(replace(MESSAGES, path="/gone/v1/messages"), "m") as response:
        assert response.status == 502
        told = await response.text()
    assert ECHOED not in told
    # As the model, and as what is no token.
    async with bridge.ask(MESSAGES, "standin-error-404", headers={"X-Claude-Code-Session-Id": "s"}) as response:
        assert response.status == 404
    for headers in ({"Authorization": f"Bearer {OWN}"}, {"X-Api-Key": OWN}, {"Coder-Session-Token": OWN}):
        async with bridge.session.post(f"{bridge.url}{API}{MESSAGES.path}", data=b"{}", headers=headers) as response:
            assert response.status == 401
            assert OWN not in await response.text()
    async with bridge.session.post(
        f"{bridge.url}{API}{MESSAGES.path}", data=f'{{"model": {OWN}'.encode(), headers={"X-Api-Key": bridge.token}
    ) as response:
        assert response.status == 400
        assert OWN not in await response.text()
