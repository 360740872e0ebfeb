"""HTTP as it arrives at the socket: well formed or not, with the database there or gone, at work or on the way out."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

import pytest
from conftest import API, Person
from rows import Sql, put

from service import server
from service.app import build_app
from service.settings import Settings
from service.store import names, users

PREFIXES = (
    "/api/experimental/aibridge",
    "/api/v2/api/experimental/aibridge",
    "/api/v2/aibridge",
    "/api/v2/ai-gateway",
)
SECRET = "sEcReT-tExT-0815"
PATIENCE = 20.0


@dataclass(frozen=True)
class Answer:
    """One answer as it came over the socket."""

    status: int
    headers: dict[str, str]
    raw: bytes
    body: bytes

    def json(self) -> Any:
        assert self.headers["content-type"].startswith("application/json")
        return json.loads(self.body.decode("utf-8"))


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> Answer:
    """The next answer of a connection; `head`: it has no body whatever it says."""
    raw = await reader.readuntil(b"\r\n\r\n")
    status_line, *lines = raw.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert "server" not in headers, "no banner anywhere"
    assert len(headers) == len(lines), "no header twice"
    length = 0 if head else int(headers.get("content-length", "0"))
    body = await reader.readexactly(length)
    return Answer(int(status_line.split(" ")[1]), headers, raw, body)


def envelope(answer: Answer, status: int, message: str | None = None) -> dict[str, Any]:
    """The error that an answer is."""
    body: dict[str, Any] = answer.json()
    assert answer.status == status, body
    assert set(body) <= {"message", "detail", "validations"}
    assert body["message"].endswith(".")
    if message is not None:
        assert body["message"] == message
    assert body.get("detail") != ""
    assert body.get("validations") != []
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    return body


@dataclass(frozen=True)
class Socket:
    """A service on a real socket."""

    port: int
    task: asyncio.Task[None]

    async def send(self, data: bytes, *, head: bool = False) -> Answer:
        """One request as bytes on a connection of its own, and its answer."""
        async with self.connection() as (reader, writer):
            writer.write(data)
            return await read_answer(reader, head=head)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
            try:
                yield reader, writer
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def get(self, target: str, person: Person | None = None, *, method: str = "GET", **headers: str) -> Answer:
        given = {"Host": "localhost", **(person.headers if person else {}), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
        return await self.send(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"), head=method == "HEAD")


StartServer = Callable[..., Awaitable[Socket]]


@pytest.fixture
async def start_server(database_url: str, settings: Settings) -> AsyncIterator[StartServer]:
    """Serve on a port of its own: `await start_server()`, or on another database, or with settings changed."""
    tasks: list[asyncio.Task[None]] = []

    async def start(url: str = database_url, **changes: Any) -> Socket:
        changed = replace(settings, **changes)
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            server.serve(
                build_app(changed, database_url=url),
                sockets=server.bind("127.0.0.1", 0),
                drain_seconds=changed.drain_seconds,
                shutdown_timeout=changed.shutdown_timeout,
                ready=port.set_result,
            )
        )
        tasks.append(task)
        either: list[asyncio.Future[Any]] = [task, port]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return Socket(port=await port, task=task)

    yield start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def http(start_server: StartServer) -> Socket:
    return await start_server()


# -- paths and methods -----------------------------------------------------------------------------------------------


async def test_what_does_not_exist(http: Socket, owner: Person) -> None:
    for path in ("/", "/nothing", "/api", "/api/v2", "/healthz/", "/healthz/x", "//healthz", "/HEALTHZ", "/%2e%2e/etc"):
        envelope(await http.get(path), 404, "Route not found.")
    for prefix in PREFIXES:
        for path in (
            "",
            "/",
            "/nothing",
            "/interceptions/",
            "/Interceptions",
            "/interceptions/x/end",
            "/interceptions/497f6eca62764993bfeb53cbbbba6f08/end",
            "/interceptions/497f6eca-6276-4993-bfeb-53cbbbba6f0g/end",
            "/interceptions/497f6eca-6276-4993-bfeb-53cbbbba6f08",
            "/interceptions/%00/end",
            "/interceptions/import/x",
        ):
            envelope(await http.get(prefix + path, owner), 404, "Route not found.")
            answer = await http.get(prefix + path)
            assert answer.status == 401, "401 before 404"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_wrong_method(http: Socket, owner: Person) -> None:
    interception = f"{API}/interceptions/497f6eca-6276-4993-bfeb-53cbbbba6f08"
    allowed = {
        f"{API}/interceptions": {"GET", "POST"},
        f"{API}/models": {"GET"},
        f"{API}/clients": {"GET"},
        f"{API}/log-requests": {"GET", "POST"},
        f"{API}/interceptions/import": {"POST"},
        f"{interception}/token-usages": {"POST"},
        f"{interception}/user-prompts": {"POST"},
        f"{interception}/tool-usages": {"POST"},
        f"{interception}/model-thoughts": {"POST"},
        f"{interception}/end": {"POST"},
        "/healthz": {"GET"},
        "/readyz": {"GET"},
        "/metrics": {"GET"},
    }
    for path, methods in allowed.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - methods:
            answer = await http.get(path, owner, method=method)
            envelope(answer, 405, "Method not allowed.")
            told = set(answer.headers["allow"].split(", "))
            assert methods <= told <= methods | {"HEAD"}, path
            if path.startswith("/api"):
                assert (await http.get(path, method=method)).status == 401, "401 before 405"


async def test_head_has_no_body(http: Socket, owner: Person) -> None:
    async with http.connection() as (reader, writer):
        for path in ("/healthz", f"{API}/interceptions", "/nothing"):
            request = f"HEAD {path} HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {owner.token}\r\n\r\n"
            writer.write(request.encode())
            answer = await read_answer(reader, head=True)
            assert answer.status == (404 if path == "/nothing" else 405)
            assert (answer.headers.get("allow", "GET")).startswith("GET")
            # Whatever came after the head would be taken for the next answer.
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(reader)).json() == {"status": "ok"}


async def test_operations_need_no_sign_in(http: Socket) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    answer = await http.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"bridgelog_http_requests_total" in answer.body
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await http.get(path)).headers["cache-control"] == "no-store"
        assert (await http.get(path, Coder_Session_Token="nonsense")).status == 200


async def test_metrics_name_no_path_that_callers_invent(http: Socket, owner: Person) -> None:
    for path in (f"/{SECRET}", f"{API}/{SECRET}", f"{API}/interceptions?q={SECRET}"):
        await http.get(path, owner)
    await http.get("/healthz", method="BREW")
    metrics = (await http.get("/metrics")).body.decode()
    assert SECRET not in metrics
    assert "BREW" not in metrics


# -- request ids -----------------------------------------------------------------------------------------------------


async def test_a_request_id_comes_back(http: Socket, owner: Person) -> None:
    for given in ("a", "A-b_c.9", "x" * 64, "-", "..."):
        for path in ("/healthz", "/nothing", f"{API}/interceptions", f"{API}/models?limit=x"):
            assert (await http.get(path, owner, X_Request_Id=given)).headers["x-request-id"] == given
        assert (await http.get(API, X_Request_Id=given)).headers["x-request-id"] == given


async def test_a_bad_request_id_is_replaced(http: Socket) -> None:
    seen = set()
    for given in ("", "x" * 65, "a b", "a/b", "a:b", "<b>", "caf\xe9", "a\tb", '"', "a,b"):
        made = (await http.get("/healthz", X_Request_Id=given)).headers["x-request-id"]
        assert made != given
        assert made.isalnum()
        assert 1 <= len(made) <= 64
        seen.add(made)
    assert len(seen) == 10


# -- what is no HTTP -------------------------------------------------------------------------------------------------

HOST = b"Host: x\r\n"
MALFORMED = {
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64 + b"\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /a sEcReT-tExT-0815 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a version of its own": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no method": b"/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in brackets": b"{GET} /sEcReT-tExT-0815 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\n" + HOST + b"sEcReT-tExT-0815\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n" + HOST + b": sEcReT-tExT-0815\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X-Secret : sEcReT-tExT-0815\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: sEcReT-tExT-0815\0\r\n\r\n",
    "NUL in a header's name": b"GET / HTTP/1.1\r\n" + HOST + b"X\0: sEcReT-tExT-0815\r\n\r\n",
    "a bare CR in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: sEcReT-tExT-0815\rY: z\r\n\r\n",
    "a length that is no number": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: abc\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\nhello",
    "a length beyond numbers": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "length and chunks": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /sEcReT-tExT-0815 HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunks and length": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /sEcReT-tExT-0815 HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunked is not last": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an obscured chunked": b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a long request line": b"GET /" + b"a" * 100_000 + b"sEcReT-tExT-0815 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long query": b"GET /?q=" + b"a" * 100_000 + b"sEcReT-tExT-0815 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long header": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"sEcReT-tExT-0815\r\n\r\n",
    "a long header's name": b"GET / HTTP/1.1\r\n" + HOST + b"X" * 100_000 + b": sEcReT-tExT-0815\r\n\r\n",
    "an endless method": b"G" * 100_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: y\r\n\r\n",
    "129 headers": b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 128 + b"\r\n",
    "headers without end": b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 1_000,
    "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n sEcReT-tExT-0815\r\n\r\n",
    "a fold before the first header": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "LF alone": b"GET / HTTP/1.1\nHost: x\n\n",
    "LF alone after a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: y\n\r\n",
    "LF alone at the end": b"GET / HTTP/1.1\r\n" + HOST + b"\n",
    "CR CR LF": b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
    "an escape in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: \x1b[2J\r\n\r\n",
    "a control character in a cookie": b"GET / HTTP/1.1\r\n" + HOST + b"Cookie: coder_session_token=\x01\r\n\r\n",
    "a target of authority form": b"GET example.com:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target with another scheme": b"GET file:///etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target without a host": b"GET http:///healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target with a port beyond ports": b"GET http://x:99999999/healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    # What follows the head would be a request of its own to whoever reads the framing otherwise.
    **{
        f"framing: {framing.decode('latin-1')!r}": b"POST / HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n" + body
        for framing, body in (
            (framing, b"0\r\n\r\nGET /sEcReT-tExT-0815 HTTP/1.1\r\nHost: x\r\n\r\n")
            for framing in (
                b"Content-Length: 5\r\nContent-Length: 5",
                b"Content-Length: 5, 5",
                b"Content-Length: 0x5",
                b"Content-Length: 1 5",
                b"Content-Length: 1_0",
                b"Content-Length:",
                b"Content-Length: 5\r\nTransfer-Encoding: CHUNKED",
                b"Content-Length: 5\r\nTransfer-Encoding: identity",
                b"Transfer-Encoding:",
                b"Transfer-Encoding: identity",
                b"Transfer-Encoding: gzip, chunked",
                b"Transfer-Encoding: chunked, chunked",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
                b'Transfer-Encoding: "chunked"',
                b"Transfer-Encoding: \x0bchunked",
                b"Transfer-Encoding: chunked;q=1",
                b"Transfer-Encoding : chunked",
                b"Transfer-Encoding:\r\n chunked",
            )
        )
    },
}


async def test_what_is_no_http_gets_the_envelope_and_a_closed_connection(http: Socket) -> None:
    for what, data in MALFORMED.items():
        async with http.connection() as (reader, writer):
            try:
                writer.write(data)
                answer = await read_answer(reader)
                assert await reader.read() == b"", "one answer, and the end"
            except (AssertionError, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as problem:
                pytest.fail(f"{what}: {problem!r}")
        assert answer.status in {400, 431}, what
        body = envelope(answer, answer.status)
        if "long" in what:
            assert answer.status == 431, what
            assert body["message"] == "Request line or headers are too large.", what
        assert SECRET.encode() not in answer.raw + answer.body, what
        assert b"a" * 33 not in answer.raw + answer.body, what
        assert b"aiohttp" not in answer.raw + answer.body, what
    assert (await http.get("/healthz")).status == 200


# What can be read in one way only, by proxies too: the framing, and the body that it is. `{"enabled": true}` has 17 bytes.
READ_AS_MEANT = {
    "an odd case": (b"Transfer-Encoding: ChUnKeD", b'11\r\n{"enabled": true}\r\n0\r\n\r\n'),
    "chunks with extensions": (
        b"Transfer-Encoding: chunked",
        b'1;a=b\r\n{\r\n10;c="d;e"\r\n"enabled": true}\r\n0;last\r\n\r\n',
    ),
    "zeros before a size": (b"Transfer-Encoding: chunked", b'000000000000011\r\n{"enabled": true}\r\n0000\r\n\r\n'),
    "another header of that name, almost": (
        b"Content-Length: 17\r\nTransfer_Encoding: chunked\r\nX-Transfer-Encoding: chunked",
        b'{"enabled": true}',
    ),
    "a protocol that nobody speaks": (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 17",
        b'{"enabled": true}',
    ),
    "a websocket": (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nContent-Length: 17",
        b'{"enabled": true}',
    ),
}


async def test_what_can_be_read_in_one_way_only_is_read_so(http: Socket, owner: Person) -> None:
    head = b"POST %b/log-requests HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: %b\r\n"
    for what, (framing, body) in READ_AS_MEANT.items():
        async with http.connection() as (reader, writer):
            writer.write(head % (API.encode(), owner.token.encode()) + framing + b"\r\n\r\n" + body)
            answer = await read_answer(reader)
            assert (answer.status, "upgrade" in answer.headers) == (200, False), what
            # And nothing is left over that would become part of the next request.
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_answer(reader)).json() == {"status": "ok"}, what


async def test_chunks_that_others_would_read_otherwise(http: Socket, owner: Person) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for chunks in (
        b'11\n{"enabled": true}\n0\n\n',
        b'11\r\n{"enabled": true}\n0\r\n\r\n',
        b'11;a\n{"enabled": true}\r\n0\r\n\r\n',
        b'0x11\r\n{"enabled": true}\r\n0\r\n\r\n',
        b'+11\r\n{"enabled": true}\r\n0\r\n\r\n',
        b'11 \r\n{"enabled": true}\r\n0\r\n\r\n',
        b'10000000000000011\r\n{"enabled": true}\r\n0\r\n\r\n',
        b'11\r\n{"enabled": true}\r\n0\r\nX: y\nZ: z\r\n\r\n',
        b'11\r\n{"enabled": true}\r\n0\r\n' + b"X: y\r\n" * 2_000 + b"\r\n",
    ):
        async with http.connection() as (reader, writer):
            head = f"POST {API}/log-requests HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {owner.token}\r\n"
            writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + smuggled)
            envelope(await read_answer(reader), 400)
            assert await reader.read() == b"", chunks
    assert (await http.get(f"{API}/log-requests", owner)).json()["enabled"] is False


async def test_hosts_and_cookies_of_any_kind(http: Socket, owner: Person) -> None:
    for host in ("", "a b", "<script>", "a:b:c", "[::1", "x" * 60_000, "user:pass@example.com", "\xff", "../.."):
        answer = await http.get(f"{API}/interceptions", owner, Host=host)
        assert answer.status == 200, host
        assert not host or host.encode("latin-1") not in answer.raw + answer.body
        assert (await http.get("/docs", Host=host)).status == 200, host
    for cookie in (
        ";",
        "=",
        "a",
        '"',
        "coder_session_token",
        "coder_session_token=",
        'coder_session_token="',
        "coder_session_token=\xff",
        "$Version=1; coder_session_token=x; $Path=/",
        "; ".join(f"c{number}=v" for number in range(2_000)),
        f"coder_session_token={'x' * 60_000}",
    ):
        envelope(await http.get(f"{API}/interceptions", Cookie=cookie), 401)
    good = f"__Host-x=y; coder_session_token={owner.token}; z"
    assert (await http.get(f"{API}/interceptions", Cookie=good)).status == 200


async def test_every_answer_is_what_it_says_it_is(http: Socket, owner: Person) -> None:
    answers = [
        await http.get(path, owner)
        for path in ("/healthz", "/metrics", "/docs", "/docs/init.js", "/openapi.json", "/x", API, f"{API}/models")
    ]
    answers.append(await http.send(b"nonsense\r\n\r\n"))
    answers.append(await http.get("/healthz", Expect="nonsense"))
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"


# -- and behind the proxy --------------------------------------------------------------------------------------------


@pytest.fixture
async def nginx(http: Socket, tmp_path: Path) -> AsyncIterator[Socket]:
    """deploy/nginx.conf in front of the service, on a port of its own."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (Path(__file__).parent.parent / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for theirs, ours in (
        ("server bridgelog:8080", f"server 127.0.0.1:{http.port}"),
        ("listen 8080", f"listen 127.0.0.1:{port}"),
        ("/tmp/", f"{tmp_path}/"),  # noqa: S108  # what the file says
        ("/dev/stdout", f"{tmp_path}/access.log"),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(text, encoding="utf-8")
    command: list[str | Path] = [
        program,
        "-e",
        tmp_path / "error.log",
        "-p",
        tmp_path,
        "-c",
        configuration,
        "-g",
        "daemon off;",
    ]
    process = await asyncio.to_thread(subprocess.Popen[bytes], command)
    proxy = Socket(port=port, task=http.task)
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(OSError):
                if await status_of(proxy, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == 200:
                    break
            assert process.poll() is None, (tmp_path / "error.log").read_text(encoding="utf-8")
            await asyncio.sleep(0.05)
    yield proxy
    process.terminate()
    await asyncio.to_thread(process.wait)


async def status_of(proxy: Socket, data: bytes) -> int:
    """The status of the first answer to these bytes."""
    async with proxy.connection() as (reader, writer):
        writer.write(data)
        return int((await reader.readline()).split()[1])


async def test_nothing_is_smuggled_past_the_proxy(nginx: Socket, http: Socket, owner: Person) -> None:
    # Every one of these holds a second request where the framing says that there is none.
    smuggled = {what: data for what, data in MALFORMED.items() if b"GET /sEcReT" in data}
    assert len(smuggled) > 20
    for what, data in smuggled.items():
        assert await status_of(nginx, data) in {400, 404, 501}, what
    for what, (framing, body) in READ_AS_MEANT.items():
        head = f"POST {API}/log-requests HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {owner.token}\r\n".encode()
        assert await status_of(nginx, head + framing + b"\r\n\r\n" + body) == 200, what
    # An answer to a request that nobody sent would be waiting on a connection that the proxy keeps for the next one.
    for _ in range(80):
        assert await status_of(nginx, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == 200
    metrics = (await http.get("/metrics")).body.decode()
    assert 'route="unknown",status="404"' not in metrics
    assert 'method="GET",route="unknown"' not in metrics


async def test_the_protocol_of_1991_is_answered_and_closed(http: Socket) -> None:
    # It has no headers, hence no token.
    for target, status in (("/healthz", 200), ("/nothing", 404), (f"{API}/interceptions", 401)):
        async with http.connection() as (reader, writer):
            writer.write(f"GET {target}\r\n\r\n".encode())
            answer = await read_answer(reader)
            assert answer.status == status
            assert await reader.read() == b""


async def test_malformed_after_well_formed(http: Socket) -> None:
    async with http.connection() as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await read_answer(reader)).status == 200
        writer.write(b"GET nonsense\r\n\r\n")
        envelope(await read_answer(reader), 400)
        assert await reader.read() == b""


async def test_long_lines_within_the_limit_are_read(http: Socket, owner: Person) -> None:
    assert (await http.get("/healthz", X_Long="x" * 60_000)).status == 200
    assert (await http.get(f"/healthz?x={'x' * 60_000}")).status == 200
    answer = await http.get(f"{API}/interceptions?x={'x' * 60_000}", owner)
    assert answer.status == 200
    assert answer.json() == {"results": [], "total": 0, "count": 0}
    envelope(await http.get(f"/{'x' * 60_000}"), 404)


async def test_the_longest_search(http: Socket, owner: Person) -> None:
    # 8,192 characters, of up to twelve bytes each in the URL.
    for what in ("interceptions", "models", "clients"):
        key = "client" if what == "clients" else "model"
        for longest in (f'{key}:"{"a" * (8192 - len(key) - 3)}"', f'{key}:"{"😀" * 3000}"'):
            answer = await http.get(f"{API}/{what}?q={quote(longest)}", owner)
            assert answer.status == 200, what
            assert len(answer.raw) < 8000, "a head that proxies and clients still read"
        answer = await http.get(f"{API}/{what}?q={quote('é' * 8193)}", owner)
        body = envelope(answer, 400, f"Invalid {what} search query.")
        assert [validation["field"] for validation in body["validations"]] == ["q"]
        assert "é" not in answer.body.decode()


async def test_a_long_search_still_leads_to_the_next_page(http: Socket, owner: Person, sql: Sql) -> None:
    model = "m" * 2000
    put(sql, "interceptions", {"model": model}, {"model": model})
    answer = await http.get(f"{API}/interceptions?limit=1&q=model:{model}", owner)
    assert len(answer.raw) < 8000
    [link] = [link for link in answer.headers["link"].split(", ") if link.endswith('; rel="next"')]
    following = parse_qs(urlsplit(link[1:].partition(">")[0]).query)
    assert following == {"q": [f"model:{model}"], "limit": ["1"], "offset": ["1"]}


async def test_bytes_in_a_url_that_are_no_text(http: Socket, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {})
    for value in ("%FF", "%C3", "%ED%A0%80", "%", "%zz", "%00", "\xff", "\xc3\xa9", "%F4%90%80%80", "%C0%80"):
        for target in (
            f"x={value}",
            f"{value}=x",
            f"q={value}",
            f"q=model:{value}",
            f"limit={value}",
            f"after_id={value}",
        ):
            answer = await http.get(f"{API}/interceptions?{target}", owner)
            assert answer.status in {200, 400}, target
            if answer.status == 400:
                envelope(answer, 400)
            elif target.startswith(("x=", value)):
                assert answer.json()["total"] == 1
        answer = await http.get(f"/{value}", owner)
        assert answer.status in {400, 404}, value


async def test_other_forms_of_a_target(http: Socket) -> None:
    assert (await http.get("http://example.com/healthz")).status == 200
    envelope(await http.get(f"http://example.com{API}/interceptions"), 401)
    for method, target in (("OPTIONS", "*"), ("CONNECT", "example.com:443"), ("CONNECT", "/healthz"), ("GET", "*")):
        answer = await http.get(target, method=method)
        assert answer.status in {400, 404, 405}, (method, target)
        envelope(answer, answer.status)


async def test_an_expectation_that_cannot_be_met(http: Socket, owner: Person) -> None:
    for path in ("/healthz", f"{API}/interceptions", "/nothing"):
        answer = await http.get(path, owner, Expect="nonsense")
        envelope(answer, 400, "The request is not valid HTTP.")
        assert "nonsense" not in answer.body.decode()
    async with http.connection() as (reader, writer):
        request = (
            f"POST {API}/log-requests HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: {owner.token}\r\n"
            "Content-Length: 17\r\nExpect: 100-continue\r\n\r\n"
        )
        writer.write(request.encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b'{"enabled": true}')
        assert (await read_answer(reader)).status == 200


# -- bodies ----------------------------------------------------------------------------------------------------------


async def test_broken_bodies(http: Socket, owner: Person) -> None:
    body = b'{"enabled": true}'
    packed = gzip.compress(body)
    broken = {
        "a chunk's size that is no number": (b"Transfer-Encoding: chunked", b"zz\r\n" + body + b"\r\n0\r\n\r\n"),
        "a chunk that is longer than it says": (b"Transfer-Encoding: chunked", b"2\r\n" + body + b"\r\n0\r\n\r\n"),
        "a negative chunk": (b"Transfer-Encoding: chunked", b"-2\r\n" + body + b"\r\n0\r\n\r\n"),
        "no gzip": (b"Content-Encoding: gzip\r\nContent-Length: 17", body),
        "broken gzip": (
            b"Content-Encoding: gzip\r\nContent-Length: %d" % len(packed),
            packed[:12] + b"\xff\xff\xff" + packed[15:],
        ),
        "half a gzip": (b"Content-Encoding: gzip\r\nContent-Length: 20", packed[:20]),
        "an encoding that nobody knows": (
            b"Content-Encoding: rot13\r\nContent-Length: 17",
            b'{"ranoyrq": gehr}',
        ),
        "no deflate": (b"Content-Encoding: deflate\r\nContent-Length: 17", body),
        "another encoding": (b"Content-Encoding: br\r\nContent-Length: 17", body),
    }
    for what, (headers, data) in broken.items():
        async with http.connection() as (reader, writer):
            writer.write(
                b"POST %b/log-requests HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: %b\r\n%b\r\n\r\n%b"
                % (API.encode(), owner.token.encode(), headers, data)
            )
            try:
                answer = await read_answer(reader)
            except (AssertionError, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as problem:
                pytest.fail(f"{what}: {problem!r}")
        assert answer.status in {400, 415}, what
        envelope(answer, answer.status)
        assert b"enabled" not in answer.body, what
    assert (await http.get(f"{API}/log-requests", owner)).json()["enabled"] is False


async def test_a_body_that_never_ends_holds_up_nobody(http: Socket, owner: Person) -> None:
    async with http.connection() as (_, writer):
        writer.write(
            b"POST %b/log-requests HTTP/1.1\r\nHost: x\r\nCoder-Session-Token: %b\r\nContent-Length: 17\r\n\r\n{"
            % (API.encode(), owner.token.encode())
        )
        await writer.drain()
        assert (await http.get(f"{API}/interceptions", owner)).status == 200
    # Now it is cut off: nothing is switched, and the service goes on.
    assert (await http.get(f"{API}/log-requests", owner)).json()["enabled"] is False


async def test_the_size_is_refused_before_a_body_is_read(http: Socket, owner: Person, member: Person) -> None:
    for person, status in ((owner, 413), (member, 403)):
        answer = await http.get(f"{API}/log-requests", person, method="POST", Content_Length=str(10**12))
        envelope(answer, status)


# -- when things break -----------------------------------------------------------------------------------------------


async def test_a_crash_says_nothing_but_its_request_id(
    http: Socket, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, function, path in ((users, "find_id", "interceptions?q=olivia"), (names, "list_names", "models")):
        for problem in (RuntimeError(SECRET), KeyError(SECRET), ValueError(SECRET), TypeError(SECRET)):

            async def crash(*_: object, problem: Exception = problem, **__: object) -> None:
                raise problem

            monkeypatch.setattr(module, function, crash)
            answer = await http.get(f"{API}/{path}", owner, X_Request_Id="tell-me-more")
            body = envelope(answer, 500)
            assert "tell-me-more" in body["detail"]
            assert answer.headers["x-request-id"] == "tell-me-more"
            assert SECRET not in answer.body.decode()
            assert "Traceback" not in answer.body.decode()
            assert type(problem).__name__ not in answer.body.decode()
    monkeypatch.undo()
    assert (await http.get(f"{API}/interceptions", owner)).status == 200


async def test_a_connection_that_dies_in_the_middle(
    http: Socket, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_id = users.find_id

    async def terminate_and_find(*arguments: Any, **named: Any) -> UUID | None:
        sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'bridgelog' AND datname = current_database()"
        )
        return await find_id(*arguments, **named)

    monkeypatch.setattr(users, "find_id", terminate_and_find)
    for _ in range(5):
        answer = await http.get(f"{API}/interceptions?q=olivia", owner)
        envelope(answer, 503, "The database is unavailable. Please try again shortly.")
        assert int(answer.headers["retry-after"]) > 0
    monkeypatch.undo()
    await recovers(http, owner)


async def recovers(http: Socket, person: Person) -> None:
    """A connection that had died costs one request at most."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await http.get(f"{API}/interceptions", person)).status != 200:
            envelope(answer, 503)
            await asyncio.sleep(0.05)
    assert (await http.get("/readyz")).status == 200


class Wire:
    """A TCP port before the database's socket, which can be cut and mended."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(self._path)
        self._open |= {writer, there_writer}

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))
        self._open -= {writer, there_writer}


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    folder = parse_qs(urlsplit(database_url).query)["host"][0]
    wire = Wire(f"{folder}/.s.PGSQL.5432")
    await wire.mend()
    yield wire
    await wire.cut()


async def test_the_database_gone_and_back(
    wire: Wire, start_server: StartServer, database_url: str, owner: Person
) -> None:
    name = urlsplit(database_url).path.lstrip("/")
    user = urlsplit(database_url).username or "bridgelog"
    http = await start_server(f"postgresql://{user}@127.0.0.1:{wire.port}/{name}")
    assert (await http.get(f"{API}/interceptions", owner)).status == 200
    for _ in range(2):
        await wire.cut()
        for path in ("interceptions", "models", "clients", "log-requests"):
            answer = await http.get(f"{API}/{path}", owner)
            body = envelope(answer, 503, "The database is unavailable. Please try again shortly.")
            assert int(answer.headers["retry-after"]) > 0
            assert str(wire.port) not in str(body)
        answer = await http.get(f"{API}/log-requests", owner, method="POST")
        envelope(answer, 503 if answer.status == 503 else 400)
        answer = await http.get("/readyz")
        envelope(answer, 503, "The service is not ready.")
        assert int(answer.headers["retry-after"]) > 0
        assert (await http.get("/healthz")).status == 200, "a process without a database is alive"
        assert (await http.get("/metrics")).status == 200
        assert (await http.get(f"{API}/interceptions")).status == 401
        envelope(await http.get("/nothing"), 404)
        await wire.mend()
        await recovers(http, owner)


async def test_a_database_that_nobody_migrated(
    start_server: StartServer, empty_database_url: str, owner: Person
) -> None:
    http = await start_server(empty_database_url)
    answer = await http.get(f"{API}/interceptions", owner)
    envelope(answer, 503)
    assert int(answer.headers["retry-after"]) > 0
    envelope(await http.get("/readyz"), 503)


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_sigterm_drains_and_open_requests_finish(
    start_server: StartServer, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = await start_server(drain_seconds=60.0, shutdown_timeout=PATIENCE)
    begun, go_on = asyncio.Event(), asyncio.Event()
    find_id = users.find_id

    async def slow(*arguments: Any, **named: Any) -> UUID | None:
        begun.set()
        await go_on.wait()
        return await find_id(*arguments, **named)

    monkeypatch.setattr(users, "find_id", slow)
    assert (await http.get("/readyz")).status == 200
    open_request = asyncio.create_task(http.get(f"{API}/interceptions?q=olivia", owner))
    await asyncio.wait_for(begun.wait(), timeout=PATIENCE)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        while (answer := await http.get("/readyz")).status == 200:  # noqa: ASYNC110  # as a load balancer does
            await asyncio.sleep(0.01)
    envelope(answer, 503, "The service is not ready.")
    assert int(answer.headers["retry-after"]) > 0
    # Still draining: everything is answered.
    assert (await http.get("/healthz")).status == 200
    assert (await http.get(f"{API}/models", owner)).status == 200
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await http.get("/healthz")
            except (OSError, asyncio.IncompleteReadError):
                break
            await asyncio.sleep(0.01)
    assert not open_request.done()
    assert not http.task.done()
    go_on.set()
    answer = await open_request
    assert answer.status == 200
    assert answer.json()["results"] == []
    async with asyncio.timeout(PATIENCE):
        await http.task
