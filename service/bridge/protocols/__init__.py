"""The protocols that the bridge understands, one module each. A new one is a file here, and its line in `_ALL`."""

from __future__ import annotations

from typing import Final

from service.bridge.protocols.anthropic_messages import AnthropicMessages
from service.bridge.protocols.chat_completions import ChatCompletions
from service.bridge.protocols.interface import (
    BadQuestion,
    Observed,
    Protocol,
    Question,
    Reader,
    Thought,
    ToolCall,
    Usage,
)
from service.bridge.protocols.responses import Responses

__all__ = ["BY_NAME", "BadQuestion", "Observed", "Protocol", "Question", "Reader", "Thought", "ToolCall", "Usage"]

_ALL: Final[tuple[Protocol, ...]] = (AnthropicMessages(), ChatCompletions(), Responses())

BY_NAME: Final[dict[str, Protocol]] = {protocol.name: protocol for protocol in _ALL}
