"""Recording over HTTP: what is answered, what is stored, and that sending it again changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest
import simplejson
from conftest import Client, MakeClient, Person
from recorder import (
    CHILD_CALLS,
    CHILDREN,
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

# What a jsonb column, the driver and two JSON libraries must all leave as it is.
HOSTILE = simplejson.loads(
    """{"": {"": []}, "int": 123456789012345678901234567890123456789012345678901234567890, "negative": -0.0,
    "large": 1e300, "small": 4.9e-324, "digits": 0.1234567890123456789012345678901234567890123456789, "one": 1.0,
    "text": "\\u2028 \\ud83d\\ude00 \\\\u0000 \\" \\\\ / \\b\\f\\n\\r\\t \\u0001 \\u007f \\ufffe",
    "ключ \\u00e9 e\\u0301": "ß", "null": null, "booleans": [true, false], "empty": [[], {}, ""],
    "__proto__": 1, "constructor": {"a.b": [1, "1"]}}""",
    use_decimal=True,
)


def nested(levels: int) -> dict[str, Any]:
    """An object of so many levels."""
    value: dict[str, Any] = {"bottom": [1]} if levels > 1 else {}
    for _ in range(levels - 2):
        value = {"a": value}
    return value


@pytest.fixture
def recorder(client: Client, owner: Person) -> Recorder:
    return Recorder(client, owner)


@pytest.fixture
async def started(recorder: Recorder) -> dict[str, Any]:
    body = running()
    assert (await recorder.record(body)).status == 201
    return body


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_a_running_interception_is_answered_as_the_list_would_show_it(recorder: Recorder) -> None:
    body = running()
    answer = await recorder.record(body)
    assert answer.status == 201
    assert answer.body == {
        "id": body["id"],
        "initiator_id": body["initiator_id"],
        "initiator": {"id": body["initiator_id"], "username": "", "name": "", "avatar_url": ""},
        "api_key_id": None,
        "provider": "anthropic",
        "provider_name": "",
        "model": "claude-sonnet-4-5",
        "client": None,
        "metadata": {},
        "started_at": "2026-03-01T10:00:00Z",
        "ended_at": None,
        "token_usages": [],
        "tool_usages": [],
        "user_prompts": [],
    }
    assert answer.headers["Cache-Control"] == "no-store"
    assert await recorder.listed() == []  # only what has ended is listed


async def test_a_finished_interception_is_answered_exactly_as_it_is_listed(recorder: Recorder) -> None:
    answer = await recorder.record(whole())
    assert answer.status == 201
    assert await recorder.listed() == [answer.body]
    assert answer.body["token_usages"][0]["cache_read_input_tokens"] == 0
    assert (
        answer.body["tool_usages"][0] | {"server_url": "", "invocation_error": "", "injected": False}
        == answer.body["tool_usages"][0]
    )


async def test_locations_hold_behind_every_prefix(client: Client, owner: Person) -> None:
    prefix = "/api/v2/api/experimental/aibridge"
    body = running()
    response = await client.post(f"{prefix}/interceptions", json=body, headers=owner.headers)
    assert response.status == 201
    assert response.url.join(type(response.url)(response.headers["Location"])).path == (
        f"{prefix}/interceptions/{body['id']}"
    )
    response = await client.post(
        f"{prefix}/interceptions/{body['id']}/end", json={"ended_at": body["started_at"]}, headers=owner.headers
    )
    assert response.status == 200
    assert response.url.join(type(response.url)(response.headers["Location"])).path == (
        f"{prefix}/interceptions/{body['id']}"
    )


async def test_an_id_is_made_where_none_is_sent_and_each_time_another(recorder: Recorder) -> None:
    body = without(running(), "id")
    first, second = await recorder.record(body), await recorder.record(body)
    assert (first.status, second.status) == (201, 201)
    assert UUID(first.body["id"]) != UUID(second.body["id"])


async def test_upper_case_ids_are_answered_in_lower_case(recorder: Recorder) -> None:
    body = whole()
    shouted = body | {
        "id": body["id"].upper(),
        "initiator_id": body["initiator_id"].upper(),
        "token_usages": [body["token_usages"][0] | {"interception_id": body["id"].upper()}],
    }
    answer = await recorder.record(shouted)
    assert answer.status == 201
    assert (answer.body["id"], answer.body["initiator_id"]) == (body["id"], body["initiator_id"])
    assert (await recorder.record(body)).status == 200
    added = await recorder.add(body["id"].upper(), "user_prompts", user_prompt(interception_id=body["id"]))
    assert added.status == 201
    assert added.body["ids"] == [added.body["ids"][0].lower()]


async def test_children_are_answered_by_their_ids_in_the_order_sent(
    recorder: Recorder, started: dict[str, Any]
) -> None:
    for kind in CHILDREN:
        await children_of_a_kind_are_answered(recorder, started, kind)


async def children_of_a_kind_are_answered(recorder: Recorder, started: dict[str, Any], kind: str) -> None:
    first, second = CHILDREN[kind](), CHILDREN[kind](created_at="2026-03-01T09:00:00Z")
    ids = [child["id"] for child in (first, second) if "id" in child]
    answer = await recorder.add(started["id"], kind, [first, second])
    assert (answer.status, answer.body) == (201, {"ids": ids})
    again = await recorder.add(started["id"], kind, [second, first])
    assert (again.status, again.body) == (200, {"ids": ids[::-1]})
    both = await recorder.add(started["id"], kind, [first, CHILDREN[kind](created_at="2026-03-01T11:00:00Z")])
    assert both.status == 201
    one = await recorder.add(started["id"], kind, first)
    assert (one.status, one.body) == (200, {"ids": ids[:1]})


async def test_an_empty_array_of_children_is_nothing_new(recorder: Recorder, started: dict[str, Any]) -> None:
    answer = await recorder.add(started["id"], "user_prompts", [])
    assert (answer.status, answer.body) == (200, {"ids": []})
    assert (await recorder.add(str(uuid4()), "user_prompts", [])).status == 404


async def test_children_of_an_unknown_interception_are_refused(recorder: Recorder) -> None:
    for kind in CHILDREN:
        answer = await recorder.add(str(uuid4()), kind, CHILDREN[kind]())
        assert (answer.status, answer.body) == (404, {"message": "Interception not found."})
        answer = await recorder.add(str(UUID(int=0)), kind, [CHILDREN[kind]()])
        assert answer.status == 404


async def test_an_unknown_interception_does_not_end(recorder: Recorder) -> None:
    answer = await recorder.end(str(uuid4()), ended_at="2026-03-01T10:00:00Z")
    assert (answer.status, answer.body) == (404, {"message": "Interception not found."})


async def test_a_malformed_id_in_the_path_is_no_path(recorder: Recorder) -> None:
    for bad in ("1", "00000000-0000-0000-0000-00000000000g", "import", UUID(int=1).hex, f"%7B{UUID(int=1)}%7D"):
        assert (await recorder.end(bad, ended_at="2026-03-01T10:00:00Z")).status == 404
        assert (await recorder.add(bad, "user_prompts", user_prompt())).status == 404


# -- who may ---------------------------------------------------------------------------------------------------------


async def test_owners_and_recorders_record(client: Client, add_person: Callable[..., Any]) -> None:
    for role, status in {"owner": 201, "recorder": 201, "auditor": 403, "member": 403}.items():
        recorder = Recorder(client, await add_person(f"some-{role}", *([] if role == "member" else [role])))
        assert (await recorder.record(running())).status == status


async def test_others_are_refused_before_the_body_is_read(client: Client, member: Person) -> None:
    recorder = Recorder(client, member)
    some = str(uuid4())
    for path in ("", "/import", f"/{some}/end", f"/{some}/token-usages", f"/{some}/model-thoughts"):
        answer = await recorder.post(path, b"{", **{"Content-Encoding": "gzip"})
        assert answer.status == 403, path
        assert answer.body["message"] == "Only users with the 'owner' or 'recorder' role can record."


async def test_a_recorder_gets_the_interception_answered_that_it_cannot_list(
    client: Client, add_person: Callable[..., Any]
) -> None:
    recorder = Recorder(client, await add_person("gateway", "recorder"))
    body = whole()
    assert (await recorder.record(body)).body["id"] == body["id"]
    assert await recorder.listed() == []


# -- the same again --------------------------------------------------------------------------------------------------


async def test_the_same_again_changes_nothing(recorder: Recorder, sql: Sql) -> None:
    body = whole()
    first = await recorder.record(body)
    before = sql("SELECT xmin, * FROM aibridge_interceptions"), sql("SELECT xmin, * FROM aibridge_tool_usages")
    again = await recorder.record(body)
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["Location"] == first.headers["Location"]
    assert before == (
        sql("SELECT xmin, * FROM aibridge_interceptions"),
        sql("SELECT xmin, * FROM aibridge_tool_usages"),
    )


CHANGED = {
    "initiator_id": str(UUID(int=5)),
    "api_key_id": "other",
    "provider": "openai",
    "provider_name": "other",
    "model": "gpt-5",
    "client": None,
    "metadata": {"a": 2},
    "started_at": "2026-03-01T10:00:00.000001Z",
    "ended_at": "2026-03-01T10:00:05.250001Z",
    "client_session_id": "other",
}


async def test_other_content_under_the_same_id_is_a_conflict_on_that_member(recorder: Recorder) -> None:
    body = whole(client_session_id="session")
    stored = (await recorder.record(body)).body
    for member, value in CHANGED.items():
        answer = await recorder.record(body | {member: value})
        assert answer.status == 409
        assert answer.body["message"] == "The record conflicts with one that is already stored."
        assert list(answer.wrong) == [member]
    assert await recorder.listed() == [stored]


CHANGED_IN_CHILDREN = [
    ("token_usages", "provider_response_id", "msg_2"),
    ("token_usages", "input_tokens", 8),
    ("token_usages", "output_tokens", 8),
    ("token_usages", "cache_read_input_tokens", 8),
    ("token_usages", "cache_write_input_tokens", 2**63 - 1),
    ("token_usages", "metadata", {"b": None}),
    ("token_usages", "created_at", "2026-03-01T10:00:01.000001Z"),
    ("user_prompts", "provider_response_id", "msg_2"),
    ("user_prompts", "prompt", "why is the sky blue?"),
    ("user_prompts", "metadata", {"b": []}),
    ("user_prompts", "created_at", "2026-03-01T10:00:02.000001Z"),
    ("tool_usages", "provider_response_id", ""),
    ("tool_usages", "provider_tool_call_id", "toolu_2"),
    ("tool_usages", "server_url", "https://mcp.example.com"),
    ("tool_usages", "tool", "Read_file"),
    ("tool_usages", "input", ""),
    ("tool_usages", "injected", True),
    ("tool_usages", "invocation_error", "no such file"),
    ("tool_usages", "metadata", {"b": {}}),
    ("tool_usages", "created_at", "2026-03-01T10:00:03.000001Z"),
]


async def test_a_child_with_other_content_is_a_conflict_wherever_it_comes(recorder: Recorder) -> None:
    body = whole()
    stored = (await recorder.record(body)).body
    for kind, member, value in CHANGED_IN_CHILDREN:
        fresh, changed = CHILDREN[kind](), body[kind][0] | {member: value}
        as_body = await recorder.record(body | {kind: [fresh, changed]})
        as_array = await recorder.add(body["id"], kind, [fresh, changed])
        alone = await recorder.add(body["id"], kind, changed)
        assert (as_body.status, list(as_body.wrong)) == (409, [f"{kind}.1.{member}"])
        assert (as_array.status, list(as_array.wrong)) == (409, [f"1.{member}"])
        assert (alone.status, list(alone.wrong)) == (409, [member])
    assert await recorder.listed() == [stored]  # nor was the fresh one beside it


async def test_every_difference_is_named_in_one_answer(recorder: Recorder) -> None:
    body = whole()
    await recorder.record(body)
    answer = await recorder.record(
        body
        | {
            "model": "m",
            "client": "c",
            "token_usages": [body["token_usages"][0] | {"input_tokens": 0}],
            "user_prompts": [user_prompt(), body["user_prompts"][0] | {"prompt": ""}],
        }
    )
    assert answer.status == 409
    assert sorted(answer.wrong) == ["client", "model", "token_usages.0.input_tokens", "user_prompts.1.prompt"]


async def test_an_id_in_use_under_another_interception_is_a_conflict(recorder: Recorder) -> None:
    first, second = whole(), running()
    await recorder.record(first)
    await recorder.record(second)
    for kind in ("token_usages", "user_prompts", "tool_usages"):
        answer = await recorder.add(second["id"], kind, [first[kind][0]])
        assert (answer.status, list(answer.wrong)) == (409, ["0.interception_id"])
        answer = await recorder.record(second | {kind: first[kind]})
        assert (answer.status, list(answer.wrong)) == (409, [f"{kind}.0.interception_id"])


async def test_two_children_of_one_body_that_share_an_id(recorder: Recorder, started: dict[str, Any]) -> None:
    prompt = user_prompt()
    answer = await recorder.add(started["id"], "user_prompts", [prompt, prompt | {"prompt": "other"}])
    assert (answer.status, list(answer.wrong)) == (409, ["1.prompt"])
    answer = await recorder.add(started["id"], "user_prompts", [prompt, prompt])
    assert (answer.status, answer.body) == (201, {"ids": [prompt["id"], prompt["id"]]})
    stored = await recorder.end(started["id"], ended_at=started["started_at"])
    assert [listed["id"] for listed in stored.body["user_prompts"]] == [prompt["id"]]


async def test_only_the_members_that_the_body_has_are_compared(recorder: Recorder) -> None:
    body = whole(client_session_id="session")
    await recorder.record(body)
    short = {name: body[name] for name in ("id", "initiator_id", "provider", "model", "started_at")}
    assert (await recorder.record(short)).status == 200
    tool = body["tool_usages"][0]
    required = {name: tool[name] for name in ("id", "provider_response_id", "tool", "created_at")}
    assert (await recorder.add(body["id"], "tool_usages", required)).status == 200


async def test_what_is_left_out_and_its_default_are_the_same(recorder: Recorder) -> None:
    body = running()
    await recorder.record(body)
    defaults: dict[str, Any] = {
        "provider_name": "",
        "metadata": {},
        "client": None,
        "api_key_id": None,
        "client_session_id": None,
        "correlating_tool_call_id": None,
        "ended_at": None,
        "token_usages": [],
        "model_thoughts": [],
    }
    assert (await recorder.record(body | defaults)).status == 200
    assert (await recorder.record(body | {"provider_name": "other"})).wrong.keys() == {"provider_name"}
    usage = token_usage()
    await recorder.add(body["id"], "token_usages", usage)
    zeros = {"cache_read_input_tokens": 0, "cache_write_input_tokens": 0, "metadata": {}}
    assert (await recorder.add(body["id"], "token_usages", usage | zeros)).status == 200


async def test_a_tools_empty_text_and_its_missing_one_are_the_same(recorder: Recorder, started: dict[str, Any]) -> None:
    for member in ("server_url", "invocation_error", "provider_tool_call_id"):
        for first in ({}, {member: None}, {member: ""}):
            tool = tool_usage() | first
            assert (await recorder.add(started["id"], "tool_usages", tool)).status == 201
            for again in ({}, {member: None}, {member: ""}):
                assert (await recorder.add(started["id"], "tool_usages", without(tool, member) | again)).status == 200
            assert (await recorder.add(started["id"], "tool_usages", tool | {member: "x"})).status == 409


async def test_metadata_is_compared_as_json_values(recorder: Recorder) -> None:
    body = running(metadata={"n": 1, "list": [1, 2], "o": {"b": 1, "a": 2}, "large": 10**30})
    await recorder.record(body)
    same = b'{"o": {"a": 2e0, "b": 1.000}, "large": 1e30, "list": [1.0, 2], "n": 0, "n": 1}'
    envelope = simplejson.dumps(without(body, "metadata"))[:-1].encode()
    assert (await recorder.record(envelope + b', "metadata": ' + same + b"}")).status == 200
    for other in (b'{"n": true}', b'{"n": "1"}', b'{"n": null}', b"{}", same.replace(b"[1.0, 2]", b"[2, 1]")):
        answer = await recorder.record(envelope + b', "metadata": ' + other + b"}")
        assert (answer.status, list(answer.wrong)) == (409, ["metadata"])


async def test_instants_are_compared_as_instants(recorder: Recorder) -> None:
    body = running(started_at="2026-03-01T12:00:00.123456789+02:00")
    answer = await recorder.record(body)
    assert answer.body["started_at"] == "2026-03-01T10:00:00.123456Z"  # cut, not rounded
    for same in ("2026-03-01t10:00:00.123456z", "2026-03-01T10:00:00.1234560001Z", "2026-03-01T04:30:00.1234569-05:30"):
        assert (await recorder.record(body | {"started_at": same})).status == 200
    assert (await recorder.record(body | {"started_at": "2026-03-01T10:00:00.123457Z"})).status == 409


async def test_instants_of_all_ages_are_kept(recorder: Recorder) -> None:
    body = whole(started_at="0001-01-01T00:00:00Z", ended_at="9999-12-31T23:59:59.999999999Z")
    answer = await recorder.record(body)
    assert (answer.body["started_at"], answer.body["ended_at"]) == (
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
    )
    assert (await recorder.record(body)).status == 200
    assert (await recorder.record(answer.body)).status == 200


async def test_a_repeat_after_the_end_and_after_children_came(recorder: Recorder) -> None:
    body = running(metadata={"a": 1})
    await recorder.record(body)
    await recorder.add(body["id"], "token_usages", token_usage())
    await recorder.end(body["id"], ended_at="2026-03-01T10:00:09Z", metadata={"b": 2})
    await recorder.add(body["id"], "user_prompts", user_prompt())
    answer = await recorder.record(body | {"ended_at": None, "token_usages": []})
    assert (answer.status, answer.body["ended_at"]) == (200, "2026-03-01T10:00:09Z")
    assert len(answer.body["token_usages"]) == len(answer.body["user_prompts"]) == 1


async def test_a_body_that_brings_what_is_lacking_adds_it(recorder: Recorder, sql: Sql) -> None:
    body = whole()
    bare = without(body, "ended_at", *CHILDREN)
    await recorder.record(bare)
    answer = await recorder.record(body)
    assert answer.status == 200
    assert answer.body["ended_at"] == "2026-03-01T10:00:05.25Z"
    assert [len(answer.body[kind]) for kind in ("token_usages", "user_prompts", "tool_usages")] == [1, 1, 1]
    assert count(sql, "model_thoughts") == 1
    assert await recorder.listed() == [answer.body]
    another = user_prompt()
    answer = await recorder.record(bare | {"user_prompts": [another]})
    assert answer.status == 200
    assert {prompt["id"] for prompt in answer.body["user_prompts"]} == {another["id"], body["user_prompts"][0]["id"]}


async def test_nested_records_without_ids_can_be_sent_again(recorder: Recorder, sql: Sql) -> None:
    body = whole()
    for kind in CHILDREN:
        body[kind] = [
            without(CHILDREN[kind](), "id"),
            without(CHILDREN[kind](created_at="2026-03-01T10:00:04.5Z"), "id"),
        ]
    first = await recorder.record(body)
    again = await recorder.record(body)
    assert (first.status, again.status, again.body) == (201, 200, first.body)
    assert {usage["id"] for usage in first.body["token_usages"]} == {
        str(uuid5(UUID(body["id"]), f"token_usages:{position}")) for position in range(2)
    }
    assert len({child["id"] for kind in without(CHILDREN, "model_thoughts") for child in first.body[kind]}) == 6
    assert count(sql, "model_thoughts") == 2
    longer = body | {"user_prompts": [*body["user_prompts"], without(user_prompt(), "id")]}
    answer = await recorder.record(longer)
    assert (answer.status, len(answer.body["user_prompts"])) == (200, 3)


async def test_a_single_child_without_an_id_is_new_each_time(recorder: Recorder, started: dict[str, Any]) -> None:
    prompt = without(user_prompt(), "id")
    answers = [await recorder.add(started["id"], "user_prompts", prompt) for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].body != answers[1].body
    array = await recorder.add(started["id"], "user_prompts", [prompt, prompt])
    assert len(set(array.body["ids"])) == 2


async def test_what_has_no_id_is_recognised_by_the_key_of_its_request(
    recorder: Recorder, add_person: Callable[..., Any], sql: Sql
) -> None:
    body = running()
    del body["id"]
    key = {"Idempotency-Key": "a key, caf\xe9"}
    first = await recorder.post("", body, **key)
    again = await recorder.post("", body, **key)
    assert (first.status, again.status) == (201, 200)
    assert first.body == again.body
    other = Recorder(recorder.client, await add_person("another", "recorder"))
    news = [await recorder.post("", body, **{"Idempotency-Key": "b"}), await other.post("", body, **key)]
    assert [answer.status for answer in news] == [201, 201], "another key, another caller: another record"
    assert len({first.body["id"], *(answer.body["id"] for answer in news)}) == 3
    for kind, make in CHILDREN.items():
        if kind != "model_thoughts":
            path = f"/{first.body['id']}/{CHILD_CALLS[kind]}"
            two = [without(make(), "id"), without(make(), "id")]
            answers = [await recorder.post(path, two, **key) for _ in range(2)]
            assert [answer.status for answer in answers] == [201, 200]
            assert answers[0].body == answers[1].body
            assert count(sql, kind) == 2
            elsewhere = await recorder.post(f"/{news[0].body['id']}/{CHILD_CALLS[kind]}", two, **key)
            assert elsewhere.status == 201, "the same key below another interception is no conflict"
    changed = await recorder.post("", body | {"model": "another"}, **key)
    assert changed.status == 409
    assert set(changed.wrong) == {"model"}


async def test_a_thought_is_the_same_by_interception_instant_and_content(recorder: Recorder, sql: Sql) -> None:
    first, second = running(), running()
    await recorder.record(first)
    await recorder.record(second)
    long = thought(content="\\000 \\\\ é\U0001f600 " * 20_000)
    for body, sent, status in (
        (first, thought(), 201),
        (first, thought(), 200),
        (first, thought(metadata={"other": True}), 200),
        (second, thought(), 201),
        (first, thought(content="rayleigh scattering."), 201),
        (first, thought(created_at="2026-03-01T10:00:04.000001Z"), 201),
        (first, [thought(), long], 201),
        (first, [long, thought()], 200),
    ):
        assert (await recorder.add(body["id"], "model_thoughts", sent)).status == status
    assert count(sql, "model_thoughts") == 5
    assert sql("SELECT content FROM aibridge_model_thoughts ORDER BY length(content) DESC LIMIT 1") == [
        (long["content"],)
    ]


# -- the end ---------------------------------------------------------------------------------------------------------


async def test_the_first_end_wins(recorder: Recorder, started: dict[str, Any]) -> None:
    first = await recorder.end(started["id"], ended_at="2026-03-01T10:00:05.1234567Z")
    assert (first.status, first.body["ended_at"]) == (200, "2026-03-01T10:00:05.123456Z")
    again = await recorder.end(started["id"], ended_at="2026-03-01T11:00:05.123456+01:00")
    assert (again.status, again.body) == (200, first.body)
    for other in ("2026-03-01T10:00:05.123457Z", "2026-03-01T10:00:04Z", "2026-03-01T09:00:00Z"):
        answer = await recorder.end(started["id"], ended_at=other)
        assert (answer.status, answer.wrong) == (
            409,
            {"ended_at": "The interception ended at 2026-03-01T10:00:05.123456Z already."},
        )
    answer = await recorder.record(started | {"ended_at": "2026-03-01T10:00:06Z"})
    assert (answer.status, list(answer.wrong)) == (409, ["ended_at"])
    assert await recorder.listed() == [first.body]


async def test_an_end_before_the_start_is_refused(recorder: Recorder, started: dict[str, Any]) -> None:
    answer = await recorder.end(started["id"], ended_at="2026-03-01T09:59:59.999999Z")
    assert (answer.status, answer.wrong) == (400, {"ended_at": "must not be before started_at"})
    assert (await recorder.end(started["id"], ended_at="2026-03-01T10:00:00Z")).status == 200  # at once is allowed


async def test_metadata_of_the_end_is_merged_and_the_start_is_still_a_repeat(recorder: Recorder) -> None:
    body = running(metadata={"a": 1, "both": {"old": 1}})
    await recorder.record(body)
    end = {"ended_at": "2026-03-01T10:00:05Z", "metadata": {"b": 2, "both": {"new": 1}}}
    merged = {"a": 1, "b": 2, "both": {"new": 1}}
    answer = await recorder.end(body["id"], **end)
    assert answer.body["metadata"] == merged
    assert (await recorder.end(body["id"], **end)).body == answer.body
    assert (await recorder.record(body)).status == 200
    assert (await recorder.record(body | {"ended_at": end["ended_at"]})).status == 200
    assert (await recorder.record(answer.body)).status == 200
    other = await recorder.record(body | {"metadata": {"a": 1}})
    assert (other.status, list(other.wrong)) == (409, ["metadata"])
    late = await recorder.end(body["id"], ended_at=end["ended_at"], metadata={"c": 3})
    assert (late.status, list(late.wrong)) == (409, ["metadata"])
    assert (await recorder.end(body["id"], ended_at=end["ended_at"])).status == 200


async def test_children_may_come_after_the_end_and_from_any_time(recorder: Recorder) -> None:
    body = whole(**{kind: [] for kind in CHILDREN})
    await recorder.record(body)
    for created_at in ("1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"):
        for kind in CHILDREN:
            assert (await recorder.add(body["id"], kind, CHILDREN[kind](created_at=created_at))).status == 201
    [listed] = await recorder.listed()
    assert [usage["created_at"] for usage in listed["token_usages"]] == ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"]


async def test_the_future_is_accepted(recorder: Recorder) -> None:
    body = whole(started_at="2999-01-01T00:00:00Z", ended_at="2999-01-01T00:00:01Z")
    assert (await recorder.record(body)).status == 201


# -- there and back --------------------------------------------------------------------------------------------------


def hostile() -> list[dict[str, Any]]:
    """Interceptions whose content is hard to keep."""
    bodies = [
        whole(metadata=HOSTILE),
        whole(metadata=nested(64)),
        whole(client="", api_key_id="", provider="", model="", provider_name=""),
        whole(client="é" * 64, model="'; DROP TABLE users --", api_key_id=None),
        whole(started_at="2026-03-01T10:00:00.000001Z", ended_at="2026-03-01T10:00:00.000001Z"),
        whole(initiator={"id": str(uuid4()), "username": "Zoë", "name": " ", "avatar_url": "javascript:"}),
    ]
    del bodies[-1]["initiator_id"]
    for body in bodies:
        body["token_usages"] = [token_usage(metadata=HOSTILE, input_tokens=2**63 - 1, cache_read_input_tokens=1)]
        body["user_prompts"] = [user_prompt(prompt=text) for text in ("", "\u2028\x01\U0001f600\\u0000", "x" * 100_000)]
        body["tool_usages"] = [
            tool_usage(input="", injected=True, server_url="s", invocation_error="e", metadata=nested(64))
        ]
    return bodies


async def test_what_is_recorded_reads_back_equal_and_what_is_read_can_be_recorded(
    recorder: Recorder, make_client: MakeClient, sql: Sql
) -> None:
    for body in hostile():
        answer = await recorder.record(body)
        assert answer.status == 201, answer.body
        for member in without(body, "initiator", "initiator_id", *CHILDREN):
            assert answer.body[member] == body[member]
        for kind in ("token_usages", "user_prompts", "tool_usages"):
            by_id = {child["id"]: child for child in answer.body[kind]}
            for child in body[kind]:
                assert by_id[child["id"]] | child == by_id[child["id"]]
    listed = await recorder.listed()
    assert len(listed) == 6
    for shown in listed:
        again = await recorder.record(shown)
        assert (again.status, again.body) == (200, shown)
    # An empty database, its users apart, takes the list as it is.
    sql("TRUNCATE aibridge_interceptions CASCADE")
    sql("DELETE FROM users WHERE username = 'Zoë'")
    assert await recorder.listed() == []
    report = await recorder.send(listed)
    assert report.body == {"imported": 6, "unchanged": 0, "rejected_total": 0, "rejected": []}
    assert await recorder.listed() == listed


async def test_recordings_are_counted(recorder: Recorder, client: Client) -> None:
    body = running()
    await recorder.record(body)
    await recorder.record(body)
    await recorder.record(body | {"ended_at": body["started_at"]})
    await recorder.send([body | {"ended_at": body["started_at"]}, whole(), {}])
    text = await (await client.get("/metrics")).text()
    for outcome, times in {"created": 1, "extended": 1, "unchanged": 2, "imported": 1, "rejected": 1}.items():
        assert f'bridgelog_recorded_interceptions_total{{outcome="{outcome}"}} {times}.0' in text


async def test_a_database_of_another_system_is_not_written_to(make_client: MakeClient, owner: Person) -> None:
    recorder = Recorder(await make_client(schema="foreign"), owner)
    some = str(uuid4())
    for answer in (
        await recorder.record(running()),
        await recorder.send([whole()]),
        await recorder.end(some, ended_at="2026-03-01T10:00:00Z"),
        await recorder.add(some, "user_prompts", user_prompt()),
    ):
        assert answer.status == 503
        assert answer.body["message"] == errors.ReadOnlyDatabase().message
