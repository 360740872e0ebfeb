"""The SDKs of both providers cannot tell the bridge from the provider behind it, and each call of theirs is recorded."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from aiohttp.test_utils import TestServer
from bridging import API, Bridged
from standin.app import EXCHANGES, Exchange

PROMPT = 'Why is "漢字" 😀?'
ANTHROPIC_TOOLS: list[Any] = [
    {
        "name": "look_up",
        "description": "Look it up.",
        "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
    {"name": "list_all", "input_schema": {"type": "object", "properties": {}}},
]
FUNCTIONS: list[Any] = [{"name": tool["name"], "parameters": tool["input_schema"]} for tool in ANTHROPIC_TOOLS]


@dataclass(frozen=True)
class World:
    """The stand-in, and the bridge in front of it."""

    provider: TestServer
    bridge: Bridged

    def exchanges(self) -> list[Exchange]:
        kept = self.provider.app[EXCHANGES]
        return [*kept]

    async def recorded(self, count: int) -> list[dict[str, Any]]:
        """What the caller's list shows, the newest first, once there are so many: no answer waits for its record."""
        headers = {"Coder-Session-Token": self.bridge.token}
        async with asyncio.timeout(30):
            while True:
                async with self.bridge.session.get(
                    f"{self.bridge.url}{API}/interceptions", headers=headers
                ) as response:
                    results: list[dict[str, Any]] = (await response.json())["results"]
                if len(results) >= count:
                    assert len(results) == count
                    return results
                await asyncio.sleep(0.02)

    def address(self, sdk: str, *, bridged: bool) -> tuple[str, str]:
        """Base URL and key."""
        below = "/anthropic" if sdk == "anthropic" else "/openai/v1"
        if bridged:
            return f"{self.bridge.url}{API}{below}", self.bridge.token
        return str(self.provider.make_url(below)), "direct"


@pytest.fixture
async def world(provider: TestServer, make_bridge: Callable[..., Awaitable[Bridged]]) -> World:
    # A second try would take its time, and change nothing.
    return World(provider, await make_bridge(provider, upstream_retries=0))


# -- calls -----------------------------------------------------------------------------------------------------------

# A call is made by a client, sync or async; what it gives is an answer, a stream, or a promise of one of them.
Call = Callable[[Any], Any]


def messages(model: str, *, stream: bool = False, **members: Any) -> Call:
    asked = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 100, "tools": ANTHROPIC_TOOLS} | members
    return lambda client: client.messages.create(model=model, stream=stream, **asked)


def chat(model: str, *, stream: bool = False, **members: Any) -> Call:
    tools = [{"type": "function", "function": function} for function in FUNCTIONS]
    asked = {"messages": [{"role": "user", "content": PROMPT}], "tools": tools} | members
    return lambda client: client.chat.completions.create(model=model, stream=stream, **asked)


def responses(model: str, *, stream: bool = False, **members: Any) -> Call:
    tools = [{"type": "function", "strict": False} | function for function in FUNCTIONS]
    asked = {"input": [{"role": "user", "content": PROMPT}], "tools": tools} | members
    return lambda client: client.responses.create(model=model, stream=stream, **asked)


KINDS: dict[str, Callable[..., Call]] = {"messages": messages, "chat": chat, "responses": responses}


async def outcome(world: World, kind: str, call: Call, *, sync: bool, bridged: bool, token: str | None = None) -> Any:
    """What a call gives: the parsed objects, as data, and the error that ended them."""
    sdk = "anthropic" if kind == "messages" else "openai"
    base_url, key = world.address(sdk, bridged=bridged)
    settings: dict[str, Any] = {"base_url": base_url, "api_key": token or key, "max_retries": 0, "timeout": 20}
    seen: list[Any] = []
    try:
        if sync:
            await asyncio.to_thread(
                _sync, anthropic.Anthropic if sdk == "anthropic" else openai.OpenAI, settings, call, seen
            )
        else:
            make: Any = anthropic.AsyncAnthropic if sdk == "anthropic" else openai.AsyncOpenAI
            async with make(**settings) as client:
                result = call(client)
                if inspect.isawaitable(result):
                    result = await result
                if isinstance(result, AsyncIterator):
                    # One by one: what came before an error counts too.
                    async for event in result:
                        seen.append(event)  # noqa: PERF401
                else:
                    seen.append(result)
    except (anthropic.AnthropicError, openai.OpenAIError) as error:
        status, body = getattr(error, "status_code", None), getattr(error, "body", None)
        return told(seen), (type(error), str(error), status, body)
    except Exception as error:  # noqa: BLE001 - the SDKs let some errors of the transport and of JSON through
        return told(seen), (type(error), None, None, None)
    return told(seen), None


