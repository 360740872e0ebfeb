"""OpenAI's Responses: `POST /responses`, as in OpenAI's API reference."""

from __future__ import annotations

from typing import Any, Final

from service.bridge import sse
from service.bridge.protocols import openai_errors, reading
from service.bridge.protocols.interface import Observed, Question, Reader, Thought, ToolCall, Usage

_COLUMNS: Final = ("input_tokens", "output_tokens", "input_tokens_details.cached_tokens")
_LAST_EVENTS: Final = ("response.completed", "response.incomplete", "response.failed")
_ANSWERS: Final = ("function_call_output", "custom_tool_call_output")


class Responses:
    """What a responses request and its answers mean."""

    name = "openai-responses"
    provider = "openai"
    path = "/responses"
    keep_alive = b": keep-alive\n\n"

    def read(self, body: bytes) -> Question:
        """What a request means."""
        members, model = reading.question(body)
        asked = members.get("input")
        last = reading.last(asked)
        return Question(
            model=model,
            streaming=members.get("stream") is True,
            prompt=reading.text(asked if isinstance(asked, str) else _prompt(last)) or None,
            answers_tool_call=reading.text(last.get("call_id") if last.get("type") in _ANSWERS else None) or None,
            session_id=None,
            body=body,
        )

    def reader(self, question: Question) -> Reader:
        """What reads the answer to a question."""
        return _Reader()

    def error(self, status: int, message: str) -> bytes:
        """An error's body."""
        return openai_errors.body(status, message)


def _prompt(item: dict[str, Any]) -> object:
    """What the user says in an input item; a message may come without its type."""
    if item.get("role") != "user" or item.get("type", "message") != "message":
        return None
    content = item.get("content")
    return content if isinstance(content, str) else _joined(content, "input_text", "\n")


def _joined(parts: object, kind: str, separator: str) -> str:
    texts = [part.get("text") for part in reading.mappings(parts) if part.get("type") == kind]
    return separator.join(text for text in texts if isinstance(text, str))


class _Reader:
    def __init__(self) -> None:
        self.observed = Observed()
        self._told: set[int | None] = set()  # the items that came as events of their own

    def event(self, event: sse.Event) -> bool:
        members = reading.event(event.data)
        kind = members.get("type")
        if kind == "error":
            # The error itself, or in an object of its own.
            nested = reading.mapping(members.get("error"))
            self.observed.error = reading.error_type(nested or {"code": members.get("code")})
            self.observed.complete = True
        elif kind == "response.output_item.done" and self.observed.takes(event.data or ""):
            index = reading.index(members.get("output_index"))
            self._told.add(index)
            self._item(reading.mapping(members.get("item")))
        else:
            response = reading.mapping(members.get("response"))
            self.observed.response_id = self.observed.response_id or reading.text(response.get("id"))
            if kind in _LAST_EVENTS:
                self._finish(response)
        return True

    def whole(self, body: bytes, status: int) -> None:
        answer = reading.answer(body)
        members = answer or {}
        if status >= 400:
            self.observed.error = reading.error_type(members.get("error"))
            self.observed.complete = True
        elif answer is not None:
            self.observed.response_id = reading.text(members.get("id"))
            self._finish(members)

    def _finish(self, response: dict[str, Any]) -> None:
        self.observed.complete = True
        if response.get("status") == "failed" or response.get("error") is not None:
            self.observed.error = reading.error_type(response.get("error"))
        for index, item in enumerate(reading.mappings(response.get("output"))):
            if index not in self._told:
                self._item(item)
        self._use(reading.mapping(response.get("usage")))

    def _item(self, item: dict[str, Any]) -> None:
        kind = item.get("type")
        if kind in ("function_call", "custom_tool_call"):
            told = item.get("arguments") if kind == "function_call" else item.get("input")
            if tool := reading.text(item.get("name")):
                call = ToolCall(call_id=reading.text(item.get("call_id")), tool=tool, input=reading.text(told))
                self.observed.tools.append(call)
        elif kind == "reasoning":
            for part in reading.mappings(item.get("summary")):
                self._think(part.get("text"), "reasoning_summary")
        elif kind == "message" and item.get("phase") == "commentary":
            self._think(_joined(item.get("content"), "output_text", ""), "commentary")

    def _think(self, content: object, source: str) -> None:
        if thought := reading.text(content):
            self.observed.thoughts.append(Thought(thought, {"source": source}))

    def _use(self, usage: dict[str, Any]) -> None:
        asked, answered = reading.count(usage.get("input_tokens")), reading.count(usage.get("output_tokens"))
        if asked is None and answered is None:
            return
        cached = reading.count(reading.mapping(usage.get("input_tokens_details")).get("cached_tokens")) or 0
        self.observed.usage = Usage(
            input_tokens=max(0, (asked or 0) - cached),
            output_tokens=answered or 0,
            cache_read_input_tokens=cached,
            metadata=reading.counters(usage, apart_from=_COLUMNS),
        )
