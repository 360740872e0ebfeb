"""The statement files: what their headers mean, and how a bad one stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import statements
from service.statements import StatementError

GOOD = """\
-- list_errors: tool calls that failed, newest first.
--
-- param   since      timestamptz  the oldest instant of interest
-- param   tool       text         optional: only this tool
-- param   page_size  bigint       at most this many rows
-- result  many  id uuid, tool text
-- index   errors_idx, other_idx
SELECT id, tool -- a colon in a comment: is no :parameter
FROM errors
WHERE kind = 'a :text' AND "a :column" = tags[1:2] AND at::date >= :since
    AND tool = :tool             -- optional
    AND NOT hidden               -- unless tool
ORDER BY at DESC
LIMIT :page_size
"""


def test_a_header_is_a_signature() -> None:
    statement = statements.parse("tools/list_errors", GOOD)
    assert {name: (param.type, param.optional) for name, param in statement.params.items()} == {
        "since": ("timestamptz", False),
        "tool": ("text", True),
        "page_size": ("bigint", False),
    }
    assert statement.result == "many"
    assert statement.columns == {"id": "uuid", "tool": "text"}
    assert statement.indexes == ("errors_idx", "other_idx")


def test_an_optional_line_is_there_only_with_its_parameter() -> None:
    statement = statements.parse("tools/list_errors", GOOD)
    text, arguments = statement.bind({"since": 1, "page_size": 2, "tool": "x"})
    assert "AND tool = $2" in text
    assert "NOT hidden" not in text
    assert arguments == [1, "x", 2]
    text, arguments = statement.bind({"since": 1, "page_size": 2, "tool": None})
    assert "tool =" not in text
    assert "AND NOT hidden" in text
    assert text.endswith("LIMIT $2")
    assert arguments == [1, 2]


def test_only_parameters_are_replaced() -> None:
    text, _ = statements.parse("tools/list_errors", GOOD).bind({"since": 1, "page_size": 2})
    assert "'a :text' AND \"a :column\" = tags[1:2] AND at::date >= $1" in text


def test_a_parameter_used_twice_is_one_argument() -> None:
    source = "-- twice: the same.\n-- param a int4 it\n-- result one b bool\n-- index none\nSELECT :a = :a AS b\n"
    assert statements.parse("x/twice", source).bind({"a": 1}) == ("SELECT $1 = $1 AS b", [1])


@pytest.mark.parametrize("values", [{"since": 1}, {"since": 1, "page_size": 2, "other": 3}])
def test_a_call_must_fit_the_signature(values: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        statements.parse("tools/list_errors", GOOD).bind(values)


def test_a_required_parameter_may_be_null() -> None:
    _, arguments = statements.parse("tools/list_errors", GOOD).bind({"since": None, "page_size": 2})
    assert arguments == [None, 2]


COUNT = """\
-- count: how many.
--
-- param   since  date  from when
-- result  one  total bigint
-- index   none
SELECT count(*) AS total FROM errors WHERE at >= :since
"""


def test_two_statements_run_as_one() -> None:
    one = statements.parse("tools/count", COUNT)
    many = statements.parse("tools/list_errors", GOOD)
    text, arguments = one.beside({"since": 1}, many, {"since": 2, "tool": "x", "page_size": 3})
    assert text.startswith("SELECT one.total, many.id, many.tool FROM (\nSELECT count(*) AS total FROM errors")
    assert "at >= $1\n) AS one LEFT JOIN (" in text
    assert "at::date >= $2\n    AND tool = $3" in text
    assert text.endswith("LIMIT $4\n) AS many ON TRUE")
    assert arguments == [1, 2, "x", 3]
    # Another set of optional parameters is another text.
    text, arguments = one.beside({"since": 1}, many, {"since": 2, "page_size": 3})
    assert "AND NOT hidden" in text
    assert arguments == [1, 2, 3]
    with pytest.raises(TypeError, match="page_size"):
        one.beside({"since": 1}, many, {"since": 2})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("list_errors:", "list_other:"), "first line"),
        (("-- param   since ", "-- param   after "), "disagree"),
        (("-- param   since      timestamptz  the oldest instant of interest\n", ""), "disagree"),
        (("LIMIT :page_size", "LIMIT 10"), "disagree"),
        (("             -- optional", ""), "marked '-- optional'"),
        (("ORDER BY at DESC", "ORDER BY at DESC -- optional"), "marked '-- optional'"),
        (("-- unless tool", "-- unless since"), "names no optional parameter"),
        (("-- result  many  id uuid, tool text", "-- result  lots  id uuid"), "cannot read the header line"),
        (("-- result  many  id uuid, tool text", "-- result  many  id"), "cannot read the result column"),
        (("-- result  many  id uuid, tool text", "-- result  many"), "needs columns"),
        (("-- result  many  id uuid, tool text\n", ""), "exactly one 'result'"),
        (("-- index   errors_idx, other_idx\n", ""), "exactly one 'result' and one 'index'"),
        (("-- param   tool       text         optional: only this tool", "-- param tool"), "cannot read"),
        (("-- param   tool       text ", "-- param   since      text "), "declared twice"),
    ],
)
def test_a_bad_file_stops_the_start_and_is_named(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    (tmp_path / "tools").mkdir()
    path = tmp_path / "tools" / "list_errors.sql"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(StatementError) as failure:
        statements.load(tmp_path)
    assert str(path) in str(failure.value)
    assert complaint in str(failure.value)


def test_no_files_are_no_statements(tmp_path: Path) -> None:
    with pytest.raises(StatementError, match="holds no statements"):
        statements.load(tmp_path)


def test_every_file_of_the_service_loads() -> None:
    assert {"interceptions/list_matching", "interceptions/count_matching"} <= statements.load().keys()
