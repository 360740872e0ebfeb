"""Total and page are of one snapshot, and what a statement does that finds no end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import API, Client, Person

from service import db
from service.store import totals

INSERT = """
INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at, ended_at)
VALUES (gen_random_uuid(), gen_random_uuid(), 'p', 'm', now(), now())
"""


async def test_what_is_recorded_meanwhile_is_in_neither(
    client: Client,
    owner: Person,
    record: Callable[..., Any],
    sql: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await record()
    counted = totals.count

    async def count_and_be_overtaken(*arguments: Any, **named: Any) -> int:
        total = await counted(*arguments, **named)
        sql(INSERT)
        return total

    monkeypatch.setattr(totals, "count", count_and_be_overtaken)
    page = await (await client.get(f"{API}/interceptions", headers=owner.headers)).json()
    assert (page["total"], len(page["results"])) == (1, 1)

    # Without the snapshot it would show: this is what the test is worth.
    monkeypatch.setattr(db.Database, "snapshot", db.Database.connection)
    page = await (await client.get(f"{API}/interceptions", headers=owner.headers)).json()
    assert (page["total"], len(page["results"])) == (2, 3)


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
