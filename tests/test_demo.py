"""The demo: the same for the same seed, whole interceptions only, and never among other people's records."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from service.db import Database
from service.instants import parse as instant
from service.store import demo

NEWEST = instant("2026-03-04T15:00:00Z")
SQL = Callable[..., list[tuple[Any, ...]]]

CHILDREN = ("aibridge_token_usages", "aibridge_user_prompts", "aibridge_tool_usages", "aibridge_model_thoughts")
TABLES = ("users", "aibridge_interceptions", *CHILDREN)


async def fill(database: Database, interceptions: int, *, seed: int = 1, **options: Any) -> list[int]:
    told: list[int] = []
    await demo.fill(database, interceptions=interceptions, seed=seed, newest=NEWEST, progress=told.append, **options)
    return told


def content(sql: SQL) -> dict[str, str]:
    """A digest of the rows of each table, whatever their order."""
    return {
        table: sql(f"SELECT md5(string_agg(row::text, E'\\n' ORDER BY row::text)) FROM {table} AS row")[0][0]  # noqa: S608
        for table in TABLES
    }


def count(sql: SQL, table: str) -> int:
    return int(sql(f"SELECT count(*) FROM {table}")[0][0])  # noqa: S608


def insert_foreign(sql: SQL) -> None:
    sql(
        "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at) VALUES (%s, %s, %s, %s, %s)",
        uuid4(),
        uuid4(),
        "anthropic",
        "m",
        NEWEST,
    )


async def test_fills_exactly_as_many_and_every_table(database: Database, sql: SQL) -> None:
    assert await fill(database, 1000) == [1000]
    assert count(sql, "aibridge_interceptions") == 1000
    assert all(count(sql, table) > 0 for table in CHILDREN)


async def test_a_repeat_changes_nothing(database: Database, sql: SQL) -> None:
    await fill(database, 500)
    before = content(sql)
    await fill(database, 500)
    assert content(sql) == before


async def test_the_seed_decides_the_rows(database: Database, sql: SQL) -> None:
    await fill(database, 200, seed=7)
    first = content(sql)
    sql("TRUNCATE users, aibridge_interceptions CASCADE")
    await fill(database, 200, seed=7)
    assert content(sql) == first
    sql("TRUNCATE users, aibridge_interceptions CASCADE")
    await fill(database, 200, seed=8)
    assert not set(content(sql).values()) & set(first.values())


async def test_a_fill_that_was_stopped_is_taken_up(
    database: Database, sql: SQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BATCH", 10 * demo.BLOCK)
    await fill(database, 700)
    whole = content(sql)
    sql("TRUNCATE users, aibridge_interceptions CASCADE")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await demo.fill(database, interceptions=700, seed=1, newest=NEWEST, progress=stop)
    assert count(sql, "aibridge_interceptions") == 240
    assert await fill(database, 700) == [240, 480, 700]
    assert content(sql) == whole


async def test_batches_of_any_size_make_the_same_rows(
    database: Database, sql: SQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where an agent is in its session is counted within a batch, and sessions end with their block.
    await fill(database, 300)
    whole = content(sql)
    sql("TRUNCATE users, aibridge_interceptions CASCADE")
    monkeypatch.setattr(demo, "BATCH", 3 * demo.BLOCK)
    await fill(database, 300)
    assert content(sql) == whole


async def test_a_larger_number_adds_the_difference(database: Database, sql: SQL) -> None:
    await fill(database, 240)
    before = {row[0] for row in sql("SELECT id FROM aibridge_interceptions")}
    await fill(database, 480)
    after = {row[0] for row in sql("SELECT id FROM aibridge_interceptions")}
    assert before < after
    assert len(after) == 480


@pytest.mark.parametrize("interceptions", [1, 2, 23, 24, 25, 49])
async def test_small_numbers(database: Database, sql: SQL, interceptions: int) -> None:
    await fill(database, interceptions)
    assert count(sql, "aibridge_interceptions") == interceptions
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL")[0][0] > 0


async def test_refuses_a_database_with_the_records_of_others(database: Database, sql: SQL) -> None:
    insert_foreign(sql)
    with pytest.raises(demo.ForeignRecords):
        await fill(database, 24)
    assert count(sql, "aibridge_interceptions") == 1
    assert count(sql, "users") == 0


async def test_refuses_after_another_seed(database: Database, sql: SQL) -> None:
    await fill(database, 24, seed=1)
    with pytest.raises(demo.ForeignRecords):
        await fill(database, 24, seed=2)


async def test_fills_beside_others_when_told_to(database: Database, sql: SQL) -> None:
    insert_foreign(sql)
    await fill(database, 24, beside_others=True)
    assert count(sql, "aibridge_interceptions") == 25


@pytest.mark.parametrize(
    ("interceptions", "seed", "newest"),
    [(0, 1, NEWEST), (24, -1, NEWEST), (24, 2**31, NEWEST), (24, 1, NEWEST.replace(tzinfo=None))],
)
async def test_refuses_what_it_cannot_make(database: Database, interceptions: int, seed: int, newest: Any) -> None:
    with pytest.raises(ValueError, match="a demo needs"):
        await demo.fill(database, interceptions=interceptions, seed=seed, newest=newest, progress=print)


async def test_a_name_that_is_taken_stays_with_its_owner(database: Database, sql: SQL) -> None:
    await fill(database, 24)
    (name,) = sql("SELECT upper(username) FROM users WHERE rbac_roles = '{}' LIMIT 1")[0]
    sql("TRUNCATE users, aibridge_interceptions CASCADE")
    owner = uuid4()
    sql("INSERT INTO users (id, username) VALUES (%s, %s)", owner, name)
    await fill(database, 24)
    assert sql("SELECT id, username FROM users WHERE lower(username) = lower(%s)", name) == [(owner, name)]


async def test_time_is_that_of_work_and_within_the_period(database: Database, sql: SQL) -> None:
    await fill(database, 2000)
    first, last, weekend = sql(
        "SELECT min(started_at), max(coalesce(ended_at, started_at)),"
        " avg((extract(isodow FROM started_at) > 5)::integer) FROM aibridge_interceptions"
    )[0]
    # A session that ends in the first hour began before it.
    assert NEWEST - demo.period(2000) - timedelta(hours=6) < first
    assert NEWEST - timedelta(minutes=2) < last <= NEWEST
    assert weekend < 0.12
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at < started_at")[0][0] == 0


async def test_one_in_a_hundred_is_still_in_flight_and_has_used_nothing_yet(database: Database, sql: SQL) -> None:
    await fill(database, 20_000)
    [(share, newest)] = sql(
        "SELECT avg((ended_at IS NULL)::integer), max(started_at) FILTER (WHERE ended_at IS NULL)"
        " FROM aibridge_interceptions"
    )
    assert 0.008 < share < 0.012
    assert NEWEST - timedelta(minutes=5) < newest <= NEWEST
    assert not sql("SELECT FROM aibridge_interceptions WHERE ended_at IS NULL AND metadata ->> 'status' IS NOT NULL")
    assert not sql(
        "SELECT FROM aibridge_token_usages JOIN aibridge_interceptions AS i ON i.id = interception_id"
        " WHERE i.ended_at IS NULL"
    )


async def test_children_lie_within_their_interception(database: Database, sql: SQL) -> None:
    await fill(database, 2000)
    for table in CHILDREN:
        assert not sql(
            f"SELECT FROM {table} AS child JOIN aibridge_interceptions AS i ON i.id = child.interception_id"
            " WHERE child.created_at NOT BETWEEN i.started_at AND coalesce(i.ended_at, 'infinity')"
        ), table


async def test_ids_are_uuids_of_rfc_9562(database: Database, sql: SQL) -> None:
    await fill(database, 500)
    for table in TABLES[:-1]:
        assert not sql(
            f"SELECT FROM {table} WHERE id::text !~ '^[0-9a-f]{{8}}-[0-9a-f]{{4}}-[45][0-9a-f]{{3}}-[89ab]'"
        ), table


async def test_threads_answer_the_tool_calls_before_them(database: Database, sql: SQL) -> None:
    await fill(database, 1000)
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE thread_parent_id IS NOT NULL")[0][0] > 100
    assert not sql(
        "SELECT FROM aibridge_interceptions AS child"
        " LEFT JOIN aibridge_interceptions AS parent ON parent.id = child.thread_parent_id"
        " WHERE child.thread_parent_id IS NOT NULL AND ("
        "   parent.initiator_id IS DISTINCT FROM child.initiator_id"
        "   OR parent.ended_at > child.started_at"
        "   OR child.thread_root_id IS DISTINCT FROM coalesce(parent.thread_root_id, parent.id)"
        "   OR NOT EXISTS (SELECT FROM aibridge_tool_usages WHERE interception_id = parent.id AND NOT injected))"
    )


async def test_what_was_asked_follows_from_no_call(database: Database, sql: SQL) -> None:
    await fill(database, 1000)
    assert not sql(
        "SELECT FROM aibridge_user_prompts JOIN aibridge_interceptions AS i ON i.id = interception_id"
        " WHERE thread_parent_id IS NOT NULL"
    )
    assert not sql(r"SELECT FROM aibridge_user_prompts WHERE prompt ~ '%\d\$s'")


async def test_tool_usages_are_such_as_a_gateway_sees(database: Database, sql: SQL) -> None:
    await fill(database, 2000)
    for tool, text in sql("SELECT DISTINCT tool, input FROM aibridge_tool_usages"):
        assert tool == "apply_patch" or isinstance(json.loads(text), dict), text
    # Only of the tools that it injected does the gateway know the server and the error; their answer is not the last.
    assert not sql(
        "SELECT FROM aibridge_tool_usages"
        " WHERE (server_url IS NOT NULL) <> injected OR (invocation_error IS NOT NULL AND NOT injected)"
    )
    assert not sql(
        "SELECT FROM aibridge_tool_usages AS call WHERE NOT EXISTS (SELECT FROM aibridge_token_usages AS answer"
        " WHERE answer.interception_id = call.interception_id AND answer.provider_response_id = call.provider_response_id)"
    )
    assert not sql("SELECT provider_tool_call_id FROM aibridge_tool_usages GROUP BY 1 HAVING count(*) > 1")


async def test_it_looks_like_an_organisation(database: Database, sql: SQL) -> None:
    await fill(database, 5000)
    providers: dict[str, Any] = dict(
        sql("SELECT provider_name, count(*) / 5000.0 FROM aibridge_interceptions GROUP BY 1")
    )
    assert set(providers) == {"anthropic", "openai", "azure-openai"}
    assert max(providers, key=lambda name: providers[name]) == "anthropic"
    assert sql("SELECT count(DISTINCT model), count(DISTINCT client) FROM aibridge_interceptions")[0] >= (12, 8)
    by_person = [
        row[0] for row in sql("SELECT count(*) FROM aibridge_interceptions GROUP BY initiator_id ORDER BY 1 DESC")
    ]
    assert by_person[0] > 3 * by_person[-1]
    assert not sql("SELECT FROM aibridge_interceptions WHERE NOT EXISTS (SELECT FROM users WHERE id = initiator_id)")
    assert sql("SELECT count(*) FROM users WHERE 'recorder' = ANY (rbac_roles)")[0][0] == 1
    assert sql("SELECT count(*) FROM users WHERE 'auditor' = ANY (rbac_roles)")[0][0] == 2
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE client IS NULL")[0][0] > 0
