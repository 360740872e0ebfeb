"""Replicas behind nginx, as deployed: what callers notice while one ends, dies or comes back; and slow callers.

The replicas are processes of the command line, nginx runs with the configuration that is deployed. Stand-ins are only the
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

import anthropic
import openai
import psycopg
import pytest
from conftest import API, Person, interception
from fleet import (
    CONFIGURATION,
    PATIENCE,
    Caller,
    Load,
    Proxy,
    Replica,
    check,
    free_port,
    proxied,
    standing_in,
    upstream,
)
from recorder import ndjson, running, thought, token_usage, tool_usage, user_prompt, without

from service import errors, routes

Sql = Callable[..., list[tuple[Any, ...]]]
StartReplica = Callable[..., Replica]

SLOW = 500
SOAK = os.environ.get("BRIDGELOG_TEST_SOAK") == "1"
# What the retrying location adds; taken away, a POST is sent once.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'bridgelog'"
TWICE = ("error timeout non_idempotent;", "error timeout;")
KEY = ("proxy_set_header Idempotency-Key $recording_key;", "")


@pytest.fixture
def replica(database_url: str, tmp_path: Path) -> Iterator[StartReplica]:
    """Start a replica on this test's database: `replica()`, or one that drains longer."""
    started: list[Replica] = []

    def start(drain_seconds: float = 0.3, **settings: str) -> Replica:
        one = Replica(database_url, tmp_path / f"replica-{len(started)}.log", drain_seconds, settings)
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
    one = replica(PATIENCE)
    with Caller(one.port, owner) as kept, Caller(one.port, owner) as asking:
        assert "connection" not in kept.send("GET", f"{API}/models")[2]
        one.signal(signal.SIGTERM)
        while asking.send("GET", "/readyz")[0] == 200:  # until the signal has arrived
            pass
        for method, path, body in (("GET", f"{API}/models", None), ("POST", f"{API}/interceptions", running())):
            status, _, headers = kept.send(method, path, body)
            assert (status, headers["connection"]) == (201 if body else 200, "close")
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
    guard: str, pair: list[Replica], owner: Person, sql: Sql, tmp_path: Path
) -> None:
    changes = [] if guard == "in place" else [TWICE]
    bodies = [running() for _ in range(8)]
    answers: list[int] = []

    def record(port: int, body: dict[str, Any]) -> None:
        with Caller(port, owner) as caller:
            answers.append(caller.send("POST", f"{API}/interceptions", body)[0])

    with proxied(tmp_path / "nginx", [one.port for one in pair], *changes) as proxy:
        threads = [threading.Thread(target=record, args=(proxy.port, body)) for body in bodies]
        with psycopg.connect(pair[0].database_url) as blocker:
            blocker.execute("LOCK TABLE aibridge_interceptions IN SHARE ROW EXCLUSIVE MODE")
            for thread in threads:
                thread.start()
            while sql(WAITING)[0][0] < len(bodies):
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

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        caller = http.client.HTTPConnection("127.0.0.1", self.replica, timeout=PATIENCE)
        caller.request("POST", self.path, body, dict(self.headers))
        caller.getresponse().read()
        caller.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nowhere."""


@pytest.fixture
def lossy(replica: StartReplica, tmp_path: Path) -> Iterator[Callable[..., contextlib.AbstractContextManager[Proxy]]]:
    """nginx that asks a forgetful replica first, each time, and a sound one behind it where no answer came."""
    sound = replica()
    with upstream(type("Lost", (Forgetful,), {"replica": sound.port})) as port:

        def begin(*changes: tuple[str, str]) -> contextlib.AbstractContextManager[Proxy]:
            always = ("max_fails=1", "max_fails=0")
            return proxied(tmp_path / f"nginx-{uuid4()}", [port], always, *changes, behind=[sound.port])

        yield begin


def test_what_was_stored_before_its_answer_was_lost_is_stored_once(
    lossy: Callable[..., contextlib.AbstractContextManager[Proxy]], owner: Person, sql: Sql
) -> None:
    with lossy() as proxy, Caller(proxy.port, owner) as caller:
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
    with lossy(KEY) as proxy, Caller(proxy.port, owner) as caller:
        status, _, _ = caller.send("POST", f"{API}/interceptions", without(running(), "id"))
        assert status == 201
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(2,)]


def test_all_that_failed_a_moment_ago_are_asked_again(tmp_path: Path, owner: Person) -> None:
    # In a rolling restart the second replica ends while the first, back again, still counts as failed.
    last = ("server 127.0.0.1:{} max_fails=0 backup;", "")
    for guard, expected in ((), 200), ((last,), 503):
        ports = [free_port(), free_port()]
        changes = [(old.format(port), new) for old, new in guard for port in ports]
        forever = ("fail_timeout=2s", "fail_timeout=600s")
        with (
            proxied(tmp_path / f"nginx-{expected}", ports, forever, *changes) as proxy,
            Caller(proxy.port, owner) as caller,
        ):
            assert caller.send("GET", "/healthz")[0] == 503, "nobody is there"
            with upstream(Told, ports[0]):
                assert caller.send("GET", "/healthz")[0] == expected


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
    with proxied(tmp_path / "nginx", [one.port]) as proxy, Caller(proxy.port, owner) as caller:
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
            with (
                proxied(tmp_path / f"nginx-{number}", [port], *changes) as proxy,
                Caller(proxy.port, owner) as caller,
            ):
                status, headers, _ = caller.send("GET", "/healthz", **claims)
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
        if "Content-Length" in self.headers:  # nginx has read the body whole
            self.rfile.read(int(self.headers["Content-Length"]))
        else:
            size = int(self.rfile.readline(), 16)
            assert self.rfile.read(size) == b"first\n"
            self.begun.set()
            while self.rfile.readline() not in {b"0\r\n", b""}:
                pass
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b"data: one\n\n")
        assert self.told.wait(PATIENCE)
        self.wfile.write(b"data: two\n\n")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nowhere."""


