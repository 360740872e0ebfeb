"""What recording refuses: every wrong field by its path, in one answer, and nothing stored."""

from __future__ import annotations

import asyncio
import gzip
import random
import time
import zlib
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import simplejson
from conftest import API, Client, MakeClient, Person
from recorder import (
    CHILDREN,
    Answer,
    Recorder,
    count,
    running,
    thought,
    token_usage,
    tool_usage,
    user_prompt,
    whole,
    without,
)

from service import errors

Sql = Callable[..., list[tuple[Any, ...]]]

ZERO = str(UUID(int=0))
UUID_WANTED = "must be a UUID such as 497f6eca-6276-4993-bfeb-53cbbbba6f08"
INSTANT_WANTED = "must be an RFC 3339 instant such as 2025-01-01T00:00:00Z"
TOKENS_WANTED = "must be an integer from 0 to 9223372036854775807"
BEYOND_DOUBLE = "must not contain a number beyond the range of double precision"
TOO_DEEP = "must not nest deeper than 64 levels"


@pytest.fixture
def recorder(client: Client, owner: Person) -> Recorder:
    return Recorder(client, owner)


def assert_invalid(answer: Answer, wrong: dict[str, str]) -> None:
    assert answer.status == 400, answer.body
    assert answer.body["message"] == "Validation failed."
    assert answer.wrong == wrong
    assert len(answer.body["validations"]) == len(wrong)  # one for each field


async def test_every_wrong_member_is_told_at_once(recorder: Recorder, sql: Sql) -> None:
    texts = (
        "provider",
        "provider_name",
        "model",
        "client",
        "api_key_id",
        "client_session_id",
        "correlating_tool_call_id",
    )
    values: tuple[Any, ...] = (1, True, [], {})
    for value in values:
        body = dict.fromkeys(texts, value) | {
            "id": value,
            "initiator_id": value,
            "initiator": "x",
            "metadata": "x",
            "started_at": value,
            "ended_at": value,
            "token_usages": {},
            "user_prompts": "x",
            "tool_usages": None,
            "model_thoughts": 0,
            "surprise": value,
        }
        assert_invalid(
            await recorder.record(body),
            dict.fromkeys(texts, "must be a string")
            | dict.fromkeys(("id", "initiator_id"), UUID_WANTED)
            | dict.fromkeys(("started_at", "ended_at"), INSTANT_WANTED)
            | dict.fromkeys(("initiator", "metadata"), "must be an object")
            | dict.fromkeys(("token_usages", "user_prompts", "model_thoughts"), "must be an array")
            | {"tool_usages": "must not be null", "surprise": "is not a known member"},
        )
    assert count(sql, "interceptions") == 0


async def test_what_is_required_and_what_may_be_null(recorder: Recorder) -> None:
    assert_invalid(
        await recorder.record({}),
        {
            "initiator_id": "is required, unless initiator with its id is given",
            "provider": "is required",
            "model": "is required",
            "started_at": "is required",
        },
    )
    nullable = {"client", "api_key_id", "client_session_id", "correlating_tool_call_id", "ended_at"}
    nulls = dict.fromkeys([*whole(), "client_session_id", "correlating_tool_call_id", "initiator"])
    assert_invalid(await recorder.record(nulls), dict.fromkeys(nulls.keys() - nullable, "must not be null"))
    assert_invalid(
        await recorder.record(without(running(), "initiator_id") | {"initiator": {}}),
        {"initiator.id": "is required", "initiator.username": "is required"},
    )
    required = {
        "token_usages": ("provider_response_id", "input_tokens", "output_tokens", "created_at"),
        "user_prompts": ("provider_response_id", "prompt", "created_at"),
        "tool_usages": ("provider_response_id", "tool", "created_at"),
        "model_thoughts": ("content", "created_at"),
    }
    body = running()
    for kind, names in required.items():
        assert_invalid(await recorder.add(body["id"], kind, {}), dict.fromkeys(names, "is required"))
        assert_invalid(
            await recorder.add(body["id"], kind, [CHILDREN[kind](), {}]),
            {f"1.{name}": "is required" for name in names},
        )
        assert_invalid(
            await recorder.record(body | {kind: [CHILDREN[kind](), {}]}),
            {f"{kind}.1.{name}": "is required" for name in names},
        )
    assert_invalid(await recorder.end(body["id"]), {"ended_at": "is required"})


