"""The relay: what a client gets, what the provider gets, and what is recorded of it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from bridging import (
    API,
    CHAT,
    KEY,
    MESSAGES,
    OPENAI_KEY,
    RESPONSES,
    STREAM_HEAD,
    WAYS,
    Bridged,
    Way,
    chunk,
    listening,
    raw_provider,
)
from conftest import MakeClient, Person
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from standin.app import EXCHANGES, Exchange
from yarl import URL

from service import errors
from service.app import build_app
from service.bridge.recorder import Recorder
from service.settings import Settings

MakeBridge = Callable[..., Awaitable[Bridged]]
OWN_KEY = "sk-own-key-of-the-caller-0123456789"

START = b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":3}}}\n\n'
DELTA = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":5}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def exchanges(provider: TestServer) -> list[Exchange]:
    return [*provider.app[EXCHANGES]]


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def by_name(way: Way) -> str:
    return way.name


protocols = pytest.mark.parametrize("way", WAYS, ids=by_name)
modes = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


# -- the bytes --------------------------------------------------------------------------------------------------------


@protocols
@modes
async def test_an_answer_is_the_providers_and_is_recorded(
    bridge: Bridged, provider: TestServer, member: Person, way: Way, *, stream: bool
) -> None:
    headers = {"User-Agent": "claude-cli/2.0 (external)", "X-Claude-Code-Session-Id": "session-1"}
    async with bridge.ask(way, "standin-thinking+tools+cached", stream=stream, headers=headers) as response:
        body = await response.read()
        assert response.status == 200, body
    [exchange] = exchanges(provider)
    assert sha256(body) == exchange.sha256_without_usage
    [row] = await bridge.recorded()
    metadata = row.pop("metadata")
    assert metadata.pop("provider_request_id") == exchange.request_id
    key = KEY if way is MESSAGES else OPENAI_KEY
    assert metadata == {
        "status": "completed",
        "provider_status": 200,
        "credential_kind": "centralized",
        "credential_hint": f"{key[:4]}…{key[-4:]}",
        "request_user_agent": "claude-cli/2.0 (external)",
        "streaming": stream,
    }
    kind = "anthropic" if way is MESSAGES else "openai"
    assert (row["provider"], row["provider_name"], row["model"]) == (kind, kind, "standin-thinking+tools+cached")
    assert (row["initiator_id"], row["api_key_id"]) == (str(member.id), member.token.partition("-")[0])
    assert (row["client"], row["client_session_id"]) == ("Claude Code", "session-1")
    assert [prompt["prompt"] for prompt in row["user_prompts"]] == ["How are you?"]
    [usage] = row["token_usages"]
    assert usage["cache_read_input_tokens"] > 1_024
    assert usage["output_tokens"] > 40
    assert [(tool["tool"], tool["provider_tool_call_id"] != "") for tool in row["tool_usages"]] == [
        ("get_weather", True),
        ("list_cities", True),
    ]
    assert len(row["model_thoughts"]) == {MESSAGES.name: 1, CHAT.name: 0, RESPONSES.name: 2}[way.name]


WISHES = st.lists(
    st.sampled_from(
        ["thinking", "tools", "cached", "long-20", "cut", "crlf", "cr", "comments", "usage-last", "no-usage"]
    ),
    unique=True,
    max_size=5,
).filter(lambda wishes: not {"cr", "crlf"} <= set(wishes))


@examples(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(way=st.sampled_from(WAYS), stream=st.booleans(), wishes=WISHES, seed=st.integers(0, 10_000), asked=st.booleans())
async def test_whatever_the_chunks_the_bytes_are_the_providers(  # noqa: PLR0917 - what varies
    bridge: Bridged,
    provider: TestServer,
    way: Way,
    stream: bool,  # noqa: FBT001
    wishes: list[str],
    seed: int,
    asked: bool,  # noqa: FBT001
) -> None:
    members: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked and stream and way is CHAT else {}
    model = "standin-" + "+".join([*wishes, f"split-{seed}"])
    async with bridge.ask(way, model, stream=stream, **members) as response:
        body = await response.read()
        assert response.status == 200
    exchange = exchanges(provider)[-1]
    assert sha256(body) == (exchange.sha256 if members else exchange.sha256_without_usage)
    if not members:
        assert b'"prompt_tokens"' not in body or not stream or "usage-last" in wishes or way is not CHAT


@dataclass
class Sent:
    """What a raw provider answers next."""

    stream: bytes = b""
    seed: int = 0
    kind: bytes = b""

    async def answer(self, _: bytes, writer: asyncio.StreamWriter) -> None:
        sizes, position = random.Random(self.seed), 0
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % self.kind)
        while position < len(self.stream):
            size = sizes.choice((1, 2, 3, 30))
            writer.write(chunk(self.stream[position : position + size]))
            position += size
            if sizes.random() < 0.3:
                await asyncio.sleep(0)
        writer.write(chunk(b""))


@pytest.fixture
async def raw(make_bridge: MakeBridge) -> AsyncIterator[tuple[Bridged, Sent]]:
    sent = Sent()
    async with raw_provider(sent.answer) as url:
        yield await make_bridge(url), sent


@examples(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    stream=st.binary(max_size=400)
    | st.lists(st.sampled_from([START, DELTA, STOP, b"\r", b"\n", b"\r\n\r", b": x\n\n"])).map(b"".join),
    seed=st.integers(0, 1_000_000),
    kind=st.sampled_from([b"text/event-stream", b"application/json"]),
)
async def test_what_is_no_stream_of_events_is_relayed_as_it_is_too(
    raw: tuple[Bridged, Sent], stream: bytes, seed: int, kind: bytes
) -> None:
    bridge, sent = raw
    sent.stream, sent.seed, sent.kind = stream, seed, kind
    async with bridge.ask(MESSAGES, "m", stream=True) as response:
        assert await response.read() == stream


async def test_the_usage_chunk_that_only_the_bridge_asked_for_is_left_out_of_a_compressed_stream(
    bridge: Bridged,
) -> None:
    async with bridge.ask(CHAT, "standin-gzip", stream=True) as response:
        body = await response.read()
        assert "Content-Encoding" not in response.headers
    assert b'"usage": {' not in body
    assert body.endswith(b"data: [DONE]\n\n")
    async with bridge.ask(CHAT, "standin-gzip", stream=True, stream_options={"include_usage": True}) as response:
        asked = await response.read()
        assert response.headers["Content-Encoding"] == "gzip"
    assert b'"usage": {' in gzip.decompress(asked)
    assert [len(row["token_usages"]) for row in await bridge.recorded(2)] == [1, 1]


@protocols
@modes
async def test_a_compressed_answer_comes_as_it_is_and_is_read(
    bridge: Bridged, provider: TestServer, way: Way, *, stream: bool
) -> None:
    members: dict[str, Any] = {"stream_options": {"include_usage": True}} if way is CHAT and stream else {}
    async with bridge.ask(way, "standin-gzip+tools", stream=stream, **members) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert sha256(await response.read()) == exchanges(provider)[0].sha256
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "completed"
    assert (len(row["token_usages"]), len(row["tool_usages"])) == (1, 2)


async def test_an_encoding_that_is_not_read_is_relayed(make_bridge: MakeBridge) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: zstd\r\nContent-Length: 4\r\n\r\n"
            b"\x28\xb5\x2f\xfd"
        )

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        async with bridge.ask(MESSAGES, "m") as response:
            assert await response.read() == b"\x28\xb5\x2f\xfd"
        [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "completed"
    assert row["token_usages"] == []


@pytest.mark.parametrize("hides", [True, False])
async def test_a_stream_that_unpacks_to_much_is_held_in_pieces(make_bridge: MakeBridge, *, hides: bool) -> None:
    comments = b": " + b"x" * 65_534
    packed = gzip.compress(gzip.compress((comments * 1_023 + b"\n\n") * 4))

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD.replace(b"Request-Id", b"Content-Encoding: gzip, gzip\r\nRequest-Id"))
        writer.write(chunk(packed) + chunk(b""))

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, openai_key=OPENAI_KEY, openai_base_url=url)
        members: dict[str, Any] = {} if hides else {"stream_options": {"include_usage": True}}
        tracemalloc.start()
        try:
            async with bridge.session.post(
                f"{bridge.url}{API}{CHAT.path}",
                data=json.dumps(CHAT.body("m") | {"stream": True} | members).encode(),
                headers={"Authorization": f"Bearer {bridge.token}"},
                auto_decompress=False,
            ) as response:
                size = sum([len(data) async for data in response.content.iter_any()])
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert size == (len(comments) * 1_023 + 2) * 4 if hides else len(packed)
    assert most < 100 * 1024 * 1024


@pytest.mark.parametrize("size", [200_000, 3_000_000])
async def test_a_large_body_goes_up_byte_for_byte(bridge: Bridged, provider: TestServer, size: int) -> None:
    body = json.dumps(CHAT.body("m") | {"user": "é" * size}, ensure_ascii=False, indent=3).encode()
    headers = {"Authorization": f"Bearer {bridge.token}", "Content-Type": "application/json"}
    url = f"{bridge.url}{API}{CHAT.path}"
    async with bridge.session.post(url, data=io.BytesIO(body), headers=headers) as response:
        assert response.status == 200
    assert exchanges(provider)[0].body == body


async def test_a_compressed_body_is_unpacked_for_the_provider(bridge: Bridged, provider: TestServer) -> None:
    body = json.dumps(CHAT.body("m")).encode()
    headers = {"Authorization": f"Bearer {bridge.token}", "Content-Encoding": "gzip"}
    async with bridge.session.post(
        f"{bridge.url}{API}{CHAT.path}", data=gzip.compress(body), headers=headers
    ) as response:
        assert response.status == 200
    assert exchanges(provider)[0].body == body
    assert "content-encoding" not in exchanges(provider)[0].headers


# -- headers ----------------------------------------------------------------------------------------------------------


async def test_headers_go_up_but_for_those_that_must_not(bridge: Bridged, provider: TestServer) -> None:
    headers = [
        ("X-Api-Key", bridge.token),
        ("Authorization", "Basic bm9ib2R5OnNlY3JldA=="),
        ("Cookie", "coder_session_token=x"),
        ("Anthropic-Beta", "one"),
        ("Anthropic-Beta", "two"),
        ("User-Agent", "Claude-Thing/1"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "br"),
        ("Connection", "close, X-Per-Hop"),
        ("X-Per-Hop", "x"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic x"),
        ("TE", "trailers"),
        ("X-AI-Bridge-Actor", "me"),
        ("Expect", "100-continue"),
        ("Forwarded", "for=192.0.2.7"),
        ("Via", "1.1 proxy"),
        ("X-Real-IP", "192.0.2.7"),
        ("X-Forwarded-For", "192.0.2.7"),
        ("X-Forwarded-Proto", "https"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("Content-Type", "application/json"),
    ]
    body = json.dumps(MESSAGES.body("m")).encode()
    async with bridge.session.post(
        f"{bridge.url}{API}{MESSAGES.path}?beta=true&x=%2F", data=body, headers=headers
    ) as got:
        assert got.status == 200
    [exchange] = exchanges(provider)
    assert exchange.headers == {
        "host": [f"127.0.0.1:{provider.port}"],
        "x-api-key": [KEY],
        "anthropic-beta": ["one", "two"],
        "user-agent": ["Claude-Thing/1"],
        "accept": ["application/json"],
        "accept-encoding": ["identity"],
        "content-type": ["application/json"],
        "content-length": [str(len(body))],
    }


async def test_a_header_that_is_no_text_stays_here(bridge: Bridged, provider: TestServer) -> None:
    body = json.dumps(MESSAGES.body("m")).encode()
    url = URL(bridge.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"POST {API}{MESSAGES.path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {bridge.token}\r\nUser-Agent: caf".encode()
        + b"\xe9\r\nX-Latin: \xe9\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert not exchanges(provider)[0].headers.keys() & {"x-latin", "user-agent"}
    [row] = await bridge.recorded()
    assert row["metadata"]["request_user_agent"] == "caf\ufffd"


async def test_headers_come_back_but_for_those_that_speak_of_the_providers_address(make_bridge: MakeBridge) -> None:
    target = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        target.append(request.split(b" ")[1])
        writer.write(
            b"HTTP/1.1 403 Slow Down\r\nContent-Type: application/json; charset=x\r\nContent-Length: 2\r\n"
            b"Request-Id: req_1\r\nX-Request-Id: req_2\r\nRetry-After: 61\r\nX-Multi: 1\r\nX-Multi: 2\r\n"
            b"Anthropic-Ratelimit-Tokens-Remaining: 7\r\nSet-Cookie: a=b\r\nServer: cloudflare\r\nAlt-Svc: h3\r\n"
            b"Strict-Transport-Security: max-age=1\r\nConnection: keep-alive, X-Per-Hop\r\nX-Per-Hop: 1\r\n"
            b"Location: http://elsewhere.invalid/\r\nCache-Control: private\r\nX-Accel-Redirect: /etc/passwd\r\n\r\n{}"
        )

    async with raw_provider(answer) as url:
        bridge = await make_bridge(f"{url}/base/")
        async with bridge.ask(MESSAGES, "m", headers={"X-Request-Id": "mine"}) as response:
            assert (response.status, response.reason, await response.read()) == (403, "Slow Down", b"{}")
    assert target == [b"/base/v1/messages"]
    got = response.headers
    assert got.getall("X-Multi") == ["1", "2"]
    assert {name: got.getall(name) for name in got if name not in {"Date", "X-Multi"}} == {
        "Content-Type": ["application/json; charset=x"],
        "Content-Length": ["2"],
        "Request-Id": ["req_1"],
        "X-Request-ID": ["req_2"],
        "Retry-After": ["61"],
        "Anthropic-Ratelimit-Tokens-Remaining": ["7"],
        "Cache-Control": ["private"],
        "X-Bridgelog-Request-Id": ["mine"],
        "X-Content-Type-Options": ["nosniff"],
    }


async def test_a_header_that_cannot_be_sent_on_breaks_no_answer(make_bridge: MakeBridge) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Odd: a\x01b\x7f\r\nX-Tab: a\tb\r\nX-Bytes: \xff\r\n"
            b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\nContent-Length: 2\r\n\r\n{}"
        )

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        async with bridge.ask(MESSAGES, "m") as response:
            assert (response.status, await response.read()) == (200, b"{}")
        assert response.headers["X-Tab"] == "a\tb"
        assert not {"X-Odd", "X-Bytes", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} & {
            *response.headers
        }
        [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "completed"


async def test_redirects_are_not_followed_here_nor_by_the_client(bridge: Bridged, provider: TestServer) -> None:
    async with bridge.ask(MESSAGES, "standin-redirect") as response:
        assert response.status == 307
        assert "Location" not in response.headers
    assert len(exchanges(provider)) == 1
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "failed"
    assert row["metadata"]["provider_status"] == 307


# -- what fails -------------------------------------------------------------------------------------------------------


@protocols
@modes
async def test_an_error_before_the_answer_is_the_providers(
    bridge: Bridged, provider: TestServer, way: Way, *, stream: bool
) -> None:
    async with bridge.ask(way, "standin-error-400", stream=stream) as response:
        assert response.status == 400
        assert sha256(await response.read()) == exchanges(provider)[0].sha256
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "failed"
    assert row["metadata"]["provider_status"] == 400
    assert row["metadata"]["error_type"] == "invalid_request_error"
    assert [prompt["prompt"] for prompt in row["user_prompts"]] == ["How are you?"]


@protocols
async def test_an_error_in_the_middle_of_a_stream_is_relayed_and_recorded(
    bridge: Bridged, provider: TestServer, way: Way
) -> None:
    async with bridge.ask(way, "standin-error+tools", stream=True) as response:
        assert sha256(await response.read()) == exchanges(provider)[0].sha256_without_usage
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "failed"
    assert row["metadata"]["provider_status"] == 200
    assert row["metadata"]["error_type"] in {"overloaded_error", "server_error"}


@protocols
@modes
async def test_an_answer_that_breaks_off_breaks_off_for_the_client(
    bridge: Bridged, provider: TestServer, way: Way, *, stream: bool
) -> None:
    got = b""
    async with bridge.ask(way, "standin-broken+long", stream=stream) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):  # noqa: PT012 - what came before counts too
            while piece := await response.content.readany():
                got += piece
    assert got
    assert len(exchanges(provider)) == 1  # never again after the first byte
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "failed"
    assert row["metadata"]["error_type"] == "provider_connection_lost"


@protocols
@pytest.mark.parametrize("wish", ["half", "garbage"])
@modes
async def test_what_is_no_whole_answer_is_relayed_and_has_failed(
    bridge: Bridged, provider: TestServer, way: Way, wish: str, *, stream: bool
) -> None:
    async with bridge.ask(way, f"standin-{wish}", stream=stream) as response:
        assert sha256(await response.read()) == exchanges(provider)[0].sha256_without_usage
    [row] = await bridge.recorded()
    assert (row["metadata"]["status"], row["metadata"]["error_type"]) == ("failed", "incomplete_answer")


async def test_what_cannot_be_recorded_goes_nowhere(
    bridge: Bridged, provider: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise errors.SpoolFull(retry_after=5)

    monkeypatch.setattr(Recorder, "start", full)
    async with bridge.ask(MESSAGES, "m") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        told = await response.json()
    assert (told["type"], told["error"]["type"]) == ("error", "overloaded_error")
    assert told["error"]["message"].startswith(errors.SpoolFull().message)
    assert exchanges(provider) == []
    assert bridge.rows() == []


async def test_a_defect_is_told_in_the_providers_shape_and_ends_the_record(
    bridge: Bridged, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("service.bridge.serving._ask", broken)
    async with bridge.ask(CHAT, "m") as response:
        assert response.status == 500
        assert (await response.json())["error"]["type"] == "server_error"
    [row] = await bridge.recorded()
    assert (row["metadata"]["status"], row["metadata"]["error_type"]) == ("failed", "bridge_failed")


async def test_a_bridge_that_stops_ends_what_it_serves(
    database_url: str, settings: Settings, tmp_path: Path, member: Person, provider: TestServer
) -> None:
    upstream = str(provider.make_url("/anthropic"))
    chosen = replace(
        settings, bridge="on", anthropic_key=KEY, anthropic_base_url=upstream, spool_dir=tmp_path / "spool"
    )
    async with aiohttp.ClientSession() as session:
        async with listening(build_app(chosen, database_url=database_url)) as url:
            bridge = Bridged(url, member.token, database_url, session)
            response = await bridge.ask(MESSAGES, "standin-slow-100+long", stream=True)
            await response.content.readany()
        response.close()
    [row] = await bridge.recorded()
    assert (row["metadata"]["status"], row["metadata"]["error_type"]) == ("failed", "bridge_stopped")


# -- clients that leave, that are slow, that wait ---------------------------------------------------------------------


async def test_a_client_that_leaves_in_the_middle_ends_the_upstream_call(make_bridge: MakeBridge) -> None:
    gone = asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(START))
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(chunk(b": \n\n"))
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.set()

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        response = await bridge.ask(MESSAGES, "m", stream=True)
        assert await response.content.readany()
        response.close()
        async with asyncio.timeout(10):
            await gone.wait()
        [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "cancelled"
    assert [usage["input_tokens"] for usage in row["token_usages"]] == [3]  # what was observed


@modes
async def test_a_client_that_leaves_before_there_is_an_answer(
    bridge: Bridged, provider: TestServer, *, stream: bool
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), bridge.ask(RESPONSES, "standin-stall", stream=stream):
            pass
    [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "cancelled"
    assert len(exchanges(provider)) == 1
    assert 'bridgelog_interceptions_inflight{provider="openai",route="/responses"} 0.0' in await bridge.metrics()


async def test_a_client_that_hangs_up_right_after_the_last_event_has_completed(
    make_bridge: MakeBridge, tmp_path: Path
) -> None:
    gone = asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(START + DELTA + STOP))
        # The end of the stream never comes.
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(0.1)
                writer.write(chunk(b": \n\n"))
                await writer.drain()
        gone.set()

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        response = await bridge.ask(MESSAGES, "m", stream=True)
        got = b""
        while STOP not in got:
            got += await response.content.readany()
        noted = b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*.log"))
        assert b"output_tokens" in noted, "before the client has the event that tells it"
        response.close()
        async with asyncio.timeout(10):
            await gone.wait()
        [row] = await bridge.recorded()
    assert row["metadata"]["status"] == "completed"
    assert [(usage["input_tokens"], usage["output_tokens"]) for usage in row["token_usages"]] == [(3, 5)]


@pytest.mark.parametrize(
    ("way", "keep_alive"),
    [
        (MESSAGES, b'event: ping\ndata: {"type": "ping"}\n\n'),
        (CHAT, b": keep-alive\n\n"),
        (RESPONSES, b": keep-alive\n\n"),
    ],
    ids=["messages", "chat", "responses"],
)
async def test_a_silent_stream_is_kept_alive_between_its_events(
    make_bridge: MakeBridge, way: Way, keep_alive: bytes
) -> None:
    events = [b"data: {}\r\n\r\n", b"data: 1\n", b"data: 2\n\n", b"data: [DO", b"NE]\n\n"]

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for event in events:
            await asyncio.sleep(0.25)
            writer.write(chunk(event))
        writer.write(chunk(b""))

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, openai_key="k", openai_base_url=url, bridge_keep_alive=0.05)
        async with bridge.ask(way, "m", stream=True) as response:
            body = await response.read()
    pieces = body.split(keep_alive)
    assert len(pieces) > 4
    assert b"".join(pieces) == b"".join(events)
    for piece in pieces[:-1]:
        assert piece == b"" or piece.endswith((b"\n\n", b"\r\n\r\n")), pieces


async def test_a_whole_answer_that_is_late_is_not_kept_alive(make_bridge: MakeBridge) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{")
        await asyncio.sleep(0.3)
        writer.write(b"}")

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, bridge_keep_alive=0.02)
        async with bridge.ask(MESSAGES, "m", stream=True) as response:
            assert await response.read() == b"{}"


async def test_a_slow_client_slows_the_provider_and_nobody_else(make_bridge: MakeBridge) -> None:
    taken = 0
    piece = b"data: " + b"x" * 16_000 + b"\n\n"

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(STREAM_HEAD)
        if b'"model": "quick"' in request:
            writer.write(chunk(START + STOP) + chunk(b""))
            return
        while True:
            writer.write(chunk(piece))
            await writer.drain()
            taken += len(piece)

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url)
        slow = await bridge.ask(MESSAGES, "slow", stream=True)
        before = -1
        while taken != before:
            before = taken
            await asyncio.sleep(0.3)
        # What sockets and buffers hold, and no more: the client has read nothing.
        assert 0 < taken < 40 * 1024 * 1024
        async with bridge.ask(MESSAGES, "quick", stream=True) as response:
            assert await response.read() == START + STOP
        assert taken == before
        while taken == before:
            await slow.content.readany()
        slow.close()
        assert {row["metadata"]["status"] for row in await bridge.recorded(2)} == {"completed", "cancelled"}


async def test_a_client_that_takes_nothing_is_given_up(make_bridge: MakeBridge) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(chunk(b"data: " + b"x" * 60_000 + b"\n\n"))
                await writer.drain()

    async with raw_provider(answer) as url:
        bridge = await make_bridge(url, send_timeout=0.3)
        response = await bridge.ask(MESSAGES, "m", stream=True)
        [row] = await bridge.recorded()
        response.close()
    assert row["metadata"]["status"] == "cancelled"


# -- who may ----------------------------------------------------------------------------------------------------------


async def error_of(response: aiohttp.ClientResponse, way: Way) -> tuple[str, str]:
    """Type and message of an error that has the provider's shape, and none but its members."""
    told = await response.json()
    if way is MESSAGES:
        assert sorted(told) == ["error", "type"]
        assert sorted(told["error"]) == ["message", "type"]
        assert told["type"] == "error"
    else:
        assert sorted(told) == ["error"]
        assert sorted(told["error"]) == ["code", "message", "param", "type"]
    return told["error"]["type"], told["error"]["message"]


