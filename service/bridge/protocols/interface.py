"""What a protocol tells the bridge: what a request asks, and what its answer used.

Texts in here are as PostgreSQL can hold them (`jsontext.cleaned`), numbers are exact and within 64 bits.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Any, Final

from service.bridge import sse

_MOST_KEPT: Final = 32 * 1024 * 1024
_EACH: Final = 64  # what a text takes beside its characters


class BadQuestion(Exception):
    """A request that no provider could answer: its text is a sentence for the client, and quotes nothing of the request."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a request means."""

    model: str  # as requested
    streaming: bool
    prompt: str | None  # what the user asked, where the last message is theirs
    answers_tool_call: str | None  # the id of the tool call that the last message answers
    session_id: str | None  # what the body says of it; what the headers say is for `agents.session_of`
    body: bytes  # what goes upstream: as it came, or with the usage asked for as well
    hides_usage: bool = False  # the bridge alone asked for the usage: its chunk is not for the client


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one answer; input without those that came from a cache or went into one."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)  # every other counter, under the provider's names


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that the model made, whole."""

    call_id: str
    tool: str
    input: str  # JSON text, or free text for a custom tool
    metadata: dict[str, Any] = field(default_factory=dict)
    server_url: str | None = None
    injected: bool = False


@dataclass(frozen=True, slots=True)
class Thought:
    """What the model thought aloud; `metadata.source` says in which form."""

    content: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Observed:
    """What an answer used, as far as it has been read. It only grows, and `usage` is replaced by a later one."""

    response_id: str = ""  # the provider's
    usage: Usage | None = None
    tools: list[ToolCall] = field(default_factory=list)
    thoughts: list[Thought] = field(default_factory=list)
    error: str | None = None  # the provider's type of error, where the answer is one or the stream ended in one
    complete: bool = False  # the stream's last event was seen, or a whole answer that can be read
    room: int = field(default=_MOST_KEPT, repr=False, compare=False)  # for what is kept of a stream, in characters

    def takes(self, text: str = "") -> bool:
        """Whether a text more can be kept: a stream without end must not fill the memory."""
        self.room -= _EACH + len(text)
        return self.room >= 0


class Reader(typing.Protocol):
    """Reads one answer. What it cannot understand it leaves out: it never raises.

    Whether an answer streams is told by its content type, not by the question: providers answer a streaming request
    with a plain body when they refuse it.
    """

    observed: Observed

    def event(self, event: sse.Event) -> bool:
        """Read an event of a stream; False where the client must not see it, since only the bridge asked for it."""

    def whole(self, body: bytes, status: int) -> None:
        """Read an answer that came in one piece, also an error's; `body` without its content-encoding."""


class Protocol(typing.Protocol):
    """One kind of request, and its answers."""

    name: str
    provider: str  # the type of the instances that speak it
    path: str  # below an instance's base URL
    keep_alive: bytes  # what may be sent between two events of a silent stream

    def read(self, body: bytes) -> Question:
        """What a request means; raises BadQuestion on what is not a JSON object or names no model."""

    def reader(self, question: Question) -> Reader:
        """What reads the answer to a question."""

    def error(self, status: int, message: str) -> bytes:
        """An error's body in the provider's shape, of the type that the provider has for the status."""