def _sync(make: Any, settings: dict[str, Any], call: Call, seen: list[Any]) -> None:
    with make(**settings) as client:
        result = call(client)
        if isinstance(result, Iterator):
            seen.extend(result)
        else:
            seen.append(result)


def told(seen: list[Any]) -> list[tuple[str, Any]]:
    return [(type(one).__name__, one.model_dump()) for one in seen]


async def both(world: World, kind: str, call: Call, *, sync: bool) -> tuple[Any, Any]:
    direct = await outcome(world, kind, call, sync=sync, bridged=False)
    return direct, await outcome(world, kind, call, sync=sync, bridged=True)


def whole_of(kind: str, seen: list[tuple[str, Any]]) -> dict[str, Any]:
    """Usage and tool calls by what an SDK parsed, in either mode, in the words of the list."""
    values = [value for _, value in seen]
    if kind == "messages":
        return _of_messages(values)
    if kind == "chat":
        return _of_chat(values)
    response = values[-1].get("response") or values[-1]
    return _usage(response["usage"], "input_tokens", "output_tokens", "input_tokens_details") | {
        "tools": [(item["name"], item["arguments"]) for item in response["output"] if item["type"] == "function_call"]
    }


def _of_messages(values: list[dict[str, Any]]) -> dict[str, Any]:
    if values[0]["type"] == "message":
        usage, content = values[0]["usage"], values[0]["content"]
        tools = [(block["name"], json.dumps(block["input"])) for block in content if block["type"] == "tool_use"]
    else:
        usage = dict(values[0]["message"]["usage"])
        tools = []
        for value in values:
            if value["type"] == "content_block_start" and value["content_block"]["type"] == "tool_use":
                tools.append((value["content_block"]["name"], ""))
            elif value["type"] == "content_block_delta" and value["delta"]["type"] == "input_json_delta":
                tools[-1] = (tools[-1][0], tools[-1][1] + value["delta"]["partial_json"])
            elif value["type"] == "message_delta":
                usage |= {name: count for name, count in value["usage"].items() if count is not None}
    return {
        "input_tokens": usage["input_tokens"],
        "output_tokens": usage["output_tokens"],
        "cache_read_input_tokens": usage["cache_read_input_tokens"],
        "cache_write_input_tokens": usage["cache_creation_input_tokens"],
        "tools": [(name, text or "{}") for name, text in tools],
    }


def _of_chat(values: list[dict[str, Any]]) -> dict[str, Any]:
    tools: dict[int, tuple[str, str]] = {}
    for choice in [choice for value in values for choice in value["choices"]]:
        for index, call in enumerate((choice.get("delta") or choice["message"]).get("tool_calls") or []):
            name, text = tools.get(call.get("index", index), ("", ""))
            tools[call.get("index", index)] = (
                name + (call["function"]["name"] or ""),
                text + call["function"]["arguments"],
            )
    usage = next(value["usage"] for value in reversed(values) if value["usage"])
    return _usage(usage, "prompt_tokens", "completion_tokens", "prompt_tokens_details") | {
        "tools": list(tools.values())
    }


def _usage(usage: dict[str, Any], asked: str, answered: str, details: str) -> dict[str, Any]:
    cached = usage[details]["cached_tokens"]
    return {
        "input_tokens": usage[asked] - cached,
        "output_tokens": usage[answered],
        "cache_read_input_tokens": cached,
        "cache_write_input_tokens": 0,
    }


def recorded_whole(interception: dict[str, Any]) -> dict[str, Any]:
    (usage,) = interception["token_usages"]
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens")
    tools = [(tool["tool"], tool["input"]) for tool in interception["tool_usages"]]
    return {name: usage[name] for name in names} | {"tools": tools}


def same(whole: dict[str, Any]) -> dict[str, Any]:
    """With the tools' inputs as values: SDKs parse them; and in no order, for they are observed in one instant."""
    tools = sorted((name, json.loads(text)) for name, text in whole["tools"])
    return whole | {"tools": [(name, json.dumps(value, sort_keys=True)) for name, value in tools]}


# -- what works ------------------------------------------------------------------------------------------------------

