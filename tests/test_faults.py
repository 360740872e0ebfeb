"""One failure at a time: what the client gets, what becomes of the statement, and that each bound is worth something."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, cast
from urllib.parse import urlsplit

import psycopg
import pytest
from conftest import API, Person, interception
from faults import LOOPS, Wire, socket_of, until
from recorder import ndjson, whole
from rows import Sql, put
from test_http import Answer, Socket, envelope, read_answer

from service import app as application
from service import auth, connections, db, server, statements
from service.app import build_app
from service.context import AUTHENTICATOR, HELD
from service.settings import Settings
from service.store import tokens, totals

UNAVAILABLE = "The database is unavailable. Please try again shortly."
OVERLOADED = "The service has more to do than it can take on. Please try again shortly."
SLOW = "The request took too long to arrive."
MINE = "application_name = 'bridgelog' AND datname = current_database()"

Start = Callable[..., Awaitable[Socket]]


@pytest.fixture
async def start(database_url: str, settings: Settings) -> AsyncIterator[Start]:
    """The service on a port of its own, with settings changed as told."""
    async with contextlib.AsyncExitStack() as stack:

        async def starting(url: str = database_url, **changes: Any) -> Socket:
            changed = replace(settings, **changes)
            port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            app = build_app(changed, database_url=url)
            serving = server.serve(
                app, sockets=server.bind("127.0.0.1", 0), drain_seconds=0, shutdown_timeout=5, ready=port.set_result
            )
            task = asyncio.create_task(serving)

            async def end() -> None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

            stack.push_async_callback(end)
            either: list[asyncio.Future[Any]] = [task, port]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            started = Socket(port=await port, task=task)
            HELDS[started.port] = app[HELD]
            AUTHENTICATORS[started.port] = app[AUTHENTICATOR]
            return started

        yield starting


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but requests takes a connection of the pool: what the service does by itself would be one more who waits."""
    monkeypatch.setattr(application, "_background", lambda *_, **__: ())


HELDS: dict[int, Any] = {}
AUTHENTICATORS: dict[int, Any] = {}


@contextlib.contextmanager
def locked(url: str, table: str = "aibridge_interceptions") -> Any:
    """Nobody else reads or writes the table for as long as this lasts."""
    with psycopg.connect(url) as other:
        other.execute(f"LOCK TABLE {table}".encode())
        yield


def active(sql: Sql) -> int:
    """How many statements of the service are running."""
    return int(sql(f"SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND {MINE}")[0][0])  # noqa: S608


