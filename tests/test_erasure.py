"""Erasure: nothing of a person is left but the counts, whatever is going on, and what is sent again brings nothing back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from conftest import Person
from recorder import Recorder, running, thought, token_usage, tool_usage, user_prompt, whole, without
from rows import Sql

from service import batches, erasure, errors, upkeep
from service.db import Connection, Database
from service.instants import parse as instant
from service.schemas.records import load_interception
from service.store import erasure as erasure_store
from service.store import recording, rollups

MARK = "marked-as-a-secret"
SAID = {"s": MARK}
TABLES = ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts")


@pytest.fixture
def recorder(client: Any, owner: Person) -> Recorder:
    return Recorder(client, owner)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST", 2)
    monkeypatch.setattr(batches, "_LEAST_REST", 0.0)


def initiator(person_id: UUID, **names: str) -> dict[str, str]:
    return {
        "id": str(person_id),
        "username": f"{MARK}-{person_id}",
        "name": f"Ann {MARK}",
        "avatar_url": f"https://{MARK}.example",
    } | names


def secret(person_id: UUID, **members: Any) -> dict[str, Any]:
    """A finished interception with a secret in every place that has room for one."""
    return (
        without(whole(), "initiator_id")
        | {
            "initiator": initiator(person_id),
            "metadata": SAID,
            "client_session_id": MARK,
            "token_usages": [token_usage(metadata=SAID)],
            "user_prompts": [user_prompt(prompt=MARK, metadata=SAID), without(user_prompt(prompt=MARK), "id")],
            "tool_usages": [
                tool_usage(
                    input=MARK,
                    server_url=f"https://{MARK}/",
                    invocation_error=f"no such file: {MARK}",
                    metadata=SAID,
                    provider_tool_call_id="toolu_1",
                )
            ],
            "model_thoughts": [thought(content=MARK, metadata=SAID), thought(content=f"{MARK}, too")],
        }
        | members
    )


def where(sql: Sql, text: str = MARK) -> list[str]:
    """The tables in which a text stands anywhere."""
    tables = sql("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")
    return [
        table
        for (table,) in tables
        if sql(f"SELECT count(*) FROM {table} AS r WHERE r::text LIKE %s", f"%{text}%") != [(0,)]  # noqa: S608
    ]


def everything(sql: Sql, person_id: UUID | None = None) -> list[list[tuple[Any, ...]]]:
    """All rows of a person, or of everybody: their interceptions, what these own, their user and tokens."""
    mine = "%s::uuid IS NULL OR interception_id IN (SELECT id FROM aibridge_interceptions WHERE initiator_id = %s)"
    found = [
        sql(f"SELECT r::text FROM aibridge_{table} AS r WHERE {mine} ORDER BY 1", person_id, person_id)  # noqa: S608
        for table in TABLES[1:]
    ]
    for table, column in (
        ("aibridge_interceptions", "initiator_id"),
        ("users", "id"),
        ("api_keys", "user_id"),
    ):
        statement = f"SELECT r::text FROM {table} AS r WHERE %s::uuid IS NULL OR {column} = %s ORDER BY 1"  # noqa: S608
        found.append(sql(statement, person_id, person_id))
    return found


COUNTS = """
    SELECT count(*), sum(input_tokens), sum(output_tokens), sum(cache_read_input_tokens) FROM aibridge_token_usages
