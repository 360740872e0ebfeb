"""The SQL statements of the service: one per file below sql/, read once at start.

A file opens with a header of comments that is its signature:

    -- list_recent_errors: tool calls that failed, newest first.
    --
    -- param   since      timestamptz  the oldest instant of interest
    -- param   tool       text         optional: only this tool
    -- result  many  id uuid, tool text
    -- index   tool_usages_failed_idx

`result` is `many`, `one` (exactly one row), `maybe` (one row or none) or `none`; `index` names the index that the plan
promises to use, or `none`. The body names its parameters `:since`. A line that ends in `-- optional` is left out while
one of its optional parameters is absent; a line that ends in `-- unless name` is left out while `name` is given. Every
combination is a text of its own, which PostgreSQL plans by itself. Nothing but parameter numbers is ever put into a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from service.resources import directory

Result = Literal["many", "one", "maybe", "none"]

_HEADER = re.compile(r"--(?: (?P<text>.*))?")
_PARAM = re.compile(
    r"param\s+(?P<name>[a-z_]+)\s+(?P<type>[a-z0-9_]+(?:\[\])?)\s+(?P<optional>optional: )?(?P<about>.+)"
)
_RESULT = re.compile(r"result\s+(?P<kind>many|one|maybe|none)(?:\s+(?P<columns>.+))?")
_COLUMN = re.compile(r"(?P<name>[a-z_]+) (?P<type>[a-z0-9_]+(?:\[\])?)")
_INDEX = re.compile(r"index\s+(?P<names>[a-z0-9_]+(?:, [a-z0-9_]+)*)")
_MARK = re.compile(r"--\s+(?:(?P<optional>optional)|unless (?P<unless>[a-z_]+))\s*$")
# Text in quotes, comments and casts come first, so that a colon inside them is not taken for a parameter.
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|--[^\n]*|::|:(?P<name>[a-z_][a-z0-9_]*)""")


class StatementError(Exception):
    """A file below sql/ whose header and body disagree; the text names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter as the header declares it; `type` is PostgreSQL's name for its type."""

    type: str
    optional: bool


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    needs: frozenset[str]
    unless: str | None


@dataclass(frozen=True)
class Statement:
    """One statement: its signature, and its text for any set of parameters that are given."""

    name: str
    params: Mapping[str, Param]
    result: Result
    columns: Mapping[str, str]
    indexes: tuple[str, ...]
    lines: tuple[_Line, ...]
    _rendered: dict[frozenset[str], tuple[str, tuple[str, ...]]] = field(default_factory=dict, repr=False)
    _beside: dict[tuple[str, frozenset[str], frozenset[str]], tuple[str, tuple[str, ...], tuple[str, ...]]] = field(
        default_factory=dict, repr=False
    )

    def bind(self, values: Mapping[str, object]) -> tuple[str, list[object]]:
        """The text and its positional arguments. An optional parameter is absent where it is missing or None.

        Raises TypeError, as a call does, on a name that the header does not declare or a required one that is missing.
        """
        text, order = self.render(self.given(values))
        return text, [values[name] for name in order]

    def given(self, values: Mapping[str, object]) -> frozenset[str]:
        """The parameters that are there in `values`; raises TypeError as `bind` does."""
        if not values.keys() <= self.params.keys():
            message = f"{self.name} has no parameter {sorted(values.keys() - self.params.keys())}"
            raise TypeError(message)
        given = frozenset(
            name for name, param in self.params.items() if not param.optional or values.get(name) is not None
        )
        if not given <= values.keys():
            message = f"{self.name} needs {sorted(given - values.keys())}"
            raise TypeError(message)
        return given

    def render(self, given: frozenset[str]) -> tuple[str, tuple[str, ...]]:
        """The text with $1, $2 … where only `given` are, and the parameters in that order."""
        rendered = self._rendered.get(given)
        if rendered is None:
            rendered = self._rendered[given] = _number(self.chosen(given))
        return rendered

    def beside(
        self, values: Mapping[str, object], many: Statement, more_values: Mapping[str, object]
    ) -> tuple[str, list[object]]:
        """Text and arguments of a statement whose rows are those of `many`, each beside the one row of this.

        They keep their order: a join without a condition, whose left side is one row, is a loop over its right side.
        """
        given, more_given = self.given(values), many.given(more_values)
        key = (many.name, given, more_given)
        if key not in self._beside:
            text, order = self.render(given)
            more_text, more_order = _number(many.chosen(more_given), first=len(order) + 1)
            columns = [*(f"one.{column}" for column in self.columns), *(f"many.{column}" for column in many.columns)]
            self._beside[key] = (
                # Of nothing but what stands in the files.
                f"SELECT {', '.join(columns)} FROM (\n{text}\n) AS one LEFT JOIN (\n{more_text}\n) AS many ON TRUE",  # noqa: S608
                order,
                more_order,
            )
        text, order, more_order = self._beside[key]
        return text, [*(values[name] for name in order), *(more_values[name] for name in more_order)]

    def chosen(self, given: frozenset[str]) -> Iterator[str]:
        """The lines that stay where only `given` are."""
        return (line.text for line in self.lines if line.needs <= given and line.unless not in given)