@protocols
async def test_refusals_have_the_providers_shape_and_record_nothing(
    make_bridge: MakeBridge, provider: TestServer, way: Way
) -> None:
    bridge = await make_bridge(provider, bridge_max_body=2_000)
    url = f"{bridge.url}{API}{way.path}"
    signed = {"Authorization": f"Bearer {bridge.token}"}
    good = json.dumps(way.body("m")).encode()
    wrong = bridge.token[:-1] + ("A" if bridge.token[-1] != "A" else "B")
    for headers, body, status, kind in (
        ({}, good, 401, "authentication_error"),
        ({"Authorization": "Bearer sk-not-a-token"}, good, 401, "authentication_error"),
        ({"Authorization": f"Bearer {wrong}"}, good, 401, "authentication_error"),
        ({"Cookie": f"coder_session_token={bridge.token}"}, good, 401, "authentication_error"),
        (signed, b"{", 400, "invalid_request_error"),
        (signed, b"[]", 400, "invalid_request_error"),
        (signed, b'{"model": 7}', 400, "invalid_request_error"),
        (signed, b"x" * 2_001, 413, "request_too_large" if way is MESSAGES else "invalid_request_error"),
        (signed | {"Content-Encoding": "gzip"}, b"no gzip", 400, "invalid_request_error"),
    ):
        async with bridge.session.post(url, data=body, headers=headers) as response:
            assert response.status == status, body
            assert (await error_of(response, way))[0] == kind
            assert response.headers["X-Bridgelog-Request-Id"]
            assert "X-Request-Id" not in response.headers
            assert response.headers["Content-Type"].startswith("application/json")
    assert exchanges(provider) == []
    assert bridge.rows() == []