MODELS = [
    "standin-m",
    "standin-thinking+tools+cached",
    "standin-tools+cached+split-3+crlf+comments",
    "standin-tools+split-11+cr",
    "standin-cut+long-50",
    "standin-tools+gzip",
]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_objects_and_a_record_of_each(world: World, kind: str, *, stream: bool, sync: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if kind == "chat" and stream else {}
    for number, model in enumerate(MODELS, start=1):
        direct, bridged = await both(world, kind, KINDS[kind](model, stream=stream, **options), sync=sync)
        assert bridged == direct, model
        assert direct[1] is None, model
        newest = (await world.recorded(number))[0]
        assert same(recorded_whole(newest)) == same(whole_of(kind, direct[0])), model
        assert [prompt["prompt"] for prompt in newest["user_prompts"]] == [PROMPT]
        provider = "anthropic" if kind == "messages" else "openai"
        told = (newest["provider"], newest["provider_name"], newest["model"], newest["client"])
        assert told == (provider, provider, model, "Unknown")
        assert newest["metadata"]["status"] == "completed", newest["metadata"]
        assert newest["initiator"]["username"] == "mallory"
        assert newest["api_key_id"] == world.bridge.token.partition("-")[0]
        there, here = world.exchanges()[-2:]
        assert here.sha256 == there.sha256
        assert json.loads(here.body) == json.loads(there.body)
        assert world.bridge.token not in json.dumps(here.headers)


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("model", ["standin-tools+cached", "standin-tools+split-3", "standin-m+crlf"])
async def test_a_chat_stream_that_did_not_ask_for_its_usage_has_none_and_the_record_has(
    world: World, model: str, *, sync: bool
) -> None:
    asked = await outcome(
        world, "chat", chat(model, stream=True, stream_options={"include_usage": True}), sync=sync, bridged=False
    )
    direct, bridged = await both(world, "chat", chat(model, stream=True), sync=sync)
    assert bridged == direct
    assert direct[1] is None
    assert {value["usage"] for _, value in bridged[0]} == {None}
    (interception,) = await world.recorded(1)
    assert same(recorded_whole(interception)) == same(whole_of("chat", asked[0]))
    assert json.loads(world.exchanges()[-1].body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_bytes_are_the_providers(world: World, kind: str, *, stream: bool) -> None:
    """Read raw, below the SDKs' parsers: body, status, type and the provider's request id."""
    call = KINDS[kind]("standin-tools+thinking+cached+split-5", stream=stream)
    sdk = "anthropic" if kind == "messages" else "openai"
    base_url, key = world.address(sdk, bridged=True)
    make: Any = anthropic.AsyncAnthropic if sdk == "anthropic" else openai.AsyncOpenAI
    async with make(base_url=base_url, api_key=key, max_retries=0) as client:
        response = await call(client.with_raw_response)
        raw = response.http_response
        body = await raw.aread()
    exchange = world.exchanges()[-1]
    assert hashlib.sha256(body).hexdigest() == exchange.sha256_without_usage
    assert (exchange.sha256 == exchange.sha256_without_usage) == (kind != "chat" or not stream)
    assert raw.headers["request-id" if kind == "messages" else "x-request-id"] == exchange.request_id
    assert raw.status_code == 200


async def test_the_helpers_for_streams_gather_the_same_answer(world: World) -> None:
    """`client.messages.stream`, `client.chat.completions.stream` and `client.responses.stream`, to their final objects."""
    model = "standin-thinking+tools+cached+split-3"

    def through_anthropic(address: tuple[str, str]) -> Any:
        with anthropic.Anthropic(base_url=address[0], api_key=address[1], max_retries=0) as client:
            asked: list[Any] = [{"role": "user", "content": PROMPT}]
            with client.messages.stream(model=model, max_tokens=9, messages=asked, tools=ANTHROPIC_TOOLS) as stream:
                return [event.model_dump(warnings=False) for event in stream], stream.get_final_message().model_dump(
                    warnings=False
                )

    def through_openai(address: tuple[str, str]) -> Any:
        with openai.OpenAI(base_url=address[0], api_key=address[1], max_retries=0) as client:
            with client.chat.completions.stream(model=model, messages=[{"role": "user", "content": PROMPT}]) as chats:
                first = [event.type for event in chats], chats.get_final_completion().model_dump(warnings=False)
            with client.responses.stream(model=model, input=PROMPT) as stream:
                return (
                    first,
                    [event.model_dump(warnings=False) for event in stream],
                    stream.get_final_response().model_dump(warnings=False),
                )

    for sdk, through in (("anthropic", through_anthropic), ("openai", through_openai)):
        direct = await asyncio.to_thread(through, world.address(sdk, bridged=False))
        assert await asyncio.to_thread(through, world.address(sdk, bridged=True)) == direct
    assert {interception["metadata"]["status"] for interception in await world.recorded(3)} == {"completed"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_turn_with_tools_is_a_thread(
    world: World, kind: str, sql: Callable[..., list[tuple[Any, ...]]]
) -> None:
    """The SDK's own objects go back as the history, and the second request answers the first one's last tool call."""
    model, sync = "standin-tools+thinking", False
    (first,), error = await outcome(world, kind, KINDS[kind](model), sync=sync, bridged=True)
    assert error is None
    await world.recorded(1)
    answer = first[1]
    history: dict[str, Any]
    if kind == "messages":
        uses = [block for block in answer["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": use["id"], "content": "found"} for use in uses]
        content = [{name: value for name, value in block.items() if value is not None} for block in answer["content"]]
        said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": content}]
        history = {"messages": [*said, {"role": "user", "content": results}]}
    elif kind == "chat":
        message = {name: value for name, value in answer["choices"][0]["message"].items() if value is not None}
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "found"} for call in message["tool_calls"]]
        history = {"messages": [{"role": "user", "content": PROMPT}, message, *results]}
    else:
        calls = [item for item in answer["output"] if item["type"] == "function_call"]
        results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "found"} for call in calls]
        history = {"input": [{"role": "user", "content": PROMPT}, *calls, *results]}
    direct, bridged = await both(world, kind, KINDS[kind](model, **history), sync=sync)
    assert bridged == direct
    assert direct[1] is None
    second, parent = await world.recorded(2)
    assert (second["user_prompts"], second["tool_usages"]) == ([], [])
    assert len(parent["tool_usages"]) == 2
    rows = sql(
        "SELECT thread_parent_id::text, thread_root_id::text FROM aibridge_interceptions WHERE id = %s", second["id"]
    )
    assert rows == [(parent["id"], parent["id"])]


