"""Importing: streams of any length, bad lines that reject only themselves, and what a broken stream leaves behind."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
import simplejson
from conftest import API, Client, Person
from recorder import (
    CHILDREN,
    Answer,
    Recorder,
    count,
    ndjson,
    running,
    thought,
    token_usage,
    tool_usage,
    user_prompt,
    whole,
    without,
)

from service import importing
from service.db import Database
from service.importing import MAX_RECORD, Report, import_stream

Sql = Callable[..., list[tuple[Any, ...]]]

MIB = 1024 * 1024
CONFLICT = "The record conflicts with one that is already stored."


@pytest.fixture
def recorder(client: Client, owner: Person) -> Recorder:
    return Recorder(client, owner)


@pytest.fixture
def stored(sql: Sql) -> Callable[[], int]:
    """How many interceptions there are."""
    return lambda: int(sql("SELECT count(*) FROM aibridge_interceptions")[0][0])


def rejected(line: int, message: str, **validations: str) -> dict[str, Any]:
    return {"line": line, "message": message, "validations": validations}


def told(answer: Answer) -> list[dict[str, Any]]:
    """The rejected lines, their validations by field."""
    return [
        line | {"validations": {wrong["field"]: wrong["detail"] for wrong in line["validations"]}}
        for line in answer.body["rejected"]
    ]


async def pieces(data: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


# -- forms -----------------------------------------------------------------------------------------------------------


async def test_lines_and_arrays_are_the_same(recorder: Recorder, stored: Callable[[], int]) -> None:
    bodies = [whole() for _ in range(3)]
    answer = await recorder.send(ndjson(*bodies))
    assert answer.status == 200
    assert answer.body == {"imported": 3, "unchanged": 0, "rejected_total": 0, "rejected": []}
    listed = await recorder.listed()
    for same in (
        ndjson(*bodies),
        ndjson(*bodies).rstrip(),
        ndjson(*bodies).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + ndjson(*bodies),
        b"\n \n" + ndjson(*bodies).replace(b"\n", b"\n\n \t\n"),
        simplejson.dumps(bodies).encode(),
        simplejson.dumps(bodies, indent=2).encode(),
        b"\xef\xbb\xbf \n" + simplejson.dumps(bodies).encode() + b"\n\n",
    ):
        answer = await recorder.send(same)
        assert answer.body == {"imported": 0, "unchanged": 3, "rejected_total": 0, "rejected": []}
        packed = await recorder.send(gzip.compress(same), **{"Content-Encoding": "gzip"})
        assert packed.body == answer.body
    assert await recorder.listed() == listed
    assert stored() == 3


@pytest.mark.parametrize("nothing", [b"", b"\n\n", b"[]", b" [ ] ", b"\xef\xbb\xbf"])
async def test_nothing_is_nothing(recorder: Recorder, nothing: bytes) -> None:
    answer = await recorder.send(nothing)
    assert answer.status == 200
    assert answer.body == {"imported": 0, "unchanged": 0, "rejected_total": 0, "rejected": []}


async def test_an_array_that_is_not_closed_keeps_its_whole_elements(recorder: Recorder) -> None:
    bodies = [whole() for _ in range(3)]
    text = simplejson.dumps(bodies).encode()
    answer = await recorder.send(text[:-10])
    assert answer.body["imported"] == 2
    assert told(answer) == [rejected(3, "the stream ended before the array did")]
    answer = await recorder.send(text[:-1])
    assert (answer.body["imported"], answer.body["unchanged"]) == (1, 2)
    assert [line["line"] for line in answer.body["rejected"]] == [4]


async def test_gzip_that_breaks_is_told(recorder: Recorder, stored: Callable[[], int]) -> None:
    packed = gzip.compress(ndjson(*(whole() for _ in range(50))))
    answer = await recorder.send(packed[:100] + b"\0" * 50 + packed[150:], **{"Content-Encoding": "gzip"})
    assert answer.status == 400
    # Cut off, it ends in a line that is none.
    answer = await recorder.send(packed[: len(packed) * 3 // 4], **{"Content-Encoding": "gzip"})
    assert (answer.status, answer.body["rejected_total"]) == (200, 1)
    assert stored() == answer.body["imported"] + answer.body["unchanged"] > 0


# -- bad lines -------------------------------------------------------------------------------------------------------


async def test_bad_lines_reject_themselves(recorder: Recorder) -> None:
    good = [whole() for _ in range(4)]
    old = whole()
    await recorder.record(old)
    begun = running()
    await recorder.record(begun)
    lines = [
        ndjson(good[0]),
        b"\n",
        b"{\n",
        b"[]\n",
        ndjson(good[1]),
        ndjson(without(whole(), "model") | {"user_prompts": [user_prompt(prompt=1)]}),
        ndjson(running()),
        ndjson(running(ended_at=None)),
        ndjson(old | {"model": "other", "tool_usages": [old["tool_usages"][0] | {"tool": "x"}]}),
        ndjson(good[2]),
        b'{"\xff": 1}\n',
        ndjson(whole(id=str(UUID(int=0)))),
        ndjson(begun | {"ended_at": "2026-03-01T10:00:01Z"}),
        ndjson(old),
        ndjson(good[3]).rstrip(),
    ]
    answer = await recorder.send(b"".join(lines))
    assert answer.status == 200
    assert (answer.body["imported"], answer.body["unchanged"], answer.body["rejected_total"]) == (5, 1, 8)
    unfinished = "is required: only finished interceptions can be imported"
    differs = "differs from what is stored under this id"
    assert told(answer) == [
        rejected(3, "Line 1, column 2: the text ends too early."),
        rejected(4, "Validation failed.", body="must be an object"),
        rejected(6, "Validation failed.", **{"user_prompts.0.prompt": "must be a string", "model": "is required"}),
        rejected(7, "Validation failed.", ended_at=unfinished),
        rejected(8, "Validation failed.", ended_at=unfinished),
        rejected(9, CONFLICT, model=differs, **{"tool_usages.0.tool": differs}),
        rejected(11, "The byte at offset 2 is not part of valid UTF-8."),
        rejected(12, "Validation failed.", id="must not be the all-zero UUID"),
    ]


async def test_conflicts_among_many_good_lines(recorder: Recorder, stored: Callable[[], int]) -> None:
    old = [whole() for _ in range(10)]
    await recorder.send(ndjson(*old))
    fresh = [whole() for _ in range(1_200)]
    bad = {
        5: old[0] | {"provider": "other"},
        499: whole(user_prompts=old[1]["user_prompts"]),
        500: old[2] | {"ended_at": "2026-03-01T10:00:09Z"},
        501: old[3] | {"token_usages": [old[3]["token_usages"][0] | {"output_tokens": 0}]},
        1_100: whole(tool_usages=[tool_usage(id=str(UUID(int=9))), tool_usage(id=str(UUID(int=9)), tool="other")]),
    }
    lines = list(fresh)
    for line, body in bad.items():
        lines.insert(line - 1, body)
    answer = await recorder.send(ndjson(*lines))
    assert (answer.body["imported"], answer.body["unchanged"]) == (1_200, 0)
    assert {line["line"]: [wrong["field"] for wrong in line["validations"]] for line in answer.body["rejected"]} == {
        5: ["provider"],
        499: ["user_prompts.0.interception_id"],
        500: ["ended_at"],
        501: ["token_usages.0.output_tokens"],
        1_100: ["tool_usages.1.tool"],
    }
    assert stored() == 1_210


async def test_lines_that_conflict_with_each_other(recorder: Recorder) -> None:
    first, prompt = whole(), user_prompt()
    lines = [
        first,
        first,
        first | {"model": "other"},
        whole(user_prompts=[prompt]),
        whole(user_prompts=[prompt]),
        # What shares an id with a line that is rejected is not rejected with it.
        first | {"model": "other", "user_prompts": [user_prompt(id=str(UUID(int=7)))]},
        whole(user_prompts=[user_prompt(id=str(UUID(int=7)), prompt="mine")]),
        first | {"user_prompts": [*first["user_prompts"], user_prompt()]},
    ]
    answer = await recorder.send(ndjson(*lines))
    assert (answer.body["imported"], answer.body["unchanged"]) == (4, 1)
    assert [line["line"] for line in answer.body["rejected"]] == [3, 5, 6]


async def test_of_many_rejected_the_first_thousand_are_told(recorder: Recorder) -> None:
    old = whole()
    await recorder.record(old)
    # The conflict is found out only when its batch is stored, long after the lines behind it were rejected.
    answer = await recorder.send(ndjson(old | {"model": "other"}, *([{}] * 1_500), whole()))
    assert (answer.body["imported"], answer.body["rejected_total"]) == (1, 1_501)
    assert [line["line"] for line in answer.body["rejected"]] == list(range(1, 1_001))


async def test_what_is_told_of_a_rejected_line_is_bounded(recorder: Recorder) -> None:
    names = {f"{'x' * 5_000}{number}": 1 for number in range(500)}
    answer = await recorder.send(ndjson(whole() | names, whole(started_at="2026-03-01T10:00:00Z" + "x" * 100_000)))
    assert answer.body["rejected_total"] == 2
    assert len(answer.body["rejected"][0]["validations"]) == 100
    assert len(simplejson.dumps(answer.body)) < 50_000


async def test_lines_have_a_longest_length(recorder: Recorder) -> None:
    prompt = user_prompt(prompt="")
    body = whole(user_prompts=[prompt])
    prompt["prompt"] = "x" * (MAX_RECORD - len(simplejson.dumps(body)))
    too_long = simplejson.dumps(whole(user_prompts=[user_prompt(prompt="x" * MAX_RECORD)])).encode()
    answer = await recorder.send(b"\n".join([too_long, simplejson.dumps(body).encode(), ndjson(whole())]))
    assert answer.body["imported"] == 2
    assert told(answer) == [rejected(1, "must not be longer than 16,777,216 bytes")]


async def test_lines_that_nest_too_deep(recorder: Recorder) -> None:
    deep = b'{"a":' * 100_000 + b"{}" + b"}" * 100_000
    line = simplejson.dumps(without(whole(), "metadata"))[:-1].encode() + b', "metadata": ' + deep + b"}"
    answer = await recorder.send(b"\n".join([line, ndjson(whole())]))
    assert answer.body["imported"] == 1
    assert told(answer) == [rejected(1, "Validation failed.", metadata="must not nest deeper than 64 levels")]


async def test_a_running_interception_is_finished_by_an_import(recorder: Recorder) -> None:
    body = whole()
    await recorder.record(without(body, "ended_at", *CHILDREN))
    answer = await recorder.send(ndjson(body))
    assert (answer.body["imported"], answer.body["unchanged"]) == (1, 0)
    answer = await recorder.send(ndjson(body))
    assert (answer.body["imported"], answer.body["unchanged"]) == (0, 1)
    more = body | {"model_thoughts": [thought(content="Or is it?")]}
    answer = await recorder.send(ndjson(more))
    assert (answer.body["imported"], answer.body["unchanged"]) == (1, 0)


async def test_lines_without_ids_are_new_each_time(recorder: Recorder, stored: Callable[[], int]) -> None:
    body = without(whole(), "id")
    body["token_usages"] = [without(token_usage(), "id")]
    del body["user_prompts"], body["tool_usages"]
    answer = await recorder.send(ndjson(body, body))
    assert answer.body["imported"] == stored() == 2


# -- size, and what breaks -------------------------------------------------------------------------------------------


async def test_memory_does_not_grow_with_the_stream(database: Database) -> None:
    """Neither with what is stored nor with what is rejected."""
    prompt = "x" * 20_000

    async def stream(megabytes: int) -> AsyncIterator[bytes]:
        bad = b'{"model": 1' + b" " * 2_000 + b"}\n"
        sent = 0
        while sent < megabytes * MIB:
            good = ndjson(*(whole(user_prompts=[user_prompt(prompt=prompt)]) for _ in range(20)))
            data = good + bad * 50
            sent += len(data)
            yield data

    async def peak(megabytes: int) -> int:
        tracemalloc.start()
        try:
            report = await import_stream(database, stream(megabytes))
            assert report.imported > megabytes * 30
            assert report.rejected_total > megabytes * 80
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = await peak(10), await peak(50)
    assert large < small + 8 * MIB
    assert large < 60 * MIB


async def test_a_client_that_goes_away_leaves_whole_records_and_can_send_again(
    recorder: Recorder, client: Client, owner: Person, stored: Callable[[], int], sql: Sql
) -> None:
    bodies = [whole() for _ in range(1_300)]
    data = ndjson(*bodies)

    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(data[: len(data) * 9 // 10]):
            yield piece
        while stored() == 0:  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.05)
        raise ConnectionAbortedError

    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await client.post(f"{API}/interceptions/import", data=broken(), headers=owner.headers)
    await asyncio.sleep(0.2)
    left = stored()
    assert 0 < left < 1_300
    for kind in CHILDREN:
        assert count(sql, kind) == left
    answer = await recorder.send(data)
    assert answer.body["imported"] == 1_300 - answer.body["unchanged"]
    assert answer.body["rejected_total"] == 0
    assert stored() == 1_300


async def test_a_database_that_goes_away_is_told_and_the_rest_can_follow(
    recorder: Recorder, client: Client, owner: Person, stored: Callable[[], int], sql: Sql
) -> None:
    bodies = [whole() for _ in range(2_000)]
    data = ndjson(*bodies)

    sql(
        # A batch takes its time.
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$"
    )
    sql("CREATE TRIGGER slow AFTER INSERT ON aibridge_tool_usages FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    killer = asyncio.create_task(kill_one_backend(sql, stored))
    response = await client.post(f"{API}/interceptions/import", data=pieces(data), headers=owner.headers)
    await killer
    assert response.status == 503
    assert int(response.headers["Retry-After"]) > 0
    assert (await response.json())["message"] == "The database is unavailable. Please try again shortly."
    left = stored()
    assert 0 < left < 2_000
    answer = await recorder.send(data)
    assert answer.body == {"imported": 2_000 - left, "unchanged": left, "rejected_total": 0, "rejected": []}


async def kill_one_backend(sql: Sql, stored: Callable[[], int]) -> None:
    """End the connection of an import while it stores a batch that is not its first."""
    while not (  # noqa: ASYNC110  # the database tells nobody
        stored()
        and sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'bridgelog' AND query LIKE '%INSERT INTO aibridge_tool_usages%'"
            " AND state = 'active'"
        )
    ):
        await asyncio.sleep(0.005)


async def test_two_imports_of_the_same_in_opposite_order(
    recorder: Recorder, stored: Callable[[], int], sql: Sql
) -> None:
    users = [{"id": str(uuid4()), "username": f"user{number}", "name": "", "avatar_url": ""} for number in range(40)]
    bodies = [without(whole(), "initiator_id") | {"initiator": users[number % len(users)]} for number in range(1_200)]
    answers = await asyncio.gather(
        recorder.send(ndjson(*bodies)),
        recorder.send(ndjson(*reversed(bodies))),
        recorder.send(simplejson.dumps(bodies[600:] + bodies[:600]).encode()),
    )
    assert [answer.status for answer in answers] == [200] * 3
    assert [answer.body["rejected_total"] for answer in answers] == [0] * 3
    assert sum(answer.body["imported"] for answer in answers) == 1_200
    assert sum(answer.body["unchanged"] for answer in answers) == 2_400
    assert stored() == 1_200
    for kind in CHILDREN:
        assert count(sql, kind) == 1_200
    assert sql("SELECT count(*) FROM users WHERE username LIKE 'user%'") == [(40,)]


async def test_other_requests_are_served_during_an_import(recorder: Recorder, client: Client) -> None:
    data = ndjson(*(whole() for _ in range(3_000)))
    task = asyncio.create_task(recorder.send(data))
    served = 0
    while not task.done():
        assert (await client.get("/healthz")).status == 200
        served += 1
    assert (await task).body["imported"] == 3_000
    assert served > 30


async def test_progress_is_told_batch_by_batch(database: Database) -> None:
    told: list[int] = []

    def progress(report: Report) -> None:
        told.append(report.imported)

    count = 2 * importing._BATCH_RECORDS + 1
    await import_stream(database, pieces(ndjson(*(whole() for _ in range(count)))), progress=progress)
    assert told == [importing._BATCH_RECORDS, 2 * importing._BATCH_RECORDS, count]
