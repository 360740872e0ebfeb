"""Retention: exactly what is older than it may be goes, in batches that disturb nobody, and does not come back."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from conftest import MakeClient, Person, interception
from recorder import Recorder, count, running, thought, tool_usage, user_prompt, whole, without
from rows import Sql, put

from service import batches, db, errors, retention, settings, statements, upkeep
from service.db import Connection, Database
from service.instants import parse as instant
from service.retention import Limits
from service.settings import Settings
from service.store import interceptions, rollups, totals
from service.store import retention as retention_store
from service.store.interceptions import Criteria

NOON = instant("2026-03-01T12:00:00Z")
HOUR = timedelta(hours=1)
TABLES = ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts")


@pytest.fixture
def recorder(client: Any, owner: Person) -> Recorder:
    return Recorder(client, owner)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_LEAST_REST", 0.0)


def limits(*, rows: datetime | None = None, content: datetime | None = None) -> Limits:
    return Limits(interceptions=rows, content=content)


async def differences(database: Database) -> list[rollups.Difference]:
    async with database.snapshot() as connection:
        return await rollups.verify(connection, most=100)


def command(url: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=kept | {"BRIDGELOG_DATABASE_URL": url} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("0", timedelta()),
        ("0d", timedelta()),
        ("90d", timedelta(days=90)),
        ("36h", timedelta(hours=36)),
        ("036500d", timedelta(days=36500)),
    ],
)
@pytest.mark.parametrize("name", ["RETENTION", "CONTENT_RETENTION"])
def test_what_a_retention_may_be(monkeypatch: pytest.MonkeyPatch, name: str, text: str, kept: timedelta) -> None:
    monkeypatch.setenv(f"BRIDGELOG_{name}", text)
    assert getattr(settings.read(), name.lower()) == kept


@pytest.mark.parametrize(
    "text",
    ["", "90", "-1d", "-0", "1.5d", "90 d", "90D", "3m", "1w", "d", "٣d", "never", "36501d", "99999999d", "1d\nx"],
)
@pytest.mark.parametrize("name", ["RETENTION", "CONTENT_RETENTION"])
def test_what_it_may_not_be_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"BRIDGELOG_{name}", text)
    with pytest.raises(settings.InvalidSettings) as problem:
        settings.read()
    assert f'"BRIDGELOG_{name}"' in str(problem.value)
    assert "90d" in str(problem.value)


def test_the_start_tells_what_it_takes() -> None:
    done = command("postgresql://127.0.0.1:1/nothing", "serve", BRIDGELOG_RETENTION="-90d")
    assert done.returncode == 1
    assert done.stderr == (
        'Error: Environment variable "BRIDGELOG_RETENTION" must be a whole number of days or hours such as 90d or 36h,'
        " at most 36500d, or 0 to keep everything for ever\n"
    )


def test_a_database_of_another_system_has_no_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGELOG_DATABASE_URL", "postgresql://x/y")
    monkeypatch.setenv("BRIDGELOG_SCHEMA", "foreign")
    monkeypatch.setenv("BRIDGELOG_CONTENT_RETENTION", "1d")
    with pytest.raises(settings.InvalidSettings, match="foreign"):
        settings.read()


def test_zero_keeps_everything(settings: Settings) -> None:
    assert Limits.of(settings, now=NOON) == limits()
    both = replace(settings, retention=36 * HOUR, content_retention=HOUR)
    assert Limits.of(both, now=NOON) == limits(rows=NOON - 36 * HOUR, content=NOON - HOUR)
    # Longer than there have been years is for ever, too.
    assert Limits.of(both, now=instant("0001-01-02T00:00:00Z")).interceptions is None


async def test_no_limit_removes_nothing(database: Database, recorder: Recorder, sql: Sql) -> None:
    assert (await recorder.record(whole())).status == 201
    removed = await retention.remove(database, limits(), patient=True)
    assert (removed.deleted, removed.emptied) == ({}, {})
    assert [count(sql, table) for table in TABLES] == [1] * 5
    assert sql("SELECT prompt <> '' FROM aibridge_user_prompts") == [(True,)]


# -- interceptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 200])
async def test_what_started_before_goes_with_all_that_it_owns(
    database: Database, recorder: Recorder, sql: Sql, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(batches, "_MOST", most)
    after = {"ended_at": "2026-03-01T13:30:00Z"}
    kept = [
        whole(started_at="2026-03-01T12:00:00Z", **after),
        whole(started_at="2026-03-01T13:00:00Z", **after),
        running(started_at="2026-03-01T12:00:00Z"),
    ]
    for body in (
        whole(started_at="2026-03-01T11:59:59.999999Z", **after),
        whole(started_at="2026-02-01T12:00:00Z"),
        running(started_at="0001-01-01T00:00:00Z"),
        late := running(started_at="2026-03-01T11:00:00Z", metadata={"a": 1}),
        *kept,
    ):
        assert (await recorder.record(body)).status == 201
    for body in (kept[2], late):
        assert (await recorder.end(body["id"], ended_at="2026-03-01T14:00:00Z", metadata={"b": 2})).status == 200
    await upkeep.catch_up(database, until=NOON + 10 * HOUR)
    removed = await retention.remove(database, limits(rows=NOON), patient=False)
    assert removed.deleted == {
        "interceptions": 4,
        "token_usages": 2,
        "user_prompts": 2,
        "tool_usages": 2,
        "model_thoughts": 2,
    }
    assert sorted(str(found) for (found,) in sql("SELECT id FROM aibridge_interceptions")) == sorted(
        body["id"] for body in kept
    )
    assert [count(sql, table) for table in TABLES] == [3, 2, 2, 2, 2]
    assert sql("SELECT interception_id::text FROM bridgelog_merged_metadata") == [(kept[2]["id"],)]
    assert len(await recorder.listed()) == 3
    assert await differences(database) == []


async def test_what_is_deleted_can_be_recorded_anew(database: Database, recorder: Recorder, sql: Sql) -> None:
    """So can what is imported late: it is stored, and the next run removes it."""
    body = whole()
    assert (await recorder.record(body)).status == 201
    for send, sent in ((recorder.record, body), (recorder.send, [body])):
        assert (await retention.remove(database, limits(rows=NOON), patient=False)).deleted["interceptions"] == 1
        assert [count(sql, table) for table in TABLES] == [0] * 5
        assert (await send(sent)).status in {200, 201}
        assert [count(sql, table) for table in TABLES] == [1] * 5
    assert await differences(database) == []


async def test_what_somebody_is_writing_to_is_left_to_the_next_round(
    database: Database, database_url: str, sql: Sql
) -> None:
    [one, *_] = put(sql, "interceptions", *({"started_at": str(NOON - n * HOUR)} for n in range(1, 6)))
    with psycopg.connect(database_url) as writer:
        writer.execute("SELECT FROM aibridge_interceptions WHERE id = %s FOR NO KEY UPDATE", [one["id"]])
        removed = await asyncio.wait_for(retention.remove(database, limits(rows=NOON), patient=False), timeout=30)
        assert removed.deleted["interceptions"] == 4
    assert sql("SELECT id FROM aibridge_interceptions") == [(one["id"],)]
    assert (await retention.remove(database, limits(rows=NOON), patient=False)).deleted["interceptions"] == 1


async def test_a_batch_that_takes_too_long_is_made_smaller(
    database: Database, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(sql, "interceptions", *({"started_at": str(NOON - n * HOUR)} for n in range(1, 31)))
    delete, sizes = retention_store.delete_interceptions, []

    async def slow(connection: db.Connection, **values: Any) -> Any:
        sizes.append(values["most"])
        if values["most"] > 1:
            raise errors.TookTooLong
        return await delete(connection, **values)

    monkeypatch.setattr(retention_store, "delete_interceptions", slow)
    assert (await retention.remove(database, limits(rows=NOON), patient=False)).deleted["interceptions"] == 30
    assert sizes[:4] == [200, 20, 2, 1]

    async def hopeless(_: db.Connection, **__: Any) -> Any:
        raise errors.TookTooLong

    monkeypatch.setattr(retention_store, "delete_interceptions", hopeless)
    with pytest.raises(errors.TookTooLong):
        await retention.remove(database, limits(rows=NOON), patient=False)


# -- content ---------------------------------------------------------------------------------------------------------


async def test_content_goes_and_rows_stay(
    database: Database, recorder: Recorder, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_MOST", 1)
    old = whole(user_prompts=[user_prompt(metadata={"m": 1}), user_prompt(prompt="")])
    at_limit = whole(
        **{
            kind: [
                make(created_at="2026-03-01T12:00:00Z", **({} if kind == "model_thoughts" else {"id": str(uuid4())}))
            ]
            for kind, make in (("user_prompts", user_prompt), ("tool_usages", tool_usage), ("model_thoughts", thought))
        }
    )
    assert (await recorder.record(old)).status == 201
    assert (await recorder.record(at_limit)).status == 201
    before = await recorder.listed()
    removed = await retention.remove(database, limits(content=NOON), patient=False)
    assert removed.emptied == {"user_prompts": 1, "tool_usages": 1, "model_thoughts": 1}
    assert sorted(row[0] for row in sql("SELECT content FROM aibridge_model_thoughts")) == ["", "Rayleigh scattering."]
    after = {found["id"]: found for found in await recorder.listed()}
    for found in before:
        if found["id"] == old["id"]:
            for prompt in found["user_prompts"]:
                prompt["prompt"] = ""
            for tool in found["tool_usages"]:
                tool["input"] = ""
        assert after[found["id"]] == found
    again = await retention.remove(database, limits(content=NOON), patient=False)
    assert again.emptied == {}


async def test_what_was_removed_is_not_compared_and_does_not_come_back(
    database: Database, recorder: Recorder, sql: Sql
) -> None:
    body = whole(
        user_prompts=[without(user_prompt(), "id")],
        tool_usages=[without(tool_usage(), "id"), without(tool_usage(input=""), "id")],
        model_thoughts=[thought(), thought(content="Mie?"), thought(created_at="2026-03-01T10:00:04.5Z")],
    )
    single = tool_usage()
    assert (await recorder.record(body)).status == 201
    assert (await recorder.add(body["id"], "tool_usages", single)).status == 201
    await retention.remove(database, limits(content=NOON), patient=False)
    # Two thoughts of one instant cannot be told apart any more: one row stays.
    stored = [sql(f"SELECT * FROM aibridge_{table} ORDER BY 1, 2, 4") for table in TABLES]  # noqa: S608  # constants
    assert [len(rows) for rows in stored] == [1, 1, 1, 3, 2]
    for answer in (
        await recorder.record(body),
        await recorder.send([body]),
        await recorder.add(body["id"], "tool_usages", single),
        await recorder.add(body["id"], "model_thoughts", body["model_thoughts"]),
        # What it said is not known, so it may have been this.
        await recorder.add(body["id"], "tool_usages", single | {"input": "else"}),
        await recorder.add(body["id"], "model_thoughts", thought(content="else")),
    ):
        assert answer.status == 200, answer.body
        assert answer.body.get("imported", 0) == 0
    assert [sql(f"SELECT * FROM aibridge_{table} ORDER BY 1, 2, 4") for table in TABLES] == stored  # noqa: S608
    # Everything else is compared as ever.
    answer = await recorder.add(body["id"], "tool_usages", single | {"tool": "else"})
    assert (answer.status, list(answer.wrong)) == (409, ["tool"])
    answer = await recorder.add(body["id"], "tool_usages", single | {"metadata": {"a": 1}, "input": "else"})
    assert (answer.status, list(answer.wrong)) == (409, ["metadata"])
    # A thought of another instant is a new one.
    assert (await recorder.add(body["id"], "model_thoughts", thought(created_at="2026-03-01T10:00:09Z"))).status == 201


async def test_what_was_empty_from_the_beginning_is_compared(database: Database, recorder: Recorder) -> None:
    body = running()
    empty = tool_usage(input="", created_at="2026-03-01T12:00:00Z")
    assert (await recorder.record(body)).status == 201
    assert (await recorder.add(body["id"], "tool_usages", empty)).status == 201
    await retention.remove(database, limits(content=NOON), patient=False)
    answer = await recorder.add(body["id"], "tool_usages", empty | {"input": "else"})
    assert (answer.status, list(answer.wrong)) == (409, ["input"])
    said = thought(content="", created_at="2026-03-01T12:00:00Z")
    assert (await recorder.add(body["id"], "model_thoughts", said)).status == 201
    assert (await recorder.add(body["id"], "model_thoughts", said | {"content": "else"})).status == 201


async def test_late_content_is_stored_and_removed_by_the_next_run(
    database: Database, recorder: Recorder, sql: Sql
) -> None:
    body = running()
    assert (await recorder.record(body)).status == 201
    await retention.remove(database, limits(content=NOON), patient=False)
    for _ in range(2):
        assert (await recorder.add(body["id"], "user_prompts", user_prompt())).status == 201
        assert sql("SELECT count(*) FROM aibridge_user_prompts WHERE prompt <> ''") == [(1,)]
        removed = await retention.remove(database, limits(content=NOON), patient=False)
        assert removed.emptied == {"user_prompts": 1}


# -- one process at a time -------------------------------------------------------------------------------------------


async def test_while_another_process_removes_nothing_is_done(
    database: Database, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(sql, "interceptions", {"started_at": str(NOON - HOUR)})
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(4770321905514830)")
        assert (await retention.remove(database, limits(rows=NOON), patient=False)).deleted == {}
        asked, thrice = 0, asyncio.Event()
        try_take = retention_store.try_take

        async def ask(connection: Connection) -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                thrice.set()
            return await try_take(connection)

        monkeypatch.setattr(retention_store, "try_take", ask)
        patient = asyncio.create_task(retention.remove(database, limits(rows=NOON), patient=True))
        await thrice.wait()
        assert not patient.done()
        assert count(sql, "interceptions") == 1
        other.execute("SELECT pg_advisory_unlock(4770321905514830)")
        assert (await patient).deleted["interceptions"] == 1


# -- beside readers and writers --------------------------------------------------------------------------------------

SECONDS = float(os.environ.get("BRIDGELOG_TEST_SECONDS", "10")) / 2
WRITERS = 4
PEOPLE = [UUID(int=number) for number in (1, 2, 3)]


async def write_on(url: str, number: int, until: float) -> set[UUID]:
    """Record in the past and now, end some, until the time is up; the ids of those that may not be removed."""
    rng = random.Random(number)
    kept = set()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as raw:
        while time.monotonic() < until:
            started_at = NOON + timedelta(minutes=rng.randrange(-3000, 3000))
            row = UUID(int=rng.getrandbits(128))
            async with raw.transaction():
                await raw.execute(
                    "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at, ended_at)"
                    " VALUES (%s, %s, 'p', 'm', %s, %s)",
                    [row, rng.choice(PEOPLE), started_at, started_at if rng.random() < 0.7 else None],
                )
                await raw.execute(
                    "INSERT INTO aibridge_user_prompts (id, interception_id, provider_response_id, prompt, created_at)"
                    " VALUES (gen_random_uuid(), %s, 'r', 'p', %s)",
                    [row, started_at],
                )
                await raw.execute("UPDATE aibridge_interceptions SET ended_at = started_at WHERE id = %s", [row])
            if started_at >= NOON:
                kept.add(row)
    return kept


async def read_on(database: Database, until: float) -> tuple[int, int]:
    """Totals held against the plain count of the same snapshot: how many were equal, how many were not."""
    equal = unequal = 0
    while time.monotonic() < until:
        for criteria in (Criteria(), Criteria(visible_to=PEOPLE[0]), Criteria(started_before=NOON)):
            async with database.snapshot() as connection:
                same = await totals.count(connection, criteria=criteria) == await interceptions.count(
                    connection, criteria=criteria
                )
            equal, unequal = equal + same, unequal + (not same)
    return equal, unequal


async def keep_on(database: Database, until: float) -> int:
    removed = 0
    while time.monotonic() < until:
        await upkeep.catch_up(database, until=NOON + 1000 * HOUR)
        done = await retention.remove(database, limits(rows=NOON, content=NOON + 100 * HOUR), patient=False)
        removed += done.deleted["interceptions"]
        await asyncio.sleep(0.05)
    return removed


async def all_at_once(url: str, settings: Settings) -> tuple[set[UUID], tuple[int, int], int]:
    database = await db.connect(replace(settings, pool_size=6), url, statements.load())
    try:
        until = time.monotonic() + SECONDS
        kept, read, removed = await asyncio.gather(
            asyncio.gather(*(write_on(url, number, until) for number in range(WRITERS))),
            read_on(database, until),
            keep_on(database, until),
        )
        await retention.remove(database, limits(rows=NOON, content=NOON + 100 * HOUR), patient=False)
    finally:
        await database.close()
    return set().union(*kept), read, removed


async def test_readers_and_writers_go_on_and_every_total_is_exact(
    database: Database, database_url: str, settings: Settings, sql: Sql
) -> None:
    kept, (equal, unequal), removed = await all_at_once(database_url, settings)
    assert removed > 0
    assert equal > 0
    assert unequal == 0
    assert {found for (found,) in sql("SELECT id FROM aibridge_interceptions")} == kept
    assert sql("SELECT count(*) FROM aibridge_user_prompts WHERE prompt <> ''") == [(0,)]
    assert count(sql, "user_prompts") == len(kept)
    assert await differences(database) == []


async def test_without_the_trigger_it_would_be_seen(
    database: Database, database_url: str, settings: Settings, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SECONDS", 1.0)
    sql("ALTER TABLE aibridge_interceptions DISABLE TRIGGER bridgelog_roll_up_delete")
    _, (_, unequal), removed = await all_at_once(database_url, settings)
    assert removed > 0
    assert unequal > 0
    assert await differences(database) != []


# -- the service and the command -------------------------------------------------------------------------------------


async def metrics(client: Any) -> dict[str, float]:
    text = await (await client.get("/metrics")).text()
    return {
        line.rpartition(" ")[0].removeprefix("bridgelog_retention_"): float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("bridgelog_retention_") and "_created" not in line
    }


async def eventually(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return when it holds; what happens in the database sends no event."""
    async with asyncio.timeout(60):
        while not (await found if inspect.isawaitable(found := holds()) else found):  # noqa: ASYNC110  # see above
            await asyncio.sleep(0.05)


