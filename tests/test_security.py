"""What docs/security.md claims and no other file tests: secrets, logs that nobody writes into, and no request of ours."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from conftest import API, Client, Person, interception
from rows import Sql

from service import logs
from service.settings import InvalidSettings, Settings, read

SECRET = "hunter2"
PATIENCE = 60
ROOT = Path(__file__).resolve().parent.parent

# A URL whose password was not encoded is read as another one, by each driver in its own way.
CARELESS = [
    f"{scheme}{rest}"
    for scheme in ("postgresql://", "postgres://")
    for rest in (
        f"app:{SECRET}/x@db.example/bridgelog",
        f"app:12/{SECRET}@db.example/bridgelog",
        f"app:{SECRET}@{SECRET}@db.example/bridgelog",
        f"app:x@{SECRET}:5432/bridgelog?{SECRET}",
        f"app:x?{SECRET}@db.example/bridgelog",
        f"app:12?{SECRET}@db.example/bridgelog",
        f"app:x#{SECRET}@db.example/bridgelog",
        f"app:{SECRET}%zz@db.example/bridgelog",
        f"app:{SECRET}%@db.example/bridgelog",
        f"app:[{SECRET}@db.example/bridgelog",
        f"app:{SECRET}]@db.example/bridgelog",
        f"app:{SECRET} x@db.example/bridgelog",
        f"app:{SECRET}\N{ACCOUNT OF}@db.example/bridgelog",
        f"app:{SECRET}é@db.example/bridgelog",
        f"app:x@db.example:{SECRET}/bridgelog",
        f"app:x@db.example/bridgelog/{SECRET}",
        f"app:x@db.example/bridgelog?password={SECRET}%zz",
        f"app:x@db.example/bridgelog?password={SECRET}&{SECRET}",
        f"app:x@db.example/bridgelog?{SECRET.upper()}=1",
    )
]
GOOD = [
    "postgresql://",
    "postgresql:///bridgelog",
    "postgresql://db.example",
    "postgresql://app@/bridgelog?host=/run/postgresql",
    "postgresql://app:pass@db.example:5432/bridgelog",
    "postgresql://app:p:a:ss@db.example/bridgelog",
    f"postgresql://app:{quote('/?#[]@:%é ', safe='')}@db.example/bridgelog",
    "postgresql://app:x@a.example:5432,b.example:5433/bridgelog?target_session_attrs=read-write",
    "postgresql://app@[::1]:5432/bridgelog?sslmode=verify-full&sslrootcert=/etc/ssl/a%20b.pem",
    "postgresql://app@%2Frun%2Fpostgresql/bridgelog",
    "postgresql://app:!$&'()*+,;=-._~@db.example/bridgelog?application_name=a+b",
]


def run(*arguments: str, **environment: str) -> str:
    """What a command prints; it must end with a sentence, not with a traceback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")}
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=ROOT,
    )
    told = done.stdout + done.stderr
    assert "Traceback" not in told, told
    return told


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", CARELESS)
def test_a_careless_url_is_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BRIDGELOG_DATABASE_URL", url)
    with pytest.raises(InvalidSettings) as refused:
        read()
    assert "BRIDGELOG_DATABASE_URL" in str(refused.value)
    assert "percent-encoded" in str(refused.value)
    assert SECRET.lower() not in str(refused.value).lower()


@pytest.mark.parametrize("url", GOOD)
def test_a_url_that_both_drivers_read_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BRIDGELOG_DATABASE_URL", url)
    assert read().database_url == url


def test_settings_do_not_show_what_they_hold(settings: Settings) -> None:
    held = replace(settings, database_url=f"postgresql://app:{SECRET}@db.example/bridgelog")
    for shown in (repr(held), str(held), f"{held}", repr([held])):
        assert SECRET not in shown
        assert "max_body" in shown


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_commands_tell_no_secret(tmp_path: Path, log_format: str) -> None:
    file = tmp_path / "url"
    file.write_text(f"postgresql://app:{SECRET}@127.0.0.1:1/bridgelog\n", encoding="utf-8")
    here = {"BRIDGELOG_LOG_FORMAT": log_format, "BRIDGELOG_LOG_LEVEL": "debug", "BRIDGELOG_STARTUP_TIMEOUT": "0.1"}
    unreachable = here | {"BRIDGELOG_DATABASE_URL_FILE": str(file)}
    for arguments in (
        ["migrate"],
        ["users", "list"],
        ["serve"],
        ["tokens", "create", "x"],
        ["--help"],
        ["serve", "-h"],
    ):
        assert SECRET not in run(*arguments, **unreachable), arguments
    for arguments in (["users", "list"], ["serve"]):
        assert SECRET not in run(*arguments, **here, BRIDGELOG_DATABASE_URL=CARELESS[0])
        # Another setting is wrong, which must not make it tell this one.
        assert SECRET not in run(*arguments, **unreachable, BRIDGELOG_PORT="nonsense")
    # The value where the path to it should be.
    told = run("users", "list", **here, BRIDGELOG_DATABASE_URL_FILE=file.read_text(encoding="utf-8").strip())
    assert "BRIDGELOG_DATABASE_URL_FILE" in told
    assert SECRET not in told