@pytest.mark.parametrize(
    "order",
    [
        {"Coder-Session-Token": "{}"},
        {"Authorization": "bearer {}"},
        {"X-Api-Key": "{}"},
        {"Coder-Session-Token": "nonsense", "Authorization": "Bearer {}"},
        {"Authorization": "Bearer sk-ant-own", "X-Api-Key": "{}"},
    ],
    ids=str,
)
async def test_the_token_is_taken_from_where_clients_send_a_key(
    bridge: Bridged, provider: TestServer, order: dict[str, str]
) -> None:
    headers = {name: value.format(bridge.token) for name, value in order.items()}
    body = json.dumps(MESSAGES.body("m")).encode()
    async with bridge.session.post(f"{bridge.url}{API}{MESSAGES.path}", data=body, headers=headers) as response:
        assert response.status == 200
    sent = exchanges(provider)[0].headers
    assert sent["x-api-key"] == [KEY]
    assert not sent.keys() & {"authorization", "coder-session-token"}


async def test_every_prefix_leads_to_the_bridge(bridge: Bridged) -> None:
    body = json.dumps(MESSAGES.body("m")).encode()
    for prefix in ("experimental/aibridge", "v2/api/experimental/aibridge", "v2/aibridge", "v2/ai-gateway"):
        url = f"{bridge.url}/api/{prefix}{MESSAGES.path}"
        async with bridge.session.post(url, data=body, headers={"X-Api-Key": bridge.token}) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/unknown/v1/messages", 404, "Route not found."),
        ("POST", "/anthropic/v1/complete", 404, "Route not found."),
        ("POST", "/anthropic/v1/messages/batches", 404, "Route not found."),
        ("GET", "/anthropic/v1/organizations", 404, "Route not found."),
        ("POST", "/openai/v1/embeddings", 404, "Route not found."),
        ("GET", "/openai/v1/files", 404, "Route not found."),
        ("POST", "/openai/chat/completions", 404, "Route not found."),
        ("GET", "/anthropic/v1/messages", 405, "Method not allowed."),
        ("GET", "/anthropic/v1/models/../organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/%2e%2e/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/x/%2E%2E/%2e%2e/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/..%2forganizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/%252e%252e/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/..%5corganizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/.", 404, "Route not found."),
        ("GET", "/anthropic/v1/models//organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/x%3Fa=b", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/x%00", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/..;/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/%2e%2e%3Bx/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/..%20/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/.../organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/%EF%BC%8E%EF%BC%8E/organizations", 404, "Route not found."),
        ("GET", "/anthropic/v1/models/x%EF%BC%8Fy", 404, "Route not found."),
        ("GET", "/openai/v1/responses/x/../../files", 404, "Route not found."),
    ],
)
async def test_what_is_not_allowed_is_not_found_in_the_envelope(  # noqa: PLR0917 - one column each
    bridge: Bridged, provider: TestServer, method: str, path: str, status: int, message: str
) -> None:
    for headers in ({"X-Api-Key": bridge.token}, {"Authorization": f"Bearer {bridge.token}"}):
        url = URL(f"{bridge.url}{API}{path}", encoded=True)
        async with bridge.session.request(method, url, headers=headers, data=b"{}") as response:
            assert (response.status, (await response.json())["message"]) == (status, message)
    async with bridge.session.request(method, URL(f"{bridge.url}{API}/unknown/v1/x", encoded=True)) as response:
        assert response.status == 401
    assert exchanges(provider) == []