def request(method: str, path: str, person: Person, *headers: str, length: int | None = None) -> bytes:
    """The head of a request."""
    lines = ["Host: x", f"Coder-Session-Token: {person.token}", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


async def post(http: Socket, person: Person, body: object, path: str = "/interceptions") -> Answer:
    text = json.dumps(body).encode()
    return await http.send(request("POST", API + path, person, length=len(text)) + text)


# -- a lost connection -----------------------------------------------------------------------------------------------


def losing(monkeypatch: pytest.MonkeyPatch, sql: Sql, module: Any, function: str, *, times: int) -> Counter[str]:
    """From now on the connections are cut before `function` asks: so many times."""
    asked: Counter[str] = Counter()
    ask = getattr(module, function)

    async def cut_and_ask(*arguments: Any, **named: Any) -> Any:
        asked[function] += 1
        if asked[function] <= times:
            sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {MINE}")  # noqa: S608
        return await ask(*arguments, **named)

    monkeypatch.setattr(module, function, cut_and_ask)
    return asked


@pytest.mark.parametrize(("module", "function"), [(totals, "read_page"), (tokens, "find")], ids=["page", "sign-in"])
@pytest.mark.parametrize("offset", [0, 500])
async def test_what_only_reads_is_tried_once_more(
    *, module: Any, function: str, offset: int, start: Start, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = await start()
    put(sql, "interceptions", {})
    asked = losing(monkeypatch, sql, module, function, times=1)
    answer = await http.get(f"{API}/interceptions?offset={offset}", owner)
    assert (answer.status, answer.json()["total"]) == (200, 1)
    assert asked[function] == 2


async def test_once_more_and_not_for_ever(
    start: Start, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = await start()
    asked = losing(monkeypatch, sql, totals, "read_page", times=5)
    answer = await http.get(f"{API}/interceptions", owner)
    envelope(answer, 503, UNAVAILABLE)
    assert int(answer.headers["retry-after"]) > 0
    assert asked["read_page"] == 2


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    "problem", [socket.gaierror(socket.EAI_AGAIN, "not now"), TimeoutError()], ids=["name", "silence"]
)
@pytest.mark.parametrize(("failures", "status"), [(1, 201), (2, 503)])
async def test_what_finds_no_connection_connects_once_more(
    *,
    failures: int,
    status: int,
    problem: OSError,
    start: Start,
    owner: Person,
    sql: Sql,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what writes: nothing was asked yet."""
    connect, left = db._Hosts._connect, 0

    async def connect_at_last(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise problem
        return await connect(*arguments, **options)

    monkeypatch.setattr(db._Hosts, "_connect", connect_at_last)
    http = await start()
    assert (await http.get(f"{API}/log-requests", owner)).status == 200
    sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {MINE}")  # noqa: S608
    await until(lambda: sql(f"SELECT count(*) FROM pg_stat_activity WHERE {MINE}") == [(0,)])  # noqa: S608
    left = failures
    answer = await post(http, owner, whole())
    assert answer.status == status
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(1 if status == 201 else 0,)]


@pytest.mark.parametrize(("module", "function"), [(totals, "read_page"), (tokens, "find")], ids=["page", "sign-in"])
async def test_without_the_second_try_a_read_would_fail(
    *, module: Any, function: str, start: Start, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_READINGS", 1)
    http = await start()
    losing(monkeypatch, sql, module, function, times=1)
    envelope(await http.get(f"{API}/interceptions", owner), 503, UNAVAILABLE)


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    wire = Wire(socket_of(database_url))
    await wire.mend()
    yield wire
    await wire.cut()


async def test_a_commit_whose_answer_is_lost_can_be_sent_again(
    wire: Wire, start: Start, database_url: str, owner: Person, sql: Sql
) -> None:
    http = await start(f"postgresql://bridgelog@127.0.0.1:{wire.port}{urlsplit(database_url).path}")
    body = whole()
    assert (await http.get(f"{API}/models", owner)).status == 200  # signed in, which notes when
    wire.last_word = b"COMMIT;"
    answer = await post(http, owner, body)
    envelope(answer, 503, UNAVAILABLE)
    assert int(answer.headers["retry-after"]) > 0
    assert wire.lost == 1
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(1,)], "it was stored, and nobody knows"
    assert (await post(http, owner, body)).status == 200
    for table in ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts"):
        assert sql(f"SELECT count(*) FROM aibridge_{table}") == [(1,)]  # noqa: S608


async def test_what_was_lost_before_its_commit_can_be_sent_again(
    wire: Wire, start: Start, database_url: str, owner: Person, sql: Sql
) -> None:
    http = await start(f"postgresql://bridgelog@127.0.0.1:{wire.port}{urlsplit(database_url).path}")
    body = whole()
    assert (await http.get(f"{API}/models", owner)).status == 200  # signed in
    wire.last_word = b"BEGIN"
    envelope(await post(http, owner, body), 503, UNAVAILABLE)
    assert wire.lost == 1
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(0,)]
    assert (await post(http, owner, body)).status == 201


# -- time-outs -------------------------------------------------------------------------------------------------------


async def test_a_lock_is_waited_for_once(start: Start, owner: Person, sql: Sql, database_url: str) -> None:
    http = await start(lock_timeout=0.3)
    body = whole()
    with locked(database_url):
        for answer in (await post(http, owner, body), await http.get(f"{API}/interceptions", owner)):
            envelope(answer, 503, "Another transaction kept what this call needs for too long. Please try again.")
            assert int(answer.headers["retry-after"]) > 0
    assert (await post(http, owner, body)).status == 201


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_over_its_time_leaves_no_statement_behind(
    method: str, start: Start, owner: Person, sql: Sql, database_url: str
) -> None:
    http = await start(request_timeout=0.5)
    body = whole()
    with locked(database_url):
        if method == "GET":
            answer = await http.get(f"{API}/interceptions", owner)
        else:
            answer = await post(http, owner, body)
        envelope(answer, 503)
        assert answer.json()["message"].startswith("The database took too long to answer.")
        assert int(answer.headers["retry-after"]) > 0
        await until(lambda: active(sql) == 0)
    assert (await post(http, owner, body)).status == 201


async def test_an_import_lasts_as_long_as_its_stream(start: Start, owner: Person) -> None:
    http = await start(request_timeout=0.8)
    lines = [ndjson(whole()) for _ in range(6)]
    async with http.connection() as (reader, writer):
        writer.write(request("POST", f"{API}/interceptions/import", owner, length=sum(map(len, lines))))
        for line in lines:
            writer.write(line)
            await asyncio.sleep(0.3)  # 1.8 seconds in all
        answer = await read_answer(reader)
    assert (answer.status, answer.json()["imported"]) == (200, 6)


async def test_an_import_that_does_not_go_on_is_ended(start: Start, owner: Person) -> None:
    http = await start(request_timeout=0.5)
    async with http.connection() as (reader, writer):
        writer.write(request("POST", f"{API}/interceptions/import", owner, length=10_000) + ndjson(whole()))
        envelope(await read_answer(reader), 408, SLOW)


async def test_a_body_of_a_byte_now_and_then_is_ended(start: Start, owner: Person, sql: Sql) -> None:
    http = await start(request_timeout=1.0)
    async with http.connection() as (reader, writer):
        writer.write(request("POST", f"{API}/interceptions", owner, length=1000))
        answering = asyncio.create_task(read_answer(reader))
        while not answering.done():
            writer.write(b" ")
            await asyncio.sleep(0.1)
        envelope(await answering, 408, SLOW)
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(0,)]


# -- overload --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has signed in once stays so, and waits for no connection for that."""
    monkeypatch.setattr(auth, "_TRUSTED_SECONDS", 600)


async def crowd(http: Socket, owner: Person, number: int) -> list[asyncio.Task[Answer]]:
    """So many who want a page; the first has signed in for all."""
    assert (await http.get(f"{API}/log-requests", owner)).status == 200
    return [asyncio.create_task(http.get(f"{API}/interceptions", owner)) for _ in range(number)]


@pytest.mark.usefixtures("trusting")
async def test_who_would_wait_behind_too_many_is_refused_at_once(
    start: Start, owner: Person, database_url: str
) -> None:
    http = await start(pool_size=2, max_waiting=3)
    with locked(database_url):
        asking = await crowd(http, owner, 20)
        for answered in itertools.islice(asyncio.as_completed(asking), 15):
            answer = await answered
            envelope(answer, 503, OVERLOADED)
            assert int(answer.headers["retry-after"]) > 0
        # Two are at work and three wait, and whoever looks after the service is answered.
        assert sum(task.done() for task in asking) == 15
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await http.get(path)).status == 200, path
    assert Counter(answer.status for answer in await asyncio.gather(*asking)) == {200: 5, 503: 15}


@pytest.mark.usefixtures("trusting")
async def test_with_room_to_wait_nobody_is_refused(start: Start, owner: Person, database_url: str, sql: Sql) -> None:
    http = await start(pool_size=2, max_waiting=18)
    with locked(database_url):
        asking = await crowd(http, owner, 20)
        await until(lambda: active(sql) == 2)
    assert {answer.status for answer in await asyncio.gather(*asking)} == {200}


@pytest.mark.usefixtures("trusting")
async def test_nobody_waits_for_ever(start: Start, owner: Person, database_url: str, sql: Sql) -> None:
    http = await start(pool_size=1, pool_timeout=0.3)
    with locked(database_url):
        first, *others = await crowd(http, owner, 6)
        for answer in await asyncio.gather(*others):
            envelope(answer, 503, OVERLOADED)
        assert not first.done()
    assert (await first).status == 200


# -- clients who go away ---------------------------------------------------------------------------------------------


async def test_the_statement_of_a_reader_who_has_gone_is_cancelled(
    start: Start, owner: Person, database_url: str, sql: Sql
) -> None:
    http = await start()
    with locked(database_url):
        async with http.connection() as (_, writer):
            writer.write(request("GET", f"{API}/interceptions", owner))
            await until(lambda: active(sql) == 1)
        await until(lambda: active(sql) == 0)
    assert (await http.get(f"{API}/interceptions", owner)).status == 200


async def test_without_that_it_would_go_on(
    start: Start, owner: Person, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SAFE", frozenset())
    http = await start()
    with locked(database_url):
        async with http.connection() as (_, writer):
            writer.write(request("GET", f"{API}/interceptions", owner))
            await until(lambda: active(sql) == 1)
        await asyncio.sleep(0.5)
        assert active(sql) == 1


async def test_a_recorder_who_goes_in_the_middle_of_a_body_is_no_defect(
    start: Start, owner: Person, sql: Sql, capfd: pytest.CaptureFixture[str]
) -> None:
    http = await start()
    for _ in range(5):
        async with http.connection() as (_, writer):
            writer.write(request("POST", f"{API}/interceptions", owner, length=1000) + b"{")
            await writer.drain()
            await asyncio.sleep(0.05)
        assert (await http.get(f"{API}/models", owner)).status == 200
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(0,)]
    assert "unforeseen" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("trusting")
async def test_what_a_recorder_who_has_gone_has_sent_is_stored(
    start: Start, owner: Person, database_url: str, sql: Sql
) -> None:
    http = await start()
    assert (await http.get(f"{API}/models", owner)).status == 200  # signed in: what is active then is the recording
    text = json.dumps(whole()).encode()
    with locked(database_url):
        async with http.connection() as (_, writer):
            writer.write(request("POST", f"{API}/interceptions", owner, length=len(text)) + text)
            await until(lambda: active(sql) == 1)
    await until(lambda: sql("SELECT count(*) FROM aibridge_interceptions") == [(1,)])
    for table in ("token_usages", "user_prompts", "tool_usages", "model_thoughts"):
        assert sql(f"SELECT count(*) FROM aibridge_{table}") == [(1,)]  # noqa: S608


# -- slow clients ----------------------------------------------------------------------------------------------------


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nX"], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes, start: Start) -> None:
    http = await start(head_timeout=0.5)
    async with http.connection() as (reader, writer):
        writer.write(sent)
        assert await is_closed(reader)


async def test_a_head_of_a_byte_now_and_then_is_not_waited_for(start: Start) -> None:
    http = await start(head_timeout=0.5)
    async with http.connection() as (reader, writer):
        # The first request of a connection, and another one after it.
        for _ in range(2):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(reader)).status == 200
        closing = asyncio.create_task(is_closed(reader))
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        while not closing.done():
            writer.write(b"x")
            await asyncio.sleep(0.05)
        assert await closing


async def test_a_connection_may_rest_between_requests(start: Start) -> None:
    http = await start(head_timeout=0.2)
    async with http.connection() as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(reader)).status == 200
            await asyncio.sleep(0.5)


