"""OpenAI's Chat Completions: what requests ask, what goes upstream, and what the answers used."""

from __future__ import annotations

import json
import re
from typing import Any

import exchanges
import pytest
from exchanges import unnamed
from hypothesis import given
from hypothesis import strategies as st

from service.bridge.protocols import BY_NAME, Observed, ToolCall, Usage

CHAT = BY_NAME["openai-chat-completions"]

USAGE = {
    "prompt_tokens": 1_117,
    "completion_tokens": 46,
    "total_tokens": 1_163,
    "prompt_tokens_details": {"cached_tokens": 1_024, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 32,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
USED = Usage(
    input_tokens=93,
    output_tokens=46,
    cache_read_input_tokens=1_024,
    metadata={
        "total_tokens": 1_163,
        "prompt_tokens_details": {"audio_tokens": 0},
        "completion_tokens_details": USAGE["completion_tokens_details"],
    },
)


def chunk(
    delta: dict[str, Any] | None = None, *, finish: str | None = None, choice: int = 0, **members: Any
) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": "gpt-5.2"}
    return head | {"choices": choices} | members


def calls(*deltas: dict[str, Any]) -> dict[str, Any]:
    return chunk({"tool_calls": list(deltas)})


def begun(index: int, call: str, name: str, arguments: str = "") -> dict[str, Any]:
    return {"index": index, "id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


def more(index: int, arguments: str) -> dict[str, Any]:
    return {"index": index, "function": {"arguments": arguments}}


TWO_CALLS = (
    chunk({"role": "assistant", "content": None}),
    calls(begun(0, "call_a", "read")),
    calls(more(0, '{"path":')),
    calls(more(0, '"é"}')),
    calls(begun(1, "call_b", "list")),
    calls(more(1, "{}")),
)
A = ToolCall(call_id="call_a", tool="read", input='{"path":"é"}')
B = ToolCall(call_id="call_b", tool="list", input="{}")


def streamed(*events: dict[str, Any] | str) -> Observed:
    return exchanges.streamed(CHAT, unnamed(*events))


def test_a_stream_with_tool_calls_and_usage_in_a_chunk_of_its_own() -> None:
    observed = streamed(*TWO_CALLS, chunk({}, finish="tool_calls", usage=None), chunk(usage=USAGE), "[DONE]")
    assert observed == Observed(response_id="chatcmpl-1", usage=USED, tools=[A, B], complete=True)


@pytest.mark.parametrize(
    "events",
    [
        [chunk({"content": "a"}, usage=None), chunk({}, finish="stop", usage=None), chunk(usage=USAGE)],
        [chunk({"content": "a"}, usage=None), chunk({}, finish="stop", usage=USAGE)],
        [chunk(usage=USAGE), chunk({"content": "a"}, usage=None), chunk({}, finish="stop", usage=None)],
        [chunk({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 1}), chunk({}, usage=USAGE)],
    ],
    ids=["own chunk", "last chunk", "first chunk", "growing"],
)
def test_the_last_usage_that_is_not_null_wherever_it_comes(events: list[dict[str, Any]]) -> None:
    observed = streamed(*events, "[DONE]")
    assert (observed.usage, observed.complete) == (USED, True)


def test_calls_of_several_choices() -> None:
    observed = streamed(
        calls(begun(0, "call_a", "read", '{"path":')),
        chunk({"tool_calls": [begun(0, "call_b", "list", "{")]}, choice=1),
        calls(more(0, '"é"}')),
        chunk({"tool_calls": [more(0, "}")]}, choice=1, finish="tool_calls"),
        chunk({}, finish="tool_calls"),
    )
    assert observed.tools == [B, A]


def test_whole_calls_that_are_all_numbered_zero() -> None:
    """As some other servers of this protocol do."""
    observed = streamed(
        calls(begun(0, "call_a", "read", '{"path":"é"}')),
        calls(begun(0, "call_b", "list", "{}")),
        chunk({}, finish="tool_calls"),
    )
    assert observed.tools == [A, B]


def test_a_call_that_is_repeated_with_its_id() -> None:
    """As some other servers of this protocol do: each delta carries id and type."""
    again = begun(0, "call_a", "read")
    deltas = [again | {"function": {"arguments": part}} for part in ('{"path":', '"é"}')]
    assert streamed(calls(again), *[calls(delta) for delta in deltas], chunk({}, finish="tool_calls")).tools == [A]


def test_a_custom_call_has_free_text() -> None:
    first = {"index": 0, "id": "call_c", "type": "custom", "custom": {"name": "patch", "input": ""}}
    observed = streamed(
        calls(first), calls({"index": 0, "custom": {"input": "*** Begin"}}), chunk({}, finish="tool_calls")
    )
    assert observed.tools == [ToolCall(call_id="call_c", tool="patch", input="*** Begin")]


def test_halves_of_a_character_in_two_deltas_become_whole() -> None:
    observed = exchanges.streamed(
        CHAT,
        unnamed(
            calls(begun(0, "call_a", "say")),
            r'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\ud83d"}}]}}]}',
            r'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\ude00\ud800\u0000"}}]}}]}',
            "[DONE]",
        ),
    )
    assert [call.input for call in observed.tools] == ["😀\ufffd\ufffd"]


def test_a_stream_that_breaks_off_tells_what_was_complete() -> None:
    observed = exchanges.streamed(CHAT, unnamed(*TWO_CALLS) + b'data: {"id":"chatcmpl-1","choi')
    assert observed == Observed(response_id="chatcmpl-1", tools=[A])


@pytest.mark.parametrize(
    ("error", "type"),
    [
        ({"message": "The server had an error", "type": "server_error", "param": None, "code": None}, "server_error"),
        ({"message": "x", "code": "rate_limit_exceeded"}, "rate_limit_exceeded"),
        ({"message": "x", "code": 502}, "502"),
        ("text", "unknown_error"),
    ],
)
def test_an_error_in_the_middle(error: Any, type: str) -> None:
    observed = streamed(chunk({"content": "a"}), {"error": error})
    assert (observed.error, observed.complete) == (type, True)


def test_an_answer_in_one_piece() -> None:
    tool_calls = [
        {"id": "call_a", "type": "function", "function": {"name": "read", "arguments": '{"path":"é"}'}},
        {"id": "call_c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}},
    ]
    message = {"role": "assistant", "content": None, "refusal": None}
    observed = exchanges.answered(
        CHAT,
        {
            "id": "chatcmpl-2",
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": message | {"tool_calls": tool_calls}, "finish_reason": "tool_calls"},
                {"index": 1, "message": message | {"tool_calls": None}, "finish_reason": "stop"},
            ],
            "usage": USAGE,
            "service_tier": "default",
        },
    )
    assert observed == Observed(
        response_id="chatcmpl-2",
        usage=USED,
        tools=[A, ToolCall(call_id="call_c", tool="patch", input="*** Begin")],
        complete=True,
    )


@pytest.mark.parametrize(
    ("usage", "used"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 0}, Usage(input_tokens=5)),
        (
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None},
            Usage(input_tokens=5, output_tokens=1),
        ),
        (
            {"prompt_tokens": 2**63 - 1, "completion_tokens": 2**53 + 1},
            Usage(input_tokens=2**63 - 1, output_tokens=2**53 + 1),
        ),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(cache_read_input_tokens=9)),
        (
            {"prompt_tokens": 5, "cost": 0.25, "tier": "x", "flag": True, "nested": {"a": {"b": 1}, "c": 2}},
            Usage(input_tokens=5, metadata={"cost": 0.25, "nested": {"c": 2}}),
        ),
        ({"prompt_tokens": -5, "completion_tokens": 2**63}, None),
        ({"prompt_tokens": True, "completion_tokens": "1"}, None),
        ({}, None),
        ([], None),
        (7, None),
    ],
)
def test_numbers_are_exact_and_others_are_left_out(usage: Any, used: Usage | None) -> None:
    assert exchanges.answered(CHAT, {"id": "x", "usage": usage}).usage == used
    assert streamed(chunk(usage=usage), "[DONE]").usage == used


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            429,
            b'{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}',
            "requests",
        ),
        (
            401,
            b'{"error":{"message":"Incorrect key","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}',
            "invalid_request_error",
        ),
        (200, b'{"error":{"message":"Upstream failed","code":502}}', "502"),
        (503, b"upstream connect error", "unknown_error"),
    ],
)
def test_an_error_instead_of_an_answer(status: int, body: bytes, error: str) -> None:
    assert exchanges.answered(CHAT, body, status=status) == Observed(error=error, complete=True)


