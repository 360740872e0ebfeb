"""What the service asks of the database for one answer, as a script for pgbench."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from service.db import Asked, Connection


@dataclass(frozen=True)
class Script:
    """The statements, in a transaction where the service has one, and the values that they take."""

    text: str
    variables: Mapping[str, object]


class Recorder(Connection):
    """A connection that notes what passes through it."""

    def __init__(self, inner: Connection) -> None:
        super().__init__(inner._raw, inner._statements, inner.hints)
        self._asked: list[str] = []
        self._variables: dict[str, object] = {}

    async def rows(self, statement: str, **values: object) -> list[asyncpg.Record]:
        self._note(*self._statements[statement].bind(values))
        return await super().rows(statement, **values)

    async def rows_beside(self, one: Asked, many: Asked) -> list[asyncpg.Record]:
        (name, values), (more, more_values) = one, many
        self._note(*self._statements[name].beside(values, self._statements[more], more_values))
        return await super().rows_beside(one, many)

    async def row(self, statement: str, **values: object) -> asyncpg.Record | None:
        self._note(*self._statements[statement].bind(values))
        return await super().row(statement, **values)

    def script(self) -> Script:
        """All that was asked so far; several statements share a snapshot."""
        asked = self._asked
        if len(asked) > 1:
            asked = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", *asked, "COMMIT"]
        return Script("".join(f"{line};\n" for line in asked), self._variables)

    def _note(self, text: str, arguments: Sequence[object]) -> None:
        prefix = f"value_{len(self._asked)}_"
        self._variables |= {f"{prefix}{number}": _text(value) for number, value in enumerate(arguments, 1)}
        # pgbench reads a statement up to its semicolon, comments and all
        text = "\n".join(line.partition("--")[0] for line in text.splitlines())
        self._asked.append(re.sub(r"\$(\d+)", rf":{prefix}\1", text))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "{" + ",".join(f'"{_text(one)}"' for one in value) + "}"
    return value.isoformat() if isinstance(value, datetime) else str(value)