async def test_every_wrong_member_of_a_child_is_told(recorder: Recorder) -> None:
    kinds: dict[str, dict[str, str]] = {
        "token_usages": dict.fromkeys(
            ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"), TOKENS_WANTED
        )
        | {"provider_response_id": "must be a string", "id": UUID_WANTED},
        "user_prompts": {"provider_response_id": "must be a string", "prompt": "must be a string", "id": UUID_WANTED},
        "tool_usages": dict.fromkeys(
            ("provider_response_id", "provider_tool_call_id", "server_url", "tool", "input", "invocation_error"),
            "must be a string",
        )
        | {"injected": "must be true or false", "id": UUID_WANTED},
        "model_thoughts": {"content": "must be a string", "id": "is not a known member"},
    }
    for kind, wrong in kinds.items():
        wrong |= {
            "interception_id": UUID_WANTED,
            "metadata": "must be an object",
            "created_at": INSTANT_WANTED,
            "surprise": "is not a known member",
        }
        values: tuple[Any, ...] = (1.5, [], "metadata")
        for value in values:
            expected = {
                name: f'{detail}: cannot parse "{value}" as "2006"'
                if detail == INSTANT_WANTED and value == "metadata"
                else detail
                for name, detail in wrong.items()
                if not (value == "metadata" and detail == "must be a string")
            }
            child = CHILDREN[kind](**dict.fromkeys(wrong, value))
            assert_invalid(await recorder.add(str(uuid4()), kind, child), expected)
            assert_invalid(
                await recorder.record(running(**{kind: [CHILDREN[kind](), child]})),
                {f"{kind}.1.{name}": detail for name, detail in expected.items()},
            )


async def test_bodies_that_are_no_objects(recorder: Recorder, client: Client, owner: Person) -> None:
    some = str(uuid4())
    for body in (b"[]", b"null", b'"x"', b"1", b"[{}]"):
        assert_invalid(await recorder.record(body), {"body": "must be an object"})
        assert_invalid(await recorder.post(f"/{some}/end", body), {"body": "must be an object"})
    for body in (b"null", b'"x"', b"1"):
        assert_invalid(await recorder.add(some, "user_prompts", body), {"body": "must be an object"})
    assert_invalid(
        await recorder.add(some, "user_prompts", [None, user_prompt(), []]),
        {"0": "must be an object", "2": "must be an object"},
    )
    strange: list[Any] = [None, 1, {"interception_id": some} | without(user_prompt(), "created_at")]
    assert_invalid(
        await recorder.record(running(user_prompts=strange)),
        {
            "user_prompts.0": "must not be null",
            "user_prompts.1": "must be an object",
            "user_prompts.2.created_at": "is required",
            "user_prompts.2.interception_id": "must be the id of the interception that holds it",
        },
    )


async def test_the_all_zero_uuid_identifies_nothing(recorder: Recorder) -> None:
    zero = "must not be the all-zero UUID"
    assert_invalid(
        await recorder.record(running(id=ZERO, initiator_id=ZERO, user_prompts=[user_prompt(id=ZERO)])),
        {"id": zero, "initiator_id": zero, "user_prompts.0.id": zero},
    )
    assert_invalid(
        await recorder.record(without(running(), "initiator_id") | {"initiator": {"id": ZERO, "username": "zero"}}),
        {"initiator.id": zero},
    )
    assert_invalid(await recorder.add(str(uuid4()), "tool_usages", tool_usage(id=ZERO)), {"id": zero})


