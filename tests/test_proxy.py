"""Replicas behind nginx, as deployed: what callers notice while one ends, dies or comes back; and slow callers.

Where the database's own processes matter, the replicas are processes of the command line; nothing here is a stand-in, save the
upstreams that lose an answer, or tell what reached them.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from conftest import API, Person, interception
from fleet import CONFIGURATION, PATIENCE, Caller, Load, Proxy, Replica, check, free_port, proxied, upstream
from recorder import ndjson, running, thought, token_usage, tool_usage, user_prompt, without

from service import errors, routes

Sql = Callable[..., list[tuple[Any, ...]]]
StartReplica = Callable[[], Replica]

SLOW = 500
SOAK = os.environ.get("BRIDGELOG_TEST_SOAK") == "1"
# What the retrying location adds; taken away, a POST is sent once.
TWICE = ("error timeout non_idempotent;", "error timeout;")
KEY = ("proxy_set_header Idempotency-Key $recording_key;", "")


@pytest.fixture
def replica(database_url: str, tmp_path: Path) -> Iterator[StartReplica]:
    """Start a replica on this test's database."""
    started: list[Replica] = []

    def start() -> Replica:
        one = Replica(database_url, tmp_path / f"replica-{len(started)}.log")
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def pair(replica: StartReplica) -> list[Replica]:
    """Two replicas."""
    return [replica(), replica()]


@pytest.fixture
def proxy(pair: list[Replica], tmp_path: Path) -> Iterator[Proxy]:
    """nginx in front of the two."""
    with proxied(tmp_path / "nginx", [one.port for one in pair]) as running_proxy:
        yield running_proxy


def sent_again(proxy: Proxy) -> list[dict[str, Any]]:
    """The requests that more than one replica was asked for."""
    return [request for request in proxy.requests() if "," in request["upstream"]]


# -- a replica ends --------------------------------------------------------------------------------------------------


def test_a_replica_that_is_told_to_end_fails_no_request(
    pair: list[Replica], proxy: Proxy, owner: Person, sql: Sql
) -> None:
    with Load(proxy.port, owner) as load:
        load.more(50)
        pair[0].signal(signal.SIGTERM)
        load.more(20)
        assert pair[0].wait() == 0
        load.more(50)
    assert load.ledger.failed == []
    check(load.ledger, sql)
    asked = {request["upstream"] for request in proxy.requests()}
    assert {f"127.0.0.1:{one.port}" for one in pair} <= asked, "both had their share"


def test_a_rolling_restart_fails_no_request(pair: list[Replica], proxy: Proxy, owner: Person, sql: Sql) -> None:
    with Load(proxy.port, owner) as load:
        for one in pair:
            load.more(20)
            one.signal(signal.SIGTERM)
            assert one.wait() == 0
            one.start()
        load.more(20)
    assert load.ledger.failed == []
    check(load.ledger, sql)


def test_on_the_way_out_every_answer_closes_its_connection(replica: StartReplica, owner: Person) -> None:
    one = replica()
    one.signal(signal.SIGTERM)
    one.wait()
    one.drain_seconds = PATIENCE
    one.start()
    callers = [Caller(one.port, owner) for _ in range(2)]
    for caller in callers:
        assert "connection" not in caller.send("GET", f"{API}/models")[2]
    one.signal(signal.SIGTERM)
    status, _, _ = callers[0].send("GET", "/healthz")
    assert status == 200
    while callers[0].send("GET", "/readyz")[0] == 200:  # until the signal has arrived
        pass
    status, answer, headers = callers[1].send("GET", f"{API}/models")
    assert (status, answer, headers["connection"]) == (200, [], "close")
    status, _, headers = callers[1].send("POST", f"{API}/interceptions", running())
    assert (status, headers["connection"]) == (201, "close")
    one.signal(signal.SIGTERM)  # hurry
    assert one.wait() == 0


# -- a replica dies --------------------------------------------------------------------------------------------------


def test_a_killed_replica_fails_no_request_and_loses_nothing(
    pair: list[Replica], proxy: Proxy, owner: Person, sql: Sql
) -> None:
    with Load(proxy.port, owner) as load:
        for one in pair:
            load.more(30)
            one.signal(signal.SIGKILL)
            one.wait()
            load.more(30)
            one.start()
    assert load.ledger.failed == []
    assert sent_again(proxy), "the dead one was asked first, at times"
    check(load.ledger, sql)


@pytest.mark.skipif(not SOAK, reason="a minute of killing replicas: BRIDGELOG_TEST_SOAK=1, or make soak")
def test_a_minute_of_killing_and_restarting(pair: list[Replica], proxy: Proxy, owner: Person, sql: Sql) -> None:
    until = time.monotonic() + 60
    with Load(proxy.port, owner) as load:
        while time.monotonic() < until:
            for one, number in zip(pair * 2, (signal.SIGKILL, signal.SIGTERM) * 2, strict=True):
                load.more(20)
                one.signal(number)
                one.wait()
                one.start()
    assert load.ledger.failed == []
    check(load.ledger, sql)


