"""The claims of the files below sql/, held against PostgreSQL: types, indexes, and plans of the service's own sessions."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest

import service
from service import migrations, statements
from service.db import SESSION
from service.embedded import binaries_directory
from service.resources import directory
from service.statements import Statement

STATEMENTS = statements.load()
ROOT = directory("sql")
SERVICE = Path(service.__file__).parent
BY_NAME = pytest.mark.parametrize("name", sorted(STATEMENTS))

# What cannot be prepared, since the protocol knows no parameters of it, or what no transaction may hold.
UTILITIES = {
    "request_logging/lock_state",
    "erasure/lock_interceptions",
    "demo/analyze_records",
    "demo/vacuum_interceptions",
}
OUTSIDE_TRANSACTIONS = {"demo/vacuum_interceptions"}

# One value of each type that a file declares.
VALUES = {
    "uuid": "'497f6eca-6276-4993-bfeb-53cbbbba6f08'",
    "text": "'active'",
    "bytea": r"'\x00'",
    "boolean": "TRUE",
    "integer": "1",
    "bigint": "1",
    "timestamptz": "'2026-03-01T10:00:00Z'::timestamptz",
    "jsonb": "'[]'",
    "uuid[]": "'{}'",
    "text[]": "'{}'",
    "bigint[]": "'{}'",
    "boolean[]": "'{}'",
    "jsonb[]": "'{}'",
    "timestamptz[]": "'{}'",
}

# The demo needs somebody to initiate it.
OTHERS = {("demo/insert_interceptions", "user_ids"): "'{497f6eca-6276-4993-bfeb-53cbbbba6f08}'"}

# 20,000 interceptions of a hundred initiators, evenly spread over everything that can be asked for.
FILL = """
    INSERT INTO users (id, username)
    SELECT lpad(to_hex(n), 32, '0')::uuid, 'user-' || n FROM generate_series(0, 999) AS n;

    INSERT INTO api_keys (id, hashed_secret, user_id, expires_at, last_used)
    SELECT lpad(to_hex(n), 10, '0'), '', lpad(to_hex(n), 32, '0')::uuid, now(), now() FROM generate_series(0, 999) AS n;

    INSERT INTO aibridge_interceptions
        (id, initiator_id, provider, provider_name, model, client, started_at, ended_at)
    SELECT
        gen_random_uuid(), lpad(to_hex(n % 100), 32, '0')::uuid, 'provider-' || n % 3, 'name-' || n % 5,
        'model-' || n % 20, nullif('client-' || n % 10, 'client-0'),
        timestamptz '2026-01-01Z' + n * interval '5 minutes',
        CASE WHEN n % 50 > 0 THEN timestamptz '2026-01-01Z' + n * interval '5 minutes' + interval '9 seconds' END
    FROM generate_series(1, 20000) AS n;

    INSERT INTO aibridge_token_usages
        (id, interception_id, provider_response_id, input_tokens, output_tokens, created_at)
    SELECT gen_random_uuid(), id, 'r', 1, 1, started_at FROM aibridge_interceptions;

    INSERT INTO aibridge_user_prompts (id, interception_id, provider_response_id, prompt, created_at)
    SELECT gen_random_uuid(), id, 'r', 'p', started_at FROM aibridge_interceptions;

    INSERT INTO aibridge_tool_usages
        (id, interception_id, provider_response_id, provider_tool_call_id, tool, input, created_at)
    SELECT gen_random_uuid(), id, 'r', id::text, 't', '{}', started_at FROM aibridge_interceptions;

    INSERT INTO aibridge_model_thoughts (interception_id, content, created_at)
    SELECT id, 'c', started_at FROM aibridge_interceptions
"""


def full(statement: Statement) -> frozenset[str]:
    return frozenset(statement.params)


def least(statement: Statement) -> frozenset[str]:
    return frozenset(name for name, param in statement.params.items() if not param.optional)


def renderings(statement: Statement) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The text with all optional lines, with none, and with each parameter alone."""
    optional = full(statement) - least(statement)
    seen = set()
    for given in (optional, *({name} for name in optional), set[str]()):
        text, order = statement.render(least(statement) | frozenset(given))
        if text not in seen:
            seen.add(text)
            yield text, order


@pytest.fixture(scope="module")
def shared_url(template: str, url_of: Callable[[str], str]) -> Iterator[str]:
    """A migrated and filled database for all tests here: they leave nothing behind."""
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE explained TEMPLATE {template}".encode())
    with psycopg.connect(url_of("explained"), autocommit=True) as connection:
        connection.execute(FILL)
        connection.execute("VACUUM ANALYZE")
    yield url_of("explained")
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE explained WITH (FORCE)")


