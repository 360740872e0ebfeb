"""The recorder on a real PostgreSQL: nothing lost, nothing doubled, whatever becomes of the database and this process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from bridge_worker import beginning, observed, status
from conftest import API, NOW, MakeClient, Person
from faults import Postgres, Wire, cleaned, socket_of, through, until

from service import db, errors, migrations, statements
from service.bridge import recorder as recording
from service.bridge.protocols import Observed, Thought, ToolCall, Usage
from service.bridge.recorder import Recorder
from service.bridge.running import Running, interception_of
from service.bridge.spool import Kind, Log
from service.metrics import Metrics
from service.settings import Settings
from service.store.recording import Conflicting

Sql = Callable[..., list[tuple[Any, ...]]]
Open = Callable[..., Awaitable[Recorder]]
WORKER = Path(__file__).with_name("bridge_worker.py")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
async def opening(settings: Settings, spool: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Recorders on a database, closed at the end: `await opening(url)`."""
    monkeypatch.setattr(recording, "_SETTLED_AFTER", 1.0)
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(url: str, **changes: Any) -> Recorder:
            changed = replace(settings, spool_dir=spool, **changes)
            database = await db.connect(changed, url, statements.load())
            stack.push_async_callback(database.close)
            recorder = await Recorder.open(database, settings=changed, metrics=Metrics(pool_size=settings.pool_size))
            stack.push_async_callback(recorder.close)
            return recorder

        yield open_one


@pytest.fixture
async def recorder(opening: Open, database_url: str) -> Recorder:
    return await opening(database_url)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """One that can be stopped."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    with cleaned(server):
        server.make()
        migrations.apply(server.url)
        yield server


@pytest.fixture
def emptied(postgres: Postgres) -> Postgres:
    postgres.ask("TRUNCATE aibridge_interceptions CASCADE")
    return postgres


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    wire = Wire(socket_of(database_url))
    await wire.mend()
    yield wire
    await wire.cut()


async def serve(recorder: Recorder, number: int) -> Running:
    running = await recorder.start(beginning(number))
    running.observe(observed(number))
    await asyncio.sleep(0)
    running.end(status=status(number), detail={"ended": number})
    return running


async def drained(recorder: Recorder) -> None:
    await until(lambda: recorder.depth == 0)


def names(spool: Path, *, folders: bool = False) -> list[str]:
    """What lies in the spool's directory."""
    return sorted(path.name for path in spool.iterdir() if path.is_dir() or not folders)


def check(sql: Sql, numbers: dict[UUID, int]) -> None:
    """Of each there is one, whole, as `serve` has served it."""
    rows = sql(
        "SELECT id, model, metadata, ended_at >= started_at, api_key_id FROM aibridge_interceptions WHERE id = ANY(%s)",
        list(numbers),
    )
    assert {row[0]: row[1:] for row in rows} == {
        interception_id: (
            f"model-{number}",
            {"number": number, "status": status(number), "ended": number},
            True,
            "0123456789",
        )
        for interception_id, number in numbers.items()
    }
    for table, content, expected in (
        ("user_prompts", "prompt", "prompt {}"),
        ("token_usages", "output_tokens::text", "{}"),
        ("tool_usages", "provider_response_id", "response-{}"),
        ("model_thoughts", "content", "thought {}"),
    ):
        rows = sql(
            f"SELECT interception_id, {content} FROM aibridge_{table} WHERE interception_id = ANY(%s)",  # noqa: S608
            list(numbers),
        )
        assert sorted(rows) == sorted((id_, expected.format(number)) for id_, number in numbers.items()), table


# -- what is recorded ------------------------------------------------------------------------------------------------


async def test_an_interception_is_in_the_database_before_start_returns(recorder: Recorder, sql: Sql) -> None:
    running = await recorder.start(beginning(1, session_id="s-1"))
    found = sql(
        "SELECT initiator_id, api_key_id, provider, provider_name, model, client, client_session_id, metadata, ended_at"
        " FROM aibridge_interceptions WHERE id = %s",
        running.id,
    )
    assert found == [
        (UUID(int=7), "0123456789", "anthropic", "anthropic", "model-1", "Claude Code", "s-1", {"number": 1}, None)
    ]
    assert sql("SELECT prompt FROM aibridge_user_prompts WHERE interception_id = %s", running.id) == [("prompt 1",)]


