"""Many writers at once: nothing lost, nothing doubled, one winner; and that these tests would notice."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from conftest import API, Client, MakeClient, Person
from recorder import Recorder, count, running, thought, token_usage, tool_usage, user_prompt, whole, without

from service import db, statements
from service.app import build_app
from service.db import Connection
from service.server import bind, serve
from service.settings import Settings
from service.statements import Statement

Sql = Callable[..., list[tuple[Any, ...]]]

PROCESSES = 8
USERS = 5
SECONDS = (
    60.0 if os.environ.get("BRIDGELOG_TEST_SOAK") == "1" else float(os.environ.get("BRIDGELOG_TEST_SECONDS", "15"))
)


@pytest.fixture
def recorder(client: Client, owner: Person) -> Recorder:
    return Recorder(client, owner)


# -- one winner ------------------------------------------------------------------------------------------------------


async def test_of_twenty_identical_recordings_one_creates(recorder: Recorder, sql: Sql) -> None:
    body = whole()
    answers = await asyncio.gather(*(recorder.record(body) for _ in range(20)))
    assert Counter(answer.status for answer in answers) == {201: 1, 200: 19}
    assert all(answer.body == answers[0].body for answer in answers)
    for table in ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts"):
        assert count(sql, table) == 1


async def test_of_twenty_that_conflict_one_creates(recorder: Recorder, sql: Sql) -> None:
    body = running()
    answers = await asyncio.gather(*(recorder.record(body | {"model": f"m{number}"}) for number in range(20)))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 19}
    [winner] = [answer.body["model"] for answer in answers if answer.status == 201]
    assert sql("SELECT model FROM aibridge_interceptions") == [(winner,)]


async def test_of_twenty_arrays_of_children_one_is_stored(recorder: Recorder, sql: Sql) -> None:
    body = running()
    await recorder.record(body)
    ids = [str(uuid4()) for _ in range(5)]
    arrays = [
        [user_prompt(id=child, prompt=f"{number}") for child in random.Random(number).sample(ids, len(ids))]
        for number in range(20)
    ]
    answers = await asyncio.gather(*(recorder.add(body["id"], "user_prompts", array) for array in arrays))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 19}
    assert len(set(sql("SELECT prompt FROM aibridge_user_prompts"))) == 1
    assert count(sql, "user_prompts") == 5


async def test_a_new_initiator_in_twenty_recordings_at_once(recorder: Recorder, sql: Sql) -> None:
    for number in range(5):
        initiator = {"id": str(uuid4()), "username": f"user{number}", "name": "", "avatar_url": ""}
        bodies = [without(running(), "initiator_id") | {"initiator": initiator} for _ in range(20)]
        answers = await asyncio.gather(*(recorder.record(body) for body in bodies))
        assert Counter(answer.status for answer in answers) == {201: 20}
    assert sql("SELECT count(*) FROM users WHERE username LIKE 'user%'") == [(5,)]


async def test_of_twenty_new_users_with_one_name_one_gets_it(recorder: Recorder, sql: Sql) -> None:
    bodies = [
        without(running(), "initiator_id") | {"initiator": {"id": str(uuid4()), "username": name}}
        for name in ["ann", "ANN"] * 10
    ]
    answers = await asyncio.gather(*(recorder.record(body) for body in bodies))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 19}
    assert count(sql, "interceptions") == 1


async def test_recordings_children_and_ends_that_meet(recorder: Recorder, sql: Sql) -> None:
    for _ in range(5):
        body = whole()
        start = without(body, "ended_at", "token_usages", "user_prompts", "tool_usages", "model_thoughts")
        await recorder.record(start)
        answers = await asyncio.gather(
            *(recorder.end(body["id"], ended_at=body["ended_at"], metadata={"b": 2}) for _ in range(4)),
            *(recorder.record(again) for again in (body, start, body)),
            *(
                recorder.add(body["id"], kind, body[kind])
                for kind in ("token_usages", "user_prompts", "tool_usages", "model_thoughts") * 2
            ),
        )
        # An end that comes second, behind one without metadata, brings what the first did not have.
        assert {answer.status for answer in answers[4:]} <= {200, 201}
        assert {answer.status for answer in answers[:4]} <= {200, 409}
    for table in ("interceptions", "token_usages", "user_prompts", "tool_usages", "model_thoughts"):
        assert count(sql, table) == 5


# -- guards, in place and removed ------------------------------------------------------------------------------------


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has asked for the lock waits a moment for another one that has asked for it, too."""
    arrived = 0
    rows = Connection.rows

    async def waiting(self: Connection, statement: str, **values: object) -> list[Any]:
        nonlocal arrived
        found = await rows(self, statement, **values)
        if statement == "recording/lock_interceptions":
            arrived += 1
            deadline = time.monotonic() + 0.5
            while arrived < 2 and time.monotonic() < deadline:  # noqa: ASYNC110  # in vain where the guard is in place
                await asyncio.sleep(0.01)
        return found

    monkeypatch.setattr(Connection, "rows", waiting)


