"""The commands, run as a person runs them: in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import interception

TOKEN = re.compile(r"[0-9A-Za-z]{10}-[0-9A-Za-z]{22}")
Sql = Callable[..., list[tuple[Any, ...]]]


@dataclass
class Shell:
    """Runs bridgelog with an environment."""

    environment: dict[str, str]

    def run(self, *arguments: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "service", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")}
    return kept | changes


@pytest.fixture
def shell(database_url: str) -> Shell:
    """Commands on this test's database."""
    return Shell(environment(BRIDGELOG_DATABASE_URL=database_url))


@pytest.fixture
def embedded_shell(tmp_path: Path) -> Shell:
    """Commands on an embedded server of this test's own."""
    return Shell(environment(BRIDGELOG_DATA_DIR=str(tmp_path / "data"), BRIDGELOG_PORT=str(free_port())))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, token: str = "") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, headers={"Coder-Session-Token": token} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


@dataclass
class Served:
    """A running service."""

    process: subprocess.Popen[str]
    address: str
    output: str


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start `bridgelog serve` and wait until it says where it listens; stopped at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(shell: Shell, *arguments: str) -> Served:
        process = shell.start("serve", *arguments)
        started.append(process)
        output = ""
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if "curl" in line or (shell.environment.get("BRIDGELOG_DATABASE_URL") and "serves" in line):
                break
        found = re.search(r"http://[\d.]+:\d+", output)
        assert found, output + (process.stderr.read() if process.stderr else "")
        return Served(process, found[0], output)

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def test_users_and_tokens(shell: Shell, sql: Sql) -> None:
    added = "0a0b0c0d-0000-4000-8000-00000000000f"
    assert shell.run("users", "add", "ann", "--role", "owner", "--id", added, "--name", "Ann A").stdout == f"{added}\n"
    shell.run("users", "add", "bob", "--role", "auditor", "--role", "recorder")
    shell.run("users", "add", "carl", "--role", "member")
    assert "name exists" in shell.run("users", "add", "ANN", "--role", "member", code=1).stderr
    assert "id exists" in shell.run("users", "add", "dora", "--role", "member", "--id", added, code=1).stderr
    assert "UUID" in shell.run("users", "add", "dora", "--role", "member", "--id", "1", code=2).stderr
    assert "--role" in shell.run("users", "add", "dora", code=2).stderr
    rows = [line.split("\t") for line in shell.run("users", "list").stdout.splitlines()]
    assert [row[1:] for row in rows] == [
        ["ann", "active", "owner", "Ann A"],
        ["bob", "active", "auditor,recorder", ""],
        ["carl", "active", "member", ""],
    ]
    shell.run("users", "suspend", "Carl")
    assert sql("SELECT status FROM users WHERE username = 'carl'") == [("suspended",)]
    shell.run("users", "activate", "carl")
    assert sql("SELECT status FROM users WHERE username = 'carl'") == [("active",)]
    assert "no user" in shell.run("users", "suspend", "nobody", code=1).stderr

    token = shell.run("tokens", "create", "ann").stdout
    assert TOKEN.fullmatch(token.strip())
    assert token.count("\n") == 1
    [(token_id, hashed, forever)] = sql("SELECT id, hashed_secret, expires_at > '9000-01-01' FROM api_keys")
    assert token.startswith(token_id + "-")
    assert len(hashed) == 32
    assert forever
    shell.run("tokens", "create", "bob", "--days", "3")
    assert sql(
        "SELECT round(extract(epoch FROM expires_at - created_at) / 86400) FROM api_keys WHERE id <> %s", token_id
    )
    assert "no user" in shell.run("tokens", "create", "nobody", code=1).stderr
    assert shell.run("tokens", "create", "ann", "--days", "0", code=2).stdout == ""
    shell.run("tokens", "revoke", token_id)
    assert "no token" in shell.run("tokens", "revoke", token_id, code=1).stderr
    assert sql("SELECT count(*) FROM api_keys") == [(1,)]


def test_migrate_and_serve_on_a_schema_that_is_behind(empty_database_url: str, serve: Callable[..., Served]) -> None:
    shell = Shell(
        environment(BRIDGELOG_DATABASE_URL=empty_database_url, BRIDGELOG_PORT="0", BRIDGELOG_STARTUP_TIMEOUT="0")
    )
    assert "pending 0001.create-users" in shell.run("migrate", "--check", code=1).stdout
    assert "run bridgelog migrate" in shell.run("serve", code=1).stderr
    assert "lacks tables" in shell.run("users", "list", code=1).stderr
    assert "applied 0001.create-users" in shell.run("migrate").stdout
    assert shell.run("migrate", "--check").stdout == "the schema is current\n"
    assert get(serve(shell).address + "/readyz")[0] == 200