@pytest.mark.parametrize(
    ("method", "path", "standin"),
    [
        ("GET", "/anthropic/v1/models?limit=5", "/anthropic/v1/models"),
        ("GET", "/anthropic/v1/models/standin-x", "/anthropic/v1/models/standin-x"),
        ("POST", "/anthropic/v1/messages/count_tokens", "/anthropic/v1/messages/count_tokens"),
        ("POST", "/anthropic/api/event_logging/batch", "/anthropic/api/event_logging/batch"),
        ("GET", "/openai/v1/models", "/openai/v1/models"),
        ("GET", "/openai/v1/models/ft:gpt-4o:acme::1%20x", "/openai/v1/models/ft:gpt-4o:acme::1 x"),
        ("GET", "/openai/v1/responses/resp_1?include=x", "/openai/v1/responses/resp_1"),
        ("POST", "/openai/v1/conversations", "/openai/v1/conversations"),
        ("GET", "/openai/v1/conversations/conv_1", "/openai/v1/conversations/conv_1"),
    ],
)
async def test_other_calls_of_clients_pass_through_unrecorded(
    bridge: Bridged, provider: TestServer, method: str, path: str, standin: str
) -> None:
    body = json.dumps(MESSAGES.body("m") if "count_tokens" in path else {}).encode() if method == "POST" else None
    url = URL(f"{bridge.url}{API}{path}", encoded=True)
    async with bridge.session.request(method, url, data=body, headers={"X-Api-Key": bridge.token}) as response:
        assert response.status == 200
        assert sha256(await response.read()) == exchanges(provider)[0].sha256
    [exchange] = exchanges(provider)
    assert exchange.path == standin
    key = exchange.headers["x-api-key"] if "anthropic" in path else exchange.headers["authorization"]
    assert key == [KEY] if "anthropic" in path else [f"Bearer {OPENAI_KEY}"]
    assert bridge.rows() == []
    assert 'status="200"' in next(
        line for line in (await bridge.metrics()).splitlines() if "passthrough_total{" in line
    )
    async with bridge.session.request(method, url, data=body) as response:
        assert response.status == 401
        assert "error" in await response.json()


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "PROPFIND"])
async def test_a_method_that_could_tell_the_key_does_not_pass(
    bridge: Bridged, provider: TestServer, method: str
) -> None:
    url = f"{bridge.url}{API}/anthropic/v1/models"
    async with bridge.session.request(method, url, headers={"X-Api-Key": bridge.token}) as response:
        assert (response.status, (await error_of(response, MESSAGES))[0]) == (405, "invalid_request_error")
        assert response.headers["Allow"] == "DELETE, GET, HEAD, PATCH, POST, PUT"
    assert exchanges(provider) == []