def without_lock(loaded: dict[str, Statement]) -> dict[str, Statement]:
    statement = loaded["recording/lock_interceptions"]
    lines = tuple(line for line in statement.lines if line.text != "FOR NO KEY UPDATE")
    assert len(lines) == len(statement.lines) - 1
    return loaded | {statement.name: replace(statement, lines=lines, _rendered={})}


async def end_twice(recorder: Recorder) -> list[int]:
    body = running()
    await recorder.record(body)
    answers = await asyncio.gather(
        *(recorder.end(body["id"], ended_at=f"2026-03-01T10:00:0{second}Z") for second in (1, 2))
    )
    return sorted(answer.status for answer in answers)


@pytest.mark.usefixtures("meeting")
async def test_of_two_ends_at_once_the_first_wins(recorder: Recorder) -> None:
    assert await end_twice(recorder) == [200, 409]


@pytest.mark.usefixtures("meeting")
async def test_without_the_lock_two_ends_would_both_win(
    make_client: MakeClient, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = statements.load
    monkeypatch.setattr(statements, "load", lambda: without_lock(load()))
    assert await end_twice(Recorder(await make_client(), owner)) == [200, 200]


async def import_in_a_deadlock(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, sql: Sql) -> list[int]:
    """Two imports, each of which holds a username that the other wants next."""
    sql("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$")
    sql("CREATE TRIGGER slow BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION slow()")
    first, second, third, fourth = sorted(str(uuid4()) for _ in range(4))
    streams = [
        [
            without(whole(), "initiator_id") | {"initiator": {"id": user_id, "username": username}}
            for user_id, username in users
        ]
        for users in (((first, "ann"), (fourth, "bob")), ((second, "bob"), (third, "ann")))
    ]
    answers = await asyncio.gather(*(recorder.send(stream) for stream in streams))
    return sorted(answer.status for answer in answers)


async def test_two_imports_in_a_deadlock_both_come_to_an_end(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, sql: Sql
) -> None:
    assert await import_in_a_deadlock(recorder, monkeypatch, sql) == [200, 200]
    assert sql("SELECT count(*) FROM users WHERE username IN ('ann', 'bob')") == [(2,)]


async def test_without_the_second_attempt_one_import_would_fail(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, sql: Sql
) -> None:
    monkeypatch.setattr(db, "_ATTEMPTS", 1)
    assert await import_in_a_deadlock(recorder, monkeypatch, sql) == [200, 503]


# -- eight processes -------------------------------------------------------------------------------------------------


@dataclass
class Done:
    """What one process did."""

    rounds: int
    statuses: Counter[tuple[str, int]]


def serving(settings: Settings, url: str, pipe: Pipe) -> None:
    asyncio.run(
        serve(
            build_app(settings, database_url=url),
            sockets=bind("127.0.0.1", 0),
            drain_seconds=0,
            shutdown_timeout=5,
            ready=pipe.send,
        )
    )


@contextlib.contextmanager
def served(settings: Settings, url: str) -> Iterator[str]:
    """The service in a process of its own: its URL."""
    spawn = multiprocessing.get_context("spawn")
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=serving, args=(settings, url, theirs))
    process.start()
    try:
        assert mine.poll(60)
        yield f"http://127.0.0.1:{mine.recv()}{API}"
    finally:
        process.terminate()
        process.join(30)
        assert process.exitcode == 0