# -- logs ------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "a\n2026-01-01 00:00:00 [info     ] request   status=200 user_id=root",
    'a\n{"event": "request", "level": "info"}',
    "a\r\nforged",
    "\x1b[2J\x1b[H\x1b]0;title\x07",
    "\x9b31m\x85next",
    "\u2028line\u2029paragraph",
    "\u202ereversed\u2066",
    "nul\0del\x7fbs\x08",
    "\ud800surrogate",
    '"}, {"quoted\\',
]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was logged; the configuration of logs is afterwards what it was before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def log_everything(text: str) -> None:
    """A hostile text as an event's member, within one, as an exception, and through another library's logger."""
    log = structlog.get_logger("test")
    password = f"{SECRET}-is-a-local-variable"
    log.warning("event", reason=text, several=[text], mapping={text: text})
    log.info(text)
    try:
        try:
            raise ValueError(text)  # both shall be told
        except ValueError as problem:
            message = f"{text} again"
            raise KeyError(message) from problem
    except KeyError:
        log.exception("unforeseen error", route=text)
        logging.getLogger("aiohttp.server").exception("Error handling %s", text)
    assert password


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nobody_writes_events_of_their_own_as_json(settings: Settings, told: Callable[[], str], text: str) -> None:
    logs.configure(replace(settings, log_format="json", log_level="info"))
    log_everything(text)
    shown = told()
    events = [json.loads(line) for line in shown.splitlines()]
    assert [event["event"] for event in events] == ["event", text, "unforeseen error", f"Error handling {text}"]
    assert shown.replace("\n", "").isprintable()
    assert shown.isascii()
    assert events[0]["reason"] == text, "escaped, not changed"
    assert SECRET not in shown


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_nobody_writes_events_of_their_own_or_steers_a_terminal(
    settings: Settings, told: Callable[[], str], text: str
) -> None:
    logs.configure(replace(settings, log_format="console", log_level="info"))
    log_everything(text)
    shown = re.sub(r"\x1b\[\d*m", "", told())  # the renderer's own colours
    assert shown.replace("\n", "").isprintable()
    events = [line for line in shown.split("\n") if re.match(r"[^ ]", line)]
    assert len(events) == 4, "what belongs to an event is indented"
    assert all(re.match(r"\d{4}-\d\d-\d\d[T ]\S+ \[", line) for line in events)
    assert SECRET not in shown, "tracebacks show no variables"
    assert "KeyError" in shown


def test_commands_show_what_others_recorded_and_obey_none_of_it(database_url: str, owner: Person, sql: Sql) -> None:
    for hostile in HOSTILE:
        if "\0" in hostile or "\ud800" in hostile:
            continue  # PostgreSQL holds neither
        sql("UPDATE users SET username = %s, name = %s", hostile, hostile)
        [line] = run("users", "list", BRIDGELOG_DATABASE_URL=database_url).splitlines()
        assert line.startswith(f"{owner.id}\t")
        assert line.replace("\t", "").isprintable()


