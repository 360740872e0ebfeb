"""Anthropic's Messages: what requests ask, and what their answers used."""

from __future__ import annotations

import json
from typing import Any

import exchanges
import pytest
from exchanges import named

from service.bridge import sse
from service.bridge.protocols import BY_NAME, Observed, Thought, ToolCall, Usage

MESSAGES = BY_NAME["anthropic-messages"]

START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 2095,
            "cache_creation_input_tokens": 412,
            "cache_read_input_tokens": 18_300,
            "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 12},
            "output_tokens": 3,
            "service_tier": "standard",
        },
    },
}
THINKING = (
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Let me "}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "look.\n"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "EqQBCg=="}},
    {"type": "content_block_stop", "index": 0},
)
TEXT = (
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "I will look."}},
    {"type": "content_block_stop", "index": 1},
)


def tool(index: int, call: str, name: str, *parts: str) -> list[dict[str, Any]]:
    block = {"type": "tool_use", "id": call, "name": name, "input": {}}
    deltas = [
        {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": part}}
        for part in parts
    ]
    start = {"type": "content_block_start", "index": index, "content_block": block}
    return [start, *deltas, {"type": "content_block_stop", "index": index}]


def delta(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": usage}


STOP = {"type": "message_stop"}
READ_FILE = ToolCall(call_id="toolu_01", tool="Read", input='{"file_path": "/a/é.py"}')
LIST = ToolCall(call_id="toolu_02", tool="list_things", input="{}")


def streamed(*events: dict[str, Any]) -> Observed:
    return exchanges.streamed(MESSAGES, named(*events))


def test_a_stream_with_thinking_tools_and_cached_tokens() -> None:
    observed = streamed(
        START,
        *THINKING,
        *TEXT,
        *tool(2, "toolu_01", "Read", "", '{"file_', 'path": "/a/é', '.py"}'),
        *tool(3, "toolu_02", "list_things", ""),
        delta(
            output_tokens=215,
            input_tokens=2095,
            cache_read_input_tokens=18_300,
            server_tool_use={"web_search_requests": 1},
        ),
        STOP,
    )
    assert observed == Observed(
        response_id="msg_01",
        usage=Usage(
            input_tokens=2095,
            output_tokens=215,
            cache_read_input_tokens=18_300,
            cache_write_input_tokens=412,
            metadata={
                "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 12},
                "server_tool_use": {"web_search_requests": 1},
            },
        ),
        tools=[READ_FILE, LIST],
        thoughts=[Thought("Let me look.\n", {"source": "thinking"})],
        complete=True,
    )


def test_of_each_counter_the_last_that_is_told_holds_and_nothing_is_added_up() -> None:
    observed = streamed(
        START,
        delta(output_tokens=10, input_tokens=None, cache_creation={"ephemeral_1h_input_tokens": 20}),
        delta(output_tokens=25, cache_read_input_tokens=20_000, input_tokens="many", cache_creation=None),
        delta(output_tokens=None),
        STOP,
    )
    assert observed.usage == Usage(
        input_tokens=2095,
        output_tokens=25,
        cache_read_input_tokens=20_000,
        cache_write_input_tokens=412,
        metadata={"cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 20}},
    )


def test_a_stream_whose_input_is_told_at_its_end() -> None:
    """As some other servers of this protocol do."""
    start = {"type": "message_start", "message": {"id": "x", "usage": {"input_tokens": 0, "output_tokens": 0}}}
    assert streamed(start, delta(input_tokens=7, output_tokens=5), STOP).usage == Usage(input_tokens=7, output_tokens=5)


def test_text_is_passed_over_and_what_only_looks_like_it_is_not() -> None:
    like = '{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "'
    deltas = [{"type": "thinking_delta", "thinking": part} for part in ("text_delta", like, "")]
    thinking = [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    reader = MESSAGES.reader(MESSAGES.read(b'{"model": "m"}'))
    for event in sse.Decoder(1_000).feed(named(START, THINKING[0], *thinking, THINKING[-1], *TEXT)):
        assert reader.event(event)
    assert reader.observed.thoughts == [Thought(f"text_delta{like}", {"source": "thinking"})]


def test_calls_whose_blocks_interleave() -> None:
    first, second = tool(0, "toolu_a", "a", '{"a":', "1}"), tool(1, "toolu_b", "b", '{"b":', "2}")
    mixed = [event for pair in zip(first, second, strict=True) for event in pair]
    assert streamed(START, *mixed, STOP).tools == [
        ToolCall(call_id="toolu_a", tool="a", input='{"a":1}'),
        ToolCall(call_id="toolu_b", tool="b", input='{"b":2}'),
    ]


def test_a_call_whose_input_comes_with_its_beginning() -> None:
    block = {"type": "tool_use", "id": "toolu_03", "name": "add", "input": {"a": 1, "b": [2.5, None]}}
    observed = streamed(
        START,
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_stop", "index": 0},
    )
    assert observed.tools == [ToolCall(call_id="toolu_03", tool="add", input='{"a":1,"b":[2.5,null]}')]


def test_a_stream_that_breaks_off_tells_what_was_complete() -> None:
    whole = named(
        START,
        *THINKING,
        *tool(2, "toolu_01", "Read", '{"file_path": "/a/é.py"}'),
        *tool(3, "toolu_02", "Bash", '{"comm')[:-1],
    )
    observed = exchanges.streamed(
        MESSAGES, whole + b'event: content_block_stop\ndata: {"type":"content_block_stop","ind'
    )
    assert (observed.tools, len(observed.thoughts), observed.complete, observed.error) == ([READ_FILE], 1, False, None)
    assert observed.usage
    assert (observed.usage.input_tokens, observed.usage.output_tokens) == (2095, 3)


def test_an_error_in_the_middle() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    observed = streamed(START, *TEXT, error)
    assert (observed.error, observed.complete, observed.response_id) == ("overloaded_error", True, "msg_01")
    assert observed.usage


def test_an_answer_in_one_piece() -> None:
    observed = exchanges.answered(
        MESSAGES,
        {
            "id": "msg_02",
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "EqQBCg=="},
                {"type": "redacted_thinking", "data": "EmwKAhgB"},
                {"type": "text", "text": "Here."},
                {
                    "type": "tool_use",
                    "id": "toolu_04",
                    "name": "Edit",
                    "input": {"new": 'é"\n', "n": 1.5},
                },
                {"type": "tool_use", "id": "toolu_02", "name": "list_things", "input": {}},
            ],
            "stop_reason": "tool_use",
            "usage": {
                "input_tokens": 9,
                "output_tokens": 8,
                "cache_creation_input_tokens": None,
                "cache_read_input_tokens": 7,
            },
        },
    )
    assert observed == Observed(
        response_id="msg_02",
        usage=Usage(input_tokens=9, output_tokens=8, cache_read_input_tokens=7),
        tools=[ToolCall(call_id="toolu_04", tool="Edit", input=r'{"new":"é\"\n","n":1.5}'), LIST],
        thoughts=[Thought("Hm.", {"source": "thinking"})],
        complete=True,
    )


def test_the_numbers_of_an_input_stay_as_exact_as_they_came() -> None:
    body = b'{"content":[{"type":"tool_use","id":"t","name":"n","input":{"n": 12345678901234567890.50, "m": 1E2}}]}'
    (call,) = exchanges.answered(MESSAGES, body).tools
    assert call.input == '{"n":12345678901234567890.50,"m":1E+2}'


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            529,
            b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}',
            "overloaded_error",
        ),
        (
            400,
            b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: Field required"}}',
            "invalid_request_error",
        ),
        (200, b'{"type":"error","error":{"type":"api_error","message":"Internal server error"}}', "api_error"),
        (502, b"<html>Bad Gateway</html>", "unknown_error"),
        (500, b'{"error":"text"}', "unknown_error"),
        (500, b"", "unknown_error"),
    ],
)
def test_an_error_instead_of_an_answer(status: int, body: bytes, error: str) -> None:
    assert exchanges.answered(MESSAGES, body, status=status) == Observed(error=error, complete=True)