@pytest.fixture
async def raw(shared_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A session such as the service's."""
    connection = await asyncpg.connect(shared_url, server_settings=SESSION)
    yield connection
    await connection.close()


async def oid(raw: asyncpg.Connection[Any], type_name: str) -> int:
    found = await raw.fetchval("SELECT to_regtype($1)::oid", type_name)
    assert found, f"PostgreSQL knows no type {type_name}"
    return int(found)


# -- headers ---------------------------------------------------------------------------------------------------------


@BY_NAME
async def test_the_types_in_the_header_are_those_that_postgresql_infers(
    raw: asyncpg.Connection[Any], name: str
) -> None:
    statement = STATEMENTS[name]
    if name in UTILITIES:
        assert not statement.params
        assert statement.result == "none"
        return
    for text, order in renderings(statement):
        prepared = await raw.prepare(text)
        declared = [(param, await oid(raw, statement.params[param].type)) for param in order]
        inferred = [found.oid for found in prepared.get_parameters()]
        assert declared == list(zip(order, inferred, strict=True))
        columns = [(column, await oid(raw, kind)) for column, kind in statement.columns.items()]
        assert [(attribute.name, attribute.type.oid) for attribute in prepared.get_attributes()] == columns


@pytest.mark.parametrize("name", sorted(name for name, statement in STATEMENTS.items() if statement.indexes))
def test_the_promised_index_is_used(shared_url: str, name: str) -> None:
    statement = STATEMENTS[name]
    text, _ = statement.render(full(statement))
    with psycopg.connect(shared_url, options="-c enable_seqscan=off -c jit=off") as connection:
        rows = connection.execute(f"EXPLAIN (GENERIC_PLAN) {text}".encode()).fetchall()
    plan = "\n".join(line for (line,) in rows)
    for index in statement.indexes:
        assert re.search(rf"\b{index}\b", plan), plan


# -- psql ------------------------------------------------------------------------------------------------------------


@BY_NAME
def test_psql_runs_the_file_as_it_stands(shared_url: str, name: str) -> None:
    statement = STATEMENTS[name]
    variables = [
        argument
        for param, declared in statement.params.items()
        for argument in ("-v", f"{param}={OTHERS.get((name, param), VALUES[declared.type])}")
    ]
    # A user whom rows may refer to, where they do.
    script = f"\\i {ROOT / name}.sql\n"
    if name not in OUTSIDE_TRANSACTIONS:
        user = "INSERT INTO users (id, username) VALUES (:'somebody', 'somebody');\n"
        script = f"BEGIN;\n{'' if name.startswith('users/') else user}{script}ROLLBACK;\n"
    done = subprocess.run(
        [
            binaries_directory() / "psql",
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            f"--set=somebody={VALUES['uuid'][1:-1]}",
            *variables,
            shared_url,
        ],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == 0


# -- code and files --------------------------------------------------------------------------------------------------

VERBS = {"rows", "row", "value", "run"}


def names_in_code() -> Iterator[tuple[str, str]]:
    """Each name of a statement that the code speaks of, as a pattern: an f-string may mean several."""
    for path in SERVICE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS):
                continue
            match node.args[:1]:
                case [ast.Constant(value=str(name))] if "/" in name:
                    yield f"{path.name}:{node.lineno}", re.escape(name)
                case [ast.JoinedStr(values=parts)]:
                    pattern = "".join(
                        re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z_]+" for part in parts
                    )
                    yield f"{path.name}:{node.lineno}", pattern


def test_every_statement_that_the_code_names_exists() -> None:
    named = list(names_in_code())
    assert len(named) > 20
    for place, pattern in named:
        assert any(re.fullmatch(pattern, name) for name in STATEMENTS), f"{place}: {pattern}"