async def test_the_service_does_it_by_itself_and_tells(
    make_client: MakeClient, database: Database, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_EVERY_SECONDS", 0.05)
    client = await make_client(upkeep=True, retention=240 * HOUR, content_retention=24 * HOUR)
    recorder = Recorder(client, owner)
    ago = [datetime.now(UTC) - hours * HOUR for hours in (1, 100, 1000)]
    for started_at in ago:
        at = {"created_at": started_at.isoformat()}
        body = interception(started_at=started_at.isoformat(), ended_at=started_at.isoformat())
        assert (await recorder.record(body | {"user_prompts": [user_prompt(**at)]})).status == 201

    await eventually(
        lambda: (
            count(sql, "interceptions") == 2
            and sql("SELECT count(*) FROM aibridge_user_prompts WHERE prompt = ''") == [(1,)]
        )
    )
    expected = {
        'deleted_rows_total{kind="interceptions"}': 1,
        'deleted_rows_total{kind="user_prompts"}': 1,
        'behind_seconds{what="interceptions"}': 0,
        'behind_seconds{what="content"}': 0,
    }

    async def told() -> bool:
        found = await metrics(client)
        # Two where the oldest was recorded between the steps of a round: then its content went before it.
        emptied = found.get('removed_content_total{kind="user_prompts"}')
        return expected.items() <= found.items() and emptied in {1, 2}

    await eventually(told)
    assert len(await recorder.listed()) == 2
    # While another process has the right to, what is due stays, and by how much is told.
    [(held,)] = sql("SELECT pg_advisory_lock(4770321905514830)::text")
    assert held == ""
    old = datetime.now(UTC) - 340 * HOUR
    assert (await recorder.record(interception(started_at=old.isoformat(), ended_at=old.isoformat()))).status == 201

    async def behind() -> bool:
        return 99 * 3600 < (await metrics(client))['behind_seconds{what="interceptions"}'] < 101 * 3600

    await eventually(behind)
    assert count(sql, "interceptions") == 3
    sql("SELECT pg_advisory_unlock(4770321905514830)")


def test_the_command(database_url: str, sql: Sql) -> None:
    now = datetime.now(UTC)
    for days, started_at in ((days, now - timedelta(days=days)) for days in (1, 5, 20, 30)):
        [one] = put(sql, "interceptions", {"started_at": str(started_at), "ended_at": str(started_at)})
        at = {"interception_id": one["id"], "created_at": str(started_at)}
        put(sql, "user_prompts", at, at)
        put(sql, "tool_usages", at)
        if days == 5:
            put(sql, "token_usages", at)
    keeping = {"BRIDGELOG_RETENTION": "10d", "BRIDGELOG_CONTENT_RETENTION": "72h"}

    nothing = command(database_url, "retention", "run")
    assert (nothing.returncode, nothing.stdout.count("keep everything")) == (0, 1), nothing.stderr

    def tables() -> list[list[tuple[Any, ...]]]:
        return [sql(f"SELECT * FROM aibridge_{table} ORDER BY 1") for table in TABLES]  # noqa: S608  # constants

    before = tables()
    dry = command(database_url, "retention", "run", "--dry-run", **keeping)
    assert dry.returncode == 0, dry.stderr
    told = [line.split("\t") for line in dry.stdout.splitlines()]
    assert [row[:3] for row in told] == [
        ["would delete", "interceptions", "2"],
        ["would delete", "user_prompts", "4"],
        ["would delete", "tool_usages", "2"],
        ["would remove the content of", "tool_usages", "1"],
        ["would remove the content of", "user_prompts", "2"],
    ]
    first, last = told[0][3].split(" to ")
    assert instant(first) == now - timedelta(days=30)
    assert instant(last) == now - timedelta(days=20)
    assert tables() == before
    assert sql("SELECT removed_before FROM bridgelog_content_removal WHERE removed_before > '-infinity'") == []

    done = command(database_url, "retention", "run", **keeping)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "deleted\tinterceptions\t2",
        "deleted\ttoken_usages\t0",
        "deleted\tuser_prompts\t4",
        "deleted\ttool_usages\t2",
        "deleted\tmodel_thoughts\t0",
        "removed the content of\tuser_prompts\t2",
        "removed the content of\ttool_usages\t1",
    ]
    assert sql("SELECT count(*), count(nullif(prompt, '')) FROM aibridge_user_prompts") == [(4, 2)]
    for arguments in (("retention", "run"), ("retention", "run", "--dry-run")):
        assert command(database_url, *arguments, **keeping).stdout == "nothing to remove\n"
