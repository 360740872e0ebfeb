"""What tests of several replicas share: processes that serve, nginx in front of them, and clients that keep a ledger."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from conftest import API, Person
from recorder import running, token_usage, user_prompt, without

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CONFIGURATION = Path(__file__).parent.parent / "deploy" / "nginx.conf"
PATIENCE = 30.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Replica:
    """`bridgelog serve` on a port that it keeps when it is started again."""

    database_url: str
    log: Path
    drain_seconds: float
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")} | {
            "BRIDGELOG_DATABASE_URL": self.database_url,
            "BRIDGELOG_PORT": str(self.port),
            "BRIDGELOG_DRAIN_SECONDS": str(self.drain_seconds),
            "BRIDGELOG_LOG_FORMAT": "json",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"], env=environment, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        said = next((line for line in self.process.stdout if b"serves" in line), None)
        assert said, self.log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self.process is not None
        status = self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.wait()


@contextlib.contextmanager
def standing_in(log: Path) -> Iterator[int]:
    """The stand-in for providers, as `make standin` starts it; yields its port."""
    port = free_port()
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.standin", "--port", str(port)],
            cwd=Path(__file__).parent.parent,
            stdout=said,
            stderr=said,
        )
    try:
        _await_port(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


@dataclass
class Proxy:
    """nginx with the configuration that is deployed."""

    port: int
    process: subprocess.Popen[bytes]
    access_log: Path

    def requests(self) -> list[dict[str, Any]]:
        """What its access log holds."""
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]


def configuration(
    folder: Path, port: int, upstreams: list[int], *changes: tuple[str, str], behind: list[int] | None = None
) -> str:
    """The configuration that is deployed, with other addresses and folders, and changed as told.

    `behind` are asked where none of `upstreams` answers; as deployed, these are the same.
    """
    text = CONFIGURATION.read_text()
    groups = iter((upstreams, behind or upstreams))

    def servers(line: re.Match[str]) -> str:
        return "\n".join(f"server 127.0.0.1:{upstream} {line[1]};" for upstream in next(groups))

    text, found = re.subn(r"server bridgelog:8080 (.*);", servers, text)
    assert found == 2
    for old, new in (("listen 8080", f"listen 127.0.0.1:{port}"), ("/tmp/", f"{folder}/"), *changes):  # noqa: S108
        assert old in text, f"{old!r} is no longer in {CONFIGURATION}"
        text = text.replace(old, new)
    # As root it would become a user that cannot enter this folder.
    return f"user root;\n{text}" if os.geteuid() == 0 else text


@contextlib.contextmanager
def proxied(
    folder: Path, upstreams: list[int], *changes: tuple[str, str], behind: list[int] | None = None
) -> Iterator[Proxy]:
    """nginx in front of ports of this machine; skips the test where there is no nginx."""
    if NGINX is None:
        pytest.skip("there is no nginx on this machine")
    folder.mkdir()
    port = free_port()
    (folder / "nginx.conf").write_text(configuration(folder, port, upstreams, *changes, behind=behind))
    access_log = folder / "access.log"
    with access_log.open("wb") as out, (folder / "error.log").open("wb") as problems:
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"],
            stdout=out,
            stderr=problems,
        )
    try:
        _await_port(port, process, folder / "error.log")
        yield Proxy(port, process, access_log)
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.contextmanager
def upstream(handler: type[http.server.BaseHTTPRequestHandler], port: int = 0) -> Iterator[int]:
    """The port of a server whose requests `handler` answers, each on a thread of its own."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    pause = threading.Event()
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        pause.wait(0.05)
    pytest.fail(f"nothing listens on {port}: {log.read_text()}")


@dataclass
class Caller:
    """A client with one connection that it keeps as long as the other side does; it never sends anything twice."""

    port: int
    person: Person

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def send(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """The status, the JSON and the headers of an answer."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = self.person.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, path, data, given)
            answer = self._connection.getresponse()
            text = answer.read()
        except BaseException:
            self._connection.close()  # the next request begins anew
            raise
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(text) if text else None, told

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass
class Ledger:
    """What was sent, what was acknowledged, and what failed."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)


class Load:
    """Callers that read and record without a pause, until the block ends.

    Each records an interception and a token usage with ids, a prompt without an id but with a text of its own, and the end;
    then it reads a page, and begins again.
    """

    def __init__(self, port: int, person: Person, *, callers: int = 8) -> None:
        self.ledger = Ledger()
        self._stopping = threading.Event()
        self._moved = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(Caller(port, person),)) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=2 * PATIENCE)
            assert not thread.is_alive()

    def more(self, rounds: int) -> None:
        """Wait until so many more rounds were finished."""
        with self._moved:
            wanted = self.ledger.done["rounds"] + rounds
            assert self._moved.wait_for(lambda: self.ledger.done["rounds"] >= wanted, timeout=4 * PATIENCE)

    def _work(self, caller: Caller) -> None:
        with caller:
            while not self._stopping.is_set():
                self._round(caller)
                with self._moved:
                    self.ledger.done["rounds"] += 1
                    self._moved.notify_all()

    def _round(self, caller: Caller) -> None:
        ledger, body, usage, text = self.ledger, running(), token_usage(), uuid4().hex
        ledger.sent.add(body["id"])
        below = f"/interceptions/{body['id']}"
        if self._try(caller, "POST", "/interceptions", body):
            ledger.acknowledged.add(body["id"])
            if self._try(caller, "POST", f"{below}/token-usages", usage):
                ledger.children.add(usage["id"])
            if self._try(caller, "POST", f"{below}/user-prompts", without(user_prompt(prompt=text), "id")):
                ledger.prompts.add(text)
            self._try(caller, "POST", f"{below}/end", {"ended_at": "2026-03-01T10:00:05Z"})
        self._try(caller, "GET", "/interceptions?limit=2")

    def _try(self, caller: Caller, method: str, path: str, body: object = None) -> bool:
        try:
            status, answer, _ = caller.send(method, API + path, body)
        except (OSError, http.client.HTTPException) as problem:
            self.ledger.failed.append(f"{method} {path}: {problem!r}")
            return False
        if status not in {200, 201}:
            self.ledger.failed.append(f"{method} {path}: {status} {answer}")
            return False
        with self._moved:
            self.ledger.done[method] += 1
        return True


def check(ledger: Ledger, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    """Nothing that was acknowledged is missing, and nothing is there twice."""
    stored = {str(row[0]) for row in sql("SELECT id FROM aibridge_interceptions")}
    assert ledger.acknowledged <= stored <= ledger.sent
    assert ledger.children <= {str(row[0]) for row in sql("SELECT id FROM aibridge_token_usages")}
    prompts = Counter(str(row[0]) for row in sql("SELECT prompt FROM aibridge_user_prompts"))
    assert ledger.prompts <= set(prompts)
    assert not [text for text, times in prompts.items() if times > 1], "a prompt without an id was stored twice"
