"""Migrations: from nothing, twice, many at once, over data, and what happens to a killed one's lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from service import migrations

# Table, column, type, nullable, as the API reference names them.
EXPECTED = {
    "users": "id uuid, username text, name text, avatar_url text, status text, rbac_roles text[], deleted boolean, "
    "created_at timestamptz, updated_at timestamptz",
    "api_keys": "id text, hashed_secret bytea, user_id uuid, expires_at timestamptz, last_used timestamptz, "
    "created_at timestamptz, updated_at timestamptz, token_name text",
    "aibridge_interceptions": "id uuid, initiator_id uuid, api_key_id text?, provider text, provider_name text, "
    "model text, client varchar(64)?, metadata jsonb, started_at timestamptz, ended_at timestamptz?, "
    "thread_parent_id uuid?, thread_root_id uuid?, client_session_id varchar(256)?, session_id text",
    "aibridge_token_usages": "id uuid, interception_id uuid, provider_response_id text, input_tokens bigint, "
    "output_tokens bigint, cache_read_input_tokens bigint, cache_write_input_tokens bigint, metadata jsonb, "
    "created_at timestamptz",
    "aibridge_user_prompts": "id uuid, interception_id uuid, provider_response_id text, prompt text, metadata jsonb, "
    "created_at timestamptz",
    "aibridge_tool_usages": "id uuid, interception_id uuid, provider_response_id text, provider_tool_call_id text?, "
    "server_url text?, tool text, input text, injected boolean, invocation_error text?, metadata jsonb, "
    "created_at timestamptz",
    "aibridge_model_thoughts": "interception_id uuid, content text, metadata jsonb, created_at timestamptz",
}
COLUMNS = """
SELECT attname, replace(replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz'),
       'character varying', 'varchar'), attnotnull
FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


def run(url: str, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), arguments or None)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("table", EXPECTED)
def test_tables_are_typed_as_promised(database_url: str, table: str) -> None:
    found = run(database_url, COLUMNS, table)
    assert ", ".join(f"{name} {kind}{'' if required else '?'}" for name, kind, required in found) == EXPECTED[table]


def test_session_id_is_the_first_that_is_known(database_url: str) -> None:
    run(
        database_url,
        "INSERT INTO aibridge_interceptions"
        " (id, initiator_id, provider, model, started_at, client_session_id, thread_root_id)"
        " SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, gen_random_uuid(), 'p', 'm', now(), s, r"
        " FROM (VALUES (1, 'session', '00000000-0000-4000-8000-000000000009'::uuid),"
        " (2, NULL, '00000000-0000-4000-8000-000000000009'), (3, NULL, NULL)) AS v (n, s, r)",
    )
    assert run(database_url, "SELECT session_id FROM aibridge_interceptions ORDER BY id") == [
        ("session",),
        ("00000000-0000-4000-8000-000000000009",),
        ("00000000-0000-4000-8000-000000000003",),
    ]


def test_every_constraint_of_ours_has_a_name_of_ours(database_url: str) -> None:
    """PostgreSQL's own names end in a number or repeat the table; ours say what they are for."""
    names = run(
        database_url,
        "SELECT conname FROM pg_constraint JOIN pg_class ON conrelid = pg_class.oid"
        " WHERE relname ~ '^(users|api_keys|aibridge_|bridgelog_)' AND contype <> 'n'",
    )
    migrated = "".join(path.read_text() for path in Path("migrations").glob("*.sql"))
    assert names
    assert [name for (name,) in names if f"CONSTRAINT {name}" not in migrated] == []


def test_pending_and_apply(empty_database_url: str) -> None:
    assert migrations.pending(empty_database_url) == list(migrations.names())
    assert run(empty_database_url, "SELECT to_regclass('users')") == [(None,)]
    assert migrations.apply(empty_database_url) == list(migrations.names())
    assert migrations.pending(empty_database_url) == []
    assert migrations.apply(empty_database_url) == []


def test_the_lock_of_a_killed_process_stops_nobody(empty_database_url: str) -> None:
    migrations.apply(empty_database_url)
    run(empty_database_url, "INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    run(empty_database_url, "DELETE FROM _yoyo_migration WHERE migration_id = %s", migrations.names()[-1])
    run(empty_database_url, Path(f"migrations/{migrations.names()[-1]}.rollback.sql").read_text())
    assert migrations.apply(empty_database_url) == [migrations.names()[-1]]


def test_processes_that_start_at_once_apply_each_migration_once(empty_database_url: str) -> None:
    program = "import sys; from service import migrations; print(len(migrations.apply(sys.argv[1])))"
    started = [
        subprocess.Popen([sys.executable, "-c", program, empty_database_url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    applied = sorted(int(process.communicate(timeout=60)[0].splitlines()[-1]) for process in started)
    assert [process.returncode for process in started] == [0] * 4
    assert applied == [0, 0, 0, len(migrations.names())]


def test_a_failed_migration_leaves_nothing_behind(
    empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001.half.sql").write_text("CREATE TABLE half (id int);\nCREATE TABLE half (id int);\n")
    monkeypatch.setattr(migrations, "directory", lambda _: tmp_path)
    with pytest.raises(migrations.MigrationError, match="half"):
        migrations.apply(empty_database_url)
    assert run(empty_database_url, "SELECT to_regclass('half')") == [(None,)]


def test_rollbacks_undo_everything(empty_database_url: str) -> None:
    migrations.apply(empty_database_url)
    for path in sorted(Path("migrations").glob("*.rollback.sql"), reverse=True):
        run(empty_database_url, path.read_text())
    left = run(
        empty_database_url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname !~ 'yoyo'"
        " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    )
    assert left == []


def test_an_unreachable_database_is_told_plainly() -> None:
    with pytest.raises(migrations.MigrationError, match=r"127\.0\.0\.1"):
        migrations.pending("postgresql://127.0.0.1:1/nothing?connect_timeout=2")


def test_a_wrong_url_leaks_no_password(url_of: Callable[[str], str]) -> None:
    with pytest.raises(migrations.MigrationError) as failure:
        migrations.pending("postgresql://user:hunter2@127.0.0.1:1/nothing?connect_timeout=2")
    assert "hunter2" not in str(failure.value)