@pytest.mark.parametrize("body", exchanges.UNREADABLE)
def test_an_answer_that_cannot_be_read_is_not_complete(body: bytes) -> None:
    assert exchanges.answered(CHAT, body) == Observed()


def message(role: str, content: Any, **members: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "before"}, {"role": role, "content": content, **members}]


@pytest.mark.parametrize(
    ("messages", "prompt", "answers"),
    [
        (message("user", " Why?\n"), " Why?\n", None),
        (
            message(
                "user",
                [
                    {"type": "text", "text": "a"},
                    {"type": "text", "text": "b"},
                    {"type": "image_url", "image_url": {"url": "x"}},
                ],
            ),
            "b",
            None,
        ),
        (message("user", [{"type": "image_url", "image_url": {"url": "x"}}]), None, None),
        (message("tool", "result", tool_call_id="call_a"), None, "call_a"),
        (message("user", "a", tool_call_id="call_a"), "a", None),
        (message("developer", "a"), None, None),
        (message("assistant", "a"), None, None),
        ([], None, None),
        ({"role": "user"}, None, None),
    ],
)
def test_the_prompt_and_the_call_that_is_answered(messages: Any, prompt: str | None, answers: str | None) -> None:
    question = exchanges.ask(CHAT, messages=messages)
    assert (question.prompt, question.answers_tool_call) == (prompt, answers)