async def test_uuids_have_one_form(recorder: Recorder) -> None:
    some = uuid4()
    for bad in (
        some.hex,
        f"{{{some}}}",
        f"urn:uuid:{some}",
        f" {some}",
        f"{some}\n",
        str(some)[:-1],
        "",
        "\u0660" * 36,
    ):
        assert_invalid(await recorder.record(running(id=bad)), {"id": UUID_WANTED})


async def test_a_child_names_no_other_interception(recorder: Recorder) -> None:
    body = running()
    await recorder.record(body)
    stranger = str(uuid4())
    for kind in CHILDREN:
        assert_invalid(
            await recorder.add(body["id"], kind, CHILDREN[kind](interception_id=stranger)),
            {"interception_id": "must be the id of the interception in the path"},
        )
        children = [CHILDREN[kind](interception_id=body["id"]), CHILDREN[kind](interception_id=stranger)]
        assert_invalid(
            await recorder.add(body["id"], kind, children),
            {"1.interception_id": "must be the id of the interception in the path"},
        )
        for whose in (body, without(body, "id")):
            wrong = [1] if "id" in whose else [0, 1]  # who has no id is nobody's parent
            assert_invalid(
                await recorder.record(whose | {kind: children}),
                {f"{kind}.{at}.interception_id": "must be the id of the interception that holds it" for at in wrong},
            )
    assert_invalid(  # told once
        await recorder.record(body | {"id": "x", "user_prompts": [user_prompt(interception_id=stranger)]}),
        {"id": UUID_WANTED},
    )


async def test_the_two_forms_of_the_initiator_agree(recorder: Recorder) -> None:
    initiator = {"id": str(uuid4()), "username": "ann"}
    assert_invalid(
        await recorder.record(running(initiator=initiator)),
        {"initiator.id": "must equal initiator_id where both are given"},
    )
    assert_invalid(
        await recorder.record(running(initiator=initiator | {"roles": ["owner"]}, initiator_id=initiator["id"])),
        {"initiator.roles": "is not a known member"},
    )
    # One that is wrong is not missing as well.
    assert_invalid(
        await recorder.record(without(running(), "initiator_id") | {"initiator": 5}), {"initiator": "must be an object"}
    )
    same = running(initiator=initiator, initiator_id=initiator["id"].upper())
    assert (await recorder.record(same)).status == 201


async def test_lengths(recorder: Recorder) -> None:
    assert_invalid(
        await recorder.record(running(client="c" * 65, client_session_id="s" * 257)),
        {
            "client": "must have at most 64 characters",
            "client_session_id": "must have at most 256 characters",
        },
    )
    # Characters, not bytes, and not UTF-16 units.
    fits = running(client="\U0001f600" * 64, client_session_id="é" * 256)
    assert (await recorder.record(fits)).body["client"] == fits["client"]


async def test_names_that_an_index_holds(recorder: Recorder) -> None:
    """Longer ones PostgreSQL would refuse: an entry of an index is bounded, and what does not compress fills it."""
    noise = random.Random(5)
    fits, too_long = ("".join(chr(noise.randrange(0x10000, 0x10FFFF)) for _ in range(length)) for length in (512, 513))
    call = tool_usage(provider_tool_call_id=fits)
    who = {"id": str(uuid4()), "username": fits}
    body = without(running(model=fits, initiator=who, tool_usages=[call]), "initiator_id")
    assert (await recorder.record(body)).status == 201
    call["provider_tool_call_id"] = too_long
    assert_invalid(
        await recorder.record(
            running(
                model=too_long,
                initiator=who | {"username": too_long},
                initiator_id=who["id"],
                correlating_tool_call_id=too_long,
                tool_usages=[call],
            )
        ),
        dict.fromkeys(
            ["model", "initiator.username", "correlating_tool_call_id", "tool_usages.0.provider_tool_call_id"],
            "must have at most 512 characters",
        ),
    )