async def test_thoughts_are_recorded(world: World, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
    for kind in ("messages", "responses"):
        for stream in (False, True):
            seen, error = await outcome(
                world, kind, KINDS[kind]("standin-thinking", stream=stream), sync=False, bridged=True
            )
            assert error is None
            assert seen
    await world.recorded(4)
    rows = sql("SELECT metadata->>'source', content, count(*) FROM aibridge_model_thoughts GROUP BY 1, 2 ORDER BY 1")
    thought = f"Let me see.\nThey want: {PROMPT}"
    assert rows == [
        ("commentary", "I will look first.", 2),
        ("reasoning_summary", thought, 2),
        ("thinking", thought, 2),
    ]


# -- what does not ---------------------------------------------------------------------------------------------------

# Model, and in which modes the client gets a whole error from it.
FAULTS = [
    "error-400",
    "error-401",
    "error-403",
    "error-404",
    "error-413",
    "error-429",
    "error-500",
    "error-503",
    "error-529",
]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_exceptions(world: World, kind: str, *, stream: bool, sync: bool) -> None:
    for number, fault in enumerate([*FAULTS, "error"], start=1):
        direct, bridged = await both(world, kind, KINDS[kind](f"standin-{fault}", stream=stream), sync=sync)
        assert bridged == direct, fault
        # A failed response is no exception to this SDK, but an event.
        assert direct[1] is not None or (kind, stream, fault) == ("responses", True, "error")
        newest = (await world.recorded(number))[0]
        told = newest["metadata"]
        assert told["status"] == "failed", (fault, told)
        assert told["error_type"] not in ("", "unknown_error"), (fault, told)
        assert [prompt["prompt"] for prompt in newest["user_prompts"]] == [PROMPT]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "stream"), [(fault, stream) for fault in ("half", "garbage", "broken") for stream in (False, True)]
)
async def test_the_same_trouble_with_answers_that_go_wrong(
    world: World, kind: str, fault: str, *, stream: bool, sync: bool
) -> None:
    (seen, error), (bridged_seen, bridged_error) = await both(
        world, kind, KINDS[kind](f"standin-{fault}", stream=stream), sync=sync
    )
    assert bridged_seen == seen
    if fault == "broken" and kind == "messages" and stream:
        # This SDK lets the transport's own error through: reset there, cut off here.
        assert error
        assert bridged_error
        assert {one[0].__mro__[-4].__name__ for one in (error, bridged_error)} == {"HTTPError"}
    else:
        assert bridged_error == error
        # A stream that ends early, in good order, is no error to the SDKs; to the bridge it is.
        assert error or (fault == "half" and stream)
    (interception,) = await world.recorded(1)
    assert interception["metadata"]["status"] == "failed"
    assert [prompt["prompt"] for prompt in interception["user_prompts"]] == [PROMPT]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_no_answer_at_all_is_a_502_in_the_providers_shape(world: World, kind: str, *, stream: bool) -> None:
    _, error = await outcome(world, kind, KINDS[kind]("standin-reset", stream=stream), sync=False, bridged=True)
    assert error[0] is (anthropic if kind == "messages" else openai).InternalServerError
    assert error[2] == 502
    (interception,) = await world.recorded(1)
    assert interception["metadata"]["status"] == "failed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["unknown", "AAAAAAAAAA-BBBBBBBBBBBBBBBBBBBBBB"])
