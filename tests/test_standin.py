"""The stand-in provider does what its documentation says: for who relies on it in a test, or tries the bridge with it."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import standin
from aiohttp import web
from aiohttp.test_utils import TestClient
from fleet import PATIENCE, standing_in
from standin.app import EXCHANGES, build_app

from service.bridge import sse
from service.bridge.protocols import BY_NAME, Observed

MESSAGES, CHAT, RESPONSES = "anthropic-messages", "openai-chat-completions", "openai-responses"
PATHS = {MESSAGES: "/anthropic/v1/messages", CHAT: "/openai/v1/chat/completions", RESPONSES: "/openai/v1/responses"}
KEY = {"Authorization": "Bearer any"}
ASKED = [{"role": "user", "content": "Why?"}]

Provider = TestClient[web.Request, web.Application]


@pytest.fixture
async def provider(aiohttp_client: Callable[..., Awaitable[Provider]]) -> Provider:
    """The stand-in."""
    return await aiohttp_client(build_app())


def request(name: str, model: str, **members: Any) -> dict[str, Any]:
    asked = {"input": ASKED} if name == RESPONSES else {"messages": ASKED, "max_tokens": 100}
    return asked | {"model": model, **members}


async def ask(provider: Provider, name: str, model: str, **members: Any) -> tuple[int, bytes, Any]:
    async with provider.post(PATHS[name], json=request(name, model, **members), headers=KEY) as response:
        return response.status, await response.read(), response.headers


def observe(name: str, body: bytes, *, streaming: bool, status: int = 200) -> Observed:
    protocol = BY_NAME[name]
    reader = protocol.reader(protocol.read(json.dumps(request(name, "m", stream=streaming)).encode()))
    if streaming:
        decoder = sse.Decoder(1_000_000)
        for event in [*decoder.feed(body), *decoder.close()]:
            reader.event(event)
    else:
        reader.whole(body, status)
    return reader.observed


@pytest.mark.parametrize("name", PATHS)
async def test_both_modes_tell_the_same_and_the_bridge_reads_it(provider: Provider, name: str) -> None:
    model = "standin-thinking+tools+cached"
    told = {"stream_options": {"include_usage": True}} if name == CHAT else {}
    streamed = observe(name, (await ask(provider, name, model, stream=True, **told))[1], streaming=True)
    whole = observe(name, (await ask(provider, name, model))[1], streaming=False)
    assert streamed.usage
    assert whole.usage
    # What only streams of messages tell.
    streamed.usage.metadata.pop("server_tool_use", None)
    assert (streamed.usage, streamed.thoughts, streamed.complete) == (whole.usage, whole.thoughts, True)
    tools = [(call.call_id, call.tool, json.loads(call.input)) for call in streamed.tools]
    assert tools == [(call.call_id, call.tool, json.loads(call.input)) for call in whole.tools]
    assert [tool for _, tool, _ in tools] == ["get_weather", "list_cities"]
    assert whole.usage.cache_read_input_tokens > 1_024
    assert whole.usage.input_tokens > 0
    assert bool(whole.thoughts) == (name != CHAT)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("streaming", [False, True])
async def test_the_same_request_gets_the_same_bytes_and_their_hash_is_kept(
    provider: Provider,
    name: str,
    streaming: bool,  # noqa: FBT001 - of a parametrized test
) -> None:
    first, second = [await ask(provider, name, "standin-tools+split-3", stream=streaming) for _ in range(2)]
    assert first[:2] == second[:2]
    told = await (await provider.get("/exchanges")).json()
    ids = [headers.get("request-id") or headers.get("x-request-id") for _, _, headers in (first, second)]
    assert [one["request_id"] for one in told] == ids
    assert {one["sha256"] for one in told} == {hashlib.sha256(first[1]).hexdigest()}
    assert {(one["status"], one["streaming"], one["path"]) for one in told} == {(200, streaming, PATHS[name])}
    assert provider.app
    assert json.loads(provider.app[EXCHANGES][0].body) == request(name, "standin-tools+split-3", stream=streaming)


async def test_the_usage_chunk_that_was_asked_for_is_apart_in_the_second_hash(provider: Provider) -> None:
    _, plain, _ = await ask(provider, CHAT, "standin-m", stream=True)
    _, asked, _ = await ask(provider, CHAT, "standin-m", stream=True, stream_options={"include_usage": True})
    assert provider.app
    one, two = provider.app[EXCHANGES]
    assert one.sha256 == one.sha256_without_usage == hashlib.sha256(plain).hexdigest()
    assert two.sha256 == hashlib.sha256(asked).hexdigest()
    events = [event for event in sse.Decoder(1_000_000).feed(asked) if '"choices": []' not in (event.data or "")]
    assert two.sha256_without_usage == hashlib.sha256(b"".join(event.raw for event in events)).hexdigest()
    assert len(events) == asked.count(b"data:") - 1


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("how", ["cr", "crlf", "comments", "split-5", "comments+crlf+split-9", "slow-1", "silent-10"])
async def test_the_way_in_which_a_stream_is_written_changes_no_event(provider: Provider, name: str, how: str) -> None:
    def data(body: bytes) -> list[str]:
        decoder = sse.Decoder(1_000_000)
        events = [*decoder.feed(body), *decoder.close()]
        assert b"".join(event.raw for event in events) == body
        # The ids are of the model's name too.
        return [re.sub('[0-9a-f]{20,}|standin-[^"]*', "", event.data) for event in events if event.data is not None]

    _, plain, _ = await ask(provider, name, "standin-tools", stream=True)
    _, other, _ = await ask(provider, name, f"standin-tools+{how}", stream=True)
    numbers = re.compile(r'("[a-z_]*tokens": )\d+')
    assert [numbers.sub(r"\1", one) for one in data(other)] == [numbers.sub(r"\1", one) for one in data(plain)]


@pytest.mark.parametrize("name", PATHS)
async def test_errors_instead_of_an_answer(provider: Provider, name: str) -> None:
    for status in (400, 401, 429, 500, 529):
        answered, body, headers = await ask(provider, name, f"standin-error-{status}+after-3", stream=True)
        assert (answered, headers.get("retry-after")) == (status, "3" if status == 429 else None)
        assert observe(name, body, streaming=False, status=status).error not in (None, "unknown_error")
    assert [(await ask(provider, name, "standin-flaky-2"))[0] for _ in range(6)] == [503, 503, 200, 503, 503, 200]
    assert (await ask(provider, name, "standin-error"))[0] == (529 if name == MESSAGES else 500)
    async with provider.post(PATHS[name], json=request(name, "standin-m")) as response:
        assert response.status == 401
    for bad in (b"{", b"[]", b'{"model":"m"}', b'{"model":"m","messages":[],"input":[]}'):
        async with provider.post(PATHS[name], data=bad, headers=KEY) as response:
            assert response.status == 400
    async with provider.post(
        PATHS[name], json=request(name, "standin-redirect"), headers=KEY, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["location"]) == (307, "http://stand-in.invalid/")


@pytest.mark.parametrize("name", PATHS)
async def test_streams_that_go_wrong(provider: Provider, name: str) -> None:
    _, failed, _ = await ask(provider, name, "standin-error", stream=True)
    observed = observe(name, failed, streaming=True)
    assert (observed.error, observed.complete) == ("overloaded_error" if name == MESSAGES else "server_error", True)
    _, half, _ = await ask(provider, name, "standin-half", stream=True)
    assert not half.endswith(b"\n")
    assert observe(name, half, streaming=True).complete is False
    _, garbage, _ = await ask(provider, name, "standin-garbage", stream=True)
    assert observe(name, garbage, streaming=True).complete is False
    for streaming in (False, True):
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(provider, name, "standin-reset", stream=streaming)
        with pytest.raises(aiohttp.ClientError):
            await ask(provider, name, "standin-broken", stream=streaming)
        with pytest.raises(TimeoutError):
            await provider.post(
                PATHS[name],
                json=request(name, "standin-stall", stream=streaming),
                headers=KEY,
                timeout=aiohttp.ClientTimeout(0.1),
            )
    for wish in ("half", "garbage"):
        assert observe(name, (await ask(provider, name, f"standin-{wish}"))[1], streaming=False) == Observed()


@pytest.mark.parametrize("name", PATHS)
async def test_an_encoded_answer(provider: Provider, name: str, aiohttp_client: Any) -> None:
    raw: Provider = await aiohttp_client(build_app(), auto_decompress=False)
    for streaming in (False, True):
        _, packed, headers = await ask(raw, name, "standin-gzip", stream=streaming)
        assert headers["content-encoding"] == "gzip"
        assert observe(name, gzip.decompress(packed), streaming=streaming).complete


async def test_where_the_usage_of_a_chat_stands(provider: Provider) -> None:
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    assert b'"choices": []' in (await ask(provider, CHAT, "standin-m", **asked))[1]
    last = (await ask(provider, CHAT, "standin-usage-last", **asked))[1]
    assert b'"choices": []' not in last
    assert observe(CHAT, last, streaming=True).usage
    assert b"usage" not in (await ask(provider, CHAT, "standin-no-usage", **asked))[1].replace(b"no-usage", b"")


@pytest.mark.parametrize("name", PATHS)
async def test_a_call_by_the_users_words_and_tools_by_their_schemas(provider: Provider, name: str) -> None:
    content = 'Please call Bash {"command": "ls"}'
    asked = {"input": content} if name == RESPONSES else {"messages": [{"role": "user", "content": content}]}
    (call,) = observe(name, (await ask(provider, name, "any", **asked))[1], streaming=False).tools
    assert (call.tool, json.loads(call.input)) == ("Bash", {"command": "ls"})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "e": {"enum": ["x"]}}, "required": ["n", "e"]}
    tool: dict[str, Any] = {"type": "function", "name": "count", "parameters": schema}
    tools = {
        MESSAGES: [{"name": "count", "input_schema": schema}],
        CHAT: [{"type": "function", "function": tool}],
        RESPONSES: [tool],
    }
    (call,) = observe(name, (await ask(provider, name, "standin-tools", tools=tools[name]))[1], streaming=False).tools
    assert (call.tool, json.loads(call.input)) == ("count", {"n": 7, "e": "x"})


@pytest.mark.parametrize("name", PATHS)
async def test_who_answers_a_tool_call_gets_no_other(provider: Provider, name: str) -> None:
    answers: dict[str, Any] = {
        MESSAGES: {
            "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]
        },
        CHAT: {"messages": [{"role": "tool", "tool_call_id": "t", "content": "x"}]},
        RESPONSES: {"input": [{"type": "function_call_output", "call_id": "t", "output": "x"}]},
    }
    assert observe(name, (await ask(provider, name, "standin-tools", **answers[name]))[1], streaming=False).tools == []


async def test_the_routes_that_are_not_recorded(provider: Provider) -> None:
    for method, path in (
        ("GET", "/anthropic/v1/models"),
        ("GET", "/anthropic/v1/models/m"),
        ("POST", "/anthropic/api/event_logging/batch"),
        ("GET", "/openai/v1/models"),
        ("GET", "/openai/v1/models/m"),
        ("GET", "/openai/v1/responses/resp_1"),
        ("POST", "/openai/v1/conversations"),
        ("GET", "/openai/v1/conversations/conv_1"),
    ):
        assert (await provider.request(method, path, headers=KEY)).status == 200, path
    body = request(MESSAGES, "m")
    counted = await (await provider.post("/anthropic/v1/messages/count_tokens", json=body, headers=KEY)).json()
    assert counted["input_tokens"] > 0


def test_every_wish_is_documented() -> None:
    folder = Path(__file__).parent / "standin"
    code = "".join((folder / name).read_text(encoding="utf-8") for name in ("app.py", "plan.py"))
    known = set(re.findall(r'"([a-z-]+)"(?: not)? in [wW]ishes|wishes\.number\("([a-z]+)"', code))
    assert standin.__doc__
    for wish in {name for pair in known for name in pair if name}:
        assert re.search(rf"^    .*\b{wish}(-[A-Z]+)?[,\s]", standin.__doc__, re.MULTILINE), wish


def test_a_client_that_leaves_is_no_defect(tmp_path: Path) -> None:
    body = json.dumps(request(MESSAGES, "standin-long-50+slow-20", stream=True)).encode()
    head = f"POST {PATHS[MESSAGES]} HTTP/1.1\r\nHost: x\r\nX-Api-Key: any\r\nContent-Length: {len(body)}\r\n\r\n"
    said = tmp_path / "said"
    with standing_in(said) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(head.encode() + body)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        # It finds out while it writes the rest, which takes a second.
        time.sleep(1.5)
    assert "Traceback" not in said.read_text()