async def test_tokens_are_integers_that_fit(recorder: Recorder) -> None:
    body = running()
    await recorder.record(body)
    for bad in (
        "-1",
        "9223372036854775808",
        "1" + "0" * 5000,
        "1.5",
        "1.0",
        "1e2",
        "true",
        '"1"',
        "null",
        "[]",
        "-0.0",
    ):
        child = simplejson.dumps(without(token_usage(), "input_tokens"))[:-1] + f', "input_tokens": {bad}}}'
        answer = await recorder.add(body["id"], "token_usages", child.encode())
        assert_invalid(answer, {"input_tokens": "must not be null" if bad == "null" else TOKENS_WANTED})
    most = token_usage(input_tokens=2**63 - 1, output_tokens=0)
    assert (await recorder.add(body["id"], "token_usages", most)).status == 201


async def test_instants_have_one_form(recorder: Recorder) -> None:
    for bad, why in {
        "": 'cannot parse "" as "2006"',
        "2026-03-01": 'cannot parse "" as "T"',
        "2026-03-01T10:00:00": 'cannot parse "" as "Z07:00"',
        "2026-03-01 10:00:00Z": 'cannot parse " 10:00:00Z" as "T"',
        "2026-02-29T10:00:00Z": "day out of range",
        "2026-03-01T10:00:60Z": "second out of range",
        "0000-01-01T00:00:00Z": "year out of range",
        "0001-01-01T00:00:00+00:01": "year out of range",
        "2026-03-01T10:00:00Z\n": 'extra text: "\n"',
        "\ud800": 'cannot parse "?" as "2006"',
    }.items():
        assert_invalid(await recorder.record(running(started_at=bad)), {"started_at": f"{INSTANT_WANTED}: {why}"})
        assert_invalid(await recorder.end(str(uuid4()), ended_at=bad), {"ended_at": f"{INSTANT_WANTED}: {why}"})


async def test_the_end_is_not_before_the_start(recorder: Recorder) -> None:
    body = running(started_at="2026-03-01T10:00:00.000001Z", ended_at="2026-03-01T10:00:00.0000009Z")
    assert_invalid(await recorder.record(body), {"ended_at": "must not be before started_at"})


async def test_text_that_postgresql_cannot_hold(recorder: Recorder, sql: Sql) -> None:
    body = running()
    for text, why in {
        "a\0b": "must not contain U+0000",
        "a\ud800b": "must not contain unpaired surrogates",
        "\udc00": "must not contain unpaired surrogates",
        "\ude00\ud83d": "must not contain unpaired surrogates",
    }.items():
        texts = (
            "provider",
            "provider_name",
            "model",
            "client",
            "api_key_id",
            "client_session_id",
            "correlating_tool_call_id",
        )
        assert_invalid(await recorder.record(body | dict.fromkeys(texts, text)), dict.fromkeys(texts, why))
        holders: list[dict[str, Any]] = [{text: 1}, {"a": text}, {"a": [{"b": {text: []}}]}, {"a": [[text]]}]
        for metadata in holders:
            assert_invalid(await recorder.record(body | {"metadata": metadata}), {"metadata": why})
            assert_invalid(
                await recorder.record(body | {"token_usages": [token_usage(metadata=metadata)]}),
                {"token_usages.0.metadata": why},
            )
            assert_invalid(
                await recorder.end(body["id"], ended_at=body["started_at"], metadata=metadata), {"metadata": why}
            )
        children = {
            "user_prompts": user_prompt(prompt=text),
            "tool_usages": tool_usage(input=text),
            "model_thoughts": thought(content=text),
        }
        for kind, member in {"user_prompts": "prompt", "tool_usages": "input", "model_thoughts": "content"}.items():
            assert_invalid(await recorder.add(body["id"], kind, children[kind]), {member: why})
        initiator = {"id": str(uuid4()), "username": text, "name": text, "avatar_url": text}
        assert_invalid(
            await recorder.record(without(body, "initiator_id") | {"initiator": initiator}),
            {f"initiator.{name}": why for name in ("username", "name", "avatar_url")},
        )
    # The name of an unknown member is told as far as it can be.
    answer = await recorder.record(body | {"\ud800": 1, "\0": 1, "x" * 10_000: 1})
    assert_invalid(answer, dict.fromkeys(("?", "\0", "x" * 199 + "…"), "is not a known member"))
    assert count(sql, "interceptions") == 0


