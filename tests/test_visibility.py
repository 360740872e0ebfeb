"""Who signs in, and what they may see."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import API, Client, MakeClient, Person
from rows import Sql, numbered, put

SIGNED_OUT = "You are signed out or your session has expired. Please sign in again to continue."
AddPerson = Callable[..., Awaitable[Person]]

# What a test waits for beyond the second that is promised: a busy machine is no broken promise.
MARGIN = 1.0


@dataclass(frozen=True)
class Seen:
    """Everything that one caller can find out."""

    ids: set[str]
    total: int
    models: list[str]
    clients: list[str]


async def look(client: Client, person: Person, **query: str) -> Seen:
    response = await client.get(f"{API}/interceptions", params=query, headers=person.headers)
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    assert body["total"] == body["count"]
    names: dict[str, list[str]] = {}
    for what in ("models", "clients"):
        response = await client.get(f"{API}/{what}", headers=person.headers)
        assert response.status == 200
        names[what] = await response.json()
    return Seen({result["id"] for result in body["results"]}, body["total"], names["models"], names["clients"])


async def refusal(client: Client, token: str | None) -> str:
    """The detail of the 401 that a token gets, the same for every call."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    details = set()
    for method, path in (
        ("GET", "interceptions"),
        ("GET", "models"),
        ("GET", "log-requests"),
        ("POST", "log-requests"),
        ("POST", "interceptions"),
        ("GET", "nothing/here"),
        ("DELETE", "interceptions"),
    ):
        response = await client.request(method, f"{API}/{path}", headers=headers)
        body = await response.json()
        assert response.status == 401, (method, path)
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.headers["Cache-Control"] == "no-store"
        assert set(body) == {"message", "detail"}
        assert body["message"] == SIGNED_OUT
        details.add(body["detail"])
    [detail] = details
    return str(detail)


def ids(*numbers: int) -> set[str]:
    return {str(numbered(number)) for number in numbers}


@pytest.fixture
def seeded(sql: Sql) -> Callable[[Person, Person], None]:
    """One interception of each of two persons, one of each still running, and one of nobody known."""

    def seed(one: Person, other: Person) -> None:
        put(
            sql,
            "interceptions",
            {"id": numbered(1), "initiator_id": one.id, "model": "m-one", "client": "c-one"},
            {"id": numbered(2), "initiator_id": other.id, "model": "m-other", "client": "c-other"},
            {"id": numbered(3), "model": "m-nobody", "client": None},
            {"id": numbered(4), "initiator_id": one.id, "model": "m-running", "client": "c-running", "ended_at": None},
            {"id": numbered(5), "initiator_id": other.id, "model": "m-running", "client": None, "ended_at": None},
        )

    return seed


ALL_MODELS = ["m-nobody", "m-one", "m-other"]
ALL_CLIENTS = ["Unknown", "c-one", "c-other"]


# -- what each role reads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "roles",
    [
        ("owner",),
        ("auditor",),
        ("member", "auditor"),
        ("recorder", "auditor"),
        ("recorder", "owner"),
        ("owner", "auditor", "recorder", "member"),
    ],
)
async def test_owners_and_auditors_read_all(
    client: Client,
    add_person: AddPerson,
    member: Person,
    seeded: Callable[[Person, Person], None],
    roles: tuple[str, ...],
) -> None:
    reader = await add_person("reader", *roles)
    seeded(member, reader)
    assert await look(client, reader) == Seen(ids(1, 2, 3), 3, ALL_MODELS, ALL_CLIENTS)
    assert (await look(client, reader, q="initiator:me")).ids == ids(2)
    assert (await look(client, reader, q="MALLORY")).ids == ids(1)
    assert (await look(client, reader, q=f"initiator:{member.id}")).ids == ids(1)
    for number in (1, 2, 3):
        assert (await look(client, reader, after_id=str(numbered(number)))).total == 3


@pytest.mark.parametrize("roles", [(), ("member",), ("recorder", "something-else"), ("template-admin",)])
async def test_a_member_reads_their_own(
    client: Client,
    add_person: AddPerson,
    owner: Person,
    seeded: Callable[[Person, Person], None],
    roles: tuple[str, ...],
) -> None:
    reader = await add_person("Reader", *roles)
    seeded(reader, owner)
    own = Seen(ids(1), 1, ["m-one"], ["c-one"])
    assert await look(client, reader) == own
    for query in ("initiator:me", "reader", "READER", f"initiator:{reader.id}"):
        assert await look(client, reader, q=query) == own
    # Others' ids match nothing, their names are unknown, and their interceptions are no cursors.
    for query in (f"initiator:{owner.id}", "model:m-other", "client:c-other", "client:Unknown", "model:m-nobody"):
        assert await look(client, reader, q=query) == Seen(set(), 0, ["m-one"], ["c-one"])
    assert (await look(client, reader, offset="1")).total == 1
    answers = [
        await (
            await client.get(f"{API}/interceptions", params={"q": f"initiator:{name}"}, headers=reader.headers)
        ).json()
        for name in ("olivia", "nobody")
    ]
    for name, answer in zip(("olivia", "nobody"), answers, strict=True):
        assert answer == {
            "message": "Invalid interceptions search query.",
            "validations": [
                {
                    "field": "initiator",
                    "detail": f'Query param "initiator" has invalid value: user "{name}" either does not exist, '
                    "or you are unauthorized to view them",
                }
            ],
        }
    for number in (2, 3, 4, 5, 99):
        key = numbered(number)
        response = await client.get(f"{API}/interceptions", params={"after_id": str(key)}, headers=reader.headers)
        assert response.status == 400
        assert await response.json() == {
            "message": "Invalid pagination cursor.",
            "detail": f"after_id: interception {key} not found: invalid pagination cursor",
        }
    assert (await look(client, reader, after_id=str(numbered(1)))) == Seen(set(), 1, ["m-one"], ["c-one"])


