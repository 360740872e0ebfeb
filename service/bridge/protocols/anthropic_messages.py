"""Anthropic's Messages: `POST /v1/messages`, as in Anthropic's API reference."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from service.bridge import sse
from service.bridge.protocols import reading
from service.bridge.protocols.interface import Observed, Question, Reader, Thought, ToolCall, Usage

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MOST_COUNTERS: Final = 256
# Most events of a stream: more of the model's text, of which nothing is recorded. It is relayed without being parsed.
_OUTPUT: Final = re.compile(
    r'\{"type": ?"content_block_delta", ?"index": ?[0-9]+, ?"delta": ?\{"type": ?"text_delta", ?"text": ?"'
)
_COLUMNS: Final = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_input_tokens": "cache_read_input_tokens",
    "cache_creation_input_tokens": "cache_write_input_tokens",
}


class AnthropicMessages:
    """What a messages request and its answers mean."""

    name = "anthropic-messages"
    provider = "anthropic"
    path = "/v1/messages"
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'

    def read(self, body: bytes) -> Question:
        """What a request means."""
        members, model = reading.question(body)
        last = _last_of_the_conversation(members.get("messages"))
        content = last.get("content") if last.get("role") == "user" else None
        parts = reading.mappings(content)
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        answers = [part.get("tool_use_id") for part in parts if part.get("type") == "tool_result"]
        return Question(
            model=model,
            streaming=members.get("stream") is True,
            prompt=reading.text(texts[-1] if texts else content) or None,
            answers_tool_call=reading.text(answers[-1] if answers else None) or None,
            session_id=_session(reading.mapping(members.get("metadata")).get("user_id")),
            body=body,
        )

    def reader(self, question: Question) -> Reader:
        """What reads the answer to a question."""
        return _Reader()

    def error(self, status: int, message: str) -> bytes:
        """An error's body."""
        kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def _last_of_the_conversation(messages: object) -> dict[str, Any]:
    """The last message that is not a system's: Claude Code sends some after what its user says."""
    found = reading.mappings(messages)
    return next((message for message in reversed(found) if message.get("role") != "system"), {})


def _session(user_id: object) -> str | None:
    """The session in what Claude Code sends as the user: JSON, or in older versions `user_…_account_…_session_<id>`."""
    text = reading.text(user_id)
    if text.startswith("{"):
        return reading.text(reading.event(text).get("session_id")) or None
    return text.rpartition("_session_")[2] or None if "_session_" in text else None


@dataclass(slots=True)
class _Block:
    """A content block of which more is to come."""

    start: dict[str, Any]
    parts: list[str] = field(default_factory=list)


class _Reader:
    def __init__(self) -> None:
        self.observed = Observed()
        self._blocks: dict[int | None, _Block] = {}
        self._usage: dict[str, Any] = {}

    def event(self, event: sse.Event) -> bool:
        if event.data and _OUTPUT.match(event.data):
            return True
        members = reading.event(event.data)
        match members.get("type"):
            case "message_start":
                message = reading.mapping(members.get("message"))
                self.observed.response_id = reading.text(message.get("id"))
                self._use(message.get("usage"))
            case "content_block_start":
                if self.observed.takes(event.data or ""):
                    self._blocks[reading.index(members.get("index"))] = _Block(
                        reading.mapping(members.get("content_block"))
                    )
            case "content_block_delta":
                self._add(reading.index(members.get("index")), reading.mapping(members.get("delta")))
            case "content_block_stop":
                if block := self._blocks.pop(reading.index(members.get("index")), None):
                    self._finish(block.start, "".join(block.parts))
            case "message_delta":
                self._use(members.get("usage"))
            case "message_stop":
                self.observed.complete = True
            case "error":
                self.observed.error = reading.error_type(members.get("error"))
                self.observed.complete = True
        return True

    def whole(self, body: bytes, status: int) -> None:
        answer = reading.answer(body)
        members = answer or {}
        if status >= 400 or members.get("type") == "error":
            self.observed.error = reading.error_type(members.get("error"))
        self.observed.complete = answer is not None or status >= 400
        self.observed.response_id = reading.text(members.get("id"))
        for block in reading.mappings(members.get("content")):
            self._finish(block, "")
        self._use(members.get("usage"))

    def _add(self, index: int | None, delta: dict[str, Any]) -> None:
        block = self._blocks.get(index)
        part = delta.get("partial_json") if delta.get("type") == "input_json_delta" else delta.get("thinking")
        if block and isinstance(part, str):
            if self.observed.takes(part):
                block.parts.append(part)
            else:
                del self._blocks[index]  # half of it is none

    def _finish(self, block: dict[str, Any], streamed: str) -> None:
        if block.get("type") == "tool_use" and (tool := reading.text(block.get("name"))):
            # The block begins with an empty input where the text of it streams.
            told = reading.text(streamed) or reading.json_text(block.get("input", {}))
            self.observed.tools.append(ToolCall(call_id=reading.text(block.get("id")), tool=tool, input=told))
        elif block.get("type") == "thinking" and (thought := reading.text(streamed or block.get("thinking"))):
            self.observed.thoughts.append(Thought(thought, {"source": "thinking"}))

    def _use(self, usage: object) -> None:
        """Counts are cumulative: of each the last one holds that is told."""
        for name, value in reading.counters(reading.mapping(usage), apart_from=()).items():
            known = self._usage.get(name)
            if known is None and len(self._usage) >= _MOST_COUNTERS:
                continue
            both = isinstance(known, dict) and isinstance(value, dict) and len(known) < _MOST_COUNTERS
            self._usage[name] = known | value if both else value
        counts = {column: reading.count(self._usage.get(name)) for name, column in _COLUMNS.items()}
        if any(number is not None for number in counts.values()):
            self.observed.usage = Usage(
                **{column: number or 0 for column, number in counts.items()},
                metadata={name: value for name, value in self._usage.items() if name not in _COLUMNS},
            )
