"""The stand-in's answers as Anthropic's API has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plan import Plan, plan

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def planned(body: dict[str, Any]) -> Plan:
    """The answer to a messages request; raises KeyError, TypeError or IndexError where it is none."""
    last = [message for message in body["messages"] if message["role"] != "system"][-1]
    parts = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else last["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    tools = [(tool["name"], tool.get("input_schema") or {}) for tool in body.get("tools") or []]
    return plan(
        body["model"],
        asked=[body.get("system"), body["messages"], body.get("tools")],
        prompt=texts[-1] if texts and last["role"] == "user" else None,
        tools=tools,
        answers_tool_call=any(part["type"] == "tool_result" for part in parts),
    )


def error(status: int, message: str) -> dict[str, Any]:
    """An error's body."""
    return {
        "type": "error",
        "error": {"type": _ERRORS.get(status, "api_error"), "message": message},
        "request_id": None,
    }


def message(plan: Plan) -> dict[str, Any]:
    """The whole answer."""
    content: list[dict[str, Any]] = []
    if plan.thoughts:
        content.append({"type": "thinking", "thinking": "".join(plan.thoughts), "signature": "EqQBCg=="})
    content.append({"type": "text", "text": plan.text})
    content += [
        {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": call.arguments}
        for call in plan.calls
    ]
    return _message(plan) | {"content": content, "stop_reason": _reason(plan), "usage": _usage(plan)}


def events(plan: Plan) -> Iterator[dict[str, Any]]:
    """The answer as a stream; each event's name is its type."""
    start = _usage(plan) | {"output_tokens": 1}
    yield {"type": "message_start", "message": _message(plan) | {"content": [], "stop_reason": None, "usage": start}}
    yield {"type": "ping"}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if plan.thoughts:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in plan.thoughts]
        deltas.append({"type": "signature_delta", "signature": "EqQBCg=="})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in plan.pieces]))
    for call in plan.calls:
        block = {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": {}}
        parts = ["", call.text[:5], call.text[5:]] if call.arguments else [""]
        blocks.append((block, [{"type": "input_json_delta", "partial_json": part} for part in parts]))
    for index, (block, deltas) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    # Cumulative, and told more than once: whoever adds them up is wrong.
    end = {"stop_reason": _reason(plan), "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": {"output_tokens": plan.answered - 2}}
    counted = _usage(plan) | {"server_tool_use": {"web_search_requests": 0}}
    del counted["cache_creation"], counted["service_tier"]
    yield {"type": "message_delta", "delta": end, "usage": counted}
    yield {"type": "message_stop"}


def _message(plan: Plan) -> dict[str, Any]:
    head = {"id": f"msg_{plan.key[:24]}", "type": "message", "role": "assistant", "model": plan.model}
    return head | {"stop_sequence": None}


def _usage(plan: Plan) -> dict[str, Any]:
    return {
        "input_tokens": plan.fresh,
        "cache_creation_input_tokens": plan.written,
        "cache_read_input_tokens": plan.read,
        "cache_creation": {"ephemeral_5m_input_tokens": plan.written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": plan.answered,
        "service_tier": "standard",
    }


def _reason(plan: Plan) -> str:
    return "max_tokens" if plan.cut else "tool_use" if plan.calls else "end_turn"