@pytest.mark.parametrize("body", exchanges.UNREADABLE)
def test_an_answer_that_cannot_be_read_is_not_complete(body: bytes) -> None:
    assert exchanges.answered(MESSAGES, body) == Observed()


def user(content: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": content},
    ]


RESULT = {"type": "tool_result", "tool_use_id": "toolu_01", "content": [{"type": "text", "text": "of the tool"}]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("messages", "prompt", "answers"),
    [
        (user("  Why?\n"), "  Why?\n", None),
        (
            user(
                [
                    {"type": "text", "text": "<system-reminder>"},
                    {"type": "text", "text": "Why?", "cache_control": {"type": "ephemeral"}},
                ]
            ),
            "Why?",
            None,
        ),
        (user([{"type": "text", "text": "What is this?"}, IMAGE]), "What is this?", None),
        (user([IMAGE]), None, None),
        (user([RESULT]), None, "toolu_01"),
        (user([RESULT, RESULT | {"tool_use_id": "toolu_02"}]), None, "toolu_02"),
        (user([RESULT, {"type": "text", "text": "And now?"}]), "And now?", "toolu_01"),
        (user("a\0b\ud800"), "a\ufffdb\ufffd", None),
        (user(""), None, None),
        ([*user("Why?"), {"role": "assistant", "content": "Because"}], None, None),
        # As Claude Code 2.1 sends them.
        ([*user("Why?"), {"role": "system", "content": "Available agents: …"}], "Why?", None),
        ([*user([RESULT]), {"role": "system", "content": "a"}, {"role": "system", "content": "b"}], None, "toolu_01"),
        ([{"role": "system", "content": "a"}], None, None),
        ([], None, None),
        (None, None, None),
        ("Why?", None, None),
        ([7], None, None),
        (user([{"type": "text"}, 7, None]), None, None),
        (user([{"type": "tool_result", "tool_use_id": 7}]), None, None),
    ],
)
def test_the_prompt_and_the_call_that_is_answered(messages: Any, prompt: str | None, answers: str | None) -> None:
    question = exchanges.ask(MESSAGES, messages=messages)
    assert (question.prompt, question.answers_tool_call) == (prompt, answers)