def _room_for(connections: int) -> None:
    """Both ends are of this process, which often may have 1,024 files."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = 2 * connections + 200
    if most != resource.RLIM_INFINITY and most < needed:
        pytest.skip(f"this process may open {most} files, and {connections} connections need {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(needed, resource.getrlimit(resource.RLIMIT_NOFILE)[0]), most))


async def test_many_slow_connections_stop_nobody(start: Start, owner: Person) -> None:
    _room_for(500)
    http = await start()
    async with contextlib.AsyncExitStack() as stack:
        slow = [(await stack.enter_async_context(http.connection()))[1] for _ in range(500)]
        for _ in range(3):
            for writer in slow:
                writer.write(b"G")
            assert (await http.get(f"{API}/interceptions", owner)).status == 200


async def test_the_oldest_that_waits_makes_room(start: Start, owner: Person, database_url: str) -> None:
    http = await start(max_connections=20)
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(http.connection()) for _ in range(20)]
        assert (await http.get(f"{API}/interceptions", owner)).status == 200
        assert await is_closed(idle[0][0])
        idle[-1][1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_answer(idle[-1][0])).status == 200, "the youngest stays"


async def test_where_all_are_at_work_one_more_is_refused(start: Start, owner: Person, database_url: str) -> None:
    http = await start(max_connections=5)
    with locked(database_url):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                _, writer = await stack.enter_async_context(http.connection())
                writer.write(request("GET", f"{API}/interceptions", owner))
                await writer.drain()
            async with http.connection() as (reader, writer):
                answer = await read_answer(reader)
                assert (answer.status, answer.json()["message"]) == (503, OVERLOADED)
                assert int(answer.headers["retry-after"]) > 0


async def test_a_head_is_bounded_in_all(start: Start) -> None:
    http = await start()
    async with http.connection() as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        for number in range(20):
            writer.write(b"X-%d: %b\r\n" % (number, b"x" * 60_000))
        answer = await read_answer(reader)
        assert (answer.status, answer.json()["message"]) == (431, "Request line or headers are too large.")


async def test_who_guesses_tokens_takes_the_connections_of_nobody(start: Start, owner: Person, member: Person) -> None:
    most = 20
    http = await start(max_connections=most, failed_sign_ins=1, trusted_proxies=(ip_network("127.0.0.0/8"),))
    authenticator = AUTHENTICATORS[http.port]
    assert (await http.get(f"{API}/models", member)).status == 200
    go_on = asyncio.Event()

    async def sleep(_: float) -> None:
        await go_on.wait()

    authenticator._sleep = sleep
    authenticator._failures._clock = lambda: 0

    def guess(number: int, address: str = "203.0.113.1") -> bytes:
        token = f"{number:010d}-{number:022d}"
        # Its body never comes.
        return (
            f"POST {API}/interceptions HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {token}\r\n"
            f"X-Forwarded-For: {address}\r\nContent-Length: 1000\r\n\r\n"
        ).encode()

    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for number in range(2 * most):
            reader, writer = await stack.enter_async_context(http.connection())
            writer.write(guess(number))
            readers.append(reader)
            if number == 0:
                assert (await read_answer(reader)).status == 401
            elif number > most // 4:
                answer = await read_answer(reader)
                assert (answer.status, answer.headers["connection"]) == (429, "close")
        assert authenticator._delayed.total() == most // 4
        assert (await http.get("/healthz")).status == 200
        # One that nobody has seen signs in from elsewhere, and one that is known even from there.
        assert (await http.get(f"{API}/models", owner)).status == 200
        known = (request("GET", f"{API}/models", member)).replace(b"Host:", b"X-Forwarded-For: 203.0.113.1\r\nHost:")
        assert (await http.send(known)).status == 200
        go_on.set()
        for reader in readers[1 : most // 4 + 1]:
            assert (await read_answer(reader)).status == 429


# -- memory ----------------------------------------------------------------------------------------------------------


def put_large(sql: Sql, *, number: int, size: int) -> None:
    """Interceptions with a long prompt each."""
    for one in put(sql, "interceptions", *({} for _ in range(number))):
        put(sql, "user_prompts", {"interception_id": one["id"], "prompt": "x" * size})


async def test_a_page_is_bounded_but_for_its_first_row(start: Start, owner: Person, sql: Sql) -> None:
    put_large(sql, number=5, size=1_000_000)
    http = await start(max_page=3_000_000)
    answer = await http.get(f"{API}/interceptions", owner)
    body = envelope(answer, 503)
    assert (
        body["message"] == "The answer is too large for the database to compose. Ask for fewer interceptions at once."
    )
    assert int(answer.headers["retry-after"]) > 0
    for limit in (1, 2):
        answer = await http.get(f"{API}/interceptions?limit={limit}", owner)
        assert (answer.status, len(answer.json()["results"])) == (200, limit)
    http = await start(max_page=100_000)
    assert (await http.get(f"{API}/interceptions?limit=1", owner)).status == 200
    http = await start(max_page=6_000_000)
    assert (await http.get(f"{API}/interceptions", owner)).status == 200


async def test_a_slow_reader_is_not_waited_for_and_holds_up_nobody(start: Start, owner: Person, sql: Sql) -> None:
    put_large(sql, number=8, size=1_000_000)
    http = await start(send_timeout=2.0, max_held=20_000_000)
    held = HELDS[http.port]
    async with contextlib.AsyncExitStack() as stack:
        slow = []
        for _ in range(2):
            reader, writer = await stack.enter_async_context(http.connection())
            cast("asyncio.Transport", writer.transport).pause_reading()
            writer.write(request("GET", f"{API}/interceptions", owner))
            slow.append((reader, writer))
        await until(lambda: held.total > 16_000_000)
        # There is no room for a third such page; there is for small answers.
        answer = await http.get(f"{API}/interceptions", owner)
        assert envelope(answer, 503, OVERLOADED)["detail"]
        assert (await http.get(f"{API}/models", owner)).status == 200
        await until(lambda: held.total == 0)
        for reader, writer in slow:
            cast("asyncio.Transport", writer.transport).resume_reading()
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read(-1)) < 8_000_000, "it was cut off"
    assert (await http.get(f"{API}/interceptions", owner)).status == 200


async def test_large_bodies_are_bounded_together(start: Start, owner: Person) -> None:
    http = await start(max_held=6_000_000)
    held = HELDS[http.port]
    large = json.dumps(interception(metadata={"a": "x" * 2_000_000})).encode()
    head = request("POST", f"{API}/interceptions", owner, length=len(large))
    async with http.connection() as (reader, writer):
        writer.write(head + large[:-1])
        await until(lambda: held.uploads == len(large) - 1)
        answer = await http.send(head + large)
        envelope(answer, 503, OVERLOADED)
        assert (await post(http, owner, interception())).status == 201, "a small one has room"
        writer.write(large[-1:])
        assert (await read_answer(reader)).status == 201
    await until(lambda: held.total == 0)
    assert (await http.send(head + large)).status == 200


async def test_where_there_is_room_none_is_refused(start: Start, owner: Person) -> None:
    http = await start(max_held=9_000_000)
    bodies = [json.dumps(interception(metadata={"a": "x" * 2_000_000})).encode() for _ in range(2)]
    async with http.connection() as (reader, writer):
        writer.write(request("POST", f"{API}/interceptions", owner, length=len(bodies[0])) + bodies[0][:-1])
        await until(lambda: HELDS[http.port].total > 0)
        head = request("POST", f"{API}/interceptions", owner, length=len(bodies[1]))
        assert (await http.send(head + bodies[1])).status == 201
        writer.write(bodies[0][-1:])
        assert (await read_answer(reader)).status == 201


async def test_what_is_sent_slowly_leaves_room_for_answers(start: Start, owner: Person, sql: Sql) -> None:
    put_large(sql, number=2, size=1_000_000)
    http = await start(max_held=6_000_000)
    held = HELDS[http.port]
    large = json.dumps(interception(metadata={"a": "x" * 1_400_000})).encode()
    async with contextlib.AsyncExitStack() as stack:
        # Imports that have sent next to nothing hold next to nothing.
        for _ in range(40):
            _, writer = await stack.enter_async_context(http.connection())
            writer.write(request("POST", f"{API}/interceptions/import", owner, length=1_000_000) + b"{")
        assert (await http.get("/healthz")).status == 200
        assert held.total == 0
        slow = []
        for path in ("/interceptions", "/interceptions/import"):
            reader, writer = await stack.enter_async_context(http.connection())
            writer.write(request("POST", f"{API}{path}", owner, length=len(large)) + large[:-1])
            slow.append((reader, writer))
        await until(lambda: held.uploads == 2 * (len(large) - 1))
        for path in ("/interceptions", "/interceptions/import"):
            answer = await http.send(request("POST", f"{API}{path}", owner, length=len(large)) + large)
            envelope(answer, 503, OVERLOADED)
        answer = await http.get(f"{API}/interceptions", owner)
        assert (answer.status, len(answer.json()["results"])) == (200, 2)
        for reader, writer in slow:
            writer.write(large[-1:])
            assert (await read_answer(reader)).status in (200, 201)
    await until(lambda: held.total == 0)


async def test_an_import_gives_back_what_it_has_stored(start: Start, owner: Person) -> None:
    http = await start(max_held=14_000_000)
    held = HELDS[http.port]
    record = json.dumps(whole(metadata={"a": "x" * 2_000_000})).encode()

    def holds(number: int) -> bool:
        return held.uploads // 2_000_000 == number % 2 + 1 or number == 5

    async with http.connection() as (reader, writer):
        writer.write(request("POST", f"{API}/interceptions/import", owner, length=6 * (len(record) + 1)))
        for number in range(6):
            writer.write(json.dumps(whole(metadata={"a": "x" * 2_000_000})).encode().ljust(len(record)) + b"\n")
            await until(functools.partial(holds, number))
        answer = await read_answer(reader)
        assert (answer.status, answer.json()["imported"]) == (200, 6)
    await until(lambda: held.total == 0)


# -- hosts -----------------------------------------------------------------------------------------------------------


async def test_the_first_host_that_answers_is_taken(start: Start, owner: Person, database_url: str) -> None:
    wire = Wire(socket_of(database_url))
    await wire.mend()
    # One that takes connections and says nothing, and one that refuses them.
    loop = asyncio.get_running_loop()
    silent = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    closed = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    ports = [one.sockets[0].getsockname()[1] for one in (silent, closed)]
    closed.close()
    hosts = ",".join(f"127.0.0.1:{port}" for port in (*ports, wire.port))
    http = await start(f"postgresql://bridgelog@{hosts}{urlsplit(database_url).path}", pool_timeout=1.0)
    assert (await http.get(f"{API}/interceptions", owner)).status == 200
    assert (await http.get("/readyz")).status == 200
    await wire.cut()
    envelope(await http.get("/readyz"), 503)
    silent.close()


async def test_readiness_finds_the_host_that_took_over_without_any_other_call(start: Start, database_url: str) -> None:
    one, two = Wire(socket_of(database_url)), Wire(socket_of(database_url))
    await one.mend()
    await two.mend()
    url = f"postgresql://bridgelog@127.0.0.1:{one.port},127.0.0.1:{two.port}{urlsplit(database_url).path}"
    http = await start(url, pool_timeout=600.0, upkeep=False)
    assert (await http.get("/readyz")).status == 200
    await one.cut()
    # From here on the first one takes connections, and says nothing.
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", one.port)
    async with asyncio.timeout(60):
        while (await http.get("/readyz")).status != 200:  # noqa: ASYNC110 - as a load balancer asks
            await asyncio.sleep(0.02)
    await two.cut()
    silent.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
@pytest.mark.parametrize("make_loop", LOOPS)
def test_the_kernel_gives_up_a_host_that_acknowledges_nothing(
    make_loop: Callable[[], asyncio.AbstractEventLoop], database_url: str, settings: Settings
) -> None:
    async def ask() -> int:
        wire = Wire(socket_of(database_url))
        await wire.mend()
        url = f"postgresql://bridgelog@127.0.0.1:{wire.port}{urlsplit(database_url).path}"
        database = await db.connect(settings, url, statements.load())
        try:
            async with database._shared.connection() as raw:
                connected = cast("Any", raw)._transport.get_extra_info("socket")
                found: int = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                return found
        finally:
            await database.close()
            await wire.cut()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(ask()) == 10_000