def test_what_streams_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    begun, told = threading.Event(), threading.Event()
    handler = type("One", (Streaming,), {"begun": begun, "told": told})
    head = "POST {}{} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n"
    with upstream(handler) as port, proxied(tmp_path / "nginx", [port]) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
            client.sendall(head.format(API, "/interceptions/import").encode())
            assert begun.wait(PATIENCE), "the upstream reads while the client still sends"
            told.set()
            client.sendall(b"0\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        told.clear()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as client:
            client.sendall(head.format(API, "/anthropic/v1/messages").encode() + b"0\r\n\r\n")
            received = b""
            while b"data: one" not in received:  # times out if it is held back
                received += client.recv(4096)
            assert b"data: two" not in received
            told.set()
            while b"data: two" not in received:
                received += client.recv(4096)


def test_the_clients_of_providers_work_through_the_proxy(
    replica: StartReplica, owner: Person, sql: Sql, tmp_path: Path
) -> None:
    asked: Any = [{"role": "user", "content": "Why?"}]
    with standing_in(tmp_path / "stand-in.log") as provider:
        one = replica(
            BRIDGELOG_ANTHROPIC_KEY="any",
            BRIDGELOG_ANTHROPIC_BASE_URL=f"http://127.0.0.1:{provider}/anthropic",
            BRIDGELOG_OPENAI_KEY="any",
            BRIDGELOG_OPENAI_BASE_URL=f"http://127.0.0.1:{provider}/openai/v1",
            BRIDGELOG_SPOOL_DIR=str(tmp_path / "spool"),
        )
        with proxied(tmp_path / "nginx", [one.port]) as proxy:
            api = f"http://127.0.0.1:{proxy.port}{API}"
            with (
                anthropic.Anthropic(base_url=f"{api}/anthropic", api_key=owner.token, max_retries=0) as claude,
                claude.messages.stream(model="standin-silent-3000", max_tokens=100, messages=asked) as stream,
            ):
                assert next(iter(stream)).type == "message_start"
                # With the client before the provider has told all: nothing is held back.
                assert sql("SELECT ended_at FROM aibridge_interceptions") == [(None,)]
                message = stream.get_final_message()
            with openai.OpenAI(base_url=f"{api}/openai/v1", api_key=owner.token, max_retries=0) as gpt:
                chat = gpt.chat.completions.create(model="standin-tools", messages=asked)
    kept: dict[str, int] = dict(
        sql(
            "SELECT interceptions.provider, token_usages.output_tokens FROM aibridge_interceptions AS interceptions "
            "INNER JOIN aibridge_token_usages AS token_usages ON interceptions.id = token_usages.interception_id "
            "WHERE interceptions.ended_at IS NOT NULL"
        )
    )
    assert chat.usage is not None
    assert kept == {"anthropic": message.usage.output_tokens, "openai": chat.usage.completion_tokens}


def test_what_the_proxy_refuses_of_a_bridge_the_clients_of_providers_understand(tmp_path: Path, owner: Person) -> None:
    asked: Any = [{"role": "user", "content": "Why?"}]
    with proxied(tmp_path / "nginx", [free_port()]) as proxy:
        api = f"http://127.0.0.1:{proxy.port}{API}"
        with (
            anthropic.Anthropic(base_url=f"{api}/anthropic", api_key=owner.token, max_retries=0) as claude,
            openai.OpenAI(base_url=f"{api}/openai/v1", api_key=owner.token, max_retries=0) as gpt,
        ):
            with pytest.raises(anthropic.InternalServerError) as away:
                claude.messages.create(model="m", max_tokens=100, messages=asked)
            with pytest.raises(openai.InternalServerError) as gone:
                gpt.chat.completions.create(model="m", messages=asked)
            with pytest.raises(anthropic.APIStatusError) as large:
                claude.messages.create(
                    model="m", max_tokens=100, messages=[{"role": "user", "content": "x" * (34 << 20)}]
                )
    for refused in (away.value, gone.value):
        assert refused.status_code == 503
        assert refused.response.headers["retry-after"] == "1"
        assert re.fullmatch(r"[0-9a-f]{32}", refused.response.headers["x-bridgelog-request-id"])
    assert gone.value.body == {"type": "api_error", "message": "The service is not ready.", "param": None, "code": None}
    assert away.value.body == {"type": "error", "error": gone.value.body}
    assert large.value.status_code == 413
    assert "Request body is too large." in large.value.message


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
    sentences = {str(refusal.__doc__).splitlines()[0] for refusal in errors.Refusal.__subclasses__()}
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
            with Caller(proxy.port, owner) as caller:
                status, answer, told = caller.send(method, path, None, **headers)
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
                load.more(20)
            assert load.ledger.failed == []
            for caller in callers:
                caller.setblocking(False)
                with pytest.raises(BlockingIOError):  # neither answered nor cut off: it was slow all the time
                    caller.recv(1)
                caller.settimeout(PATIENCE)
    sql("DELETE FROM aibridge_interceptions WHERE id = %s", json.loads(body)["id"])
    check(load.ledger, sql)