@protocols
async def test_a_key_of_ones_own_goes_up_where_that_is_allowed(
    make_bridge: MakeBridge, provider: TestServer, way: Way
) -> None:
    own = {"X-Api-Key": OWN_KEY} if way is MESSAGES else {"Authorization": f"Bearer {OWN_KEY}"}
    headers = {"Authorization": "", "Coder-Session-Token": ""} | own
    closed, opened = await make_bridge(provider), await make_bridge(provider, allow_byok=True)
    headers["Coder-Session-Token"] = closed.token
    async with closed.ask(way, "m", headers=headers) as response:
        assert response.status == 403
        kind, told = await error_of(response, way)
    assert (kind, told) == ("permission_error", errors.OwnKeyForbidden().message)
    assert exchanges(provider) == []
    async with opened.ask(way, "m", headers=headers) as response:
        assert response.status == 200
    sent = exchanges(provider)[0].headers
    assert {name: value for name, [value] in sent.items() if name in {"x-api-key", "authorization"} and value} == {
        name.lower(): value for name, value in own.items()
    }
    assert "coder-session-token" not in sent
    [row] = await opened.recorded()
    assert row["metadata"]["credential_kind"] == "byok"
    assert row["metadata"]["credential_hint"] == f"{OWN_KEY[:4]}…{OWN_KEY[-4:]}"
    # Without one, the central key.
    async with opened.ask(way, "m") as response:
        assert response.status == 200
    assert (await opened.recorded(2))[1]["metadata"]["credential_kind"] == "centralized"