def load(root: Path | None = None) -> dict[str, Statement]:
    """All statements below `root` (sql/ by default), by name (`noun/statement`); raises StatementError on a bad file."""
    root = root or directory("sql")
    statements = {}
    for path in sorted(root.glob("*/*.sql")):
        name = f"{path.parent.name}/{path.stem}"
        try:
            statements[name] = parse(name, path.read_text(encoding="utf-8"))
        except StatementError as problem:
            message = f"{path}: {problem}"
            raise StatementError(message) from None
    if not statements:
        message = f"{root} holds no statements"
        raise StatementError(message)
    return statements


def parse(name: str, source: str) -> Statement:
    """One file's statement; raises StatementError where header and body disagree."""
    header, body = _split(source)
    if not header or not header[0].startswith(f"{name.rpartition('/')[2]}: "):
        message = f"the first line must be '-- {name.rpartition('/')[2]}: what it does'"
        raise StatementError(message)
    params, results, indexes = _read_header(header)
    lines = tuple(_read_line(line, params) for line in body)
    used = {found for line in body for found in _names(line)}
    if used != params.keys():
        message = f"header and body disagree on the parameters {sorted(used ^ params.keys())}"
        raise StatementError(message)
    kind = cast("Result", results["kind"])
    columns = dict(_read_columns(results["columns"]))
    if (kind == "none") != (not columns):
        message = "a result needs columns, and 'none' has none"
        raise StatementError(message)
    return Statement(name=name, params=params, result=kind, columns=columns, indexes=indexes, lines=lines)


def _split(source: str) -> tuple[list[str], list[str]]:
    lines = source.rstrip().splitlines()
    header = []
    for line in lines:
        comment = _HEADER.fullmatch(line)
        if comment is None:
            break
        header.append(comment["text"] or "")
    body = lines[len(header) :]
    if not "".join(body).strip():
        message = "the body is empty"
        raise StatementError(message)
    return header, body


def _read_header(header: list[str]) -> tuple[dict[str, Param], re.Match[str], tuple[str, ...]]:
    params: dict[str, Param] = {}
    results: list[re.Match[str]] = []
    indexes: list[tuple[str, ...]] = []
    for line in header:
        word = line.split(" ", 1)[0]
        if word == "param" and (param := _PARAM.fullmatch(line)):
            if param["name"] in params:
                message = f"parameter {param['name']} is declared twice"
                raise StatementError(message)
            params[param["name"]] = Param(type=param["type"], optional=param["optional"] is not None)
        elif word == "result" and (result := _RESULT.fullmatch(line)):
            results.append(result)
        elif word == "index" and (index := _INDEX.fullmatch(line)):
            indexes.append(tuple(index["names"].split(", ")))
        elif word in {"param", "result", "index"}:
            message = f"cannot read the header line '{line}'"
            raise StatementError(message)
    if len(results) != 1 or len(indexes) != 1:
        message = "the header needs exactly one 'result' and one 'index' line"
        raise StatementError(message)
    return params, results[0], () if indexes[0] == ("none",) else indexes[0]


def _read_columns(text: str | None) -> Iterable[tuple[str, str]]:
    for part in (text or "").split(", ") if text else ():
        column = _COLUMN.fullmatch(part)
        if column is None:
            message = f"cannot read the result column '{part}'"
            raise StatementError(message)
        yield column["name"], column["type"]


def _read_line(line: str, params: Mapping[str, Param]) -> _Line:
    mark = _MARK.search(line)
    text = line[: mark.start()].rstrip() if mark else line
    needs = frozenset(name for name in _names(line) if name in params and params[name].optional)
    unless = mark["unless"] if mark else None
    if unless is not None and not (unless in params and params[unless].optional):
        message = f"'-- unless {unless}' names no optional parameter"
        raise StatementError(message)
    if bool(needs) != bool(mark and mark["optional"]):
        message = f"a line is marked '-- optional' if, and only if, it has an optional parameter: '{line.strip()}'"
        raise StatementError(message)
    return _Line(text=text, needs=needs, unless=unless)


def _names(text: str) -> list[str]:
    return [found["name"] for found in _TOKEN.finditer(text) if found["name"]]


def _number(lines: Iterable[str], *, first: int = 1) -> tuple[str, tuple[str, ...]]:
    order: dict[str, int] = {}

    def place(token: re.Match[str]) -> str:
        name = token["name"]
        return f"${order.setdefault(name, len(order) + first)}" if name else token[0]

    text = _TOKEN.sub(place, "\n".join(lines))
    return text, tuple(order)