async def test_a_request_without_a_prompt_has_none(recorder: Recorder, sql: Sql) -> None:
    await recorder.start(beginning(1, prompt=None))
    assert sql("SELECT count(*) FROM aibridge_user_prompts") == [(0,)]
    await recorder.start(beginning(1, prompt=""))
    assert sql("SELECT prompt FROM aibridge_user_prompts") == [("",)]


async def test_a_thousand_at_once_are_recorded_whole(recorder: Recorder, sql: Sql) -> None:
    runs = await asyncio.gather(*(serve(recorder, number) for number in range(1000)))
    await drained(recorder)
    check(sql, {running.id: number for number, running in enumerate(runs)})
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(1000,)]


async def test_of_starts_at_once_one_that_cannot_be_stored_keeps_no_other(recorder: Recorder, sql: Sql) -> None:
    outcomes = await asyncio.gather(
        *(
            recorder.start(beginning(number, **({"initiator_id": "nobody"} if number in (4, 17) else {})))
            for number in range(30)
        ),
        return_exceptions=True,
    )
    assert [number for number, found in enumerate(outcomes) if isinstance(found, Exception)] == [4, 17]
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(28,)]
    assert sql("SELECT count(*) FROM aibridge_user_prompts") == [(28,)]


async def test_a_start_that_is_stored_already_is_compared(recorder: Recorder, sql: Sql) -> None:
    one, other = interception_of(beginning(1)), interception_of(beginning(2, prompt=None))
    for _ in range(2):
        assert await recorder._begun([one, other]) is None
    changed = replace(one, sent={**one.sent, "model": "another"})
    assert isinstance(await recorder._begun([changed]), Conflicting)
    assert sql("SELECT model FROM aibridge_interceptions ORDER BY model") == [("model-1",), ("model-2",)]
    assert sql("SELECT interception_id, prompt FROM aibridge_user_prompts") == [(one.id, "prompt 1")]


async def test_what_was_erased_does_not_come_back_with_a_start(recorder: Recorder, sql: Sql) -> None:
    sql("INSERT INTO bridgelog_erased_users (user_id, erased_until) VALUES (%s, now())", UUID(int=7))
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    await recorder.start(beginning(1, started_at=long_ago, session_id="s"))
    await recorder.start(beginning(2, started_at=datetime.now(UTC) + timedelta(hours=1), session_id="s"))
    assert sql(
        "SELECT i.metadata, i.client_session_id, p.prompt FROM aibridge_interceptions i JOIN aibridge_user_prompts p"
        " ON p.interception_id = i.id ORDER BY i.model"
    ) == [({}, None, ""), ({"number": 2}, "s", "prompt 2")]