async def test_a_token_in_two_places_is_no_key_of_ones_own(make_bridge: MakeBridge, provider: TestServer) -> None:
    bridge = await make_bridge(provider, allow_byok=True)
    async with bridge.ask(
        MESSAGES, "m", headers={"Coder-Session-Token": bridge.token, "X-Api-Key": bridge.token}
    ) as got:
        assert got.status == 200
    assert exchanges(provider)[0].headers["x-api-key"] == [KEY]
    assert bridge.token not in str(exchanges(provider)[0].headers)


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize(
    "strange",
    [
        {"X-Api-Key": "Bearer {}"},
        {"Authorization": "Bearer Bearer {}"},
        {"Authorization": "Bearer {},"},
        {"X-Api-Key": "{}", "X-Token": "{}", "Anthropic-Beta": "a,{}"},
    ],
    ids=str,
)
async def test_a_token_goes_up_in_no_header_and_no_query(
    make_bridge: MakeBridge, provider: TestServer, strange: dict[str, str], *, allowed: bool
) -> None:
    bridge = await make_bridge(provider, allow_byok=allowed)
    headers = {"Coder-Session-Token": bridge.token} | {
        name: value.format(bridge.token) for name, value in strange.items()
    }
    url = f"{bridge.url}{API}{MESSAGES.path}?beta=true&key={bridge.token}"
    body = json.dumps(MESSAGES.body("m")).encode()
    async with bridge.session.post(url, data=body, headers=headers) as response:
        assert response.status == 200
    [exchange] = exchanges(provider)
    assert exchange.headers["x-api-key"] == [KEY]
    assert bridge.token not in str(exchange)
    [row] = await bridge.recorded()
    assert row["metadata"]["credential_kind"] == "centralized"
    assert bridge.token[-4:] not in row["metadata"]["credential_hint"]


