"""Initiators: whom a recording call creates and refreshes, and whom it never touches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from conftest import Client, Person
from recorder import Recorder, running, whole, without

Sql = Callable[..., list[tuple[Any, ...]]]

TAKEN = {"initiator.username": "belongs to a user with another id (case does not tell names apart)"}


@pytest.fixture
def recorder(client: Client, owner: Person) -> Recorder:
    return Recorder(client, owner)


def by(initiator: dict[str, Any], **members: Any) -> dict[str, Any]:
    """A finished interception of that initiator."""
    return without(whole(**members), "initiator_id") | {"initiator": initiator}


def user(**members: Any) -> dict[str, Any]:
    return {"id": str(uuid4()), "username": "ann", "name": "Ann", "avatar_url": "https://example.com/ann"} | members


def read(sql: Sql, user_id: str) -> list[tuple[Any, ...]]:
    return sql("SELECT username, name, avatar_url, status, rbac_roles, deleted FROM users WHERE id = %s", UUID(user_id))


async def test_an_initiator_is_created_as_a_plain_active_user(recorder: Recorder, sql: Sql) -> None:
    ann = user()
    answer = await recorder.record(by(ann))
    assert answer.status == 201
    assert answer.body["initiator"] == ann
    assert answer.body["initiator_id"] == ann["id"]
    assert read(sql, ann["id"]) == [("ann", "Ann", "https://example.com/ann", "active", [], False)]
    short = {"id": str(uuid4()), "username": "bob"}
    assert (await recorder.record(by(short))).body["initiator"] == short | {"name": "", "avatar_url": ""}


async def test_names_are_refreshed_and_roles_and_status_never(recorder: Recorder, sql: Sql) -> None:
    ann = user()
    body = by(ann)
    await recorder.record(body)
    sql("UPDATE users SET status = 'suspended', rbac_roles = '{auditor}' WHERE id = %s", UUID(ann["id"]))
    renamed = {"id": ann["id"], "username": "Anne", "name": "Anne B.", "avatar_url": ""}
    answer = await recorder.record(by(renamed))
    assert answer.body["initiator"] == renamed
    assert read(sql, ann["id"]) == [("Anne", "Anne B.", "", "suspended", ["auditor"], False)]
    # Names are not content: an old recording is the same under a new name, and brings the old name back.
    again = await recorder.record(body)
    assert (again.status, again.body["initiator"]) == (200, ann)
    # What is not told stays.
    answer = await recorder.record(by({"id": ann["id"], "username": "ann"}))
    assert answer.body["initiator"] == ann
    assert read(sql, ann["id"])[0][3:] == ("suspended", ["auditor"], False)


async def test_a_user_who_is_up_to_date_is_not_written(recorder: Recorder, sql: Sql) -> None:
    ann = user()
    await recorder.record(by(ann))
    before = sql("SELECT xmin, xmax, ctid, updated_at FROM users WHERE id = %s", UUID(ann["id"]))
    for same in (ann, {"id": ann["id"], "username": "ann"}):
        assert (await recorder.record(by(same))).status == 201
    assert sql("SELECT xmin, xmax, ctid, updated_at FROM users WHERE id = %s", UUID(ann["id"])) == before


@pytest.mark.parametrize("username", ["taken", "TAKEN", "Taken"])
async def test_a_username_that_another_holds_is_a_conflict_and_nothing_is_stored(
    recorder: Recorder, sql: Sql, username: str
) -> None:
    holder, ann = user(username="Taken"), user()
    await recorder.record(by(holder))
    await recorder.record(by(ann))
    before = sql("SELECT count(*) FROM aibridge_interceptions"), read(sql, holder["id"]), read(sql, ann["id"])
    for thief in (user(username=username), ann | {"username": username}):
        answer = await recorder.record(by(thief))
        assert (answer.status, answer.wrong) == (409, TAKEN)
        assert answer.body["message"] == "The record conflicts with one that is already stored."
        assert before == (
            sql("SELECT count(*) FROM aibridge_interceptions"),
            read(sql, holder["id"]),
            read(sql, ann["id"]),
        )


async def test_a_conflict_leaves_the_names_as_they_were(recorder: Recorder, sql: Sql) -> None:
    ann = user()
    body = by(ann)
    await recorder.record(body)
    answer = await recorder.record(body | {"model": "other", "initiator": ann | {"name": "Changed"}})
    assert (answer.status, list(answer.wrong)) == (409, ["model"])
    assert read(sql, ann["id"])[0][1] == "Ann"


async def test_one_may_change_the_case_of_their_own_name(recorder: Recorder) -> None:
    ann = user()
    await recorder.record(by(ann))
    answer = await recorder.record(by(ann | {"username": "ANN"}))
    assert (answer.status, answer.body["initiator"]["username"]) == (201, "ANN")


async def test_the_name_of_a_deleted_user_is_free(recorder: Recorder, sql: Sql) -> None:
    ann, other = user(), user()
    await recorder.record(by(ann))
    sql("UPDATE users SET deleted = TRUE WHERE id = %s", UUID(ann["id"]))
    assert (await recorder.record(by(other))).status == 201
    assert (await recorder.record(by(ann))).status == 201
    assert read(sql, ann["id"])[0][-1] is True


async def test_an_empty_username_creates_and_changes_nobody(recorder: Recorder, sql: Sql) -> None:
    nobody = user(username="")
    answer = await recorder.record(by(nobody))
    assert answer.status == 201
    assert answer.body["initiator"] == {"id": nobody["id"], "username": "", "name": "", "avatar_url": ""}
    assert read(sql, nobody["id"]) == []
    ann = user()
    await recorder.record(by(ann))
    answer = await recorder.record(by(ann | {"username": "", "name": "Changed"}))
    assert answer.body["initiator"] == ann
    assert (await recorder.send([by(nobody), by(ann | {"username": "", "name": "Changed"})])).body["imported"] == 2
    assert (read(sql, nobody["id"]), read(sql, ann["id"])[0][1]) == ([], "Ann")


async def test_an_initiator_by_id_alone_need_not_exist(recorder: Recorder, sql: Sql) -> None:
    body = running()
    assert (await recorder.record(body)).status == 201
    assert read(sql, body["initiator_id"]) == []


async def test_an_import_creates_the_missing_and_changes_nobody(recorder: Recorder, sql: Sql) -> None:
    ann, bob = user(), user(username="bob", name="Bob")
    await recorder.record(by(ann))
    sql("UPDATE users SET status = 'dormant' WHERE id = %s", UUID(ann["id"]))
    before = sql("SELECT * FROM users WHERE id = %s", UUID(ann["id"]))
    report = await recorder.send(
        [
            by(ann | {"username": "anna", "name": "Changed"}),
            by(bob),
            by(bob | {"username": "robert", "name": "Robert"}),  # the first line that names them counts
            by(ann | {"username": "bob"}),  # somebody else's name by now, and of no account for one who exists
        ]
    )
    assert report.body == {"imported": 4, "unchanged": 0, "rejected_total": 0, "rejected": []}
    assert sql("SELECT * FROM users WHERE id = %s", UUID(ann["id"])) == before
    assert read(sql, bob["id"])[0][:2] == ("bob", "Bob")


async def test_an_import_rejects_the_lines_of_those_whose_name_is_taken(recorder: Recorder, sql: Sql) -> None:
    holder, thief, bob = user(username="Taken"), user(username="taken"), user(username="bob")
    await recorder.record(by(holder))
    lines = [
        by(bob),
        by(thief),
        by(user(username="BOB")),  # taken by the first line
        by(thief | {"username": "free"}),  # the same user, under a name that is free
        by(thief),  # who exists by now
        whole(),
    ]
    report = await recorder.send(lines)
    assert report.body["imported"] == 4
    assert [
        (rejected["line"], rejected["message"], rejected["validations"]) for rejected in report.body["rejected"]
    ] == [
        (
            line,
            "The record conflicts with one that is already stored.",
            [{"field": "initiator.username", "detail": TAKEN["initiator.username"]}],
        )
        for line in (2, 3)
    ]
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE id = %s", UUID(lines[1]["id"])) == [(0,)]
    assert read(sql, thief["id"])[0][0] == "free"


async def test_a_rejected_line_creates_no_user(recorder: Recorder, sql: Sql) -> None:
    stored, ann = whole(), user()
    await recorder.record(stored)
    report = await recorder.send([by(ann, id=stored["id"]), whole()])
    assert (report.body["imported"], report.body["rejected_total"]) == (1, 1)
    assert read(sql, ann["id"]) == []


async def test_thousands_of_lines_whose_name_is_taken_are_told_in_no_time(recorder: Recorder) -> None:
    await recorder.record(by(user()))
    thief = user()
    report = await asyncio.wait_for(recorder.send([by(thief) for _ in range(2_000)]), timeout=60)
    assert (report.body["imported"], report.body["rejected_total"]) == (0, 2_000)
