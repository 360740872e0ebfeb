"""Total and page are of one snapshot, and what a statement does that finds no end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import API, Client, Person

from service import db
from service.context import DATABASE
from service.store import totals

INSERT = """
INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at, ended_at)
VALUES (gen_random_uuid(), gen_random_uuid(), 'p', 'm', now(), now())
"""


@pytest.mark.parametrize("kind", ["deep", "without rollups"])
async def test_what_is_recorded_between_two_statements_is_in_neither(  # noqa: PLR0917 - fixtures
    kind: str,
    client: Client,
    owner: Person,
    record: Callable[..., Any],
    sql: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await record()
    if kind == "deep":
        monkeypatch.setattr(totals, "_DEEP", 0)
    else:
        client.app[DATABASE].rolled_up = False
    rows = db.Connection.rows

    async def be_overtaken(self: db.Connection, statement: str, **values: Any) -> Any:
        if statement == "interceptions/list_matching":
            sql(INSERT)
        return await rows(self, statement, **values)

    monkeypatch.setattr(db.Connection, "rows", be_overtaken)
    page = await (await client.get(f"{API}/interceptions", headers=owner.headers)).json()
    assert (page["total"], len(page["results"])) == (1, 1)

    # Without the snapshot it would show: this is what the test is worth.
    monkeypatch.setattr(db.Database, "snapshot", db.Database.connection)
    page = await (await client.get(f"{API}/interceptions", headers=owner.headers)).json()
    assert (page["total"], len(page["results"])) == (2, 3)


async def test_a_page_by_one_statement_needs_no_transaction(
    client: Client,
    owner: Person,
    database_url: str,
    sql: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages that hold everything, while somebody records without a pause: each has as many results as its total says."""

    def record_on(until: float) -> int:
        done = 0
        with psycopg.connect(database_url, autocommit=True) as other:
            while time.monotonic() < until and done < 700:
                other.execute(INSERT)
                done += 1
        return done

    async def differing(seconds: float) -> tuple[int, int]:
        sql("TRUNCATE aibridge_interceptions CASCADE")  # fewer than a page holds
        recording = asyncio.create_task(asyncio.to_thread(record_on, time.monotonic() + seconds))
        pages = different = 0
        while not recording.done():
            page = await (await client.get(f"{API}/interceptions?limit=1000", headers=owner.headers)).json()
            pages += 1
            different += page["total"] != len(page["results"])
        assert await recording
        return pages, different

    pages, different = await differing(1)
    assert pages > 1
    assert different == 0

    # Told by two statements without a transaction, they differ sooner or later: this is what the test is worth.
    monkeypatch.setattr(totals, "_DEEP", 0)
    monkeypatch.setattr(db.Database, "snapshot", db.Database.connection)
    for _ in range(20):
        if (await differing(1))[1]:
            break
    else:
        pytest.fail("two statements never differed: the test proves nothing")


async def test_a_statement_over_its_time_is_told_apart(
    make_client: Callable[..., Any], database_url: str, owner: Person
) -> None:
    client = await make_client(statement_timeout=0.2)
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE aibridge_interceptions")
        answer = await client.get(f"{API}/interceptions", headers=owner.headers)
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "10"
    assert (await answer.json())["message"].startswith("The database took too long to answer")
