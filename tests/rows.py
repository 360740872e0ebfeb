"""Rows put straight into the tables, so that a test of reading depends on nothing that records."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

Sql = Callable[..., list[tuple[Any, ...]]]
Row = dict[str, Any]

_INSERT = {
    "interceptions": """
        INSERT INTO aibridge_interceptions
            (id, initiator_id, api_key_id, provider, provider_name, model, client, metadata, started_at, ended_at)
        SELECT id, initiator_id, api_key_id, provider, provider_name, model, client, metadata, started_at, ended_at
        FROM jsonb_populate_recordset(NULL::aibridge_interceptions, %s::jsonb)
    """,
    "token_usages": """
        INSERT INTO aibridge_token_usages
        SELECT * FROM jsonb_populate_recordset(NULL::aibridge_token_usages, %s::jsonb)
    """,
    "user_prompts": """
        INSERT INTO aibridge_user_prompts
        SELECT * FROM jsonb_populate_recordset(NULL::aibridge_user_prompts, %s::jsonb)
    """,
    "tool_usages": """
        INSERT INTO aibridge_tool_usages
        SELECT * FROM jsonb_populate_recordset(NULL::aibridge_tool_usages, %s::jsonb)
    """,
    "users": """
        INSERT INTO users (id, username, name, avatar_url, status, deleted)
        SELECT id, username, name, avatar_url, status, deleted
        FROM jsonb_populate_recordset(NULL::users, %s::jsonb)
    """,
}
_DEFAULTS: dict[str, Row] = {
    "interceptions": {
        "api_key_id": None,
        "provider": "anthropic",
        "provider_name": "anthropic",
        "model": "claude-sonnet-4-5",
        "client": "Claude Code",
        "metadata": {},
        "started_at": "2026-03-01T10:00:00Z",
        "ended_at": "2026-03-01T10:00:05.25Z",
    },
    "token_usages": {
        "provider_response_id": "msg_1",
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_read_input_tokens": 0,
        "cache_write_input_tokens": 0,
        "metadata": {},
        "created_at": "2026-03-01T10:00:01Z",
    },
    "user_prompts": {
        "provider_response_id": "msg_1",
        "prompt": "Why is the sky blue?",
        "metadata": {},
        "created_at": "2026-03-01T10:00:01Z",
    },
    "tool_usages": {
        "provider_response_id": "msg_1",
        "provider_tool_call_id": None,
        "server_url": None,
        "tool": "Bash",
        "input": "{}",
        "injected": False,
        "invocation_error": None,
        "metadata": {},
        "created_at": "2026-03-01T10:00:01Z",
    },
    "users": {"name": "", "avatar_url": "", "status": "active", "deleted": False},
}


def put(sql: Sql, table: str, *rows: Row) -> list[Row]:
    """Insert rows into a table (its name without `aibridge_`); what they lack gets a default. Answers them complete."""
    complete = [{"id": uuid4()} | _DEFAULTS[table] | row for row in rows]
    if table == "interceptions":
        complete = [{"initiator_id": uuid4()} | row for row in complete]
    sql(_INSERT[table], json.dumps(complete, default=str))
    return complete


def numbered(number: int) -> UUID:
    """A UUID that sorts by its number."""
    return UUID(int=number << 64 | 1)
