"""What the stand-in answers, before it takes the shape of a protocol."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PREFIX = "standin-"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the model's name asks for."""

    named: dict[str, str]

    @classmethod
    def of(cls, model: str) -> Wishes:
        """`standin-a+b-7` is `a` without a number, and `b` with 7."""
        if not model.startswith(PREFIX):
            return cls({})
        found = [re.fullmatch(r"(.+?)(?:-(\d+))?", wish) for wish in model.removeprefix(PREFIX).split("+")]
        return cls({match[1]: match[2] or "" for match in found if match})

    def __contains__(self, name: str) -> bool:
        return name in self.named

    def number(self, name: str, default: int) -> int:
        """The number that a wish has."""
        return int(self.named.get(name) or default)


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        """Its arguments as JSON."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """One answer."""

    model: str
    key: str  # hexadecimal: of everything asked, so that the same request has the same ids
    thoughts: Sequence[str]
    pieces: Sequence[str]
    calls: Sequence[Call]
    fresh: int  # tokens: not cached, answered, read from a cache, written to one
    answered: int
    read: int
    written: int
    cut: bool

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def plan(
    model: str,
    *,
    asked: object,
    prompt: str | None,
    tools: Sequence[tuple[str, dict[str, Any]]],
    answers_tool_call: bool,
) -> Plan:
    """The answer to a request: all that it asks, the user's last words, and the tools with their schemas."""
    wishes = Wishes.of(model)
    said = json.dumps([model, asked], sort_keys=True)
    key = hashlib.sha256(said.encode()).hexdigest()
    calls: list[Call] = []
    if match := re.search(r"\bcall ([\w.-]+) (\{.*\})", prompt or "", re.DOTALL):
        calls = [Call(f"{key[:20]}0", match[1], json.loads(match[2]))]
    elif "tools" in wishes and not answers_tool_call:
        # Names and texts that need care on their way: no ASCII, quotes, an empty object.
        chosen = list(tools)[:2] or [("get_weather", {"required": ["city"]}), ("list_cities", {})]
        calls = [Call(f"{key[:20]}{n}", name, _arguments(schema)) for n, (name, schema) in enumerate(chosen)]
    pieces = ["You ", "asked: ", prompt or "nothing", ".\n", "Grüße 😀 “…” \u2028"]
    if "long" in wishes:
        pieces = [f"word {n}, " for n in range(wishes.number("long", 200))]
    tokens = len(said) // 4
    return Plan(
        model=model,
        key=key,
        thoughts=["Let me see.\n", "They want: ", prompt or "nothing"] if "thinking" in wishes else [],
        pieces=pieces,
        calls=calls,
        fresh=tokens,
        answered=7 + len(pieces) + 20 * len(calls),
        read=1_024 + tokens if "cached" in wishes else 0,
        written=256 if "cached" in wishes else 0,
        cut="cut" in wishes,
    )


def _arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """Something that fits what a tool asks for."""
    properties = schema.get("properties") or {}
    return {name: _value(properties.get(name) or {}) for name in schema.get("required") or []}


def _value(schema: dict[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    made: dict[str, Any] = {"integer": 7, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
    return made.get(str(schema.get("type")), 'Zürich "漢字"')
