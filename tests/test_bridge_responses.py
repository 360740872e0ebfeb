"""OpenAI's Responses: what requests ask, and what their answers used."""

from __future__ import annotations

import json
from typing import Any

import exchanges
import pytest
from exchanges import named

from service.bridge.protocols import BY_NAME, Observed, Thought, ToolCall, Usage

RESPONSES = BY_NAME["openai-responses"]

REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "**Looking**\n\nFirst."}, {"type": "summary_text", "text": "Then."}],
    "encrypted_content": "gAAAA",
}
COMMENTARY = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "phase": "commentary",
    "content": [{"type": "output_text", "text": "I look "}, {"type": "output_text", "text": "first."}],
}
FINAL = COMMENTARY | {"id": "msg_2", "phase": "final_answer"}
CALL = {"id": "fc_1", "type": "function_call", "call_id": "call_a", "name": "shell", "arguments": '{"command":["ls"]}'}
CUSTOM = {"id": "ct_1", "type": "custom_tool_call", "call_id": "call_b", "name": "apply_patch", "input": "*** Begin\n"}
OUTPUT: list[dict[str, Any]] = [REASONING, COMMENTARY, CALL, CUSTOM, FINAL]
USAGE = {
    "input_tokens": 3_000,
    "input_tokens_details": {"cached_tokens": 2_048},
    "output_tokens": 120,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 3_120,
}

USED = Usage(
    input_tokens=952,
    output_tokens=120,
    cache_read_input_tokens=2_048,
    metadata={"output_tokens_details": {"reasoning_tokens": 64}, "total_tokens": 3_120},
)
TOOLS = [
    ToolCall(call_id="call_a", tool="shell", input='{"command":["ls"]}'),
    ToolCall(call_id="call_b", tool="apply_patch", input="*** Begin\n"),
]
THOUGHTS = [
    Thought("**Looking**\n\nFirst.", {"source": "reasoning_summary"}),
    Thought("Then.", {"source": "reasoning_summary"}),
    Thought("I look first.", {"source": "commentary"}),
]


def response(status: str, **members: Any) -> dict[str, Any]:
    body = {"id": "resp_1", "object": "response", "status": status, "error": None, "incomplete_details": None}
    return body | {"model": "gpt-5.2-codex", "output": [], "usage": None} | members


def done(index: int, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "response.output_item.done", "output_index": index, "item": item}


CREATED = {"type": "response.created", "response": response("in_progress"), "sequence_number": 0}
DELTAS = (
    {
        "type": "response.output_item.added",
        "output_index": 2,
        "item": CALL | {"arguments": "", "status": "in_progress"},
    },
    {"type": "response.function_call_arguments.delta", "output_index": 2, "item_id": "fc_1", "delta": '{"command"'},
    {
        "type": "response.function_call_arguments.done",
        "output_index": 2,
        "item_id": "fc_1",
        "arguments": CALL["arguments"],
    },
)
ITEMS = [done(index, item) for index, item in enumerate(OUTPUT)]