@pytest.mark.parametrize("guard", ["in place", "removed"])
def test_recordings_that_hang_on_a_killed_replica_are_answered_by_the_other(
    guard: str, pair: list[Replica], owner: Person, database_url: str, sql: Sql, tmp_path: Path
) -> None:
    changes = [] if guard == "in place" else [TWICE]
    bodies = [running() for _ in range(8)]
    answers: list[int] = []

    def record(port: int, body: dict[str, Any]) -> None:
        answers.append(Caller(port, owner).send("POST", f"{API}/interceptions", body)[0])

    with proxied(tmp_path / "nginx", [one.port for one in pair], *changes) as proxy:
        threads = [threading.Thread(target=record, args=(proxy.port, body)) for body in bodies]
        with psycopg.connect(database_url) as blocker:
            blocker.execute("LOCK TABLE aibridge_interceptions IN SHARE ROW EXCLUSIVE MODE")
            for thread in threads:
                thread.start()
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'bridgelog'"
            while sql(waiting)[0][0] < len(bodies):
                time.sleep(0.02)
            pair[0].signal(signal.SIGKILL)
            pair[0].wait()
        for thread in threads:
            thread.join(timeout=2 * PATIENCE)
    unanswered = answers.count(503)
    assert answers.count(201) + answers.count(200) + unanswered == len(bodies)
    assert (unanswered == 0) if guard == "in place" else (unanswered > 0)
    if guard == "in place":
        assert {str(row[0]) for row in sql("SELECT id FROM aibridge_interceptions")} == {body["id"] for body in bodies}