async def test_what_waits_is_read_from_disk_once_it_outgrows_memory(
    wire: Wire, opening: Open, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = Log.read

    def reading(self: Log, **most: int) -> Any:
        reads.append(self)
        return read(self, **most)

    monkeypatch.setattr(Log, "read", reading)
    monkeypatch.setattr(recording, "_MOST_RECENT", 100)
    recorder = await opening(through(wire, database_url))
    served = {(await serve(recorder, number)).id: number for number in range(20)}
    await drained(recorder)
    assert not reads, "what waits for a moment only is in memory"
    await wire.cut()
    served |= {(await serve(recorder, number)).id: number for number in range(20, 80)}
    await wire.mend()
    await drained(recorder)
    assert reads
    reads.clear()
    served |= {(await serve(recorder, number)).id: number for number in range(80, 90)}
    await drained(recorder)
    assert not reads
    check(sql, served)


async def test_what_an_answer_used_is_told_bit_by_bit_and_recorded_once(recorder: Recorder, sql: Sql) -> None:
    running = await recorder.start(beginning(1))
    seen = Observed(response_id="r")
    running.observe(seen)
    seen.usage = Usage(input_tokens=5, output_tokens=1, cache_read_input_tokens=3, cache_write_input_tokens=4)
    for number in range(3):
        seen.tools.append(ToolCall(call_id=f"c{number}", tool=f"t{number}", input="{}", server_url="u", injected=True))
        seen.thoughts.append(Thought(content="the same", metadata={"source": "thinking"}))
        running.observe(seen)
        running.observe(seen)
    seen.usage = Usage(input_tokens=5, output_tokens=70, metadata={"reasoning_tokens": 2**60})
    seen.complete = True
    running.observe(seen)
    running.observe(seen)
    # A second answer of the same request, that breaks off.
    running.observe(Observed(response_id="r2", usage=Usage(output_tokens=9)))
    running.end(status="failed", detail={"provider_status": 529, "error_type": "overloaded_error"})
    running.end(status="completed", detail={})
    running.observe(Observed(response_id="late", usage=Usage(output_tokens=8)))
    await drained(recorder)
    usages = sql(
        "SELECT provider_response_id, input_tokens, output_tokens, cache_read_input_tokens, metadata"
        " FROM aibridge_token_usages ORDER BY created_at"
    )
    assert usages == [("r", 5, 70, 0, {"reasoning_tokens": 2**60}), ("r2", 0, 9, 0, {})]
    tools = sql(
        "SELECT provider_tool_call_id, tool, server_url, injected FROM aibridge_tool_usages ORDER BY created_at, id"
    )
    assert tools == [(f"c{number}", f"t{number}", "u", True) for number in range(3)]
    assert sql("SELECT content, metadata FROM aibridge_model_thoughts") == [("the same", {"source": "thinking"})] * 3
    assert sql("SELECT metadata FROM aibridge_interceptions") == [
        ({"number": 1, "status": "failed", "provider_status": 529, "error_type": "overloaded_error"},)
    ]


async def test_what_postgresql_cannot_hold_is_made_to_fit(recorder: Recorder, sql: Sql) -> None:
    bad = "a\0b\udc80"
    running = await recorder.start(
        beginning(
            1,
            model=bad + "m" * 600,
            client=bad + "c" * 90,
            session_id=bad + "s" * 300,
            prompt=bad,
            answers_tool_call=bad,
            metadata={bad: [bad, float("nan")]},
        )
    )
    running.observe(Observed(response_id=bad, tools=[ToolCall(call_id=bad * 300, tool=bad, input=bad)]))
    running.end(status="failed", detail={"error_type": bad})
    await drained(recorder)
    good = "a\ufffdb\ufffd"
    [(model, client, session, metadata)] = sql(
        "SELECT model, client, client_session_id, metadata FROM aibridge_interceptions"
    )
    assert model.startswith(f"{good}mmm")
    assert (len(model), len(client), len(session)) == (512, 64, 256)
    assert metadata == {good: [good, None], "status": "failed", "error_type": good}
    assert sql("SELECT prompt FROM aibridge_user_prompts") == [(good,)]
    assert sql("SELECT tool, input FROM aibridge_tool_usages") == [(good, good)]


async def test_an_end_that_a_clock_puts_before_the_start_is_at_the_start(recorder: Recorder, sql: Sql) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    running = await recorder.start(beginning(1, started_at=ahead))
    running.end(status="completed", detail={})
    await drained(recorder)
    assert sql(
        "SELECT ended_at BETWEEN started_at AND started_at + interval '1 second' FROM aibridge_interceptions"
    ) == [(True,)]


# -- threads ---------------------------------------------------------------------------------------------------------


async def turns(recorder: Recorder, number: int) -> list[UUID]:
    """A conversation in which each request answers the tool call of the one before, with no time between."""
    ids: list[UUID] = []
    call = None
    for turn in range(number):
        running = await recorder.start(beginning(turn, answers_tool_call=call))
        call = f"call-{uuid4()}"
        running.observe(Observed(response_id="r", tools=[ToolCall(call_id=call, tool="t", input="")], complete=True))
        running.end(status="completed", detail={})
        ids.append(running.id)
    return ids


def check_thread(sql: Sql, ids: list[UUID]) -> None:
    rows = sql("SELECT id, thread_parent_id, thread_root_id FROM aibridge_interceptions WHERE id = ANY(%s)", ids)
    assert {row[0]: row[1:] for row in rows} == {
        interception_id: (ids[position - 1] if position else None, ids[0] if position else None)
        for position, interception_id in enumerate(ids)
    }


async def test_an_answer_to_a_tool_call_waits_until_that_is_stored(recorder: Recorder, sql: Sql) -> None:
    threads = await asyncio.gather(*(turns(recorder, 10) for _ in range(10)))
    await drained(recorder)
    for thread in threads:
        check_thread(sql, thread)


async def test_threads_are_found_in_what_waited_in_the_spool(
    wire: Wire, opening: Open, database_url: str, sql: Sql
) -> None:
    recorder = await opening(through(wire, database_url))
    await wire.cut()
    threads = await asyncio.gather(*(turns(recorder, 10) for _ in range(10)))
    assert recorder.depth == 10 * 10 * 3
    await wire.mend()
    await drained(recorder)
    for thread in threads:
        check_thread(sql, thread)


async def test_a_thread_goes_on_behind_what_a_lost_process_left(
    opening: Open, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither gets to write, so that what is lost is still to be written when its thread goes on.
    may_write = asyncio.Event()
    whole = Recorder._write_some

    async def wait_first(recorder: Recorder) -> bool:
        await may_write.wait()
        return await whole(recorder)

    monkeypatch.setattr(Recorder, "_write_some", wait_first)
    lost, heir = await opening(database_url), await opening(database_url)
    first = await lost.start(beginning(0))
    call = "call-of-the-lost"
    first.observe(Observed(response_id="r", tools=[ToolCall(call_id=call, tool="t", input="")], complete=True))
    kill(lost)
    await until(lambda: bool(heir._adopted))
    second = await heir.start(beginning(1, answers_tool_call=call))
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(1,)], "it waits its turn, in the spool"
    may_write.set()
    await drained(heir)
    check_thread(sql, [first.id, second.id])


def kill(recorder: Recorder) -> None:
    """What the kernel does to a process: its tasks are gone, and its locks."""
    for task in recorder._tasks:
        task.cancel()
    recorder._tasks.clear()
    if recorder._own:
        recorder._own.release()
        recorder._own = None


# -- the database away -------------------------------------------------------------------------------------------------


@dataclass
class Burst:
    """Many who are served, one after another at each of so many places."""

    recorder: Recorder
    total: int
    served: dict[UUID, int] = field(default_factory=dict)
    refused: int = 0

    async def run(self, *, at_once: int = 50) -> None:
        numbers = iter(range(self.total))

        async def place() -> None:
            for number in numbers:
                running = await serve(self.recorder, number)
                self.served[running.id] = number

        await asyncio.gather(*(place() for _ in range(at_once)))


async def test_the_database_stops_during_a_burst_and_comes_back(opening: Open, emptied: Postgres) -> None:
    recorder = await opening(emptied.url)
    burst = Burst(recorder, 1000)
    running = asyncio.create_task(burst.run())
    await until(lambda: len(burst.served) >= 200)
    emptied.stop()
    try:
        await running
        assert len(burst.served) == 1000, "nobody is refused"
        assert recorder.depth > 0
        assert recorder.oldest_seconds > 0
    finally:
        emptied.start()
    await drained(recorder)
    check(emptied.ask, burst.served)
    assert emptied.ask("SELECT count(*) FROM aibridge_interceptions") == [(1000,)]


async def test_the_database_is_killed_during_a_burst_and_comes_back(opening: Open, emptied: Postgres) -> None:
    recorder = await opening(emptied.url)
    burst = Burst(recorder, 1000)
    running = asyncio.create_task(burst.run())
    for reached in (150, 400, 700):
        await until(functools.partial(lambda least: len(burst.served) >= least, reached))
        emptied.kill()
        await asyncio.sleep(0.1)
        emptied.start()
    await running
    await drained(recorder)
    check(emptied.ask, burst.served)
    assert emptied.ask("SELECT count(*) FROM aibridge_interceptions") == [(1000,)]


async def test_connections_are_cut_again_and_again_during_a_burst(
    wire: Wire, opening: Open, database_url: str, sql: Sql
) -> None:
    recorder = await opening(through(wire, database_url))
    burst = Burst(recorder, 1000)
    running = asyncio.create_task(burst.run())
    while not running.done():
        await asyncio.sleep(0.1)
        await wire.cut()
        await wire.mend()
    await running
    await drained(recorder)
    check(sql, burst.served)
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(1000,)]