@pytest.mark.parametrize("roles", [("recorder",), ("recorder", "member")])
async def test_who_only_records_reads_nothing(
    client: Client,
    add_person: AddPerson,
    owner: Person,
    seeded: Callable[[Person, Person], None],
    roles: tuple[str, ...],
) -> None:
    recorder = await add_person("recorder", *roles)
    seeded(recorder, owner)
    await assert_blind(client, recorder)


@pytest.mark.parametrize("roles", [(), ("recorder",)])
async def test_members_read_nothing_where_that_is_taken_away(
    make_client: MakeClient,
    add_person: AddPerson,
    owner: Person,
    seeded: Callable[[Person, Person], None],
    roles: tuple[str, ...],
) -> None:
    client = await make_client(member_read="none")
    reader = await add_person("reader", *roles)
    auditor = await add_person("auditor", "auditor")
    seeded(reader, owner)
    await assert_blind(client, reader)
    assert (await look(client, auditor)).ids == ids(1, 2, 3)
    assert (await look(client, owner)).ids == ids(1, 2, 3)


async def assert_blind(client: Client, person: Person) -> None:
    nothing = Seen(set(), 0, [], [])
    assert await look(client, person) == nothing
    for query in ("initiator:me", f"initiator:{person.id}", person.username, "model:m-one", "client:Unknown"):
        assert await look(client, person, q=query) == nothing
    for number in (1, 2, 3, 4):
        response = await client.get(
            f"{API}/interceptions", params={"after_id": str(numbered(number))}, headers=person.headers
        )
        assert response.status == 400
        assert (await response.json())["message"] == "Invalid pagination cursor."
    response = await client.get(f"{API}/interceptions", params={"q": "olivia"}, headers=person.headers)
    assert response.status == 400
    assert (await client.get(f"{API}/log-requests", headers=person.headers)).status == 403


async def test_nobody_initiates_as_the_id_that_nobody_has(make_client: MakeClient, member: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1), "initiator_id": member.id})
    client = await make_client(member_read="none")
    zero = "00000000-0000-0000-0000-000000000000"
    assert (await look(client, member, q=f"initiator:{zero}")).total == 0


# -- who signs in ----------------------------------------------------------------------------------------------------


async def test_dormant_users_sign_in(client: Client, member: Person, sql: Sql) -> None:
    sql("UPDATE users SET status = 'dormant' WHERE id = %s", member.id)
    assert (await look(client, member)).total == 0


async def test_who_does_not_sign_in(client: Client, owner: Person, member: Person, sql: Sql) -> None:
    told: dict[str, str] = {"missing": await refusal(client, None)}
    token_id, _, secret = owner.token.partition("-")
    malformed = (
        "nonsense",
        f"{token_id}{secret}",
        f"{token_id}-{secret}x",
        f"{token_id}-{secret[:-1]}",
        f"{token_id}-{secret[:-1]}_",
        f"{token_id}-{secret[:-1]}\N{SUPERSCRIPT TWO}",
        f"{token_id} {secret}",
        "-",
        "x" * 3000,
    )
    [told["malformed"]] = {await refusal(client, token) for token in malformed}
    # An unknown id and a wrong secret cannot be told apart, nor a secret of somebody else's.
    other = member.token.partition("-")[2]
    invalid = (
        f"zzzzzzzzzz-{secret}",
        f"{token_id}-{'0' * 22}",
        f"{token_id}-{other}",
        f"{token_id}-{secret.swapcase()}",
    )
    [told["invalid"]] = {await refusal(client, token) for token in invalid}
    sql("UPDATE users SET status = 'suspended' WHERE id = %s", member.id)
    told["suspended"] = await refusal(client, member.token)
    assert "suspended" in told["suspended"]
    sql("UPDATE users SET status = 'active', deleted = TRUE WHERE id = %s", member.id)
    told["deleted"] = await refusal(client, member.token)
    assert "deleted" in told["deleted"]
    sql("UPDATE users SET deleted = FALSE WHERE id = %s", member.id)
    assert (await look(client, member)).total == 0
    sql("UPDATE api_keys SET expires_at = now() - interval '1 microsecond' WHERE user_id = %s", member.id)
    await asyncio.sleep(1)
    told["expired"] = await refusal(client, member.token)
    assert "expired" in told["expired"]
    sql("DELETE FROM api_keys WHERE user_id = %s", member.id)
    assert await refusal(client, member.token) == told["invalid"]
    assert len(set(told.values())) == len(told), told
    for detail in told.values():
        assert secret not in detail
        assert token_id not in detail


