"""…/log-requests: the switch, who may turn it, and how soon everybody knows."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from conftest import API, Client, MakeClient, Person
from rows import Sql

from service import db, instants
from service.store import request_logging

CALL = f"{API}/log-requests"
DONE = {"message": "Request logging state updated successfully."}
FORBIDDEN = {"message": "Only users with the 'owner' role can toggle request logging."}
LIMIT = 64 * 1024
OFF = {"enabled": False, "changed_at": None, "changed_by": None}
# What a test waits for beyond the second that is promised: a busy machine is no broken promise.
MARGIN = 1.0

AddPerson = Callable[..., Awaitable[Person]]


async def turn(client: Client, person: Person, enabled: object) -> None:
    response = await client.post(CALL, json={"enabled": enabled}, headers=person.headers)
    body = await response.json()
    assert (response.status, body) == (200, DONE)


async def state(client: Client, person: Person) -> dict[str, Any]:
    response = await client.get(CALL, headers=person.headers)
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = await response.json()
    return body


async def gauge(client: Client) -> float:
    response = await client.get("/metrics")
    [line] = [
        line for line in (await response.text()).splitlines() if line.startswith("bridgelog_request_logging_enabled ")
    ]
    return float(line.split(" ")[1])


async def within_a_second(client: Client, expected: float) -> None:
    changed_at = time.monotonic()
    while await gauge(client) != expected:
        assert time.monotonic() - changed_at < 1 + MARGIN
        await asyncio.sleep(0.02)


# -- the calls -------------------------------------------------------------------------------------------------------


async def test_it_is_off_until_somebody_turns_it_on(client: Client, owner: Person) -> None:
    assert await state(client, owner) == OFF
    await turn(client, owner, False)
    assert await state(client, owner) == OFF, "the same value again is no change"


async def test_a_change_is_kept_with_who_and_when(
    client: Client, owner: Person, add_person: AddPerson, sql: Sql
) -> None:
    before = datetime.now(UTC)
    await turn(client, owner, True)
    first = await state(client, owner)
    assert set(first) == {"enabled", "changed_at", "changed_by"}
    assert (first["enabled"], first["changed_by"]) == (True, str(owner.id))
    assert first["changed_at"].endswith("Z")
    assert before <= instants.parse(first["changed_at"]) <= datetime.now(UTC)
    second_owner = await add_person("second", "owner")
    await turn(client, second_owner, True)
    assert await state(client, owner) == first, "the same value again is no change"
    await turn(client, second_owner, False)
    await turn(client, owner, False)
    last = await state(client, owner)
    assert (last["enabled"], last["changed_by"]) == (False, str(second_owner.id))
    await turn(client, owner, True)
    history = sql("SELECT enabled, changed_by FROM bridgelog_request_logging_changes ORDER BY changed_at")
    assert history == [(True, owner.id), (False, second_owner.id), (True, owner.id)]


async def test_it_survives_a_restart(make_client: MakeClient, owner: Person) -> None:
    first = await make_client()
    await turn(first, owner, True)
    before = await state(first, owner)
    await first.close()
    second = await make_client()
    assert await state(second, owner) == before
    await within_a_second(second, 1)


@pytest.mark.parametrize("roles", [(), ("member",), ("auditor",), ("recorder",), ("auditor", "recorder")])
async def test_only_owners_turn_it(client: Client, add_person: AddPerson, sql: Sql, roles: tuple[str, ...]) -> None:
    person = await add_person("somebody", *roles)
    # The body is not read: whatever is wrong with it, the answer is the same.
    bodies: tuple[bytes, ...] = (b'{"enabled": true}', b"not json", b"", b"{}", b" " * (LIMIT + 1))
    for body in bodies:
        response = await client.post(CALL, data=body, headers=person.headers)
        assert (response.status, await response.json()) == (403, FORBIDDEN)
    response = await client.post(CALL, data=b"no gzip", headers=person.headers | {"Content-Encoding": "gzip"})
    assert (response.status, await response.json()) == (403, FORBIDDEN)
    assert sql("SELECT * FROM bridgelog_request_logging_changes") == []


async def test_sign_in_comes_first(client: Client) -> None:
    assert (await client.post(CALL, data=b"not json")).status == 401
    assert (await client.get(CALL)).status == 401


@pytest.mark.parametrize(
    ("roles", "status"),
    [(("owner",), 200), (("auditor",), 200), (("recorder", "auditor"), 200), ((), 403), (("recorder",), 403)],
)
async def test_owners_and_auditors_read_it(
    client: Client, add_person: AddPerson, roles: tuple[str, ...], status: int
) -> None:
    person = await add_person("somebody", *roles)
    response = await client.get(CALL, headers=person.headers)
    assert response.status == status
    assert (await response.json() == OFF) == (status == 200)


async def test_what_is_no_json(client: Client, owner: Person) -> None:
    bodies = (
        b"",
        b"not json",
        b'{"enabled": true',
        b'{"enabled": true} x',
        b'{"enabled": NaN}',
        b'{"a": "\xff"}',
        b"\0",
    )
    for body in bodies:
        response = await client.post(CALL, data=body, headers=owner.headers)
        assert response.status == 400, body
        answer = await response.json()
        assert answer["message"] == "Request body must be valid JSON.", body
        assert "validations" not in answer
    assert await state(client, owner) == OFF


async def test_what_is_no_switch(client: Client, owner: Person) -> None:
    values: tuple[object, ...] = (None, "true", 1, 0, 1.0, [], [True], {}, "", "on")
    for value in values:
        response = await client.post(CALL, json={"enabled": value}, headers=owner.headers)
        answer = await response.json()
        assert (response.status, answer["message"]) == (400, "Validation failed."), value
        assert [validation["field"] for validation in answer["validations"]] == ["enabled"]
    for body, fields in (
        ({}, {"enabled"}),
        ({"Enabled": True}, {"enabled", "Enabled"}),
        ({"enabled": True, "extra": 1}, {"extra"}),
    ):
        response = await client.post(CALL, json=body, headers=owner.headers)
        answer = await response.json()
        assert (response.status, answer["message"]) == (400, "Validation failed.")
        assert {validation["field"] for validation in answer["validations"]} == fields
    for other in (b"[]", b'[{"enabled": true}]', b'"enabled"', b"true", b"null", b"1"):
        response = await client.post(CALL, data=other, headers=owner.headers)
        answer = await response.json()
        assert (response.status, answer["message"]) == (400, "Validation failed."), other
        assert answer["validations"], other
    assert await state(client, owner) == OFF


async def test_a_deep_body(client: Client, owner: Person) -> None:
    for body in (b"[" * 30_000, b'{"enabled":' * 5_000, b"[" * 30_000 + b"]" * 30_000):
        response = await client.post(CALL, data=body, headers=owner.headers)
        assert response.status == 400
        assert (await response.json())["message"] in {"Validation failed.", "Request body must be valid JSON."}


async def test_the_limit_of_the_body(client: Client, owner: Person) -> None:
    body = b'{"enabled": true}'

    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield body
        for _ in range(size // 1024):
            yield b" " * 1024

    largest = body.ljust(LIMIT)
    response = await client.post(CALL, data=largest, headers=owner.headers)
    assert response.status == 200
    for data, headers in (
        (largest + b" ", {}),
        (chunks(LIMIT), {}),
        (gzip.compress(largest + b" "), {"Content-Encoding": "gzip"}),
        (b" " * 1_000_000, {}),
    ):
        response = await client.post(CALL, data=data, headers=owner.headers | headers)
        assert response.status == 413
        assert (await response.json())["message"] == "Request body is too large."
    response = await client.post(
        CALL, data=gzip.compress(largest), headers=owner.headers | {"Content-Encoding": "gzip"}
    )
    assert response.status == 200


async def test_the_content_type_does_not_matter(client: Client, owner: Person) -> None:
    for content_type in (
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "application/x-www-form-urlencoded",
    ):
        response = await client.post(
            CALL, data=b'\xef\xbb\xbf{"enabled": true}', headers=owner.headers | {"Content-Type": content_type}
        )
        assert response.status == 200, content_type


async def test_in_a_database_of_others_there_is_no_switch(make_client: MakeClient, owner: Person) -> None:
    client = await make_client(schema="foreign")
    for method in ("GET", "POST"):
        response = await client.request(method, CALL, json={"enabled": True}, headers=owner.headers)
        assert response.status == 503
        assert (await response.json())["message"].startswith("This service only reads")


# -- two at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True], ids=["without the lock", "with it"])
async def test_two_writers_of_one_value_make_one_change(
    client: Client, owner: Person, sql: Sql, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    both_have_read = asyncio.Barrier(2)
    read, run = request_logging.read, db.Connection.run

    async def read_together(connection: db.Connection) -> request_logging.State:
        found = await read(connection)
        with contextlib.suppress(TimeoutError, asyncio.BrokenBarrierError):
            await asyncio.wait_for(both_have_read.wait(), timeout=0.5)
        return found

    async def without_lock(self: db.Connection, statement: str, **values: object) -> None:
        if guarded or statement != "request_logging/lock_state":
            await run(self, statement, **values)

    await asyncio.sleep(0.1)  # whatever else reads the state has done so
    monkeypatch.setattr(request_logging, "read", read_together)
    monkeypatch.setattr(db.Connection, "run", without_lock)
    await asyncio.gather(turn(client, owner, True), turn(client, owner, True))
    changes = sql("SELECT enabled FROM bridgelog_request_logging_changes")
    assert changes == ([(True,)] if guarded else [(True,), (True,)])


async def test_many_writers_make_a_history_that_alternates(make_client: MakeClient, owner: Person, sql: Sql) -> None:
    replicas = [await make_client(), await make_client()]
    await asyncio.gather(*(turn(replicas[turns % 2], owner, turns % 3 == 0) for turns in range(30)))
    history = [enabled for (enabled,) in sql("SELECT enabled FROM bridgelog_request_logging_changes ORDER BY id")]
    assert history[0]
    assert all(one != next_one for one, next_one in itertools.pairwise(history))
    assert (await state(replicas[0], owner))["enabled"] == history[-1]
    for replica in replicas:
        await within_a_second(replica, float(history[-1]))


# -- every replica ---------------------------------------------------------------------------------------------------


async def test_every_replica_knows_within_a_second(make_client: MakeClient, owner: Person, sql: Sql) -> None:
    replicas = [await make_client(), await make_client()]
    for enabled in (True, False, True):
        await turn(replicas[0], owner, enabled)
        for replica in replicas:
            await within_a_second(replica, float(enabled))
            assert (await state(replica, owner))["enabled"] == enabled
    # By hand in psql, too.
    sql("INSERT INTO bridgelog_request_logging_changes (enabled, changed_at) VALUES (FALSE, now())")
    for replica in replicas:
        await within_a_second(replica, 0)
    assert (await state(replicas[0], owner))["changed_by"] is None


def terminate(sql: Sql, application: str) -> int:
    terminated = sql(
        """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = %s AND datname = current_database() AND pid <> pg_backend_pid()
        """,
        application,
    )
    return len(terminated)


async def test_a_listener_that_was_cut_off_comes_back(make_client: MakeClient, owner: Person, sql: Sql) -> None:
    replica = await make_client()
    await within_a_second(replica, 0)
    # Cut off while it listens, and again and again while it comes back.
    for enabled, cuts in ((True, 1), (False, 1), (True, 40)):
        for _ in range(cuts):
            terminate(sql, "bridgelog listener")
            await asyncio.sleep(0.02 if cuts > 1 else 0)
        # Nobody listens just now: what is missed must be read later.
        await turn(replica, owner, enabled)
        await within_a_second(replica, float(enabled))


async def test_the_listener_outlives_its_pool_and_its_table(make_client: MakeClient, owner: Person, sql: Sql) -> None:
    replica = await make_client()
    await turn(replica, owner, True)
    await within_a_second(replica, 1)
    # For a moment the table is not there, as in the middle of an operator's repair.
    sql("ALTER TABLE bridgelog_request_logging_changes RENAME TO away")
    sql("NOTIFY bridgelog_request_logging")
    await asyncio.sleep(0.2)
    sql("ALTER TABLE away RENAME TO bridgelog_request_logging_changes")
    terminate(sql, "bridgelog")
    sql("INSERT INTO bridgelog_request_logging_changes (enabled, changed_at) VALUES (FALSE, now())")
    await within_a_second(replica, 0)


async def test_the_answer_to_get_is_the_stored_change(client: Client, owner: Person, sql: Sql) -> None:
    sql(
        "INSERT INTO bridgelog_request_logging_changes (enabled, changed_at, changed_by) VALUES (TRUE, %s, %s)",
        "2026-03-01T12:00:00.500+02:00",
        UUID(int=7),
    )
    assert json.dumps(await state(client, owner)) == json.dumps(
        {"enabled": True, "changed_at": "2026-03-01T10:00:00.5Z", "changed_by": str(UUID(int=7))}
    )