def test_serve_migrates_where_it_is_told_to(empty_database_url: str, serve: Callable[..., Served]) -> None:
    shell = Shell(environment(BRIDGELOG_DATABASE_URL=empty_database_url, BRIDGELOG_PORT="0"))
    assert get(serve(shell, "--migrate").address + "/readyz")[0] == 200


def test_the_first_start_shows_a_token_once(embedded_shell: Shell, serve: Callable[..., Served]) -> None:
    first = serve(embedded_shell)
    [token] = set(TOKEN.findall(first.output))
    url = first.address + "/api/v2/api/experimental/aibridge/interceptions"
    assert get(url, token) == (200, {"results": [], "total": 0, "count": 0})
    # Other commands use the server that runs.
    created = embedded_shell.run("tokens", "create", "admin").stdout.strip()
    assert get(url, created)[0] == 200
    first.process.terminate()
    assert first.process.wait(timeout=30) == 0
    second = serve(embedded_shell)
    assert not TOKEN.search(second.output)
    assert "tokens create admin" in second.output
    assert get(second.address + "/api/v2/aibridge/interceptions", token)[0] == 200


def test_a_killed_service_takes_its_database_along(embedded_shell: Shell, serve: Callable[..., Served]) -> None:
    served = serve(embedded_shell)
    served.process.kill()
    served.process.wait()
    pid_file = Path(embedded_shell.environment["BRIDGELOG_DATA_DIR"]) / "pgdata" / "postmaster.pid"
    deadline = time.monotonic() + 30
    while pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not pid_file.exists()
    assert "admin" in embedded_shell.run("users", "list").stdout


def test_sigterm_drains(shell: Shell, serve: Callable[..., Served]) -> None:
    shell.environment |= {"BRIDGELOG_PORT": "0", "BRIDGELOG_DRAIN_SECONDS": "60"}
    served = serve(shell)
    assert get(served.address + "/readyz")[0] == 200
    served.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 30
    while (status := get(served.address + "/readyz"))[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert status == (503, {"message": "The service is not ready.", "detail": "The service is shutting down."})
    assert get(served.address + "/healthz")[0] == 200  # it still answers
    served.process.send_signal(signal.SIGTERM)  # a second one hurries
    assert served.process.wait(timeout=30) == 0


def test_a_port_in_use_is_told_plainly(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shell.environment["BRIDGELOG_PORT"] = str(taken.getsockname()[1])
        assert "BRIDGELOG_PORT" in shell.run("serve", code=1).stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRIDGELOG_PORT", "80x"),
        ("BRIDGELOG_PORT", "70000"),
        ("BRIDGELOG_MEMBER_READ", "all"),
        ("BRIDGELOG_SCHEMA", "other"),
        ("BRIDGELOG_MAX_BODY", "-1"),
        ("BRIDGELOG_DATABASE_URL", "mysql://localhost/x"),
        ("BRIDGELOG_DATABASE_URL_FILE", "/does/not/exist"),
    ],
)
def test_a_bad_setting_stops_the_start_and_is_named(shell: Shell, name: str, value: str) -> None:
    shell.environment[name] = value
    if name.endswith("_FILE"):
        del shell.environment["BRIDGELOG_DATABASE_URL"]
    assert name.removesuffix("_FILE") in shell.run("serve", code=1).stderr


def test_a_secret_can_come_from_a_file(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(database_url + "\n")
    shell = Shell(environment(BRIDGELOG_DATABASE_URL_FILE=str(tmp_path / "url")))
    shell.run("users", "add", "ann", "--role", "owner")
    assert "ann" in shell.run("users", "list").stdout


def test_import_from_a_file_and_from_standard_input(shell: Shell, sql: Sql, tmp_path: Path) -> None:
    good, other = interception(), interception()
    path = tmp_path / "log.ndjson"
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(interception(ended_at=None))}\n")
    done = shell.run("import", str(path), code=1)
    assert done.stdout == "imported 1, unchanged 0, rejected 1\n"
    assert "line 3: Validation failed. ended_at is required" in done.stderr
    done = shell.run("import", "-", stdin=json.dumps([good, other]))
    assert done.stdout == "imported 1, unchanged 1, rejected 0\n"
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(2,)]
    assert "does-not-exist" in shell.run("import", str(tmp_path / "does-not-exist"), code=2).stderr


def test_demo_fills_only_what_is_its_own(shell: Shell, sql: Sql) -> None:
    shell.run("demo", "--interceptions", "500")
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(500,)]
    shell.run("demo", "--interceptions", "900", "--if-empty")
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(500,)]
    shell.run("import", "-", stdin=json.dumps(interception()))
    assert "--beside-others" in shell.run("demo", "--interceptions", "900", code=1).stderr
    shell.run("demo", "--interceptions", "900", "--beside-others")
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(901,)]
