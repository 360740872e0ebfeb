"""OpenAI's Chat Completions: `POST /chat/completions`, as in OpenAI's API reference, and as others serve it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from service.bridge import sse
from service.bridge.protocols import openai_errors, reading
from service.bridge.protocols.interface import Observed, Question, Reader, ToolCall, Usage

_COLUMNS: Final = ("prompt_tokens", "completion_tokens", "prompt_tokens_details.cached_tokens")


class ChatCompletions:
    """What a chat completion request and its answers mean."""

    name = "openai-chat-completions"
    provider = "openai"
    path = "/chat/completions"
    keep_alive = b": keep-alive\n\n"

    def read(self, body: bytes) -> Question:
        """What a request means; a stream's usage is asked for where the client does not."""
        members, model = reading.question(body)
        streaming = members.get("stream") is True
        sent = body
        if streaming and reading.mapping(members.get("stream_options")).get("include_usage") is not True:
            sent = _with_usage(body, members)
        last = reading.last(members.get("messages"))
        content = last.get("content") if last.get("role") == "user" else None
        texts = [part.get("text") for part in reading.mappings(content) if part.get("type") == "text"]
        return Question(
            model=model,
            streaming=streaming,
            prompt=reading.text(texts[-1] if texts else content) or None,
            answers_tool_call=reading.text(last.get("tool_call_id") if last.get("role") == "tool" else None) or None,
            session_id=None,
            body=sent,
            hides_usage=sent is not body,
        )

    def reader(self, question: Question) -> Reader:
        """What reads the answer to a question."""
        return _Reader(hides_usage=question.hides_usage)

    def error(self, status: int, message: str) -> bytes:
        """An error's body."""
        return openai_errors.body(status, message)


def _with_usage(body: bytes, members: dict[str, Any]) -> bytes:
    """The body with `stream_options.include_usage` true, and not a byte of the rest changed.

    Options that are no object stay as they are: the provider refuses them.
    """
    text = body.decode()
    options = members.get("stream_options")
    outer = text.index("{")
    if "stream_options" not in members:
        return _inserted(text, outer, '"stream_options":{"include_usage":true}', members).encode()
    try:
        start, end = _value(text, outer, "stream_options")
        if options is None:
            return (text[:start] + '{"include_usage":true}' + text[end:]).encode()
        if not isinstance(options, dict):
            return body
        if "include_usage" not in options:
            return _inserted(text, start, '"include_usage":true', options).encode()
        start, end = _value(text, start, "include_usage")
    except (ValueError, RecursionError):
        return body
    return (text[:start] + "true" + text[end:]).encode()


def _inserted(text: str, brace: int, member: str, others: dict[str, Any]) -> str:
    return f"{text[: brace + 1]}{member}{',' if others else ''}{text[brace + 1 :]}"


# Numbers stay text: only their places matter.
_JSON: Final = json.JSONDecoder(parse_int=str, parse_float=str)
_WHITE: Final = " \t\n\r"


def _value(text: str, brace: int, name: str) -> tuple[int, int]:
    """Where the value of a member begins and ends, in the object that begins here; the last, if it has several."""
    found: tuple[int, int] | None = None
    position = _skipped(text, brace + 1)
    while text[position] != "}":
        key, position = _JSON.raw_decode(text, position)
        start = _skipped(text, _skipped(text, position) + 1)  # after the colon
        _, end = _JSON.raw_decode(text, start)
        if key == name:
            found = start, end
        position = _skipped(text, end)
        if text[position] == ",":
            position = _skipped(text, position + 1)
    if found is None:
        raise ValueError(name)
    return found


def _skipped(text: str, position: int) -> int:
    while text[position] in _WHITE:
        position += 1
    return position


@dataclass(slots=True)
class _Call:
    """A tool call of which more may come."""

    index: int | None
    call_id: str = ""
    tool: str = ""
    parts: list[str] = field(default_factory=list)


class _Reader:
    def __init__(self, *, hides_usage: bool) -> None:
        self.observed = Observed()
        self._hides_usage = hides_usage
        self._open: dict[int | None, _Call] = {}  # by choice: the call that is being told

    def event(self, event: sse.Event) -> bool:
        if event.data is not None and event.data.strip() == "[DONE]":
            self._finish_all()
            return True
        members = reading.event(event.data)
        if not members:
            return True
        if members.get("error") is not None:
            self.observed.error = reading.error_type(members["error"])
            self.observed.complete = True
        self.observed.response_id = self.observed.response_id or reading.text(members.get("id"))
        for choice in reading.mappings(members.get("choices")):
            self._read_choice(choice)
        usage = members.get("usage")
        self._use(usage)
        return not (self._hides_usage and usage is not None and members.get("choices") == [])

    def whole(self, body: bytes, status: int) -> None:
        answer = reading.answer(body)
        members = answer or {}
        if status >= 400 or members.get("error") is not None:
            self.observed.error = reading.error_type(members.get("error"))
        self.observed.complete = answer is not None or status >= 400
        self.observed.response_id = reading.text(members.get("id"))
        for choice in reading.mappings(members.get("choices")):
            for call in reading.mappings(reading.mapping(choice.get("message")).get("tool_calls")):
                told = _Call(None)
                _tell(told, call)
                self._finish(told)
        self._use(members.get("usage"))

    def _read_choice(self, choice: dict[str, Any]) -> None:
        which = reading.index(choice.get("index"))
        for delta in reading.mappings(reading.mapping(choice.get("delta")).get("tool_calls")):
            call = self._open.get(which)
            index, call_id = reading.index(delta.get("index")), reading.text(delta.get("id"))
            # A call is whole when the next begins. Some servers number all of a message alike, yet give each an id.
            if call is None or call.index != index or (call_id and call.call_id not in ("", call_id)):
                self._finish(call)
                call = self._open[which] = _Call(index)
            before = len(call.parts)
            _tell(call, delta)
            if not self.observed.takes(call_id + "".join(call.parts[before:])):
                del self._open[which]  # half of it is none
        if choice.get("finish_reason") is not None:
            self._finish(self._open.pop(which, None))

    def _finish_all(self) -> None:
        self.observed.complete = True
        for call in self._open.values():
            self._finish(call)
        self._open.clear()

    def _finish(self, call: _Call | None) -> None:
        if call and call.tool:
            told = reading.text("".join(call.parts))
            self.observed.tools.append(ToolCall(call_id=call.call_id, tool=call.tool, input=told))

    def _use(self, value: object) -> None:
        """The last usage holds: where several come, they are cumulative."""
        usage = reading.mapping(value)
        asked, answered = reading.count(usage.get("prompt_tokens")), reading.count(usage.get("completion_tokens"))
        if asked is None and answered is None:
            return
        cached = reading.count(reading.mapping(usage.get("prompt_tokens_details")).get("cached_tokens")) or 0
        self.observed.usage = Usage(
            input_tokens=max(0, (asked or 0) - cached),
            output_tokens=answered or 0,
            cache_read_input_tokens=cached,
            metadata=reading.counters(usage, apart_from=_COLUMNS),
        )


def _tell(call: _Call, delta: dict[str, Any]) -> None:
    """Add what a delta tells of a call; a whole call is one delta."""
    function = reading.mapping(delta.get("function") or delta.get("custom"))
    call.call_id = call.call_id or reading.text(delta.get("id"))
    call.tool = call.tool or reading.text(function.get("name"))
    part = function.get("arguments", function.get("input"))
    if isinstance(part, str):
        call.parts.append(part)
