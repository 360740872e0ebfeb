"""Threads: an interception that answers a tool call stands below the one that made it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from conftest import Client, Person
from recorder import Recorder, running, tool_usage, whole, without

Sql = Callable[..., list[tuple[Any, ...]]]
Thread = Callable[[dict[str, Any]], tuple[str | None, str | None]]

ANN, BOB = str(uuid4()), str(uuid4())


@pytest.fixture
def recorder(client: Client, owner: Person) -> Recorder:
    return Recorder(client, owner)


@pytest.fixture
def thread(sql: Sql) -> Thread:
    """The parent and the root of an interception."""

    def read(body: dict[str, Any]) -> tuple[str | None, str | None]:
        [(parent, root, session)] = sql(
            "SELECT thread_parent_id, thread_root_id, session_id FROM aibridge_interceptions WHERE id = %s",
            UUID(body["id"]),
        )
        assert session == (body.get("client_session_id") or str(root or body["id"]))
        return str(parent) if parent else None, str(root) if root else None

    return read


def calling(call: str, *, created_at: str = "2026-03-01T10:00:03Z", **members: Any) -> dict[str, Any]:
    """An interception whose model called a tool."""
    tool = tool_usage(provider_tool_call_id=call, created_at=created_at)
    return whole(**{"initiator_id": ANN, "tool_usages": [tool]} | members)


async def test_a_chain_has_its_parents_and_one_root(recorder: Recorder, thread: Thread) -> None:
    first = calling("one")
    second = calling("two", correlating_tool_call_id="one")
    third = calling("three", correlating_tool_call_id="two", client_session_id="session")
    for body in (first, second, third):
        assert (await recorder.record(body)).status == 201
    assert thread(first) == (None, None)
    assert thread(second) == (first["id"], first["id"])
    assert thread(third) == (second["id"], first["id"])


async def test_a_running_interception_is_a_parent_too(recorder: Recorder, thread: Thread) -> None:
    parent = running(initiator_id=ANN)
    await recorder.record(parent)
    answer = await recorder.add(parent["id"], "tool_usages", tool_usage(provider_tool_call_id="call"))
    assert answer.status == 201
    child = running(initiator_id=ANN, correlating_tool_call_id="call")
    await recorder.record(child)
    assert thread(child) == (parent["id"], parent["id"])


async def test_the_newest_call_counts(recorder: Recorder, thread: Thread) -> None:
    newest = calling("call", created_at="2026-03-01T10:00:09Z")
    await recorder.record(newest)
    await recorder.record(calling("call", created_at="2026-03-01T10:00:08Z"))
    child = running(initiator_id=ANN, correlating_tool_call_id="call")
    await recorder.record(child)
    assert thread(child) == (newest["id"], newest["id"])


async def test_the_calls_of_others_do_not_count(recorder: Recorder, thread: Thread) -> None:
    mine = calling("call")
    await recorder.record(mine)
    await recorder.record(calling("call", initiator_id=BOB, created_at="2026-03-01T10:00:09Z"))
    await recorder.record(calling("bobs", initiator_id=BOB))
    child = running(initiator_id=ANN, correlating_tool_call_id="call")
    orphan = running(initiator_id=ANN, correlating_tool_call_id="bobs")
    for body in (child, orphan):
        await recorder.record(body)
    assert thread(child) == (mine["id"], mine["id"])
    assert thread(orphan) == (None, None)


@pytest.mark.parametrize("call", ["unknown", "", None, "CALL"])
async def test_where_nothing_is_found_there_is_no_thread(recorder: Recorder, thread: Thread, call: str | None) -> None:
    await recorder.record(calling("call"))
    await recorder.record(calling(""))
    child = running(initiator_id=ANN, correlating_tool_call_id=call)
    assert (await recorder.record(child)).status == 201
    assert thread(child) == (None, None)


async def test_nobody_is_their_own_parent(recorder: Recorder, thread: Thread) -> None:
    body = calling("call", correlating_tool_call_id="call")
    for _ in range(2):
        await recorder.record(body)
        assert thread(body) == (None, None)


async def test_what_is_recorded_again_keeps_its_thread(recorder: Recorder, thread: Thread) -> None:
    parent, child = calling("call"), running(initiator_id=ANN, correlating_tool_call_id="call")
    await recorder.record(parent)
    await recorder.record(child)
    await recorder.record(calling("call", created_at="2026-03-01T11:00:00Z"))
    for again in (child, without(child, "correlating_tool_call_id"), child | {"correlating_tool_call_id": "other"}):
        assert (await recorder.record(again)).status == 200
        assert thread(child) == (parent["id"], parent["id"])


async def test_the_call_and_the_session_are_not_listed(recorder: Recorder) -> None:
    answer = await recorder.record(calling("call", client_session_id="session", correlating_tool_call_id="x"))
    assert answer.body.keys().isdisjoint(
        {"client_session_id", "correlating_tool_call_id", "thread_root_id", "session_id"}
    )
    assert "provider_tool_call_id" not in answer.body["tool_usages"][0]


async def test_an_import_finds_parents_in_earlier_lines(recorder: Recorder, thread: Thread) -> None:
    chain = [calling("0")]
    for step in range(1, 6):
        chain.append(calling(str(step), correlating_tool_call_id=str(step - 1)))
        # In between, what has nothing to do with it, and what only looks like it.
        chain.append(calling(str(step), initiator_id=BOB, created_at="2026-03-01T12:00:00Z"))
    early = whole(initiator_id=ANN, correlating_tool_call_id="later")
    lines = [early, *chain, calling("later")]
    report = await recorder.send(lines)
    assert report.body["imported"] == len(lines)
    mine = [body for body in chain if body["initiator_id"] == ANN]
    for parent, child in itertools.pairwise(mine):
        assert thread(child) == (parent["id"], mine[0]["id"])
    assert thread(early) == (None, None)  # what it answers came after it


async def test_an_import_prefers_the_newest_call_of_its_own_stream(recorder: Recorder, thread: Thread) -> None:
    stored = calling("call", created_at="2026-03-01T10:00:00Z")
    await recorder.record(stored)
    newer = calling("call", created_at="2026-03-01T10:00:01Z")
    child = whole(initiator_id=ANN, correlating_tool_call_id="call")
    await recorder.send([newer, child])
    assert thread(child) == (newer["id"], newer["id"])