async def test_numbers_that_postgresql_or_readers_cannot_hold(recorder: Recorder) -> None:
    envelope = simplejson.dumps(running())[:-1]
    for number in ("1e400", "-1e400", "1" + "0" * 400, "1" + "0" * 10_000, "1e-400", "1e99999999999999999999"):
        for metadata in (f'{{"a": {number}}}', f'{{"a": [{{"b": [{number}]}}]}}'):
            answer = await recorder.record(f'{envelope}, "metadata": {metadata}}}'.encode())
            assert_invalid(answer, {"metadata": BEYOND_DOUBLE})
    for number in ("NaN", "Infinity", "-Infinity", "+1", "01", ".5", "1.", "0x1", "1_000"):
        answer = await recorder.record(f'{envelope}, "metadata": {{"a": {number}}}}}'.encode())
        assert answer.status == 400
        assert answer.body["message"] == "Request body must be valid JSON."
        assert answer.body["detail"]


async def test_nesting(recorder: Recorder) -> None:
    body = running()

    def deep(levels: int, opening: str = '{"a":', closing: str = "}", bottom: str = "{}") -> str:
        return opening * (levels - 1) + bottom + closing * (levels - 1)

    for metadata in (
        deep(65),
        deep(65, "[", "]", "[]").join(('{"a":', "}")),
        deep(100_000),
        '{"a":' + deep(100_000, "[", "]", "[]") + "}",
    ):
        envelope = simplejson.dumps(body)[:-1]
        assert_invalid(await recorder.record(f'{envelope}, "metadata": {metadata}}}'.encode()), {"metadata": TOO_DEEP})
        end = f'{{"ended_at": "2026-03-01T10:00:00Z", "metadata": {metadata}}}'
        assert_invalid(await recorder.post(f"/{body['id']}/end", end.encode()), {"metadata": TOO_DEEP})
        child = simplejson.dumps(user_prompt())[:-1] + f', "metadata": {metadata}}}'
        assert_invalid(await recorder.add(body["id"], "user_prompts", child.encode()), {"metadata": TOO_DEEP})
        assert_invalid(await recorder.add(body["id"], "user_prompts", f"[{child}]".encode()), {"0.metadata": TOO_DEEP})
    assert (await recorder.record(b"[" * 100_000)).status == 400
    assert (await recorder.record(b"[" * 100_000 + b"]" * 100_000)).status == 400


async def test_text_that_is_not_json(recorder: Recorder) -> None:
    whole_body = simplejson.dumps(running()).encode()
    for bad in (
        b"",
        b" ",
        b"{",
        b"{'a': 1}",
        b"{}{}",
        whole_body + b",",
        whole_body[:-1] + b",}",
        b'{"a": "\xff"}',
        b'{"a": "\xc3\x28"}',
        b'{"a": "\xed\xa0\x80"}',
        whole_body.decode().encode("utf-16"),
        b"\xef\xbb\xbf",
        b'{"a": "\n"}',
    ):
        for path in ("", f"/{uuid4()}/end", f"/{uuid4()}/tool-usages"):
            answer = await recorder.post(path, bad)
            assert (answer.status, answer.body["message"]) == (400, "Request body must be valid JSON."), bad
    assert (await recorder.record(b"\xef\xbb\xbf" + whole_body)).status == 201