def end(kind: str, **members: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": response(kind, **members)}


def streamed(*events: dict[str, Any]) -> Observed:
    return exchanges.streamed(RESPONSES, named(*events))


def test_a_stream_with_reasoning_commentary_and_calls() -> None:
    observed = streamed(CREATED, *DELTAS, *ITEMS, end("completed", output=OUTPUT, usage=USAGE))
    assert observed == Observed(response_id="resp_1", usage=USED, tools=TOOLS, thoughts=THOUGHTS, complete=True)


def test_items_that_come_only_with_the_end() -> None:
    observed = streamed(CREATED, ITEMS[2], end("completed", output=OUTPUT, usage=USAGE))
    assert observed == Observed(response_id="resp_1", usage=USED, tools=TOOLS, thoughts=THOUGHTS, complete=True)


def test_an_end_that_repeats_no_items() -> None:
    assert streamed(CREATED, *ITEMS, end("completed", usage=USAGE)).tools == TOOLS


def test_an_incomplete_response_is_a_complete_answer() -> None:
    observed = streamed(CREATED, end("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=USAGE))
    assert observed == Observed(response_id="resp_1", usage=USED, complete=True)


def test_a_failed_response() -> None:
    error = {"code": "rate_limit_exceeded", "message": "Too many."}
    observed = streamed(CREATED, end("failed", error=error, usage=USAGE))
    assert observed == Observed(response_id="resp_1", usage=USED, error="rate_limit_exceeded", complete=True)
    assert streamed(CREATED, end("failed")).error == "unknown_error"


@pytest.mark.parametrize(
    ("members", "type"),
    [
        ({"code": "server_error", "message": "x", "param": None, "sequence_number": 3}, "server_error"),
        (
            {"error": {"type": "invalid_request_error", "code": "context_length_exceeded", "message": "x"}},
            "invalid_request_error",
        ),
        ({"message": "x"}, "unknown_error"),
    ],
)
def test_an_error_in_the_middle(members: dict[str, Any], type: str) -> None:
    observed = streamed(CREATED, ITEMS[2], {"type": "error", **members})
    assert observed == Observed(response_id="resp_1", tools=TOOLS[:1], error=type, complete=True)


def test_a_stream_that_breaks_off_tells_what_was_complete() -> None:
    observed = exchanges.streamed(RESPONSES, named(CREATED, ITEMS[0], ITEMS[2], *DELTAS) + named(ITEMS[3])[:-1])
    assert observed == Observed(response_id="resp_1", tools=TOOLS[:1], thoughts=THOUGHTS[:2])


def test_an_answer_in_one_piece() -> None:
    observed = exchanges.answered(RESPONSES, response("completed", output=OUTPUT, usage=USAGE))
    assert observed == Observed(response_id="resp_1", usage=USED, tools=TOOLS, thoughts=THOUGHTS, complete=True)
    failed = exchanges.answered(RESPONSES, response("failed", error={"code": "server_error", "message": "x"}))
    assert failed == Observed(response_id="resp_1", error="server_error", complete=True)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            400,
            b'{"error":{"message":"x","type":"invalid_request_error","param":"input","code":null}}',
            "invalid_request_error",
        ),
        (500, b'{"error":null}', "unknown_error"),
        (502, b"Bad Gateway", "unknown_error"),
    ],
)
def test_an_error_instead_of_an_answer(status: int, body: bytes, error: str) -> None:
    assert exchanges.answered(RESPONSES, body, status=status) == Observed(error=error, complete=True)


@pytest.mark.parametrize("body", exchanges.UNREADABLE)
def test_an_answer_that_cannot_be_read_is_not_complete(body: bytes) -> None:
    assert exchanges.answered(RESPONSES, body) == Observed()


USER = {
    "role": "user",
    "content": [{"type": "input_text", "text": " a"}, {"type": "input_image"}, {"type": "input_text", "text": "b\n"}],
}


@pytest.mark.parametrize(
    ("asked", "prompt", "answers"),
    [
        (" Why?\n", " Why?\n", None),
        ([USER], " a\nb\n", None),
        ([USER | {"type": "message"}], " a\nb\n", None),
        ([{"role": "user", "content": "Why?"}], "Why?", None),
        ([USER, {"type": "function_call_output", "call_id": "call_a", "output": "x"}], None, "call_a"),
        ([USER, {"type": "custom_tool_call_output", "call_id": "call_b", "output": "x"}], None, "call_b"),
        ([USER, CALL], None, None),
        ([USER | {"content": [{"type": "input_image"}]}], None, None),
        ([USER | {"role": "developer"}], None, None),
        ([], None, None),
        (None, None, None),
        ([[]], None, None),
    ],
)
def test_the_prompt_and_the_call_that_is_answered(asked: Any, prompt: str | None, answers: str | None) -> None:
    question = exchanges.ask(RESPONSES, input=asked)
    assert (question.prompt, question.answers_tool_call) == (prompt, answers)


def test_a_request_goes_up_as_it_came() -> None:
    body = b' {"stream":true, "model" : "gpt-5.2-codex","stream_options":{"include_obfuscation":false}}\n'
    question = RESPONSES.read(body)
    assert (question.body, question.model, question.streaming, question.hides_usage) == (
        body,
        "gpt-5.2-codex",
        True,
        False,
    )


def test_errors_have_the_providers_shape() -> None:
    told = json.loads(RESPONSES.error(429, "Wait."))["error"]
    assert told == {"message": "Wait.", "type": "rate_limit_error", "code": "rate_limit_exceeded", "param": None}
