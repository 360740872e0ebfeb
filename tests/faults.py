"""What the tests of failures share.

A PostgreSQL that can be hurt, a wire to it that can be cut, the service in a process of its own, and clients who keep a
ledger of what was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import aiohttp
import psycopg
from conftest import API
from recorder import thought, token_usage, tool_usage, user_prompt, without

from service import errors
from service.app import build_app
from service.embedded import DATABASE, Keeper, _make_private, _url, binaries_directory, socket_directory
from service.server import bind, serve
from service.settings import Settings

try:
    from uvloop import new_event_loop
except ImportError:  # there is none for this platform
    from asyncio import new_event_loop  # type: ignore[assignment]  # of the same kind

LOOPS = [asyncio.new_event_loop, new_event_loop]
PATIENCE = 90.0
# No request of these tests may take longer: whoever waits longer fails.
REQUEST_BOUND = 60.0


class Postgres:
    """A PostgreSQL of one test's own, in a folder, by the driver of the embedded server: without a keeper to revive it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self._keeper = Keeper(
            folder,
            binaries=binaries_directory(),
            settings={"fsync": "off", "max_wal_size": "256MB", "wal_keep_size": "64MB"} | settings,
        )
        self.socket = socket_directory(folder)
        self.url = _url(self.socket, DATABASE)

    def make(self) -> None:
        """A new cluster, started."""
        for place in (self.folder, self.socket):
            _make_private(place)
        self._keeper._choose_account()
        self._keeper._make_cluster()
        self.start()
        self._keeper._make_database()

    def copy_of(self, primary: Postgres) -> None:
        """A streaming standby of another server, started."""
        for place in (self.folder, self.socket):
            _make_private(place)
        self._keeper._choose_account()
        source = _url(primary.socket, "postgres")
        command = [str(binaries_directory() / "pg_basebackup"), "-d", source, "-D", str(self.folder / "pgdata")]
        self._keeper._run([*command, "--write-recovery-conf", "--checkpoint=fast"])
        self.start()

    def start(self) -> None:
        """Start it; in this thread, with whose end the kernel would end it."""
        self._keeper._launch()

    def stop(self) -> None:
        """An orderly, fast shutdown, as for a restart."""
        self._keeper.stop()

    def kill(self) -> None:
        """kill -9, and wait until its processes are gone."""
        assert self._keeper._server is not None
        self._keeper._server.kill()
        self._keeper._server.wait(PATIENCE)

    @property
    def pids(self) -> list[int]:
        """All its processes, the postmaster first."""
        assert self._keeper._server is not None
        postmaster = self._keeper._server.pid
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(postmaster)], capture_output=True, text=True, check=False
        ).stdout
        return [postmaster, *map(int, children.split())]

    def signal(self, number: int) -> None:
        """Send all its processes a signal."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ask(self, statement: str, *arguments: object, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run a statement, as somebody in psql would."""
        with psycopg.connect(_url(self.socket, database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), arguments or None)
            return cursor.fetchall() if cursor.description else []

    def answers(self) -> bool:
        """Whether it does."""
        try:
            return self.ask("SELECT 1") == [(1,)]
        except psycopg.Error:
            return False

    def end(self) -> None:
        """Leave nothing behind."""
        if self._keeper._server is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self._keeper.stop()