async def test_bodies_that_are_too_large(make_client: MakeClient, owner: Person) -> None:
    recorder = Recorder(await make_client(max_body=10_000), owner)
    body = running(metadata={"a": ""})
    room = 10_000 - len(simplejson.dumps(body))
    fits = simplejson.dumps(body | {"metadata": {"a": "x" * room}}).encode()
    assert (await recorder.record(fits)).status == 201
    gzipped = {"Content-Encoding": "gzip"}
    assert (await recorder.post("", gzip.compress(fits), **gzipped)).status == 200
    for answer in (
        await recorder.record(fits + b" "),
        await recorder.post("", gzip.compress(fits + b" "), **gzipped),
        await recorder.post(f"/{body['id']}/token-usages", fits + b" "),
        await recorder.post(f"/{body['id']}/end", fits + b" "),
    ):
        assert answer.status == 413
        assert answer.body["message"] == "Request body is too large."
        assert "10000" in answer.body["detail"]

    async def endless() -> Any:
        while True:
            yield b" " * 1000

    response = await recorder.client.post(f"{API}/interceptions", data=endless(), headers=owner.headers)
    assert response.status == 413


async def test_the_largest_body_and_a_bomb(recorder: Recorder) -> None:
    most = 16 * 1024 * 1024
    prompt = user_prompt(prompt="")
    body = running(user_prompts=[prompt])
    prompt["prompt"] = "x" * (most - len(simplejson.dumps(body)))
    fits = simplejson.dumps(body).encode()
    assert len(fits) == most
    assert (await recorder.record(fits)).status == 201
    assert (await recorder.record(fits + b" ")).status == 413
    bomb = gzip.compress(bytes(512 * 1024 * 1024), compresslevel=1)
    started = time.monotonic()
    assert (await recorder.post("", bomb, **{"Content-Encoding": "gzip"})).status == 413
    assert time.monotonic() - started < 30  # a generous bound: unpacking all of it would be no answer


async def test_encodings(recorder: Recorder) -> None:
    body = simplejson.dumps(running()).encode()
    for encoding, packed, status in (
        ("gzip", gzip.compress(body), 201),
        ("gzip", gzip.compress(body[:50]) + gzip.compress(body[50:]), 200),  # two members, as `cat a.gz b.gz` makes
        ("deflate", zlib.compress(body), 200),
        ("identity", body, 200),
        ("gzip", body, 400),
        ("gzip", gzip.compress(body)[: len(body) // 2], 400),
        ("gzip", gzip.compress(body)[:-20] + b"x" * 20, 400),
        ("deflate", b"\xff" * 100, 400),
    ):
        answer = await recorder.post("", packed, **{"Content-Encoding": encoding})
        assert answer.status == status, (encoding, answer.body)
        if answer.body.get("message") == errors.MalformedRequest().message:
            assert answer.headers["Connection"] == "close"  # where the next request begins is anyone's guess


async def test_other_requests_are_served_while_a_large_body_is_checked(recorder: Recorder, client: Client) -> None:
    usages = [without(token_usage(), "id") for _ in range(9_999)]
    body = simplejson.dumps(running(token_usages=[*usages, {}])).encode()
    post = asyncio.create_task(recorder.record(body))
    served = 0
    while not post.done():
        assert (await client.get("/healthz")).status == 200
        served += not post.done()
        await asyncio.sleep(0.01)
    assert_invalid(
        await post,
        {
            f"token_usages.9999.{name}": "is required"
            for name in ("provider_response_id", "input_tokens", "output_tokens", "created_at")
        },
    )
    assert served > 3  # on one thread it would be one: the request that was there first


async def test_what_is_wrong_a_thousand_times_is_told_a_hundred_times(recorder: Recorder) -> None:
    body = running()
    await recorder.record(body)
    answer = await recorder.add(body["id"], "token_usages", [{}] * 1000)
    assert (answer.status, len(answer.body["validations"])) == (400, 100)
    answer = await recorder.record(running(**{f"unknown{number}": 1 for number in range(1000)}))
    assert (answer.status, len(answer.body["validations"])) == (400, 100)


async def test_arrays_have_a_bound(recorder: Recorder) -> None:
    body = running()
    await recorder.record(body)
    assert_invalid(
        await recorder.add(body["id"], "token_usages", [{}] * 10_001), {"body": "must have at most 10,000 elements"}
    )
    assert_invalid(
        await recorder.record(running(user_prompts=[{}] * 10_001)),
        {"user_prompts": "must have at most 10,000 elements"},
    )