@pytest.mark.parametrize(
    ("user_id", "session"),
    [
        (
            '{"device_id":"d","account_uuid":"","session_id":"5c1b4cb6-6c0e-4ae1-a8f0-9d3c4b5a6e7f"}',
            "5c1b4cb6-6c0e-4ae1-a8f0-9d3c4b5a6e7f",
        ),
        ("user_0a1b_account__session_5c1b4cb6-6c0e-4ae1-a8f0-9d3c4b5a6e7f", "5c1b4cb6-6c0e-4ae1-a8f0-9d3c4b5a6e7f"),
        ("user_0a1b_account_77_session_5c1b", "5c1b"),
        ("someone", None),
        ("{broken", None),
        ('{"session_id":7}', None),
        ("user_session_", None),
        (7, None),
        (None, None),
    ],
)
def test_the_session(user_id: Any, session: str | None) -> None:
    assert exchanges.ask(MESSAGES, metadata={"user_id": user_id}).session_id == session
    assert exchanges.ask(MESSAGES, metadata=user_id).session_id is None


def test_a_request_goes_up_as_it_came() -> None:
    body = b' {"stream":true, "model" : "claude-opus-4-6","max_tokens":1e2}\n'
    question = MESSAGES.read(body)
    assert (question.body, question.model, question.streaming, question.hides_usage) == (
        body,
        "claude-opus-4-6",
        True,
        False,
    )
    assert exchanges.ask(MESSAGES, stream="true").streaming is False


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (503, "overloaded_error"),
        (502, "api_error"),
    ],
)
def test_errors_have_the_providers_shape(status: int, told: str) -> None:
    body = MESSAGES.error(status, "Not é.")
    assert json.loads(body) == {"type": "error", "error": {"type": told, "message": "Not é."}}
