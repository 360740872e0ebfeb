"""…/models and …/clients: the distinct names in use."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import API, Client, Person
from rows import Sql, put

BOTH = pytest.mark.parametrize(("what", "key"), [("models", "model"), ("clients", "client")])
# By code point: Z (U+005A) before _ and a, é (U+00E9) and the rest after z, U+FFFD before what UTF-16 writes as a pair.
NAMES = ["", "%", "10%", "100", "A", "Z", "Za", "Zb", "\\", "_", "a", "a b", "a%", "a_", "aB", "ab"]
NAMES += ["z", "é", "ß", "中", "\ufffd", "😀"]
NAMES.sort()


async def names(client: Client, person: Person, what: str, **query: object) -> Any:
    params = {name: str(value) for name, value in query.items()}
    response = await client.get(f"{API}/{what}", params=params, headers=person.headers)
    body = await response.json()
    assert response.status == 200, body
    assert response.headers["Cache-Control"] == "no-store"
    return body


def fill(sql: Sql, key: str) -> None:
    """Each name twice, in no order, and running ones that must not show."""
    rows = [{key: name} for name in [*reversed(NAMES), *NAMES]]
    put(sql, "interceptions", *rows, *({key: f"{name}!", "ended_at": None} for name in NAMES))


@BOTH
async def test_nothing_found_is_an_empty_array(client: Client, owner: Person, what: str, key: str) -> None:
    assert await names(client, owner, what) == []
    assert await names(client, owner, what, q=f"{key}:x", offset=3) == []


@BOTH
async def test_distinct_and_by_code_point(client: Client, owner: Person, sql: Sql, what: str, key: str) -> None:
    fill(sql, key)
    assert await names(client, owner, what) == NAMES
    assert NAMES.index("Z") < NAMES.index("a") < NAMES.index("é")


@BOTH
async def test_a_prefix_is_literal_and_case_sensitive(
    client: Client, owner: Person, sql: Sql, what: str, key: str
) -> None:
    fill(sql, key)
    for prefix in (
        "a",
        "A",
        "Z",
        "%",
        "_",
        "a_",
        "a%",
        "10",
        "10%",
        "\\",
        "é",
        "😀",
        "\ufffd",
        "ab",
        "b",
        "a b",
        "abc",
    ):
        expected = [name for name in NAMES if name.startswith(prefix)]
        assert await names(client, owner, what, q=f'{key}:"{prefix}"') == expected, prefix
        assert await names(client, owner, what, q=f'"{prefix}"') == expected, prefix
        assert await names(client, owner, what, q=f'{key.upper()}:"{prefix}"') == expected, prefix
    assert await names(client, owner, what, q=f'{key}:""') == NAMES
    assert await names(client, owner, what, q="a b") == ["a b"]
    assert await names(client, owner, what, q="me") == []


@BOTH
async def test_pages_of_names_joined_are_all_of_them_once(
    client: Client, owner: Person, sql: Sql, what: str, key: str
) -> None:
    fill(sql, key)
    for size in (1, 3, len(NAMES)):
        joined: list[str] = []
        while found := await names(client, owner, what, limit=size, offset=len(joined)):
            assert len(found) <= size
            joined += found
        assert joined == NAMES
    in_a = [name for name in NAMES if name.startswith("a")]
    assert await names(client, owner, what, q="a", limit=2, offset=1) == in_a[1:3]


async def test_the_default_limit_is_a_hundred(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", *({"model": f"{number:04}"} for number in range(1001)))
    assert len(await names(client, owner, "models")) == 100
    assert len(await names(client, owner, "models", limit=0)) == 100
    assert len(await names(client, owner, "models", limit=1000)) == 1000


async def test_a_client_that_is_null_reads_unknown_once(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"client": "Zed"}, {"client": "Alpha"}, {"client": None}, {"client": None})
    assert await names(client, owner, "clients") == ["Alpha", "Unknown", "Zed"]
    put(sql, "interceptions", {"client": "Unknown"}, {"client": "Unknown2"}, {"client": "unknown"})
    assert await names(client, owner, "clients") == ["Alpha", "Unknown", "Unknown2", "Zed", "unknown"]
    assert await names(client, owner, "clients", q="Unk") == ["Unknown", "Unknown2"]
    assert await names(client, owner, "clients", q="Unknown", limit=1) == ["Unknown"]
    assert await names(client, owner, "clients", q="unk") == ["unknown"]


async def test_a_running_one_without_a_client_shows_nothing(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"client": None, "ended_at": None})
    assert await names(client, owner, "clients") == []
    assert await names(client, owner, "clients", q="Unknown") == []


async def test_a_member_sees_their_own(client: Client, member: Person, sql: Sql) -> None:
    put(
        sql,
        "interceptions",
        {"initiator_id": member.id, "model": "b", "client": "y"},
        {"initiator_id": member.id, "model": "d", "client": None},
        {"initiator_id": member.id, "model": "e", "client": "z", "ended_at": None},
        {"model": "a", "client": "x"},
        {"model": "b", "client": None},
        {"model": "c", "client": "z"},
        {"model": "e", "client": "z"},
    )
    assert await names(client, member, "models") == ["b", "d"]
    assert await names(client, member, "clients") == ["Unknown", "y"]
    assert await names(client, member, "models", limit=1, offset=1) == ["d"]
    assert await names(client, member, "models", q="c") == []
    sql("DELETE FROM aibridge_interceptions WHERE initiator_id = %s AND client IS NULL", member.id)
    assert await names(client, member, "clients") == ["y"]


@BOTH
async def test_a_search_that_is_refused(client: Client, owner: Person, what: str, key: str) -> None:
    other = "client" if key == "model" else "model"
    for q, validations in (
        (f"{key}:", [("q", f"Query element \"{key}:\" cannot start or end with ':'")]),
        ("a:b:c", [("q", "Query element \"a:b:c\" can only contain 1 ':'")]),
        (f"{other}:x", [(other, f'"{other}" is not a valid query param')]),
        ("initiator:me", [("initiator", '"initiator" is not a valid query param')]),
        (
            f"{key}:a {key}:b x:y",
            [
                (
                    key,
                    (
                        f'Query param "{key}" provided more than once, found 2 times. '
                        "Only provide 1 instance of this query param."
                    ),
                ),
                ("x", '"x" is not a valid query param'),
            ],
        ),
    ):
        response = await client.get(f"{API}/{what}", params={"q": q}, headers=owner.headers)
        assert response.status == 400, q
        assert await response.json() == {
            "message": f"Invalid {what} search query.",
            "validations": [{"field": field, "detail": detail} for field, detail in validations],
        }