@pytest.mark.parametrize("allowed", [True, False])
async def test_an_instance_without_a_key_serves_who_bring_theirs(
    make_bridge: MakeBridge, provider: TestServer, *, allowed: bool
) -> None:
    bridge = await make_bridge(provider, anthropic_key=None, allow_byok=allowed)
    async with bridge.ask(MESSAGES, "m") as response:
        assert response.status == 403
        told = (await error_of(response, MESSAGES))[1]
    assert told.startswith(errors.KeyMissing().message)
    assert ("Coder-Session-Token" in told) == allowed
    assert exchanges(provider) == []


# -- limits -----------------------------------------------------------------------------------------------------------


async def test_a_token_makes_so_many_requests_a_second(make_bridge: MakeBridge, provider: TestServer) -> None:
    bridge = await make_bridge(provider, bridge_rate_limit=0.01)
    async with bridge.ask(MESSAGES, "m") as response:
        assert response.status == 200
    async with bridge.ask(MESSAGES, "m") as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) > 1
        assert (await error_of(response, MESSAGES))[0] == "rate_limit_error"
    assert len(await bridge.recorded()) == 1


async def test_so_many_requests_are_open_at_once(make_bridge: MakeBridge, provider: TestServer) -> None:
    bridge = await make_bridge(provider, bridge_concurrency=1)
    slow = await bridge.ask(MESSAGES, "standin-slow-50+long-20", stream=True)
    async with bridge.ask(MESSAGES, "m") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert (await error_of(response, MESSAGES))[0] == "overloaded_error"
    async with bridge.ask(CHAT, "m") as response:
        assert response.status == 200  # another provider
    await slow.read()
    async with bridge.ask(MESSAGES, "m") as response:
        assert response.status == 200
    await bridge.recorded(3)