def test_what_callers_send_is_not_logged(database_url: str, owner: Person, sql: Sql, tmp_path: Path) -> None:
    sql("UPDATE users SET username = %s", "olivia\x1b[2J\nforged")
    for log_format in ("json", "console"):
        out = tmp_path / f"{log_format}.log"
        with out.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                env={
                    "PATH": os.defpath,
                    "BRIDGELOG_DATABASE_URL": database_url,
                    "BRIDGELOG_PORT": "0",
                    "BRIDGELOG_LOG_FORMAT": log_format,
                    "BRIDGELOG_LOG_LEVEL": "debug",
                    "BRIDGELOG_TRUSTED_PROXIES": "127.0.0.1",
                    "BRIDGELOG_DRAIN_SECONDS": "0",
                },
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
            )
        assert process.stdout
        try:
            while b"http://" not in (line := process.stdout.readline()):
                assert process.poll() is None
            port = int(line.split(b"127.0.0.1:")[1].split()[0])
            for head in (
                b"GET /forged\x1b[2J HTTP/1.1",
                b"GET /forged%0A%1B[2J HTTP/1.1",
                b"GET %b/interceptions?q=forged%%0A%%1B[2J HTTP/1.1" % API.encode(),
                b"GET %b/interceptions?q=me HTTP/1.1" % API.encode(),
                b"FORGED %b/models HTTP/1.1" % API.encode(),
            ):
                send(
                    port,
                    head + b"\r\nX-Request-Id: forged\x9b2J\r\nUser-Agent: forged\r\nReferer: forged\r\n"
                    b"X-Forwarded-For: forged, fe80::1%%forged\r\nCookie: forged=1\r\nHost: forged\r\n"
                    b"Coder-Session-Token: %b\r\n" % owner.token.encode(),
                )
            body = json.dumps(
                interception(model="forged\n", metadata={"forged": 1}, user_prompts=[{"prompt": "forged"}])
            )
            send(
                port,
                b"POST %b/interceptions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nCoder-Session-Token: %b\r\n"
                % (API.encode(), len(body), owner.token.encode()),
                body.encode(),
            )
            metrics = send(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            assert b"bridgelog_http_requests_total{" in metrics
            assert b"forged" not in metrics
            command_line = Path(f"/proc/{process.pid}/cmdline")
            assert not command_line.exists() or b"postgresql" not in command_line.read_bytes()
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)
            process.stdout.close()
        told = out.read_text(encoding="utf-8")
        assert told.count("/interceptions") >= 3
        assert "forged" not in told.lower()
        assert owner.token.partition("-")[2] not in told
        assert "fe80::1" in told
        if log_format == "json":
            assert all(json.loads(line)["event"] for line in told.splitlines())


def send(port: int, head: bytes, body: bytes = b"") -> bytes:
    """One request, and all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n" + body)
        received = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
        return received


# -- no request of ours ----------------------------------------------------------------------------------------------


async def test_no_url_that_anybody_sends_is_fetched(client: Client, owner: Person) -> None:
    asked = asyncio.Event()

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    canary = await asyncio.start_server(note, "127.0.0.1", 0)
    port = canary.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/canary"
    headers = owner.headers | {
        "Host": f"127.0.0.1:{port}",
        "Origin": url,
        "Referer": url,
        "X-Forwarded-For": f"127.0.0.1:{port}",
        "X-Forwarded-Host": f"127.0.0.1:{port}",
        "Forwarded": f"for=127.0.0.1;host=127.0.0.1:{port}",
        "X-Original-URL": url,
        "Destination": url,
    }
    whole = interception(
        provider=url,
        provider_name=url,
        model=url,
        client=url[:64],
        metadata={"url": url, "$ref": url},
        initiator={"id": str(owner.id), "username": url, "name": url, "avatar_url": url},
    )
    del whole["initiator_id"]
    at = {"provider_response_id": url, "created_at": "2026-03-01T10:00:01Z"}
    whole["tool_usages"] = [at | {"server_url": url, "tool": url, "input": json.dumps({"url": url}), "injected": True}]
    whole["user_prompts"] = [at | {"prompt": url}]
    answer = await client.post(f"{API}/interceptions", json=whole, headers=headers)
    assert answer.status == 201, await answer.text()
    answer = await client.post(f"{API}/interceptions/import", json=[whole], headers=headers)
    assert (await answer.json())["unchanged"] == 1
    for path in (
        "interceptions",
        f"models?q=%22{quote(url)}%22",
        f"interceptions?q=provider:%22{quote(url)}%22",
    ):
        assert (await client.get(f"{API}/{path}", headers=headers)).status == 200
    for path in ("/docs", "/openapi.json", f"/docs/{quote(url, safe='')}", "/healthz", "/readyz", "/metrics"):
        await client.get(path, headers=headers)
    # The canary does tell: this is what a fetch would look like.
    assert not asked.is_set()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await asyncio.wait_for(asked.wait(), timeout=PATIENCE)
    canary.close()
    await canary.wait_closed()


def test_a_client_of_http_in_the_service_is_a_finding(tmp_path: Path) -> None:
    # The rule of ruff.toml, held by its own tool.
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is installed by make, and not here")
    check: list[str | Path] = [ruff, "check", "--quiet", "--select", "TID251", "--config", ROOT / "ruff.toml"]
    sources = {
        "import aiohttp\nsession = aiohttp.ClientSession()\n": 1,
        "from aiohttp import ClientSession, web\n": 1,
        "from urllib.request import urlopen\n": 1,
        "import http.client\n": 1,
        "import smtplib\n": 1,
        "from aiohttp import web\nfrom urllib.parse import quote\n": 0,
    }
    for source, found in sources.items():
        done = subprocess.run(
            [*check, "--stdin-filename", ROOT / "service" / "new.py", "-"],
            input=source,
            text=True,
            capture_output=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == found, (source, done.stdout, done.stderr)
