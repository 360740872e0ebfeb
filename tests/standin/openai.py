"""The stand-in's answers as OpenAI's API has them: Chat Completions and Responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plan import Call, Plan, plan

CREATED = 1_764_000_000

_ERRORS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def error(status: int, message: str) -> dict[str, Any]:
    """An error's body."""
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}}


# -- Chat Completions ------------------------------------------------------------------------------------------------


def chat_planned(body: dict[str, Any]) -> Plan:
    """The answer to a chat completion request; raises KeyError, TypeError or IndexError where it is none."""
    last = body["messages"][-1]
    content = last.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts = [part["text"] for part in parts if part["type"] == "text"]
    functions = [tool["function"] for tool in body.get("tools") or [] if tool["type"] == "function"]
    return plan(
        body["model"],
        asked=[body["messages"], body.get("tools")],
        prompt=texts[-1] if texts and last["role"] == "user" else None,
        tools=[(function["name"], function.get("parameters") or {}) for function in functions],
        answers_tool_call=last["role"] == "tool",
    )


def completion(plan: Plan) -> dict[str, Any]:
    """The whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": plan.text, "refusal": None, "annotations": []}
    if plan.calls:
        message["tool_calls"] = [_call(call, call.text) for call in plan.calls]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(plan)}
    return _head(plan, "chat.completion") | {"choices": [choice], "usage": _chat_usage(plan), "service_tier": "default"}


def chunks(plan: Plan, *, include_usage: bool, usage_last: bool) -> Iterator[dict[str, Any]]:
    """The answer as a stream; usage in a chunk of its own, or with the last choice."""
    extra: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _head(plan, "chat.completion.chunk") | {"choices": [choice]} | extra

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    for piece in plan.pieces:
        yield chunk({"content": piece})
    for index, call in enumerate(plan.calls):
        yield chunk({"tool_calls": [{"index": index} | _call(call, "")]})
        for part in (call.text[:5], call.text[5:]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    usage = {"usage": _chat_usage(plan)}
    yield chunk({}, _reason(plan)) | (usage if include_usage and usage_last else {})
    if include_usage and not usage_last:
        yield _head(plan, "chat.completion.chunk") | {"choices": []} | usage


def _head(plan: Plan, kind: str) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{plan.key[:24]}", "object": kind, "created": CREATED, "model": plan.model}
    return head | {"system_fingerprint": "fp_standin"}


def _call(call: Call, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{call.id}", "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _chat_usage(plan: Plan) -> dict[str, Any]:
    asked = plan.fresh + plan.read
    return {
        "prompt_tokens": asked,
        "completion_tokens": plan.answered,
        "total_tokens": asked + plan.answered,
        "prompt_tokens_details": {"cached_tokens": plan.read, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": len(plan.thoughts),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _reason(plan: Plan) -> str:
    return "length" if plan.cut else "tool_calls" if plan.calls else "stop"


# -- Responses -------------------------------------------------------------------------------------------------------


def responses_planned(body: dict[str, Any]) -> Plan:
    """The answer to a responses request; raises KeyError, TypeError or IndexError where it is none."""
    asked = body["input"]
    last = {"role": "user", "content": asked} if isinstance(asked, str) else asked[-1]
    content = last.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content or []
    texts = [part["text"] for part in parts if part["type"] == "input_text"]
    functions = [tool for tool in body.get("tools") or [] if tool["type"] in ("function", "custom")]
    return plan(
        body["model"],
        asked=[body.get("instructions"), asked, body.get("tools")],
        prompt="\n".join(texts) if texts and last.get("role") == "user" else None,
        tools=[(tool["name"], tool.get("parameters") or {}) for tool in functions],
        answers_tool_call=str(last.get("type")).endswith("_call_output"),
    )


def response(plan: Plan, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer to that request."""
    details = {"incomplete_details": {"reason": "max_output_tokens"}} if plan.cut else {}
    status = "incomplete" if plan.cut else "completed"
    items = [whole for whole, _ in _items(plan, body)]
    return _response(plan, body) | {"status": status, "output": items, "usage": _usage(plan)} | details


def failed(plan: Plan, body: dict[str, Any]) -> dict[str, Any]:
    """The end of a stream that fails."""
    failure = {"code": "server_error", "message": "The stand-in was told to fail."}
    return {"type": "response.failed", "response": _response(plan, body) | {"status": "failed", "error": failure}}