def test_every_statement_is_used() -> None:
    patterns = [pattern for _, pattern in names_in_code()]
    assert [name for name in STATEMENTS if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []


def test_there_is_no_sql_in_python() -> None:
    sql = re.compile(r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s.+\sSET|DELETE\s+FROM)\b", re.DOTALL)
    for path in SERVICE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documents = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in documents:
                # migrations asks yoyo's own table before there is any schema
                assert not sql.search(node.value) or path.name == Path(migrations.__file__).name, (path, node.lineno)


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


# -- plans -----------------------------------------------------------------------------------------------------------

FILTERS: dict[str, object] = {
    "visible_to": UUID(int=7),
    "initiator_id": UUID(int=7),
    "provider": "provider-1",
    "provider_name": "name-1",
    "model": "model-1",
    "client": "client-1",
    "started_after": datetime(2026, 2, 1, tzinfo=UTC),
    "started_before": datetime(2026, 2, 1, tzinfo=UTC),
}
CURSOR: dict[str, object] = {"cursor_started_at": datetime(2026, 2, 1, tzinfo=UTC), "cursor_id": UUID(int=9)}


def literal(value: object) -> str:
    return "{" + ",".join(f'"{one}"' for one in value) + "}" if isinstance(value, list) else str(value)


async def plan_of(url: str, name: str, values: dict[str, object]) -> tuple[str, list[dict[str, Any]]]:
    """The plan that a session of the service runs, as text and as all of its nodes."""
    connection = await asyncpg.connect(url, server_settings=SESSION)
    try:
        text, arguments = STATEMENTS[name].bind(values)
        types = ", ".join(kind.name for kind in (await connection.prepare(text)).get_parameters())
        await connection.execute(f"PREPARE asked {types and f'({types})'} AS {text}")
        literals = await connection.fetchval(
            "SELECT string_agg(quote_literal(value), ', ' ORDER BY place) "
            "FROM unnest($1::text[]) WITH ORDINALITY AS given (value, place)",
            [literal(argument) for argument in arguments],
        )
        given = f"({literals})" if arguments else ""
        [[found]] = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE asked {given}")
    finally:
        await connection.close()
    nodes = []
    pending = [json.loads(found)[0]["Plan"]]
    while pending:
        node = pending.pop()
        nodes.append(node)
        pending += node.get("Plans", [])
    return json.dumps(json.loads(found), indent=1), nodes


async def test_no_page_reads_the_whole_table(shared_url: str) -> None:
    paging: tuple[dict[str, object], ...] = ({}, CURSOR, {"skip": 100})
    asked = [
        *({key: value} for key, value in FILTERS.items()),
        {},
        {"visible_to": UUID(int=7), "model": "model-1"},
        {"started_after": FILTERS["started_after"], "started_before": datetime(2026, 2, 2, tzinfo=UTC)},
    ]
    for filters, page in itertools.product(asked, paging):
        values: dict[str, object] = {"page_size": 100} | filters | page
        text, nodes = await plan_of(shared_url, "interceptions/list_matching", values)
        scans = [node for node in nodes if node.get("Relation Name", "").startswith("aibridge_")]
        assert scans
        for node in scans:
            assert "Seq Scan" not in node["Node Type"], (values, node, text)


# What the rollups know: each filter alone, and everything; whose buckets those are, and their levels.
EVERYONE, ONE = UUID(int=0), UUID(int=7)
ROLLED_UP: list[dict[str, object]] = [
    {"scope": EVERYONE},
    *({"scope": EVERYONE, key: FILTERS[key]} for key in ("provider", "provider_name", "model", "client")),
    {"scope": ONE, "initiator_id": ONE},
    {"scope": ONE, "visible_to": ONE},
    {"scope": ONE, "visible_to": ONE, "model": "model-1", "client": "client-1"},
]


@pytest.fixture(scope="module")
def sealed_url(shared_url: str, url_of: Callable[[str], str]) -> Iterator[str]:
    """The same, all of it in the rollups."""
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE explained_sealed TEMPLATE explained")
    url = url_of("explained_sealed")
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ("rollups/seal", "rollups/set_sealed_until", "rollups/insert_kinds", "rollups/fold"):
            text, order = STATEMENTS[name].render(full(STATEMENTS[name]))
            ends = {"sealed_until": "'-infinity'::timestamptz", "seal_until": "'2026-04-01Z'::timestamptz"}
            for place, param in enumerate(order, 1):
                text = text.replace(f"${place}", ends[param])
            connection.execute(text.encode())
        connection.execute("VACUUM ANALYZE")
    yield url
    with psycopg.connect(url_of("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE explained_sealed WITH (FORCE)")


@pytest.mark.parametrize("asked", ROLLED_UP, ids=", ".join)
async def test_totals_and_places_come_from_the_index_of_the_buckets(sealed_url: str, asked: dict[str, object]) -> None:
    begins, ends = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
    own = asked["scope"] == ONE
    levels, units = (
        (["own month", "own day"], ["month", "day"])
        if own
        else (
            ["month", "day", "hour"],
            ["month", "day", "hour"],
        )
    )
    for name, values in (
        (
            "rollups/count_stretches",
            {"level": [levels[0], ""], "begins": [begins, ends], "ends": [ends, ends]}
            | {"whole_begins": begins, "whole_ends": ends},
        ),
        ("rollups/find_bucket", {"level": levels, "unit": units, "begins": begins, "ends": ends, "skip": 5}),
    ):
        text, nodes = await plan_of(sealed_url, name, asked | values)
        buckets = [node for node in nodes if node.get("Relation Name") == "bridgelog_rollup_buckets"]
        assert buckets, text
        for node in buckets:
            assert node["Node Type"] == "Index Only Scan", text
            assert "starts_at" in node["Index Cond"], text
        for node in nodes:
            if node.get("Relation Name") == "aibridge_interceptions":
                assert node["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, text


NAMES: dict[str, object] = {"scope": UUID(int=0), "level": "month", "page_size": 100, "skip": 0}


async def test_no_lookup_reads_the_whole_table(shared_url: str) -> None:
    for name, values in (
        ("interceptions/find_cursor", {"interception_id": UUID(int=9)}),
        ("interceptions/find_cursor", {"interception_id": UUID(int=9), "visible_to": UUID(int=7)}),
        ("rollups/list_models", NAMES | {"prefix": ""}),
        ("rollups/list_models", NAMES | {"prefix": "m", "level": "own month", "visible_to": UUID(int=7)}),
        ("rollups/list_clients", NAMES | {"prefix": ""}),
        ("rollups/list_clients", NAMES | {"prefix": "c", "level": "own month", "visible_to": UUID(int=7)}),
        ("interceptions/count_matching", {"visible_to": UUID(int=7)}),
        ("interceptions/count_matching", {"initiator_id": UUID(int=7), "model": "model-1"}),
    ):
        text, nodes = await plan_of(shared_url, name, dict(values))
        for node in nodes:
            if node.get("Relation Name") == "aibridge_interceptions":
                assert node["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}, (values, text)


MIDDLE = datetime(2026, 2, 1, tzinfo=UTC)
BATCH: dict[str, object] = {"before": MIDDLE, "since": datetime(2026, 1, 20, tzinfo=UTC), "most": 200}
PERSON: dict[str, object] = {"user_id": UUID(int=7), "erased_until": MIDDLE, "most": 200}
AFTER: dict[str, object] = {"after_started_at": datetime(2026, 1, 20, tzinfo=UTC), "after_id": UUID(int=9)}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (f"{noun}/{verb}", given)
        for noun, verb, first, next_batch in (
            ("retention", "delete_interceptions", {"before": MIDDLE, "most": 200}, BATCH),
            ("retention", "delete_interceptions", {"before": MIDDLE, "most": 200, "running": True}, BATCH),
            ("retention", "remove_user_prompts", {"before": MIDDLE, "most": 200}, BATCH),
            ("retention", "remove_tool_usages", {"before": MIDDLE, "most": 200}, BATCH),
            ("retention", "remove_model_thoughts", {"before": MIDDLE, "most": 200}, BATCH),
            ("retention", "find_oldest", {}, {}),
            ("erasure", "list_interceptions", PERSON, PERSON | AFTER),
            ("erasure", "list_interceptions", PERSON | {"running": True}, PERSON | AFTER | {"running": True}),
            ("erasure", "mark_user", {"user_id": UUID(int=7), "now": MIDDLE}, {}),
            ("erasure", "is_known", {"user_id": UUID(int=7)}, {}),
        )
        for given in (first, first | next_batch)
    ],
    ids=str,
)
async def test_no_removal_reads_the_whole_table(shared_url: str, name: str, values: dict[str, object]) -> None:
    """And none sorts what is due: a batch is read from where it begins, as far as it goes."""
    text, nodes = await plan_of(shared_url, name, values)
    scans = [node for node in nodes if node.get("Relation Name", "").startswith("aibridge_")]
    assert scans
    for node in scans:
        assert "Seq Scan" not in node["Node Type"], text
    sorted_by = [node["Sort Key"] for node in nodes if node["Node Type"] == "Sort"]
    assert all("place" in str(key) or "interception_id" in str(key) for key in sorted_by), text


@pytest.mark.parametrize("kind", ["interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts"])
async def test_no_erasure_reads_the_whole_table(shared_url: str, kind: str) -> None:
    ids = "{" + ",".join(str(UUID(int=number)) for number in range(200)) + "}"
    text, nodes = await plan_of(shared_url, f"erasure/erase_{kind}", {"ids": ids})
    scans = [node for node in nodes if node.get("Relation Name", "").startswith("aibridge_")]
    assert scans
    for node in scans:
        assert "Seq Scan" not in node["Node Type"], text


async def test_what_was_removed_is_not_met_again(shared_url: str) -> None:
    """The index by which content is found holds what is left of it, and no batch looks at the rest."""
    connection = await asyncpg.connect(shared_url, server_settings=SESSION)
    try:
        await connection.execute("BEGIN")
        await connection.execute("UPDATE aibridge_user_prompts SET prompt = '' WHERE created_at < '2026-02-01Z'")
        text, arguments = STATEMENTS["retention/remove_user_prompts"].bind({"before": MIDDLE, "most": 200})
        [[found]] = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *arguments)
    finally:
        await connection.close()
    assert '"Index Name": "aibridge_user_prompts_content_idx"' in found
    assert set(re.findall(r'"Rows Removed by Filter": (\d+)', found)) <= {"0"}