class Forgetful(http.server.BaseHTTPRequestHandler):
    """A replica that does what it is asked, and dies before it has answered."""

    replica: int
    asked: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        caller = http.client.HTTPConnection("127.0.0.1", self.replica, timeout=PATIENCE)
        caller.request("POST", self.path, body, dict(self.headers))
        self.asked.append(f"{self.path} {caller.getresponse().status}")
        caller.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nowhere."""


@pytest.fixture
def lossy(replica: StartReplica, tmp_path: Path) -> Iterator[Callable[..., contextlib.AbstractContextManager[Proxy]]]:
    """nginx that asks a forgetful replica first, each time, and a sound one behind it where no answer came."""
    sound = replica()
    with upstream(type("Lost", (Forgetful,), {"replica": sound.port, "asked": []})) as port:

        def begin(*changes: tuple[str, str]) -> contextlib.AbstractContextManager[Proxy]:
            always = ("max_fails=1", "max_fails=0")
            return proxied(tmp_path / f"nginx-{uuid4()}", [port], always, *changes, behind=[sound.port])

        yield begin


def test_what_was_stored_before_its_answer_was_lost_is_stored_once(
    lossy: Callable[..., contextlib.AbstractContextManager[Proxy]], owner: Person, sql: Sql
) -> None:
    with lossy() as proxy:
        caller = Caller(proxy.port, owner)
        body = running()
        below = f"{API}/interceptions/{body['id']}"
        anonymous = without(running(), "id")
        for path, sent in (
            (f"{API}/interceptions", body),
            (f"{API}/interceptions", anonymous),
            (f"{below}/token-usages", without(token_usage(), "id")),
            (f"{below}/user-prompts", [without(user_prompt(), "id"), without(user_prompt(), "id")]),
            (f"{below}/tool-usages", tool_usage()),
            (f"{below}/model-thoughts", thought()),
            (f"{below}/end", {"ended_at": "2026-03-01T10:00:05Z", "metadata": {"a": 1}}),
            (f"{API}/log-requests", {"enabled": True}),
        ):
            status, answer, _ = caller.send("POST", path, sent)
            assert status in {200, 201}, (path, answer)
        assert len(sent_again(proxy)) == 8
        # An import was passed on as it came, and is not kept: whoever sent it hears of it.
        status, answer, headers = caller.send("POST", f"{API}/interceptions/import", ndjson(interception()))
        assert (status, answer, headers["retry-after"]) == (503, {"message": "The service is not ready."}, "1")
    stored = {
        noun: sql(f"SELECT count(*) FROM {noun}")[0][0]  # noqa: S608
        for noun in (
            "aibridge_interceptions",
            "aibridge_token_usages",
            "aibridge_user_prompts",
            "aibridge_tool_usages",
            "aibridge_model_thoughts",
            "bridgelog_request_logging_changes",
        )
    }
    assert list(stored.values()) == [3, 1, 2, 1, 1, 1], stored


def test_without_a_key_what_has_no_id_would_be_stored_twice(
    lossy: Callable[..., contextlib.AbstractContextManager[Proxy]], owner: Person, sql: Sql
) -> None:
    with lossy(KEY) as proxy:
        status, _, _ = Caller(proxy.port, owner).send("POST", f"{API}/interceptions", without(running(), "id"))
        assert status == 201
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(2,)]


def test_all_that_failed_a_moment_ago_are_asked_again(tmp_path: Path, owner: Person) -> None:
    # In a rolling restart the second replica ends while the first, back again, still counts as failed.
    last = ("server 127.0.0.1:{} max_fails=0 backup;", "")
    for guard, expected in ((), 200), ((last,), 503):
        ports = [free_port(), free_port()]
        changes = [(old.format(port), new) for old, new in guard for port in ports]
        forever = ("fail_timeout=2s", "fail_timeout=600s")
        with proxied(tmp_path / f"nginx-{expected}", ports, forever, *changes) as proxy:
            caller = Caller(proxy.port, owner)
            assert caller.send("GET", "/healthz")[0] == 503, "nobody is there"
            handler = type("There", (Told,), {"port": ports[0]})
            server = http.server.ThreadingHTTPServer(("127.0.0.1", ports[0]), handler)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert caller.send("GET", "/healthz")[0] == expected
            caller.close()
            server.shutdown()
            thread.join()
            server.server_close()


# -- what is passed on -----------------------------------------------------------------------------------------------


class Told(http.server.BaseHTTPRequestHandler):
    """An upstream that answers with the headers that it was sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nowhere."""


def test_a_request_id_is_the_same_everywhere(replica: StartReplica, owner: Person, tmp_path: Path) -> None:
    one = replica()
    with proxied(tmp_path / "nginx", [one.port]) as proxy:
        caller = Caller(proxy.port, owner)
        given = [caller.send("GET", f"{API}/models", X_Request_Id=f"mine.{number}")[2] for number in range(3)]
        made = [caller.send("GET", f"{API}/models", X_Request_Id=bad)[2] for bad in ("a b", "x" * 65, "<b>", "")]
        made.append(caller.send("GET", "/metrics")[2])  # answered by nginx itself
    ids = [headers["x-request-id"] for headers in given + made]
    assert ids[:3] == ["mine.0", "mine.1", "mine.2"]
    assert all(re.fullmatch(r"[0-9a-f]{32}", made_id) for made_id in ids[3:])
    assert [request["request_id"] for request in proxy.requests() if request["path"] != "/"] == ids
    logged = [json.loads(line) for line in one.log.read_text().splitlines() if line.startswith("{")]
    assert [line["request_id"] for line in logged if line.get("route") == "/models"] == ids[:-1]


def test_only_a_trusted_proxy_says_for_whom_it_speaks(owner: Person, tmp_path: Path) -> None:
    claims = {
        "X_Forwarded_For": "6.6.6.6",
        "X_Forwarded_Proto": "https",
        "X_Forwarded_Host": "evil.example",
        "X_Real_IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6",
    }
    trusted = [
        ("# set_real_ip_from 10.0.0.0/8;", "set_real_ip_from 127.0.0.0/8;"),
        ("# 10.0.0.0/8 1;", "127.0.0.0/8 1;"),
    ]
    seen = []
    with upstream(Told) as port:
        for number, changes in enumerate(([], trusted)):
            with proxied(tmp_path / f"nginx-{number}", [port], *changes) as proxy:
                status, headers, _ = Caller(proxy.port, owner).send("GET", "/healthz", **claims)
                assert status == 200
                assert not {"forwarded", "x-real-ip", "x-forwarded-host"} & set(headers)
                seen.append((headers["x-forwarded-for"], headers["x-forwarded-proto"]))
    assert seen == [("127.0.0.1", "http"), ("6.6.6.6", "https")]


class Streaming(http.server.BaseHTTPRequestHandler):
    """An upstream that tells when the first piece of a body has come, and answers piece by piece when it is told to."""

    protocol_version = "HTTP/1.1"
    begun: threading.Event
    told: threading.Event

    def do_POST(self) -> None:
        size = int(self.rfile.readline(), 16)
        assert self.rfile.read(size) == b"first\n"
        self.begun.set()
        while self.rfile.readline() != b"0\r\n":
            pass
        self.rfile.readline()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: one\n\n")
        assert self.told.wait(PATIENCE)
        self.wfile.write(b"data: two\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nowhere."""


def chunked(client: socket.socket, path: str) -> None:
    """Begin a body that comes in chunks."""
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    client.sendall(b"6\r\nfirst\n\r\n")