async def test_the_limits_and_times_of_other_calls_are_not_the_bridges(
    make_bridge: MakeBridge, provider: TestServer
) -> None:
    bridge = await make_bridge(provider, rate_limit=0.01, concurrency_limit=1, request_timeout=0.5, max_held=1024)
    for _ in range(2):
        async with bridge.ask(MESSAGES, "standin-slow-40+long-20", stream=True) as response:
            assert (await response.read()).endswith(b'data: {"type": "message_stop"}\n\n')


# -- on, off, and apart -----------------------------------------------------------------------------------------------


async def test_a_bridge_that_is_off_is_not_there(make_client: MakeClient, member: Person) -> None:
    client = await make_client(bridge="off", anthropic_key=KEY)
    response = await client.post(f"{API}{MESSAGES.path}", headers=member.headers, json={})
    assert response.status == 404
    assert "recorder" not in await (await client.get("/readyz")).json()


async def test_a_bridge_alone_serves_nothing_else(make_bridge: MakeBridge, provider: TestServer) -> None:
    bridge = await make_bridge(provider, bridge="only")
    async with bridge.ask(MESSAGES, "m") as response:
        assert response.status == 200
    headers = {"Coder-Session-Token": bridge.token}
    async with bridge.session.get(f"{bridge.url}{API}/interceptions", headers=headers) as response:
        assert response.status == 404
    async with bridge.session.get(f"{bridge.url}/readyz") as response:
        assert response.status == 200
    await bridge.recorded()


async def test_threads_follow_tool_calls(bridge: Bridged) -> None:
    async with bridge.ask(CHAT, "standin-tools") as response:
        [first, _] = (await response.json())["choices"][0]["message"]["tool_calls"]
    messages = [{"role": "user", "content": "x"}, {"role": "tool", "tool_call_id": first["id"], "content": "ok"}]
    async with bridge.ask(CHAT, "standin-tools", messages=messages) as response:
        assert response.status == 200
    parent, child = await bridge.recorded(2)
    assert (child["thread_parent_id"], child["thread_root_id"]) == (parent["id"], parent["id"])
    assert child["user_prompts"] == []


async def test_the_metrics_tell_what_was_served(bridge: Bridged) -> None:
    async with bridge.ask(CHAT, "standin-tools", headers={"User-Agent": "codex_cli_rs/1"}) as response:
        assert response.status == 200
    async with bridge.ask(CHAT, "no-such-" + "x" * 400) as response:
        assert response.status == 200
    await bridge.recorded(2)
    told = await bridge.metrics()
    labels = 'model="standin-tools",provider="openai"'
    assert (
        'bridgelog_interceptions_total{client="Codex",model="standin-tools",provider="openai",'
        'route="/chat/completions",status="completed"} 1.0' in told
    )
    assert f"bridgelog_tool_calls_total{{{labels}}} 2.0" in told
    assert f"bridgelog_prompts_total{{{labels}}} 1.0" in told
    assert f'bridgelog_tokens_total{{{labels},type="output"}}' in told
    assert 'model="other"' in told  # of a name that is too long
    assert "no-such-" not in told
