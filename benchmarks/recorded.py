"""What the service asks of the database for one answer, as a script for pgbench."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from service.db import Connection


@dataclass(frozen=True)
class Script:
    """The statements, in a transaction as the service's are, and the values that they take."""

    text: str
    variables: Mapping[str, object]


class Recorder(Connection):
    """A connection that notes what passes through it."""

    def __init__(self, inner: Connection) -> None:
        super().__init__(inner._raw, inner._statements, inner.hints)
        self._asked: list[str] = []
        self._variables: dict[str, object] = {}

    async def rows(self, statement: str, **values: object) -> list[asyncpg.Record]:
        self._note(statement, values)
        return await super().rows(statement, **values)

    async def row(self, statement: str, **values: object) -> asyncpg.Record | None:
        self._note(statement, values)
        return await super().row(statement, **values)

    def script(self) -> Script:
        """All that was asked so far."""
        lines = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", *self._asked, "COMMIT"]
        return Script("".join(f"{line};\n" for line in lines), self._variables)

    def _note(self, statement: str, values: Mapping[str, object]) -> None:
        text, arguments = self._statements[statement].bind(values)
        prefix = f"value_{len(self._asked)}_"
        self._variables |= {f"{prefix}{number}": _text(value) for number, value in enumerate(arguments, 1)}
        # pgbench reads a statement up to its semicolon, comments and all
        text = "\n".join(line.partition("--")[0] for line in text.splitlines())
        self._asked.append(re.sub(r"\$(\d+)", rf":{prefix}\1", text))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "{" + ",".join(f'"{_text(one)}"' for one in value) + "}"
    return value.isoformat() if isinstance(value, datetime) else str(value)