def events(plan: Plan, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer as a stream; each event's name is its type, and the sequence numbers are still to come."""
    begun = _response(plan, body) | {"status": "in_progress"}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, (item, deltas) in enumerate(_items(plan, body)):
        empty: dict[str, Any] = {"arguments": ""} if "arguments" in item else {"input": ""} if "input" in item else {}
        empty |= {"content": []} if "content" in item else {"summary": []} if "summary" in item else {}
        empty |= {"status": "in_progress"} if "status" in item else {}
        yield {"type": "response.output_item.added", "output_index": index, "item": item | empty}
        for delta in deltas:
            yield {"output_index": index, "item_id": item["id"]} | delta
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    end = response(plan, body)
    yield {"type": f"response.{end['status']}", "response": end}


def _items(plan: Plan, body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each item of the output, and the events between its beginning and its end."""
    if plan.thoughts:
        yield _reasoning(plan)
        yield _message(plan, "commentary", ["I will ", "look first."])
    yield _message(plan, "final_answer", plan.pieces)
    custom = {tool["name"] for tool in body.get("tools") or [] if tool["type"] == "custom"}
    for call in plan.calls:
        yield _custom_call(call) if call.name in custom else _function_call(call)


def _reasoning(plan: Plan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    text = "".join(plan.thoughts)
    part = {"type": "summary_text", "text": text}
    where: dict[str, Any] = {"summary_index": 0}
    deltas: list[dict[str, Any]] = [
        where | {"type": "response.reasoning_summary_part.added", "part": part | {"text": ""}},
        *(where | {"type": "response.reasoning_summary_text.delta", "delta": piece} for piece in plan.thoughts),
        where | {"type": "response.reasoning_summary_text.done", "text": text},
        where | {"type": "response.reasoning_summary_part.done", "part": part},
    ]
    return {"id": f"rs_{plan.key[:24]}", "type": "reasoning", "summary": [part]}, deltas


def _message(plan: Plan, phase: str, pieces: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    text = "".join(pieces)
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    where: dict[str, Any] = {"content_index": 0}
    deltas: list[dict[str, Any]] = [
        where | {"type": "response.content_part.added", "part": part | {"text": ""}},
        *(where | {"type": "response.output_text.delta", "delta": piece, "logprobs": []} for piece in pieces),
        where | {"type": "response.output_text.done", "text": text, "logprobs": []},
        where | {"type": "response.content_part.done", "part": part},
    ]
    item = {"id": f"msg_{phase[:3]}{plan.key[:24]}", "type": "message", "role": "assistant", "status": "completed"}
    return item | {"phase": phase, "content": [part]}, deltas


def _function_call(call: Call) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    kind = "response.function_call_arguments"
    deltas: list[dict[str, Any]] = [{"type": f"{kind}.delta", "delta": part} for part in (call.text[:5], call.text[5:])]
    deltas.append({"type": f"{kind}.done", "name": call.name, "arguments": call.text})
    item = {"id": f"fc_{call.id}", "type": "function_call", "status": "completed", "call_id": f"call_{call.id}"}
    return item | {"name": call.name, "arguments": call.text}, deltas


def _custom_call(call: Call) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    kind, text = "response.custom_tool_call_input", f"*** Begin\n{call.text}"
    deltas: list[dict[str, Any]] = [{"type": f"{kind}.delta", "delta": part} for part in (text[:5], text[5:])]
    deltas.append({"type": f"{kind}.done", "input": text})
    item = {"id": f"ctc_{call.id}", "type": "custom_tool_call", "status": "completed", "call_id": f"call_{call.id}"}
    return item | {"name": call.name, "input": text}, deltas


def _response(plan: Plan, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"resp_{plan.key[:24]}",
        "object": "response",
        "created_at": CREATED,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": None,
        "metadata": {},
        "model": plan.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _usage(plan: Plan) -> dict[str, Any]:
    asked = plan.fresh + plan.read
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": plan.read},
        "output_tokens": plan.answered,
        "output_tokens_details": {"reasoning_tokens": len(plan.thoughts)},
        "total_tokens": asked + plan.answered,
    }