def test_what_streams_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    begun, told = threading.Event(), threading.Event()
    handler = type("One", (Streaming,), {"begun": begun, "told": told})
    with upstream(handler) as port, proxied(tmp_path / "nginx", [port]) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
            chunked(client, f"{API}/interceptions/import")
            assert begun.wait(PATIENCE), "the upstream reads while the client still sends"
            told.set()
        begun.clear()
        told.clear()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
            chunked(client, f"{API}/anthropic/v1/messages")
            client.sendall(b"0\r\n\r\n")
            received = b""
            while b"data: one" not in received:  # times out if it is held back
                received += client.recv(4096)
            assert b"data: two" not in received
            told.set()
            while b"data: two" not in received:
                received += client.recv(4096)


def test_every_recording_route_is_one_that_the_proxy_knows() -> None:
    text = CONFIGURATION.read_text()
    locations = re.findall(r"location ~ (\S+) \{\s+(\S+ \S+)", text)
    again = [re.compile(pattern) for pattern, first in locations if first == "proxy_next_upstream error"]
    streams = [re.compile(pattern) for pattern, first in locations if first == "client_max_body_size 0;"]
    assert len(again) == len(streams) == 1
    for route in routes.all_routes():
        path = re.sub(r"\{.*?\}\)?(?=/|$)", str(uuid4()), route.path)
        if route.method == "POST":
            imports = path.endswith("/import")
            assert bool(again[0].search(path)) is not imports, path
            assert bool(streams[0].search(path)) is imports, path
        assert not re.search(r"[{}]", path)


def test_what_the_proxy_refuses_looks_like_what_the_service_refuses(tmp_path: Path, owner: Person) -> None:
    sentences = {refusal.message for refusal in errors.Refusal.__subclasses__() if hasattr(refusal, "message")}
    nobody = [free_port()]
    seen = set()
    with proxied(tmp_path / "nginx", nobody) as proxy:
        for method, path, headers, expected in (
            ("GET", "/metrics", {}, 404),
            ("TRACE", "/", {}, 405),
            ("POST", f"{API}/interceptions", {"Content_Length": str(18 << 20)}, 413),
            ("GET", "/" + "x" * 80_000, {}, 431),
            ("GET", "/", {"X_Long": "x" * 80_000}, 431),
            ("GET", "/", {"Transfer_Encoding": "nonsense"}, 400),
            ("GET", f"{API}/models", {}, 503),
        ):
            caller = Caller(proxy.port, owner)
            status, answer, told = caller.send(method, path, None, **headers)
            caller.close()
            assert status == expected, (method, path[:80], answer)
            assert told["content-type"] == "application/json"
            assert re.fullmatch(r"[0-9a-f]{32}", told["x-request-id"])
            assert told["server"] == "nginx"
            assert told.get("retry-after") == ("1" if status == 503 else None)
            seen.add(answer["message"])
    assert seen <= sentences, seen - sentences


# -- slow callers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def slow_callers(port: int, person: Person, body: bytes) -> Iterator[list[socket.socket]]:
    """Callers of whom half send the head of a request a byte a second, and half a body."""
    signed = f"Host: x\r\nCoder-Session-Token: {person.token}\r\n"
    head = f"GET {API}/interceptions HTTP/1.1\r\n{signed}X-Long: {'x' * 1000}".encode()
    post = f"POST {API}/interceptions HTTP/1.1\r\n{signed}Content-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        callers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)) for _ in range(SLOW)
        ]
        rest = []
        for number, caller in enumerate(callers):
            if number % 2:
                caller.sendall(post)
            rest.append(iter(body if number % 2 else head))
        ended = threading.Event()

        def drip() -> None:
            for _ in range(len(body) - 1):
                for caller, left in zip(callers, rest, strict=True):
                    caller.sendall(bytes([next(left)]))
                if ended.wait(1):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield callers
        finally:
            ended.set()
            thread.join()
        # One of them makes up its mind.
        callers[1].sendall(bytes(rest[1]))
        assert callers[1].recv(4096).startswith(b"HTTP/1.1 201 "), "slow is not refused"


@pytest.mark.parametrize("through", ["the service", "nginx"])
def test_slow_callers_stop_nobody(through: str, replica: StartReplica, owner: Person, sql: Sql, tmp_path: Path) -> None:
    one = replica()
    body = json.dumps(running(metadata={"padding": "x" * 1000})).encode()
    with contextlib.ExitStack() as stack:
        port = (
            one.port if through == "the service" else stack.enter_context(proxied(tmp_path / "nginx", [one.port])).port
        )
        with slow_callers(port, owner, body) as callers:
            with Load(port, owner, callers=4) as load:
                load.more(60)
            assert load.ledger.failed == []
            for caller in callers:
                caller.setblocking(False)
                with pytest.raises(BlockingIOError):  # neither answered nor cut off: it was slow all the time
                    caller.recv(1)
                caller.settimeout(PATIENCE)
    sql("DELETE FROM aibridge_interceptions WHERE id = %s", json.loads(body)["id"])
    check(load.ledger, sql)