"""


async def test_nothing_is_left_but_the_counts(
    database: Database, recorder: Recorder, add_person: Callable[..., Awaitable[Person]], sql: Sql
) -> None:
    ann, bob = await add_person("ann", "auditor"), await add_person("bob", "auditor")
    for person in (ann, bob):
        for hour in range(3):
            body = secret(person.id, started_at=f"2026-03-01T0{hour}:00:00Z")
            assert (await recorder.record(body)).status == 201
        begun = running(initiator_id=str(person.id), metadata={"began": MARK})
        assert (await recorder.record(begun)).status == 201
        assert (await recorder.end(begun["id"], ended_at="2026-03-01T11:00:00Z", metadata=SAID)).status == 200
        open_one = running(initiator_id=str(person.id), metadata=SAID, started_at="2999-01-01T00:00:00Z")
        assert (await recorder.record(open_one)).status == 201
        assert (await recorder.add(open_one["id"], "user_prompts", user_prompt(prompt=MARK))).status == 201
    await upkeep.catch_up(database, until=instant("2026-03-02T00:00:00Z"))
    assert len(where(sql)) == 7
    bobs, counts, listed = everything(sql, bob.id), sql(COUNTS), await recorder.listed()

    removed = await erasure.erase(database, user_id=ann.id)
    assert removed == {
        "tokens": 1,
        "interceptions": 5,
        "token_usages": 3,
        "user_prompts": 7,
        "tool_usages": 3,
        "model_thoughts": 6,
    }
    # bob's, who has the same secrets, are untouched.
    assert everything(sql, bob.id) == bobs
    left = str(everything(sql, ann.id))
    assert MARK not in left
    assert "ann" not in left
    assert sql("SELECT username, name, avatar_url, status, rbac_roles FROM users WHERE id = %s", ann.id) == [
        (f"erased-{ann.id}", "", "", "suspended", [])
    ]
    assert sql("SELECT count(*) FROM bridgelog_merged_metadata") == [(1,)]
    assert sql(COUNTS) == counts
    after = await recorder.listed()
    assert [(found["id"], found["model"], found["client"], found["token_usages"][:0]) for found in after] == [
        (found["id"], found["model"], found["client"], []) for found in listed
    ]
    assert [found["tool_usages"][0]["tool"] for found in after if found["tool_usages"]] == ["read_file"] * 6
    async with database.snapshot() as connection:
        assert await rollups.verify(connection, most=10) == []
    response = await recorder.client.get("/api/v2/aibridge/interceptions", headers=ann.headers)
    assert response.status == 401

    again = await erasure.erase(database, user_id=ann.id)
    assert set(again.values()) == {0}
    assert everything(sql, bob.id) == bobs
    await erasure.erase(database, user_id=bob.id)
    assert where(sql) == []


async def test_what_is_sent_again_is_a_repeat_and_brings_nothing_back(
    database: Database, recorder: Recorder, sql: Sql
) -> None:
    ann = uuid4()
    body, begun = secret(ann), running(initiator_id=str(ann), metadata=SAID, client_session_id=MARK)
    end = {"ended_at": "2026-03-01T11:00:00Z", "metadata": {"e": MARK}}
    assert (await recorder.record(body)).status == 201
    assert (await recorder.record(begun)).status == 201
    assert (await recorder.end(begun["id"], **end)).status == 200
    await erasure.erase(database, user_id=ann)
    before = everything(sql)
    for answer in (
        await recorder.record(body),
        await recorder.record(begun),
        await recorder.end(begun["id"], **end),
        await recorder.send([body]),
        await recorder.add(body["id"], "user_prompts", body["user_prompts"][:1]),
        await recorder.add(body["id"], "tool_usages", body["tool_usages"]),
        await recorder.add(body["id"], "token_usages", body["token_usages"]),
        await recorder.add(body["id"], "model_thoughts", body["model_thoughts"]),
    ):
        assert answer.status == 200, answer.body
        assert answer.body.get("rejected_total", 0) == answer.body.get("imported", 0) == 0
    assert everything(sql)[:5] == before[:5]
    assert where(sql) == []
    # What was not removed is compared as ever.
    answer = await recorder.record(body | {"model": "else", "metadata": {"not": "compared"}})
    assert (answer.status, list(answer.wrong)) == (409, ["model"])
    tool = body["tool_usages"][0] | {"tool": "else", "input": "not compared", "server_url": "x"}
    answer = await recorder.add(body["id"], "tool_usages", tool)
    assert (answer.status, list(answer.wrong)) == (409, ["tool"])


async def test_what_comes_late_is_stored_without_content(database: Database, recorder: Recorder, sql: Sql) -> None:
    """The interceptions that nobody had sent before, the children of those that were, and the end of a running one."""
    ann = uuid4()
    begun = running(initiator_id=str(ann))
    assert (await recorder.record(begun)).status == 201
    await erasure.erase(database, user_id=ann)
    assert (await recorder.record(secret(ann))).status == 201
    answer = await recorder.send([secret(ann), secret(ann, client_session_id=None)])
    assert answer.body["imported"] == 2
    for kind, child in (
        ("token_usages", token_usage(metadata=SAID)),
        ("user_prompts", user_prompt(prompt=MARK)),
        ("tool_usages", tool_usage(input=MARK, server_url=MARK, invocation_error=MARK)),
        ("model_thoughts", thought(content=MARK)),
    ):
        assert (await recorder.add(begun["id"], kind, child)).status == 201
    assert (await recorder.end(begun["id"], ended_at="2026-03-01T11:00:00Z", metadata=SAID)).status == 200
    assert where(sql) == []
    assert [count for [(count,)] in (sql(f"SELECT count(*) FROM aibridge_{table}") for table in TABLES)] == [  # noqa: S608
        4,
        4,
        7,
        4,
        4,
    ]
    assert len(await recorder.listed()) == 4


async def test_a_person_comes_back_by_what_starts_later(database: Database, recorder: Recorder, sql: Sql) -> None:
    ann = uuid4()
    assert (await recorder.record(secret(ann))).status == 201
    await erasure.erase(database, user_id=ann)
    later = datetime.now(UTC) + timedelta(seconds=1)
    body = secret(ann, started_at=later.isoformat(), ended_at=(later + timedelta(seconds=1)).isoformat())
    assert (await recorder.record(body)).status == 201
    assert sorted(where(sql)) == ["aibridge_" + table for table in sorted(TABLES)] + ["users"]
    # They are told by their name again; that they may sign in again is for others to say.
    assert sql("SELECT name, status FROM users WHERE id = %s", ann) == [(f"Ann {MARK}", "suspended")]
    assert (await recorder.record(body)).status == 200
    assert (await recorder.record(body | {"metadata": {"else": 1}})).status == 409
    await asyncio.sleep(1.1)
    assert (await erasure.erase(database, user_id=ann))["interceptions"] == 1
    assert where(sql) == []


# -- interrupted -----------------------------------------------------------------------------------------------------


async def test_an_interrupted_erasure_is_taken_up(
    database: Database, recorder: Recorder, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = uuid4()
    for _ in range(5):
        assert (await recorder.record(secret(ann))).status == 201
    erase, batches = erasure_store.erase, 0

    async def lost(connection: Connection, **values: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 2:
            await erase(connection, **values)
            raise errors.DatabaseUnavailable
        return await erase(connection, **values)

    with monkeypatch.context() as patch:
        patch.setattr(erasure_store, "erase", lost)
        with pytest.raises(errors.DatabaseUnavailable):
            await erasure.erase(database, user_id=ann)
    # Already without names, and signed out.
    assert sql("SELECT username, name, avatar_url, status FROM users WHERE id = %s", ann) == [
        (f"erased-{ann}", "", "", "suspended")
    ]
    assert sql("SELECT count(*) FROM aibridge_user_prompts WHERE prompt <> ''") == [(6,)]
    assert (await erasure.erase(database, user_id=ann))["user_prompts"] == 6
    assert where(sql) == []


# -- the name is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_user", [True, False])
async def test_who_takes_the_name_first_stops_nothing(
    database: Database, recorder: Recorder, sql: Sql, *, is_user: bool
) -> None:
    ann, squatter = uuid4(), uuid4()
    body = secret(ann) if is_user else without(secret(ann), "initiator") | {"initiator_id": str(ann)}
    assert (await recorder.record(body)).status == 201
    sql("INSERT INTO users (id, username) VALUES (%s, %s)", squatter, f"ERASED-{ann}")
    for _ in range(2):
        await erasure.erase(database, user_id=ann)
        assert where(sql) == []
        [(username, name, status)] = sql("SELECT username, name, status FROM users WHERE id = %s", ann)
        assert (name, status) == ("", "suspended")
        assert username.startswith(f"erased-{ann}-")
    # Again leaves the name as it is, and the other's too.
    await erasure.erase(database, user_id=ann)
    assert sql("SELECT username FROM users WHERE id = %s", ann) == [(username,)]
    assert sql("SELECT username FROM users WHERE id = %s", squatter) == [(f"ERASED-{ann}",)]
    # Sent again, alone or in an import, nothing of them comes back.
    assert (await recorder.record(body)).status == 200
    assert (await recorder.send([body, secret(ann)])).body["imported"] == 1
    assert where(sql) == []


async def test_names_that_come_back_while_it_goes_on_are_taken_again(
    database: Database, recorder: Recorder, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = uuid4()
    assert (await recorder.record(secret(ann))).status == 201
    erase = erasure_store.erase

    async def late(connection: Connection, **values: Any) -> Any:
        # As of a transaction that had looked for the erasure before it began.
        sql("UPDATE users SET username = %s, name = %s WHERE id = %s", MARK, MARK, ann)
        return await erase(connection, **values)

    monkeypatch.setattr(erasure_store, "erase", late)
    await erasure.erase(database, user_id=ann)
    assert where(sql) == []


@pytest.mark.parametrize("form", ["erased-{}", "ERASED-{}", "erased-{}-0123456789abcdef"])
async def test_nobody_else_is_called_so(recorder: Recorder, database_url: str, sql: Sql, form: str) -> None:
    ann = uuid4()
    body = secret(uuid4())
    body["initiator"]["username"] = form.format(ann)
    answer = await recorder.record(body)
    assert (answer.status, list(answer.wrong)) == (400, ["initiator.username"])
    report = (await recorder.send([body, secret(uuid4())])).body
    assert (report["imported"], report["rejected_total"]) == (1, 1)
    assert [wrong["field"] for wrong in report["rejected"][0]["validations"]] == ["initiator.username"]
    added = await asyncio.to_thread(command, database_url, "users", "add", form.format(ann), "--role", "member")
    assert added.returncode == 2
    assert "USERNAME: must not be erased- and a UUID" in added.stderr
    assert sql("SELECT count(*) FROM users WHERE username ILIKE 'erased-%%'") == [(0,)]
    body["initiator"]["username"] = f"erased-{str(ann)[:-1]}"  # is no such name
    assert (await recorder.record(body)).status == 201


# -- beside those who record, the guards in place and removed --------------------------------------------------------


async def erase_beside_a_batch(database: Database, recorder: Recorder, sql: Sql) -> list[str]:
    """Where a secret is left, when an interception was being recorded as the erasure began."""
    ann = uuid4()
    assert (await recorder.record(secret(ann))).status == 201
    other = whole(initiator_id=str(ann), user_prompts=[user_prompt(prompt=MARK)])
    sent = load_interception(other)
    async with database.transaction() as connection:
        await recording.record(connection, interception=sent)
        erasing = asyncio.create_task(erasure.erase(database, user_id=ann))
        await asyncio.wait([erasing], timeout=1)
        assert sql("SELECT count(*) FROM bridgelog_erased_users") == [(1,)]
    await erasing
    return where(sql)


async def erase_beside_a_child(database: Database, recorder: Recorder, sql: Sql) -> list[str]:
    """Where a secret is left, when a prompt was being recorded as its interception was erased."""
    ann = uuid4()
    # One whose own row has nothing to erase, so that no update of it waits for whoever locks it.
    body = secret(ann, metadata={}, client_session_id=None)
    assert (await recorder.record(body)).status == 201
    child = recording_child(UUID(body["id"]))
    async with database.transaction() as connection:
        await recording.record_children(
            connection, interception_id=UUID(body["id"]), kind="user_prompts", children=[child]
        )
        erasing = asyncio.create_task(erasure.erase(database, user_id=ann))
        await asyncio.wait([erasing], timeout=1)
    await erasing
    return where(sql)


def recording_child(interception_id: UUID) -> dict[str, Any]:
    return {
        "id": uuid4(),
        "interception_id": interception_id,
        "provider_response_id": "r",
        "prompt": MARK,
        "created_at": instant("2026-03-01T10:00:00Z"),
    }


async def test_what_is_being_recorded_is_waited_for(database: Database, recorder: Recorder, sql: Sql) -> None:
    assert await erase_beside_a_batch(database, recorder, sql) == []


async def test_a_statement_that_has_not_come_to_write_is_waited_for(
    database: Database, recorder: Recorder, database_url: str, sql: Sql
) -> None:
    ann = uuid4()
    assert (await recorder.record(secret(ann))).status == 201
    with psycopg.connect(database_url) as writer:
        # What such a statement holds while it is looking who was erased.
        writer.execute("LOCK TABLE aibridge_interceptions IN ROW EXCLUSIVE MODE")
        erasing = asyncio.create_task(erasure.erase(database, user_id=ann))
        await asyncio.wait([erasing], timeout=1)
        assert not erasing.done()
        assert where(sql) != []
    await erasing
    assert where(sql) == []


async def test_without_waiting_it_would_be_left(
    database: Database, recorder: Recorder, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_at_all(_: Database) -> None:
        return

    monkeypatch.setattr(erasure, "_wait_for_writers", not_at_all)
    assert await erase_beside_a_batch(database, recorder, sql) == ["aibridge_user_prompts"]


async def test_a_child_that_is_being_recorded_is_waited_for(database: Database, recorder: Recorder, sql: Sql) -> None:
    assert await erase_beside_a_child(database, recorder, sql) == []


async def test_without_the_lock_it_would_be_left(
    database: Database, recorder: Recorder, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unlocked(connection: Connection, *, ids: list[UUID]) -> dict[str, int]:
        return {kind: await connection.value(f"erasure/erase_{kind}", ids=ids) for kind in erasure_store.KINDS}

    monkeypatch.setattr(erasure_store, "erase", unlocked)
    assert await erase_beside_a_child(database, recorder, sql) == ["aibridge_user_prompts"]


async def test_a_writer_who_never_ends_is_told_of(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "_ATTEMPTS", 2)
    with psycopg.connect(database_url) as writer:
        writer.execute(
            "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at)"
            " VALUES (gen_random_uuid(), gen_random_uuid(), 'p', 'm', now())"
        )
        with pytest.raises(errors.Contention):
            await erasure.erase(database, user_id=uuid4())
    assert set((await erasure.erase(database, user_id=uuid4())).values()) == {0}


async def test_recording_goes_on_while_somebody_is_erased(database: Database, recorder: Recorder, sql: Sql) -> None:
    ann, bob = uuid4(), uuid4()
    for _ in range(6):
        assert (await recorder.record(secret(ann))).status == 201
    erasing = asyncio.create_task(erasure.erase(database, user_id=ann))
    kept = 0
    while not erasing.done() or not kept:
        assert (await recorder.record(secret(ann))).status == 201
        assert (await recorder.record(secret(bob, started_at="2026-03-01T09:00:00Z"))).status == 201
        kept += 1
    await erasing
    assert MARK not in str(everything(sql, ann))
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE client_session_id = %s", MARK) == [(kept,)]


# -- the command -----------------------------------------------------------------------------------------------------


def command(url: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGELOG_")}
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=kept | {"BRIDGELOG_DATABASE_URL": url},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def test_the_command(recorder: Recorder, database_url: str, sql: Sql) -> None:
    ann, nobody = uuid4(), uuid4()
    body = secret(ann, initiator=initiator(ann, username="Ann"))
    assert (await recorder.record(body)).status == 201
    assert (await recorder.record(without(secret(nobody), "initiator") | {"initiator_id": str(nobody)})).status == 201

    async def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(command, database_url, *arguments, stdin=stdin)

    unknown = await run("users", "erase", "nobody", "--yes")
    assert (unknown.returncode, unknown.stderr) == (1, "Error: there is no user nobody: see bridgelog users list\n")
    assert (await run("users", "erase", str(uuid4()), "--yes")).returncode == 1
    before = everything(sql)
    for answer in ("n\n", ""):
        declined = await run("users", "erase", "ann", stdin=answer)
        assert declined.returncode == 1
        assert f"Erase ann ({ann})?" in declined.stderr
        assert "go on with" not in declined.stderr
    assert everything(sql) == before
    done = await run("users", "erase", "ann", stdin="y\n")
    assert done.returncode == 0, done.stderr
    assert f"go on with: bridgelog users erase {ann}\n" in done.stderr
    assert done.stdout.splitlines() == [
        "tokens\t0",
        "interceptions\t1",
        "token_usages\t1",
        "user_prompts\t2",
        "tool_usages\t1",
        "model_thoughts\t2",
    ]
    assert MARK not in str(everything(sql, ann))
    assert MARK in str(everything(sql, nobody))
    # An initiator who is no user is known by their id, and so is somebody who is erased already.
    for person in (str(nobody), f"erased-{ann}", str(ann)):
        assert (await run("users", "erase", person, "--yes")).returncode == 0
    assert where(sql) == []
