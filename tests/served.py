"""`bridgelog serve` as a process of its own, with what it says in files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60.0


def until(holds: Callable[[], Any], what: str) -> Any:
    """What `holds` gives, once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.01)
    return found


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGELOG_", "OTEL_"))}
    return kept | changes


class Service:
    """A `bridgelog serve` that was started; `wait_ready` tells when it serves."""

    def __init__(self, folder: Path, *arguments: str, **settings: str) -> None:
        folder.mkdir()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._out, self._log = folder / "out", folder / "log"
        given = {"BRIDGELOG_PORT": "0", "BRIDGELOG_LOG_FORMAT": "json", "TMPDIR": str(self.temporary)}
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", *arguments],
                env=environment(**given | settings),
                stdout=out,
                stderr=log,
                start_new_session=True,  # a process group, as a shell gives to what it starts
            )

    @property
    def output(self) -> str:
        return self._out.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    @property
    def errors(self) -> str:
        return self._log.read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [found for found in self.log if found["event"] == event]

    def wait_ready(self) -> Service:
        def serves() -> bool:
            assert self.process.poll() is None, self.errors
            return "serves" in self.output

        until(serves, "ready")
        return self

    @property
    def port(self) -> int:
        found = re.search(r"http://[\w.]+:(\d+)", self.output)
        assert found
        return int(found[1])

    @property
    def workers(self) -> set[int]:
        """The process ids of those that serve."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(pid) for pid in children.read_text().split() if alive(int(pid))}

    def get(self, path: str, token: str = "") -> tuple[int, dict[str, str], str]:
        """On a connection of its own: status, headers in lower case, body."""
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        return self.send((head + (f"Coder-Session-Token: {token}\r\n" if token else "") + "\r\n").encode())

    def send(self, data: bytes) -> tuple[int, dict[str, str], str]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(data)
            answer = b""
            while more := connection.recv(65536):
                answer += more
        head, _, body = answer.decode().partition("\r\n\r\n")
        status, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split(" ")[1]), headers, body

    def metrics(self) -> dict[str, float]:
        """Every sample of one scrape, under its name and labels."""
        return {
            sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[2])
            for sample in family.samples
        }

    @contextlib.contextmanager
    def only(self, worker: int) -> Iterator[None]:
        """While the others stand still, so that this worker has to answer."""
        others = self.workers - {worker}
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE)


def alive(pid: int) -> bool:
    """Whether the process is there, and not just its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


StartService = Callable[..., Service]
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads processes from /proc")
