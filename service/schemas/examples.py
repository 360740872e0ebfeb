"""The examples of the OpenAPI document: bodies that can be sent as they are, in the order of the routes."""

from __future__ import annotations

from typing import Any

RUNNING_ID = "6d0a1c3e-52b8-4d7a-9f0e-3c1b2a4d5e6f"
FINISHED_ID = "497f6eca-6276-4993-bfeb-53cbbbba6f08"
INITIATOR: dict[str, Any] = {
    "id": "06588898-9a84-4b35-ba8f-f9cbd64946f3",
    "username": "example-user",
    "name": "Example User",
}
TOKEN_USAGE: dict[str, Any] = {
    "provider_response_id": "msg_01A09q90qw90lq917835lq9",
    "input_tokens": 2095,
    "output_tokens": 503,
    "cache_read_input_tokens": 1024,
    "created_at": "2025-01-01T10:00:04Z",
}
USER_PROMPT: dict[str, Any] = {
    "provider_response_id": "msg_01A09q90qw90lq917835lq9",
    "prompt": "Which tests are slow?",
    "created_at": "2025-01-01T10:00:00.5Z",
}
TOOL_USAGE: dict[str, Any] = {
    "provider_response_id": "msg_01A09q90qw90lq917835lq9",
    "provider_tool_call_id": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
    "server_url": "https://mcp.example.com",
    "tool": "list_tests",
    "input": '{"sort":"duration"}',
    "injected": True,
    "created_at": "2025-01-01T10:00:03Z",
}
MODEL_THOUGHT: dict[str, Any] = {"content": "The durations will tell.", "created_at": "2025-01-01T10:00:02Z"}
RUNNING: dict[str, Any] = {
    "id": RUNNING_ID,
    "initiator": INITIATOR,
    "provider": "anthropic",
    "provider_name": "anthropic-eu",
    "model": "claude-sonnet-4-5",
    "client": "Claude Code",
    "metadata": {"workspace": "docs"},
    "started_at": "2025-01-01T10:00:00Z",
}
FINISHED: dict[str, Any] = RUNNING | {
    "id": FINISHED_ID,
    "ended_at": "2025-01-01T10:00:05.25Z",
    "token_usages": [TOKEN_USAGE],
    "user_prompts": [USER_PROMPT],
    "tool_usages": [TOOL_USAGE],
}
END = {"ended_at": "2025-01-01T10:00:05.25Z", "metadata": {"stop_reason": "end_turn"}}
QUERY = 'provider:anthropic started_after:"2025-01-01T00:00:00Z"'