async def test_whoever_is_not_known_gets_the_sdks_own_error(world: World, kind: str, token: str) -> None:
    _, error = await outcome(world, kind, KINDS[kind]("standin-m"), sync=False, bridged=True, token=token)
    assert error[0] is (anthropic if kind == "messages" else openai).AuthenticationError
    assert token not in error[1]
    assert world.exchanges() == []


@contextmanager
def clients(world: World, *, bridged: bool) -> Iterator[tuple[anthropic.Anthropic, openai.OpenAI]]:
    (url_a, key_a), (url_o, key_o) = (world.address(sdk, bridged=bridged) for sdk in ("anthropic", "openai"))
    with (
        anthropic.Anthropic(base_url=url_a, api_key=key_a, max_retries=0) as first,
        openai.OpenAI(base_url=url_o, api_key=key_o, max_retries=0) as second,
    ):
        yield first, second


async def test_what_is_passed_through_is_the_same_and_not_recorded(world: World) -> None:
    def everything(*, bridged: bool) -> list[Any]:
        with clients(world, bridged=bridged) as (claude, gpt):
            return [
                claude.models.list().model_dump(),
                claude.models.retrieve("standin-m").model_dump(),
                claude.messages.count_tokens(model="m", messages=[{"role": "user", "content": PROMPT}]).model_dump(),
                gpt.models.list().model_dump(),
                gpt.models.retrieve("standin-m").model_dump(),
                gpt.responses.retrieve("resp_1").model_dump(),
                gpt.conversations.create(metadata={"a": "b"}).model_dump(),
                gpt.conversations.retrieve("conv_1").model_dump(),
            ]

    direct = await asyncio.to_thread(everything, bridged=False)
    assert await asyncio.to_thread(everything, bridged=True) == direct
    assert len(world.exchanges()) == 2 * len(direct)
    # Whatever comes after them is recorded alone.
    await outcome(world, "messages", messages("standin-m"), sync=False, bridged=True)
    assert len(await world.recorded(1)) == 1


async def test_a_key_of_ones_own_goes_to_the_provider_and_the_token_does_not(
    provider: TestServer, make_bridge: Callable[..., Awaitable[Bridged]]
) -> None:
    world = World(provider, await make_bridge(provider, allow_byok=True))
    token = {"Coder-Session-Token": world.bridge.token}
    (url_a, _), (url_o, _) = (world.address(sdk, bridged=True) for sdk in ("anthropic", "openai"))
    async with anthropic.AsyncAnthropic(base_url=url_a, api_key="own-a", default_headers=token) as claude:
        await messages("standin-m")(claude)
    async with openai.AsyncOpenAI(base_url=url_o, api_key="own-o", default_headers=token) as gpt:
        await chat("standin-m")(gpt)
        await responses("standin-m")(gpt)
    sent = [exchange.headers for exchange in world.exchanges()]
    # As these SDKs send it.
    assert [headers.get("authorization") for headers in sent] == [["Bearer own-a"], ["Bearer own-o"], ["Bearer own-o"]]
    assert {str(headers.get("x-api-key")) for headers in sent} == {"None"}
    assert all(world.bridge.token not in str(headers) for headers in sent)
    assert {one["metadata"]["credential_kind"] for one in await world.recorded(3)} == {"byok"}


async def test_many_at_once_are_each_recorded_once(world: World) -> None:
    models = [f"standin-tools+cached+split-{number}" for number in range(20)]
    calls = [(kind, KINDS[kind](model, stream=True)) for model in models for kind in KINDS]
    outcomes = await asyncio.gather(*[outcome(world, kind, call, sync=False, bridged=True) for kind, call in calls])
    assert [error for _, error in outcomes if error] == []
    found = await world.recorded(len(calls))
    asked = sorted((model, "anthropic" if kind == "messages" else "openai") for model in models for kind in KINDS)
    assert sorted((one["model"], one["provider"]) for one in found) == asked
    assert all(len(one["token_usages"]) == 1 and len(one["tool_usages"]) == 2 for one in found)