# -- what goes upstream ----------------------------------------------------------------------------------------------

# What comes, and what goes in its place: {+…+} is added, {-…-} taken out, and not a byte of the rest differs.
ASKED = (
    '{{+"stream_options":{"include_usage":true},+}"model":"m","stream":true}',
    '\ufeff {{+"stream_options":{"include_usage":true},+}\n "model" : "m", "stream":true, "seed":1.10}\n',
    '{"model":"m","stream":true,"stream_options":{{+"include_usage":true+}}}',
    '{"model":"m","stream_options": {{+"include_usage":true,+} "a":1 } ,"stream":true}',
    '{"model":"m","stream_options":{-null-}{+{"include_usage":true}+},"stream":true}',
    '{"model":"é","stream_options":{"a":[{"include_usage":1}],"include_usage": {-false-}{+true+} },"stream":true}',
    '{"stream_options":1,"model":"m","stream":true,"str\\u0065am_options":{"include_usage":{-null-}{+true+}}}',
)
UNTOUCHED = (
    '{"model":"m"}',
    '{"model":"m","stream":false,"stream_options":null}',
    '{"model":"m","stream":true,"stream_options":{"include_usage":true, "a": 1.0}}',
    '{"model":"m","stream":true,"stream_options":"what"}',
)


@pytest.mark.parametrize("body", ASKED)
def test_a_streams_usage_is_asked_for(body: str) -> None:
    came = re.sub(r"\{\+.*?\+\}", "", re.sub(r"\{-(.*?)-\}", r"\1", body))
    goes = re.sub(r"\{\+(.*?)\+\}", r"\1", re.sub(r"\{-.*?-\}", "", body))
    question = CHAT.read(came.encode())
    assert question.body.decode() == goes
    assert question.hides_usage
    assert question.streaming


@pytest.mark.parametrize("body", UNTOUCHED)
def test_any_other_request_goes_up_as_it_came(body: str) -> None:
    question = CHAT.read(body.encode())
    assert question.body.decode() == body
    assert not question.hides_usage


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=5), values, max_size=5),
    st.none() | st.dictionaries(st.text(max_size=5) | st.just("include_usage"), values, max_size=4),
    st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 2])}),
)
def test_only_the_usage_is_added(others: dict[str, Any], options: Any, style: dict[str, Any]) -> None:
    members = others | {"model": "m", "stream": True, "stream_options": options, "after": others}
    question = CHAT.read(json.dumps(members, **style).encode(errors="replace"))
    sent = json.loads(question.body)
    assert sent == json.loads(json.dumps(members).encode(errors="replace")) | {
        "stream_options": (options or {}) | {"include_usage": True}
    }


@pytest.mark.parametrize("finish_usage", [None, "absent"])
def test_the_client_does_not_see_the_usage_that_only_the_bridge_asked_for(finish_usage: Any) -> None:
    nothing: dict[str, Any] = {} if finish_usage == "absent" else {"usage": None}
    azure = chunk(None, prompt_filter_results=[], **nothing)
    content, finish, done = chunk({"content": "a"}, **nothing), chunk({}, finish="stop", **nothing), "[DONE]"
    stream = unnamed(azure, content, finish, chunk(usage=USAGE), done)
    hidden = CHAT.read(b'{"model":"m","stream":true}')
    observed, seen = exchanges.relayed(CHAT, stream, hidden)
    assert observed.usage == USED
    assert seen == unnamed(azure, content, finish, done)
    asked = CHAT.read(b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}')
    assert exchanges.relayed(CHAT, stream, asked) == (observed, stream)


def test_usage_in_a_chunk_with_content_is_seen() -> None:
    stream = unnamed(chunk({"content": "a"}), chunk({}, finish="stop", usage=USAGE), "[DONE]")
    observed, seen = exchanges.relayed(CHAT, stream, CHAT.read(b'{"model":"m","stream":true}'))
    assert (observed.usage, seen) == (USED, stream)


@pytest.mark.parametrize(
    ("status", "type", "code"),
    [
        (400, "invalid_request_error", None),
        (401, "authentication_error", "invalid_api_key"),
        (503, "server_error", None),
    ],
)
def test_errors_have_the_providers_shape(status: int, type: str, code: str | None) -> None:
    body = CHAT.error(status, "Not é.")
    assert json.loads(body) == {"error": {"message": "Not é.", "type": type, "code": code, "param": None}}