async def test_what_is_the_matter_with_a_user_is_told_only_to_who_holds_the_secret(
    client: Client, member: Person, sql: Sql
) -> None:
    guess = f"{member.token.partition('-')[0]}-{'0' * 22}"
    wrong = await refusal(client, guess)
    sql("UPDATE users SET status = 'suspended', deleted = TRUE")
    sql("UPDATE api_keys SET expires_at = now()")
    assert await refusal(client, guess) == wrong


async def test_a_token_that_expires_while_it_is_in_use(client: Client, member: Person, sql: Sql) -> None:
    sql("UPDATE api_keys SET expires_at = now() + interval '300 milliseconds'")
    # Seen valid, then remembered, and yet over at its time.
    await look(client, member)
    await asyncio.sleep(0.31)
    assert "expired" in await refusal(client, member.token)


async def test_the_secret_is_stored_nowhere(owner: Person, sql: Sql) -> None:
    token_id, _, secret = owner.token.partition("-")
    [(stored_id, hashed)] = sql("SELECT id, hashed_secret FROM api_keys")
    assert (stored_id, hashed) == (token_id, hashlib.sha256(secret.encode()).digest())
    [(row,)] = sql("SELECT string_agg(api_keys::text, '') FROM api_keys")
    assert secret not in row


async def test_use_of_a_token_is_noted(client: Client, owner: Person, sql: Sql) -> None:
    sql("UPDATE api_keys SET last_used = '2020-01-01Z'")
    await look(client, owner)
    [(recent,)] = sql("SELECT last_used > now() - interval '1 minute' FROM api_keys")
    assert recent


# -- how soon a change counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM api_keys WHERE user_id = %s",
        "UPDATE users SET status = 'suspended' WHERE id = %s",
        "UPDATE users SET deleted = TRUE WHERE id = %s",
        "DELETE FROM users WHERE id = %s",
        "UPDATE api_keys SET expires_at = now() WHERE user_id = %s",
    ],
)
async def test_out_of_every_replica_within_a_second(
    make_client: MakeClient, add_person: AddPerson, sql: Sql, change: str
) -> None:
    person = await add_person("auditor", "auditor")
    replicas = [await make_client(), await make_client()]
    for replica in replicas:
        await look(replica, person)
    changed_at = time.monotonic()
    sql(change, person.id)
    for replica in replicas:
        # Asking all the time does not keep a token alive.
        while (await replica.get(f"{API}/models", headers=person.headers)).status != 401:
            assert time.monotonic() - changed_at < 1 + MARGIN
            await asyncio.sleep(0.02)


async def test_other_roles_count_within_a_second(make_client: MakeClient, member: Person, sql: Sql) -> None:
    replica = await make_client()
    put(sql, "interceptions", {"id": numbered(1)})
    assert (await look(replica, member)).total == 0
    changed_at = time.monotonic()
    sql("UPDATE users SET rbac_roles = '{auditor}' WHERE id = %s", member.id)
    while (await look(replica, member)).total != 1:
        assert time.monotonic() - changed_at < 1 + MARGIN
        await asyncio.sleep(0.02)


async def test_a_user_is_let_in_again(client: Client, member: Person, sql: Sql) -> None:
    sql("UPDATE users SET status = 'suspended' WHERE id = %s", member.id)
    await refusal(client, member.token)
    sql("UPDATE users SET status = 'active' WHERE id = %s", member.id)
    assert (await look(client, member)).total == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser, or an old one
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 401),
        ({"Sec-Fetch-Site": "cross-site"}, 401),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://before.the.proxy"}, 200),
        ({"Origin": "https://evil.example"}, 401),
        ({"Origin": "null"}, 401),
    ],
)
async def test_a_cookie_does_not_sign_in_a_form_of_another_site(
    client: Client, owner: Person, headers: dict[str, str], status: int
) -> None:
    cookie = {"Cookie": f"coder_session_token={owner.token}"}
    path = f"{API}/log-requests"
    assert (await client.post(path, json={"enabled": True}, headers=cookie | headers)).status == status
    # Reading changes nothing, and a header is added by nobody but who means it.
    assert (await client.get(path, headers=cookie | headers)).status == 200
    assert (await client.post(path, json={"enabled": True}, headers=owner.headers | headers)).status == 200
