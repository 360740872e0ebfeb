"""What tests of recording share: bodies to send, and a client that sends them and reads the answers exactly."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import simplejson
from conftest import API, Client, Person

CHILD_CALLS = {
    "token_usages": "token-usages",
    "user_prompts": "user-prompts",
    "tool_usages": "tool-usages",
    "model_thoughts": "model-thoughts",
}


@dataclass(frozen=True)
class Answer:
    """A response: numbers of its body are `int` or `Decimal`, so that comparing them is exact."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def wrong(self) -> dict[str, str]:
        """The validations, by field."""
        return {validation["field"]: validation["detail"] for validation in self.body.get("validations", [])}


@dataclass(frozen=True)
class Recorder:
    """Sends as one person."""

    client: Client
    person: Person

    async def post(self, path: str, body: object, **headers: str) -> Answer:
        """`path` is below …/interceptions; a body that is bytes goes as it is."""
        text = body if isinstance(body, bytes) else simplejson.dumps(body, use_decimal=True).encode()
        response = await self.client.post(
            f"{API}/interceptions{path}", data=io.BytesIO(text), headers=self.person.headers | headers
        )
        return Answer(response.status, loads(await response.read()), response.headers)

    async def record(self, body: object) -> Answer:
        """POST …/interceptions."""
        return await self.post("", body)

    async def end(self, interception_id: str, **body: Any) -> Answer:
        """POST …/end."""
        return await self.post(f"/{interception_id}/end", body)

    async def add(self, interception_id: str, kind: str, body: object) -> Answer:
        """POST one child or an array of them."""
        return await self.post(f"/{interception_id}/{CHILD_CALLS[kind]}", body)

    async def send(self, body: object, **headers: str) -> Answer:
        """POST …/import; a list of objects goes as NDJSON."""
        return await self.post("/import", ndjson(*body) if isinstance(body, list) else body, **headers)

    async def listed(self) -> list[Any]:
        """All interceptions that the list shows."""
        response = await self.client.get(f"{API}/interceptions?limit=1000", headers=self.person.headers)
        found: list[Any] = loads(await response.read())["results"]
        return found


def count(sql: Callable[..., list[tuple[Any, ...]]], noun: str) -> int:
    """How many rows aibridge_<noun> has."""
    return int(sql(f"SELECT count(*) FROM aibridge_{noun}")[0][0])  # noqa: S608


def loads(text: bytes) -> Any:
    """JSON, its numbers exact."""
    return simplejson.loads(text, use_decimal=True)


def ndjson(*values: object) -> bytes:
    """One value a line."""
    return b"".join(simplejson.dumps(value, use_decimal=True).encode() + b"\n" for value in values)


def running(**members: Any) -> dict[str, Any]:
    """An interception that has only begun."""
    return {
        "id": str(uuid4()),
        "initiator_id": str(uuid4()),
        "provider": "anthropic",
        "model": "claude-sonnet-4-5",
        "started_at": "2026-03-01T10:00:00Z",
    } | members


def token_usage(**members: Any) -> dict[str, Any]:
    """A token usage with an id."""
    return {
        "id": str(uuid4()),
        "provider_response_id": "msg_1",
        "input_tokens": 7,
        "output_tokens": 11,
        "created_at": "2026-03-01T10:00:01Z",
    } | members


def user_prompt(**members: Any) -> dict[str, Any]:
    """A prompt with an id."""
    return {
        "id": str(uuid4()),
        "provider_response_id": "msg_1",
        "prompt": "Why is the sky blue?",
        "created_at": "2026-03-01T10:00:02Z",
    } | members


def tool_usage(**members: Any) -> dict[str, Any]:
    """A tool usage with an id."""
    return {
        "id": str(uuid4()),
        "provider_response_id": "msg_1",
        "tool": "read_file",
        "input": '{"path": "README.md"}',
        "created_at": "2026-03-01T10:00:03Z",
    } | members


def thought(**members: Any) -> dict[str, Any]:
    """A model thought, which has no id."""
    return {"content": "Rayleigh scattering.", "created_at": "2026-03-01T10:00:04Z"} | members


CHILDREN = {
    "token_usages": token_usage,
    "user_prompts": user_prompt,
    "tool_usages": tool_usage,
    "model_thoughts": thought,
}


def without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The body without those members."""
    return {name: value for name, value in body.items() if name not in names}


def whole(**members: Any) -> dict[str, Any]:
    """A finished interception with one of everything, each with an id."""
    return (
        running(
            provider_name="main",
            client="Claude Code",
            api_key_id="abcdefghij",
            metadata={"a": 1},
            ended_at="2026-03-01T10:00:05.25Z",
        )
        | {kind: [make()] for kind, make in CHILDREN.items()}
        | members
    )
