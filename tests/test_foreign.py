"""A database that another system owns: served as it stands, and never written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import API, MakeClient, Person, interception

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def foreign(sql: Sql, owner: Person, member: Person) -> None:
    """Their status is an enum, their metadata may be null, and nothing of ours is there."""
    sql("CREATE TYPE user_status AS ENUM ('active', 'suspended', 'dormant')")
    sql("ALTER TABLE users DROP CONSTRAINT users_status_check, ALTER COLUMN status DROP DEFAULT")
    sql("ALTER TABLE users ALTER COLUMN status TYPE user_status USING status::user_status")
    sql("DROP TABLE bridgelog_request_logging_changes, bridgelog_merged_metadata")
    for event in ("insert", "update", "delete", "truncate"):
        sql(f"DROP TRIGGER bridgelog_roll_up_{event} ON aibridge_interceptions")
        sql(f"DROP FUNCTION bridgelog_roll_up_{event}")
    sql("DROP FUNCTION bridgelog_hold_sealing")
    sql("DROP VIEW bridgelog_rollup_differences")
    sql("DROP TABLE bridgelog_rollup_buckets, bridgelog_rollup_kinds, bridgelog_rollup_changes, bridgelog_rollup_state")
    sql("DROP TABLE _yoyo_migration, _yoyo_log, _yoyo_version, yoyo_lock")
    for table in ("interceptions", "token_usages", "user_prompts", "tool_usages"):
        sql(f"ALTER TABLE aibridge_{table} ALTER COLUMN metadata DROP NOT NULL, ALTER COLUMN metadata DROP DEFAULT")
    sql(
        "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at, ended_at, metadata)"
        " SELECT gen_random_uuid(), id, 'openai', 'gpt-5.2', now(), now(), NULL FROM users"
    )
    sql(
        "INSERT INTO aibridge_token_usages"
        " (id, interception_id, provider_response_id, input_tokens, output_tokens, created_at, metadata)"
        " SELECT gen_random_uuid(), id, 'r', 1, 2, now(), NULL FROM aibridge_interceptions"
    )


@pytest.mark.usefixtures("foreign")
async def test_it_is_read(make_client: MakeClient, owner: Person, member: Person) -> None:
    client = await make_client(schema="foreign")
    everything = await (await client.get(f"{API}/interceptions", headers=owner.headers)).json()
    assert everything["total"] == 2
    assert everything["results"][0]["metadata"] == {}
    assert everything["results"][0]["token_usages"][0]["metadata"] == {}
    own = await (await client.get(f"{API}/interceptions", headers=member.headers)).json()
    assert [result["initiator_id"] for result in own["results"]] == [str(member.id)]
    assert await (await client.get(f"{API}/models", headers=owner.headers)).json() == ["gpt-5.2"]
    assert await (await client.get(f"{API}/clients", headers=owner.headers)).json() == ["Unknown"]
    deep = await (await client.get(f"{API}/interceptions?offset=1", headers=owner.headers)).json()
    assert deep["results"] == everything["results"][1:]
    assert (await client.get("/readyz")).status == 200


@pytest.mark.usefixtures("foreign")
async def test_a_suspended_user_of_an_enum_is_out(make_client: MakeClient, owner: Person, sql: Sql) -> None:
    sql("UPDATE users SET status = 'suspended'")
    client = await make_client(schema="foreign")
    assert (await client.get(f"{API}/interceptions", headers=owner.headers)).status == 401


@pytest.mark.usefixtures("foreign")
async def test_it_is_never_written(make_client: MakeClient, owner: Person, sql: Sql) -> None:
    client = await make_client(schema="foreign")
    before = sql("SELECT last_used FROM api_keys ORDER BY id")
    child = f"{API}/interceptions/{interception()['id']}"
    calls: list[tuple[str, Any]] = [
        (f"{API}/interceptions", interception()),
        (f"{API}/interceptions/import", [interception()]),
        (f"{child}/user-prompts", {"provider_response_id": "r", "created_at": "2026-01-01T00:00:00Z", "prompt": "p"}),
        (f"{child}/end", {"ended_at": "2026-01-01T00:00:00Z"}),
        (f"{API}/log-requests", {"enabled": True}),
    ]
    for path, body in calls:
        response = await client.post(path, json=body, headers=owner.headers)
        assert response.status == 503, path
        assert (await response.json())["message"].startswith("This service only reads")
    assert (await client.get(f"{API}/log-requests", headers=owner.headers)).status == 503
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(2,)]
    assert sql("SELECT last_used FROM api_keys ORDER BY id") == before