class Wire:
    """A TCP port before a server's socket. It can be cut; and it can lose what follows a word."""

    def __init__(self, socket: Path) -> None:
        self._path = f"{socket}/.s.PGSQL.5432"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0
        # Once a client says this, the server hears it, and its answer is lost together with the connection.
        self.last_word: bytes | None = None
        self.lost = 0

    async def mend(self) -> None:
        """Let connections through, under the same port."""
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break every connection, and let none through."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there_writer}
        deaf = asyncio.Event()

        async def ask() -> None:
            while data := await reader.read(65536):
                if self.last_word and self.last_word in data:
                    self.last_word = None
                    deaf.set()
                there_writer.write(data)
                await there_writer.drain()

        async def answer() -> None:
            while data := await there_reader.read(65536):
                if deaf.is_set():
                    self.lost += 1
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()

        async def copy(work: Callable[[], Awaitable[None]], target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await work()
            target.close()

        await asyncio.gather(copy(ask, there_writer), copy(answer, writer))
        self._open -= {writer, there_writer}


def url_through(*wires: Wire, query: str = "") -> str:
    """The URL of a database behind wires, one host for each."""
    return f"postgresql://bridgelog@{','.join(f'127.0.0.1:{wire.port}' for wire in wires)}/{DATABASE}{query}"


def through(wire: Wire, url: str) -> str:
    """The URL of the same database, behind a wire."""
    return f"postgresql://bridgelog@127.0.0.1:{wire.port}{urlsplit(url).path}"


def socket_of(url: str) -> Path:
    """The folder of the socket in a URL."""
    return Path(parse_qs(urlsplit(url).query)["host"][0])


# -- the service -----------------------------------------------------------------------------------------------------


def _serving(settings: Settings, url: str, pipe: Pipe) -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(
            serve(
                build_app(settings, database_url=url),
                sockets=bind("127.0.0.1", 0),
                drain_seconds=0,
                shutdown_timeout=5,
                ready=pipe.send,
            )
        )


@dataclass(frozen=True)
class Served:
    """A service in a process of its own."""

    root: str
    pid: int

    @property
    def memory(self) -> int:
        """The bytes that it has had in memory at most, so far (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@contextlib.asynccontextmanager
async def served(settings: Settings, url: str) -> AsyncIterator[Served]:
    """The service on that database."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=_serving, args=(settings, url, theirs))
    process.start()
    try:
        # In a thread: the database may be behind a wire of this process.
        assert await asyncio.to_thread(mine.poll, 60)
        assert process.pid
        yield Served(f"http://127.0.0.1:{mine.recv()}", process.pid)
        process.terminate()
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == 0, "a service that has been through all this still ends in order"
    finally:
        if process.is_alive():
            process.kill()
            process.join()


# -- clients with a ledger -------------------------------------------------------------------------------------------

MESSAGES = frozenset(
    refusal().message
    for refusal in (
        errors.DatabaseUnavailable,
        errors.Overloaded,
        errors.LockedOut,
        errors.Contention,
        errors.TookTooLong,
    )
)


def check_refusal(status: int, headers: Any, body: Any) -> None:
    """A refusal is a 503 in the envelope, with Retry-After and nothing that the database said."""
    assert status == 503, body
    assert int(headers["Retry-After"]) > 0
    assert body["message"] in MESSAGES
    assert set(body) == {"message"}


@dataclass
class Ledger:
    """What was sent, and what of it was acknowledged."""

    acknowledged: dict[str, dict[str, Any]] = field(default_factory=dict)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    pages: int = 0
    sent_again: int = 0


class Clients:
    """Some who record and some who read, until they are told to stop."""

    def __init__(self, served: Served, token: str, *, recorders: int = 4, readers: int = 3) -> None:
        self.ledger = Ledger()
        self._url = served.root + API
        self._token = token
        self._stopping = asyncio.Event()
        self._work = [*[self._record] * recorders, *[self._read] * readers]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Clients:
        timeout = aiohttp.ClientTimeout(total=REQUEST_BOUND)
        self._session = aiohttp.ClientSession(headers={"Coder-Session-Token": self._token}, timeout=timeout)
        self._tasks = [asyncio.create_task(work(number)) for number, work in enumerate(self._work)]
        await self.go_on()
        return self

    async def __aexit__(self, *problem: object) -> None:
        self._stopping.set()
        try:
            if problem[0] is None:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._session.close()

    async def go_on(self, *, recorded: int = 20, pages: int = 10) -> None:
        """Wait until so much more has been acknowledged and read from now on: that the service works."""
        until = len(self.ledger.acknowledged) + recorded, self.ledger.pages + pages
        await self._until(lambda: len(self.ledger.acknowledged) >= until[0] and self.ledger.pages >= until[1])

    async def meet(self, call: str, status: int, *, times: int = 1) -> None:
        """Wait until so many calls (`write` or `list`) have been answered so from now on: that the failure is felt."""
        until = self.ledger.statuses[call, status] + times
        await self._until(lambda: self.ledger.statuses[call, status] >= until)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)

    async def _record(self, number: int) -> None:
        made = random.Random(number)
        while not self._stopping.is_set():
            body = finished(made)
            if made.random() < 0.5:
                await self._post("", body)
            else:
                await self._post("", without(body, "ended_at", *KINDS))
                for kind, path in KINDS.items():
                    await self._post(f"/{body['id']}/{path}", body[kind])
                await self._post(f"/{body['id']}/end", {"ended_at": body["ended_at"]})
            self.ledger.acknowledged[body["id"]] = body

    async def _post(self, path: str, body: object) -> None:
        """Send it until it is acknowledged, the same bytes each time."""
        while True:
            async with self._session.post(f"{self._url}/interceptions{path}", json=body) as response:
                answer = await response.json()
                self.ledger.statuses["write", response.status] += 1
                if response.status in {200, 201}:
                    return
                check_refusal(response.status, response.headers, answer)
            self.ledger.sent_again += 1
            # Sooner than Retry-After asks for: this is the least favourable client.
            await asyncio.sleep(0.05)

    async def _read(self, number: int) -> None:
        made = random.Random(number)
        seen = 0
        while not self._stopping.is_set():
            known = len(self.ledger.acknowledged)
            deep = made.randrange(max(1, known))
            target = made.choice(["limit=5", f"limit=5&offset={deep}", "q=model:m1&limit=5"])
            async with self._session.get(f"{self._url}/interceptions?{target}") as response:
                page = await response.json()
                self.ledger.statuses["list", response.status] += 1
            if response.status != 200:
                check_refusal(response.status, response.headers, page)
                await asyncio.sleep(0.05)
                continue
            self.ledger.pages += 1
            if "q=" not in target:
                assert page["total"] == page["count"] >= max(known, seen), "what was acknowledged is in the next total"
                seen = page["total"]