def rounds_of(pair: int) -> Iterator[dict[str, Any]]:
    """The interceptions that both processes of a pair record: the same ones, in the same order."""
    made = random.Random(pair)

    def made_id() -> str:
        return str(UUID(int=made.getrandbits(128), version=4))

    while True:
        number = made.randrange(USERS)
        body = without(whole(id=made_id()), "initiator_id")
        body["initiator"] = {"id": str(UUID(int=1 + number)), "username": f"user{number}", "name": "", "avatar_url": ""}
        body["token_usages"] = [token_usage(id=made_id()) for _ in range(3)]
        body["user_prompts"] = [without(user_prompt(), "id")]
        body["tool_usages"] = [tool_usage(id=made_id())]
        body["model_thoughts"] = [thought()]
        yield body


async def work(url: str, token: str, pair: int, seconds: float) -> Done:
    """Record, end and list until the time is up."""
    done = Done(0, Counter())
    seen = 0
    deadline = time.monotonic() + seconds
    async with aiohttp.ClientSession(headers={"Coder-Session-Token": token}) as session:

        async def post(call: str, path: str, body: object) -> None:
            async with session.post(f"{url}/interceptions{path}", json=body) as response:
                await response.read()
                done.statuses[call, response.status] += 1

        for body in rounds_of(pair):
            if time.monotonic() > deadline:
                break
            done.rounds += 1
            await post("start", "", without(body, "ended_at", "token_usages", "tool_usages"))
            await asyncio.gather(
                post("tokens", f"/{body['id']}/token-usages", body["token_usages"]),
                post("tools", f"/{body['id']}/tool-usages", body["tool_usages"]),
            )
            await post("end", f"/{body['id']}/end", {"ended_at": body["ended_at"]})
            await post("again", "", body)
            async with session.get(f"{url}/interceptions?limit=10") as response:
                page = await response.json()
                done.statuses["list", response.status] += 1
            assert page["total"] >= max(seen, done.rounds)
            assert len({result["id"] for result in page["results"]}) == len(page["results"]) == min(10, page["total"])
            seen = page["total"]
    return done


def working(url: str, token: str, pair: int, seconds: float) -> Done:
    return asyncio.run(work(url, token, pair, seconds))


async def total(url: str, token: str) -> int:
    async with (
        aiohttp.ClientSession(headers={"Coder-Session-Token": token}) as session,
        session.get(f"{url}/interceptions?limit=1") as response,
    ):
        found: int = (await response.json())["total"]
        return found


@pytest.mark.timeout(SECONDS * 3 + 300)
async def test_eight_processes_record_end_and_list_at_once(
    settings: Settings, database_url: str, owner: Person, sql: Sql
) -> None:
    """Two processes each record the same interceptions, all of them for the same few initiators."""
    loop = asyncio.get_running_loop()
    with (
        served(settings, database_url) as url,
        ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        done: list[Done] = await asyncio.gather(
            *(
                loop.run_in_executor(pool, working, url, owner.token, number // 2, SECONDS)
                for number in range(PROCESSES)
            )
        )
        listed = await total(url, owner.token)
    # Each pair recorded what the one of the two that got further did.
    recorded = sum(max(done[number].rounds, done[number + 1].rounds) for number in range(0, PROCESSES, 2))
    rounds = sum(one.rounds for one in done)
    statuses = sum((one.statuses for one in done), Counter())
    assert statuses == {
        ("start", 201): recorded,
        ("start", 200): rounds - recorded,
        ("tokens", 201): recorded,
        ("tokens", 200): rounds - recorded,
        ("tools", 201): recorded,
        ("tools", 200): rounds - recorded,
        ("end", 200): rounds,
        ("again", 200): rounds,
        ("list", 200): rounds,
    }
    assert rounds > recorded > PROCESSES  # they did meet
    assert listed == recorded
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL") == [(recorded,)]
    assert count(sql, "interceptions") == recorded
    for kind, each in {"token_usages": 3, "user_prompts": 1, "tool_usages": 1, "model_thoughts": 1}.items():
        assert count(sql, kind) == recorded * each
    assert sql("SELECT count(*) FROM users WHERE username LIKE 'user_'") == [(USERS,)]