async def test_a_commit_whose_answer_is_lost_is_written_once(
    wire: Wire, opening: Open, database_url: str, sql: Sql
) -> None:
    recorder = await opening(through(wire, database_url))
    await serve(recorder, 0)
    await drained(recorder)
    # The values of the one statement that it is stored with.
    wire.last_word = b"model-1"
    running = await recorder.start(beginning(1))
    assert wire.lost == 1
    running.observe(observed(1))
    await drained(recorder)
    wire.last_word = b"COMMIT;"
    running.end(status=status(1), detail={"ended": 1})
    await until(lambda: wire.lost == 2)
    await drained(recorder)
    check(sql, {running.id: 1})
    assert sql("SELECT count(*) FROM aibridge_interceptions") == [(2,)]


async def test_a_database_that_hangs_is_not_waited_for(
    opening: Open, emptied: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_PATIENCE", 0.3)
    recorder = await opening(emptied.url)
    emptied.signal(signal.SIGSTOP)
    try:
        runs = await asyncio.gather(*(serve(recorder, number) for number in range(50)))
        assert recorder.depth == 150
    finally:
        emptied.signal(signal.SIGCONT)
    await drained(recorder)
    check(emptied.ask, {running.id: number for number, running in enumerate(runs)})
    assert emptied.ask("SELECT count(*) FROM aibridge_interceptions") == [(50,)]


async def test_who_goes_away_while_the_start_is_stored_leaves_nothing_running(
    opening: Open, database_url: str, sql: Sql
) -> None:
    recorder = await opening(database_url)
    starting = [asyncio.create_task(recorder.start(beginning(number))) for number in range(60)]
    for task in starting:
        await asyncio.sleep(0.001)
        task.cancel()
    outcomes = await asyncio.gather(*starting, return_exceptions=True)
    assert any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    for outcome in outcomes:
        if isinstance(outcome, Running):
            outcome.end(status="cancelled", detail={})
    assert recorder._own is not None
    own = recorder._own
    await until(lambda: not own.running)
    await drained(recorder)
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NULL") == [(0,)]


# -- a full spool, a bad disk --------------------------------------------------------------------------------------------


async def test_a_full_spool_refuses_and_recovers(wire: Wire, opening: Open, database_url: str, sql: Sql) -> None:
    recorder = await opening(through(wire, database_url), spool_limit=1024 * 1024)
    early = await recorder.start(beginning(0))
    await wire.cut()
    served: dict[UUID, int] = {}
    big = "p" * 20_000

    async def fill() -> None:
        for number in range(1, 1000):
            running = await recorder.start(beginning(number, prompt=big))
            served[running.id] = number

    with pytest.raises(errors.SpoolFull) as refused:
        await fill()
    assert refused.value.retry_after
    assert 40 <= len(served) <= 52
    size = recorder.bytes
    for _ in range(100):
        with pytest.raises(errors.SpoolFull):
            await recorder.start(beginning(1, prompt=big))
    assert recorder.bytes == size, "who is refused takes no room"
    # Whoever was let in is recorded to the end.
    early.observe(observed(0))
    early.end(status=status(0), detail={"ended": 0})
    for interception_id, number in served.items():
        recorder.end(interception_id, ended_at=datetime.now(UTC), metadata={"status": status(number)})
    await wire.mend()
    await drained(recorder)
    await until(lambda: recorder.bytes < recorder.limit / 2)
    await recorder.start(beginning(5, prompt=big))
    check(sql, {early.id: 0})
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL") == [(len(served) + 1,)]


async def test_without_a_spool_the_database_is_enough_and_both_away_is_a_refusal(
    wire: Wire, opening: Open, database_url: str, spool: Path, sql: Sql
) -> None:
    spool.write_text("a file where the directory should be")  # noqa: ASYNC240  # of a test alone
    recorder = await opening(through(wire, database_url))
    served = {(await serve(recorder, number)).id: number for number in range(20)}
    running = await recorder.start(beginning(20))
    await wire.cut()
    running.observe(observed(20))
    running.end(status=status(20), detail={"ended": 20})
    served[running.id] = 20
    with pytest.raises(errors.RecordingUnavailable) as refused:
        await recorder.start(beginning(21))
    assert not isinstance(refused.value, errors.SpoolFull)
    await wire.mend()
    await drained(recorder)
    check(sql, served)
    # The directory is there again.
    spool.unlink()  # noqa: ASYNC240  # likewise
    await until(lambda: recorder._own is not None)
    await wire.cut()
    again = await serve(recorder, 22)
    await wire.mend()
    await drained(recorder)
    check(sql, {again.id: 22})


async def test_a_disk_that_does_not_take_it_refuses(
    wire: Wire, opening: Open, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = await opening(through(wire, database_url))
    await wire.cut()
    accepted = await serve(recorder, 0)
    whole = os.fsync

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(errors.RecordingUnavailable):
            await recorder.start(beginning(1))
    assert os.fsync is whole
    other = await serve(recorder, 2)
    await wire.mend()
    await drained(recorder)
    assert recorder._own is not None
    own = recorder._own
    await until(lambda: not own.running)
    await drained(recorder)
    check(sql, {accepted.id: 0, other.id: 2})
    # The one that was refused may have been recorded, but then it has ended.
    assert sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NULL") == [(0,)]


# -- dead letters --------------------------------------------------------------------------------------------------------


async def test_a_conflict_goes_to_the_dead_letters_and_the_rest_goes_on(
    wire: Wire, opening: Open, database_url: str, spool: Path, sql: Sql
) -> None:
    recorder = await opening(through(wire, database_url))
    await wire.cut()
    runs = [await serve(recorder, number) for number in range(10)]
    # Somebody else has used the id, and somebody has deleted an interception of which more is to come.
    sql(
        "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at)"
        " VALUES (%s, %s, 'openai', 'theirs', now())",
        runs[3].id,
        uuid4(),
    )
    gone = uuid4()
    recorder.add(gone, {"token_usages": []})
    recorder.end(gone, ended_at=datetime.now(UTC), metadata={"status": "completed", "secret": "s" * 10})
    await wire.mend()
    await drained(recorder)
    check(sql, {running.id: number for number, running in enumerate(runs) if number != 3})
    assert sql("SELECT model, ended_at FROM aibridge_interceptions WHERE id = %s", runs[3].id) == [("theirs", None)]
    letters = [json.loads(line) for line in (spool / "dead-letters.jsonl").read_text().splitlines()]
    told = sorted((letter["interception_id"], letter["kind"], letter["reason"]) for letter in letters)
    conflict = errors.Conflict().message
    missing = errors.InterceptionNotFound().message
    assert told == sorted(
        [(str(runs[3].id), kind, conflict) for kind in ("start", "children", "end")]
        + [(str(gone), kind, missing) for kind in ("children", "end")]
    )
    [start] = [letter for letter in letters if letter["kind"] == "start"]
    assert start["record"]["sent"]["model"] == "model-3"
    assert {wrong["field"] for wrong in start["validations"]} >= {"model", "provider"}
    # And the log of the process says so, and the metrics.
    samples = {
        sample.labels["outcome"]: sample.value
        for family in recorder._metrics.registry.collect()
        if family.name == "bridgelog_recorder_records"
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    assert samples == {"written": 27, "buried": 5}


async def test_a_record_that_meets_a_defect_is_found_out_and_buried(
    wire: Wire, opening: Open, database_url: str, spool: Path, sql: Sql
) -> None:
    recorder = await opening(through(wire, database_url))
    await wire.cut()
    runs = [await serve(recorder, number) for number in range(10)]
    bad = await recorder.start(beginning(10))
    recorder.add(bad.id, {"token_usages": [{"id": uuid4(), "interception_id": bad.id, "input_tokens": 2**70}]})
    await wire.mend()
    await drained(recorder)
    check(sql, {running.id: number for number, running in enumerate(runs)})
    letters = [json.loads(line) for line in (spool / "dead-letters.jsonl").read_text().splitlines()]
    assert {letter["interception_id"] for letter in letters} == {str(bad.id)}


# -- this process gone -----------------------------------------------------------------------------------------------------


@dataclass
class Promised:
    """What a worker said that it had been promised."""

    started: set[UUID] = field(default_factory=set)
    ended: dict[UUID, int] = field(default_factory=dict)

    def hear(self, line: str) -> None:
        word, *rest = line.split()
        if word == "started":
            self.started.add(UUID(rest[0]))
        elif word == "ended":
            self.ended[UUID(rest[0])] = int(rest[2])


class Worker:
    """A process that records, and its words."""

    def __init__(self, url: str, spool: Path, count: int, held: int = 0) -> None:
        command = [sys.executable, str(WORKER), url, str(spool), str(count), str(held)]
        self.promised = Promised()
        self._lines = 0
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
        )

    async def hear(self, condition: Callable[[Promised], bool]) -> None:
        assert self._process.stdout is not None
        while not condition(self.promised):
            line = await asyncio.to_thread(self._process.stdout.readline)
            assert line, "it has ended"
            self.promised.hear(line)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.promised.hear(line)
        self._process.stdout.close()
        self._process.wait()


def check_promises(sql: Sql, *promises: Promised) -> None:
    """One interception for each start that was acknowledged, ended, as it was said to have ended; nothing doubled."""
    started = set[UUID]().union(*(promised.started for promised in promises))
    ended = {id_: number for promised in promises for id_, number in promised.ended.items()}
    assert ended
    check(sql, ended)
    rows = sql("SELECT id, metadata ->> 'status', metadata ->> 'error_type', ended_at FROM aibridge_interceptions")
    found = {row[0]: row[1:] for row in rows}
    assert started <= found.keys()
    for interception_id, (how, error, ended_at) in found.items():
        assert ended_at is not None
        # What was not promised may have been recorded whole all the same.
        assert (
            interception_id in ended
            or (how, error) == ("failed", "bridge_lost")
            or how
            in {
                "completed",
                "failed",
                "cancelled",
            }
        )
    for table in ("token_usages", "user_prompts", "tool_usages", "model_thoughts"):
        assert (
            sql(
                f"SELECT interception_id FROM aibridge_{table} GROUP BY interception_id HAVING count(*) > 1"  # noqa: S608
            )
            == []
        )


@pytest.mark.parametrize("after", [1, 300, 700])
async def test_killed_during_a_burst_and_taken_over(
    opening: Open, database_url: str, spool: Path, sql: Sql, after: int
) -> None:
    worker = Worker(database_url, spool, 1000)
    await worker.hear(lambda promised: len(promised.ended) >= after)
    worker.kill()
    heir = await opening(database_url)
    await until(lambda: len(names(spool, folders=True)) == 1)
    await drained(heir)
    check_promises(sql, worker.promised)


async def test_killed_while_the_database_is_away_and_taken_over(opening: Open, emptied: Postgres, spool: Path) -> None:
    worker = Worker(emptied.url, spool, 1000)
    await worker.hear(lambda promised: len(promised.ended) >= 200)
    emptied.stop()
    try:
        await worker.hear(lambda promised: len(promised.ended) >= 700)
        worker.kill()
    finally:
        emptied.start()
    heir = await opening(emptied.url)
    await until(lambda: len(names(spool, folders=True)) == 1)
    await drained(heir)
    check_promises(emptied.ask, worker.promised)
    assert len(worker.promised.ended) >= 700


async def test_killed_three_times_while_it_takes_over(opening: Open, emptied: Postgres, spool: Path) -> None:
    """Each heir dies in the middle of the inheritance, and what it has begun is not doubled."""
    worker = Worker(emptied.url, spool, 600, 30)
    await worker.hear(lambda promised: len(promised.ended) >= 50)
    emptied.stop()
    await worker.hear(lambda promised: len(promised.ended) >= 570 and len(promised.started) == 600)
    worker.kill()
    emptied.start()
    promises = [worker.promised]
    for _ in range(3):
        heir = Worker(emptied.url, spool, 100)
        await heir.hear(lambda promised: len(promised.ended) >= 20)
        heir.kill()
        promises.append(heir.promised)
    last = await opening(emptied.url)
    await until(lambda: len(names(spool, folders=True)) == 1)
    await drained(last)
    check_promises(emptied.ask, *promises)
    lost = emptied.ask(
        "SELECT count(*) FROM aibridge_interceptions WHERE metadata ->> 'error_type' = 'bridge_lost' AND id = ANY(%s)",
        list(worker.promised.started - worker.promised.ended.keys()),
    )
    assert lost == [(30,)]


async def test_two_processes_on_one_directory_and_one_is_killed(
    opening: Open, database_url: str, spool: Path, sql: Sql
) -> None:
    first, second = Worker(database_url, spool, 400, 10), Worker(database_url, spool, 400, 10)
    await asyncio.gather(*(worker.hear(lambda promised: len(promised.ended) == 390) for worker in (first, second)))
    first.kill()
    await second.hear(lambda promised: len(promised.started) == 400)
    held = second.promised.started - second.promised.ended.keys()

    def running() -> set[UUID]:
        return {row[0] for row in sql("SELECT id FROM aibridge_interceptions WHERE ended_at IS NULL")}

    # The second takes over what the first was serving, and goes on with its own.
    await until(lambda: running() <= held)
    assert held <= {row[0] for row in sql("SELECT id FROM aibridge_interceptions")}
    assert len(running()) == len(held) == 10
    second.kill()
    heir = await opening(database_url)
    await until(lambda: not running())
    await drained(heir)
    check_promises(sql, first.promised, second.promised)


async def test_an_heir_leaves_alone_what_has_ended_meanwhile_and_what_never_was(
    opening: Open, database_url: str, spool: Path, sql: Sql
) -> None:
    lost = await opening(database_url)
    running = await lost.start(beginning(1))
    lost._append([(Kind.RUNNING, uuid4(), b"")])
    kill(lost)
    sql("UPDATE aibridge_interceptions SET ended_at = %s", NOW + timedelta(days=10_000))
    other = await opening(database_url)
    await until(lambda: not other._adopted and other.depth == 0)
    assert "dead-letters.jsonl" not in names(spool)
    assert sql("SELECT id, ended_at, metadata ->> 'status' FROM aibridge_interceptions") == [
        (running.id, NOW + timedelta(days=10_000), None)
    ]


async def test_a_commit_that_a_lost_process_has_not_lived_to_see_is_waited_for(
    opening: Open, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_SETTLED_AFTER", 3.0)
    lost = await opening(database_url)
    late = uuid4()
    lost._append([(Kind.RUNNING, late, b"")])
    kill(lost)
    await opening(database_url)
    await asyncio.sleep(0.5)
    sql(
        "INSERT INTO aibridge_interceptions (id, initiator_id, provider, model, started_at)"
        " VALUES (%s, %s, 'openai', 'm', now())",
        late,
        uuid4(),
    )
    ended = "SELECT metadata ->> 'error_type' FROM aibridge_interceptions WHERE id = %s AND ended_at IS NOT NULL"
    await until(lambda: sql(ended, late) == [("bridge_lost",)])


async def test_a_clock_that_was_set_back_keeps_nothing_running(
    opening: Open, database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = await opening(database_url)
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr("service.bridge.spool.time", SimpleNamespace(time=lambda: now() + 3600, monotonic=time.monotonic))
        await lost.start(beginning(1))
    kill(lost)
    await opening(database_url)
    await until(lambda: sql("SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL") == [(1,)])


async def test_closing_writes_what_waits_and_leaves_no_log(
    settings: Settings, database: db.Database, spool: Path, sql: Sql
) -> None:
    changed = replace(settings, spool_dir=spool)
    recorder = await Recorder.open(database, settings=changed, metrics=Metrics(pool_size=settings.pool_size))
    runs = await asyncio.gather(*(serve(recorder, number) for number in range(100)))
    open_still = await recorder.start(beginning(100))
    await recorder.close()
    check(sql, {running.id: number for number, running in enumerate(runs)})
    assert sql("SELECT metadata ->> 'status' FROM aibridge_interceptions WHERE id = %s", open_still.id) == [("failed",)]
    assert names(spool) == ["lock"]


# -- what operators see ----------------------------------------------------------------------------------------------------


async def test_readiness_and_metrics_tell_of_the_spool(make_client: MakeClient, spool: Path, owner: Person) -> None:
    client = await make_client(bridge="on", anthropic_key="k" * 20, spool_dir=spool, spool_limit=1024 * 1024)
    body = await (await client.get("/readyz")).json()
    assert body["status"] == "ready"
    assert body["recorder"] | {"spool_bytes": 0} == {
        "spool": "ok",
        "spool_bytes": 0,
        "spool_limit": 1024 * 1024,
        "waiting_records": 0,
        "oldest_seconds": 0,
    }
    ballast = spool / "ballast.log"
    for size, word in ((850_000, "near its limit"), (1_100_000, "full")):
        ballast.write_bytes(b"x" * size)

        async def told() -> str:
            return str((await (await client.get("/readyz")).json())["recorder"]["spool"])

        deadline = time.monotonic() + 30
        while await told() != word:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    metrics = await (await client.get("/metrics")).text()
    assert "bridgelog_spool_limit_bytes 1.048576e+06" in metrics
    assert "bridgelog_recorder_waiting_records 0.0" in metrics
    assert (await client.get(f"{API}/interceptions", headers=owner.headers)).status == 200
