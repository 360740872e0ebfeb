"""What goes on besides requests, and whoever writes beside the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from service import app

Sql = Callable[..., list[tuple[Any, ...]]]


async def test_a_background_task_that_fails_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_REST_SECONDS", 0)
    again = asyncio.Event()
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise LookupError
        again.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(app._for_ever("this test", work))
    await asyncio.wait_for(again.wait(), timeout=10)
    assert starts == 2
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_who_may_write_interceptions_needs_no_rights_on_the_rollups(sql: Sql) -> None:
    sql("UPDATE bridgelog_rollup_state SET sealed_until = now()")
    [(role,)] = sql("SELECT 'writer_of_' || current_database()")
    sql(f"CREATE ROLE {role}")
    try:
        sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON aibridge_interceptions TO {role}")
        sql(f"SET ROLE {role}")
        sql(
            "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at, ended_at)"
            " SELECT gen_random_uuid(), gen_random_uuid(), 'p', 'm', '2026-03-01Z', '2026-03-01Z'"
            " FROM generate_series(1, 3)"
        )
        sql("UPDATE aibridge_interceptions SET model = 'n'")
        sql("DELETE FROM aibridge_interceptions WHERE id = (SELECT min(id::text)::uuid FROM aibridge_interceptions)")
        sql("RESET ROLE")
        assert sql("SELECT model, sum(interceptions) FROM bridgelog_rollup_changes GROUP BY 1 ORDER BY 1") == [
            ("m", 0),
            ("n", 2),
        ]
    finally:
        sql("RESET ROLE")
        sql(f"DROP OWNED BY {role}")
        sql(f"DROP ROLE {role}")