KINDS = {
    "token_usages": "token-usages",
    "user_prompts": "user-prompts",
    "tool_usages": "tool-usages",
    "model_thoughts": "model-thoughts",
}


def finished(made: random.Random) -> dict[str, Any]:
    """An interception with children, of one of a few initiators and models, at some time of a few days."""
    day, hour, minute = made.randrange(1, 5), made.randrange(24), made.randrange(60)
    return {
        "id": str(uuid4()),
        "initiator": {"id": f"00000000-0000-4000-8000-00000000000{made.randrange(1, 4)}", "username": ""},
        "provider": "anthropic",
        "model": f"m{made.randrange(3)}",
        "started_at": f"2026-03-0{day}T{hour:02}:{minute:02}:00Z",
        "ended_at": f"2026-03-0{day}T{hour:02}:{minute:02}:30Z",
        "token_usages": [token_usage(), token_usage()],
        "user_prompts": [user_prompt()],
        "tool_usages": [tool_usage()],
        "model_thoughts": [thought()],
    }


def check_ledger(ledger: Ledger, postgres: Postgres) -> None:
    """Nothing acknowledged is missing, nothing is doubled, every total is exact: all that was sent was acknowledged."""
    stored = {
        str(found) for (found,) in postgres.ask("SELECT id FROM aibridge_interceptions WHERE ended_at IS NOT NULL")
    }
    assert stored == set(ledger.acknowledged)
    for kind in KINDS:
        each = Counter(
            {
                str(owner): int(number)
                for owner, number in postgres.ask(
                    f"SELECT interception_id, count(*) FROM aibridge_{kind} GROUP BY 1"  # noqa: S608
                )
            }
        )
        assert each == {body_id: len(body[kind]) for body_id, body in ledger.acknowledged.items()}
    verified = subprocess.run(
        [sys.executable, "-m", "service", "rollups", "verify"],
        env=os.environ | {"BRIDGELOG_DATABASE_URL": postgres.url},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, and not for ever."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def cleaned(*servers: Postgres) -> Iterator[None]:
    """End the servers, whatever happens."""
    try:
        yield
    finally:
        for server in servers:
            server.end()
