"""…/interceptions: what a result looks like, and walks through all pages."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, product
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

import pytest
from conftest import API, Client, Person
from rows import Row, Sql, numbered, put
from yarl import URL

PREFIXES = (
    "/api/experimental/aibridge",
    "/api/v2/api/experimental/aibridge",
    "/api/v2/aibridge",
    "/api/v2/ai-gateway",
)
# Holds what a URL, a header and a relative reference could trip over.
NASTY = "a b+c&d=e%20f#g?h>i;rel=,j\\k'ü😀"


async def page(client: Client, person: Person, **query: object) -> dict[str, Any]:
    params = {name: str(value) for name, value in query.items()}
    response = await client.get(f"{API}/interceptions", params=params, headers=person.headers)
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    return body


def ids(body: dict[str, Any]) -> list[str]:
    return [result["id"] for result in body["results"]]


# -- the shape of a result -------------------------------------------------------------------------------------------


async def test_an_empty_log_is_an_empty_page(client: Client, owner: Person) -> None:
    assert await page(client, owner) == {"results": [], "total": 0, "count": 0}


async def test_a_result_in_full(client: Client, owner: Person, sql: Sql) -> None:
    put(
        sql,
        "users",
        {"id": numbered(1), "username": "Ann", "name": "Änn", "avatar_url": "https://example.com/ann.png"},
        {"id": numbered(2), "username": "decoy"},
    )
    put(
        sql,
        "interceptions",
        {
            "id": numbered(10),
            "initiator_id": numbered(1),
            "api_key_id": "0123456789",
            "provider": "anthropic",
            "provider_name": "anthropic-eu",
            "model": "claude-opus-4-5",
            "client": "Claude Code",
            "metadata": {"user_agent": "x/1", "nested": {"n": [1, 2.5, None, True]}},
            "started_at": "2026-03-01T10:00:00.120Z",
            "ended_at": "2026-03-01T12:00:10.000001+02:00",
        },
        {"id": numbered(11), "initiator_id": numbered(2), "started_at": "2020-01-01T00:00:00Z"},
    )
    put(
        sql,
        "token_usages",
        {
            "id": numbered(20),
            "interception_id": numbered(10),
            "provider_response_id": "msg_x",
            "input_tokens": 2**63 - 1,
            "output_tokens": 7,
            "cache_read_input_tokens": 3,
            "cache_write_input_tokens": 4,
            "metadata": {"tier": "standard"},
            "created_at": "2026-03-01T10:00:01.5Z",
        },
        {"interception_id": numbered(11)},
    )
    put(
        sql,
        "user_prompts",
        {
            "id": numbered(30),
            "interception_id": numbered(10),
            "provider_response_id": "msg_x",
            "prompt": 'At 2026-03-01 10:00:00+00:00 say "hi"\n\\ 😀',
            "created_at": "2026-03-01T10:00:00Z",
        },
        {"interception_id": numbered(11)},
    )
    put(
        sql,
        "tool_usages",
        {
            "id": numbered(40),
            "interception_id": numbered(10),
            "provider_response_id": "msg_x",
            "provider_tool_call_id": "toolu_not_listed",
            "server_url": "https://mcp.example.com",
            "tool": "Bash",
            "input": '{"command":"ls"}',
            "injected": True,
            "invocation_error": "denied",
            "metadata": {},
            "created_at": "2026-03-01T10:00:02Z",
        },
        {"interception_id": numbered(11)},
    )
    body = await page(client, owner, limit=1)
    assert (body["total"], body["count"]) == (2, 2)
    assert body["results"] == [
        {
            "id": str(numbered(10)),
            "initiator_id": str(numbered(1)),
            "initiator": {
                "id": str(numbered(1)),
                "username": "Ann",
                "name": "Änn",
                "avatar_url": "https://example.com/ann.png",
            },
            "api_key_id": "0123456789",
            "provider": "anthropic",
            "provider_name": "anthropic-eu",
            "model": "claude-opus-4-5",
            "client": "Claude Code",
            "metadata": {"user_agent": "x/1", "nested": {"n": [1, 2.5, None, True]}},
            "started_at": "2026-03-01T10:00:00.12Z",
            "ended_at": "2026-03-01T10:00:10.000001Z",
            "token_usages": [
                {
                    "id": str(numbered(20)),
                    "interception_id": str(numbered(10)),
                    "provider_response_id": "msg_x",
                    "input_tokens": 2**63 - 1,
                    "output_tokens": 7,
                    "cache_read_input_tokens": 3,
                    "cache_write_input_tokens": 4,
                    "metadata": {"tier": "standard"},
                    "created_at": "2026-03-01T10:00:01.5Z",
                }
            ],
            "tool_usages": [
                {
                    "id": str(numbered(40)),
                    "interception_id": str(numbered(10)),
                    "provider_response_id": "msg_x",
                    "server_url": "https://mcp.example.com",
                    "tool": "Bash",
                    "input": '{"command":"ls"}',
                    "injected": True,
                    "invocation_error": "denied",
                    "metadata": {},
                    "created_at": "2026-03-01T10:00:02Z",
                }
            ],
            "user_prompts": [
                {
                    "id": str(numbered(30)),
                    "interception_id": str(numbered(10)),
                    "provider_response_id": "msg_x",
                    "prompt": 'At 2026-03-01 10:00:00+00:00 say "hi"\n\\ 😀',
                    "metadata": {},
                    "created_at": "2026-03-01T10:00:00Z",
                }
            ],
        }
    ]


async def test_what_is_missing_reads_as_the_documents_show_it(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1), "initiator_id": numbered(9), "client": None, "provider_name": ""})
    put(sql, "tool_usages", {"interception_id": numbered(1)})
    [result] = (await page(client, owner))["results"]
    assert result["initiator"] == {"id": str(numbered(9)), "username": "", "name": "", "avatar_url": ""}
    assert (result["client"], result["api_key_id"], result["provider_name"]) == (None, None, "")
    assert result["metadata"] == {}
    assert (result["token_usages"], result["user_prompts"]) == ([], [])
    [tool_usage] = result["tool_usages"]
    assert (tool_usage["server_url"], tool_usage["invocation_error"]) == ("", "")


async def test_metadata_that_is_null_in_a_database_of_others_reads_as_an_empty_object(
    client: Client, owner: Person, sql: Sql
) -> None:
    for statement in (
        "ALTER TABLE aibridge_interceptions ALTER metadata DROP NOT NULL",
        "ALTER TABLE aibridge_token_usages ALTER metadata DROP NOT NULL",
        "ALTER TABLE aibridge_user_prompts ALTER metadata DROP NOT NULL",
        "ALTER TABLE aibridge_tool_usages ALTER metadata DROP NOT NULL",
    ):
        sql(statement)
    put(sql, "interceptions", {"id": numbered(1)})
    for table in ("token_usages", "user_prompts", "tool_usages"):
        put(sql, table, {"interception_id": numbered(1)})
    for statement in (
        "UPDATE aibridge_interceptions SET metadata = NULL",
        "UPDATE aibridge_token_usages SET metadata = NULL",
        "UPDATE aibridge_user_prompts SET metadata = NULL",
        "UPDATE aibridge_tool_usages SET metadata = NULL",
    ):
        sql(statement)
    [result] = (await page(client, owner))["results"]
    assert result["metadata"] == {}
    assert [result[kind][0]["metadata"] for kind in ("token_usages", "user_prompts", "tool_usages")] == [{}, {}, {}]


async def test_a_deleted_user_still_has_a_name(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "users", {"id": numbered(1), "username": "gone", "deleted": True})
    put(sql, "interceptions", {"initiator_id": numbered(1)})
    assert (await page(client, owner))["results"][0]["initiator"]["username"] == "gone"


INSTANTS = {
    "2026-03-01T10:00:00Z": "2026-03-01T10:00:00Z",
    "2026-03-01T10:00:00.1Z": "2026-03-01T10:00:00.1Z",
    "2026-03-01T10:00:00.10203Z": "2026-03-01T10:00:00.10203Z",
    "2026-03-01T10:00:00.000001Z": "2026-03-01T10:00:00.000001Z",
    "2026-03-01T01:30:00+05:30": "2026-02-28T20:00:00Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z": "9999-12-31T23:59:59.999999Z",
    "1816-03-29T05:56:08.066277Z": "1816-03-29T05:56:08.066277Z",
}


async def test_instants(client: Client, owner: Person, sql: Sql) -> None:
    nested = ("token_usages", "user_prompts", "tool_usages")
    for number, (stored, shown) in enumerate(INSTANTS.items(), start=1):
        key = numbered(number)
        put(sql, "interceptions", {"id": key, "started_at": stored, "ended_at": stored, "model": str(number)})
        for table in nested:
            put(sql, table, {"interception_id": key, "created_at": stored})
        [result] = (await page(client, owner, q=f"model:{number}"))["results"]
        assert (result["started_at"], result["ended_at"]) == (shown, shown)
        assert [result[kind][0]["created_at"] for kind in nested] == [shown] * 3
        # Such an instant is a bound and a cursor too.
        for bound in ("started_after", "started_before"):
            assert (await page(client, owner, q=f'model:{number} {bound}:"{shown}"'))["total"] == 1, (bound, shown)
        body = await page(client, owner, q=f"model:{number}", after_id=key)
        assert body == {"results": [], "total": 1, "count": 1}


async def test_instants_do_not_depend_on_what_the_database_prefers(
    make_client: Callable[..., Awaitable[Client]], owner: Person, sql: Sql, database_url: str
) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    sql(f"ALTER DATABASE {name} SET \"TimeZone\" = 'Asia/Kolkata'")
    sql(f"ALTER DATABASE {name} SET \"DateStyle\" = 'SQL, DMY'")
    put(sql, "interceptions", {"started_at": "2026-03-02T10:00:00.5Z", "ended_at": "2026-03-02T10:00:01Z"})
    [result] = (await page(await make_client(), owner))["results"]
    assert (result["started_at"], result["ended_at"]) == ("2026-03-02T10:00:00.5Z", "2026-03-02T10:00:01Z")


async def test_nested_records_are_in_the_order_of_their_instants_then_ids(
    client: Client, owner: Person, sql: Sql
) -> None:
    put(sql, "interceptions", {"id": numbered(1)}, {"id": numbered(2), "started_at": "2026-03-01T09:00:00Z"})
    order = [
        (numbered(9), "2026-03-01T09:59:59Z"),
        (numbered(3), "2026-03-01T10:00:00Z"),
        (numbered(4), "2026-03-01T10:00:00Z"),
        (numbered(5), "2026-03-01T10:00:00Z"),
        (numbered(1), "2026-03-01T10:00:00.000001Z"),
        (numbered(2), "2026-03-02T00:00:00Z"),
    ]
    shuffled = random.Random(7).sample(order, k=len(order))
    for table in ("token_usages", "user_prompts", "tool_usages"):
        put(sql, table, *({"id": key, "interception_id": numbered(1), "created_at": at} for key, at in shuffled))
        put(sql, table, {"interception_id": numbered(2)})
    mine, others = (await page(client, owner))["results"]
    for table in ("token_usages", "user_prompts", "tool_usages"):
        assert [record["id"] for record in mine[table]] == [str(key) for key, _ in order]
        assert len(others[table]) == 1


async def test_the_order_is_by_instant_then_id_both_descending(client: Client, owner: Person, sql: Sql) -> None:
    put(
        sql,
        "interceptions",
        {"id": numbered(2), "started_at": "2026-03-01T10:00:00Z"},
        {"id": numbered(9), "started_at": "2026-03-01T09:00:00Z"},
        {"id": numbered(3), "started_at": "2026-03-01T10:00:00Z"},
        {"id": numbered(1), "started_at": "2026-03-01T10:00:00.000001Z"},
    )
    assert ids(await page(client, owner)) == [str(numbered(number)) for number in (1, 3, 2, 9)]


async def test_running_interceptions_are_neither_listed_nor_counted(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1)}, {"id": numbered(2), "ended_at": None})
    for query in ({}, {"offset": 0}, {"limit": 1000}, {"q": "provider:anthropic"}):
        body = await page(client, owner, **query)
        assert (ids(body), body["total"], body["count"]) == ([str(numbered(1))], 1, 1)


async def test_thoughts_are_not_listed(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1)})
    sql(
        "INSERT INTO aibridge_model_thoughts (interception_id, content, created_at) VALUES (%s, 'hm', now())",
        numbered(1),
    )
    assert "hm" not in str(await page(client, owner))


async def test_the_default_limit_is_a_hundred_and_the_most_a_thousand(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", *({"id": numbered(number)} for number in range(1, 1002)))
    for query, expected in (({}, 100), ({"limit": 0}, 100), ({"limit": ""}, 100), ({"limit": 1000}, 1000)):
        body = await page(client, owner, **query)
        assert (len(body["results"]), body["total"], body["count"]) == (expected, 1001, 1001)


# -- both published curl lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_prefix_answers_the_published_calls(client: Client, owner: Person, sql: Sql, prefix: str) -> None:
    put(sql, "interceptions", {"id": numbered(1)})
    response = await client.get(
        f"{prefix}/interceptions", headers={"Accept": "application/json", "Coder-Session-Token": owner.token}
    )
    assert response.status == 200
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert ids(await response.json()) == [str(numbered(1))]
    response = await client.post(
        f"{prefix}/log-requests",
        headers={
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Coder-Session-Token": owner.token,
        },
        data=b'{\n  "enabled": true\n}',
    )
    assert response.status == 200
    assert await response.json() == {"message": "Request logging state updated successfully."}
    for rest in ("models", "clients"):
        assert (await client.get(f"{prefix}/{rest}", headers=owner.headers)).status == 200
    response = await client.get(f"{prefix}/interceptions")
    assert response.status == 401


TAKEN: tuple[dict[str, str], ...] = (
    {"Coder-Session-Token": "{token}"},
    {"coder-session-token": "{token}"},
    {"Authorization": "Bearer {token}"},
    {"Authorization": "bearer {token}"},
    {"Authorization": "BEARER {token}"},
    {"Cookie": "coder_session_token={token}"},
    {"Cookie": "theme=dark; coder_session_token={token}; other=1"},
    # the first that is present counts
    {"Coder-Session-Token": "{token}", "Authorization": "Bearer nonsense", "Cookie": "coder_session_token=nonsense"},
    {"Authorization": "Bearer {token}", "Cookie": "coder_session_token=nonsense"},
    # another scheme is no token
    {"Authorization": "Basic bm9ib2R5Og==", "Cookie": "coder_session_token={token}"},
)
NOT_TAKEN: tuple[dict[str, str], ...] = (
    {"Coder-Session-Token": "nonsense", "Authorization": "Bearer {token}", "Cookie": "coder_session_token={token}"},
    {"Authorization": "Bearer nonsense", "Cookie": "coder_session_token={token}"},
    {"Authorization": "{token}"},
    {"Authorization": "Basic {token}"},
    {"Authorization": "Bearer{token}"},
    {"Cookie": "Coder_Session_Token={token}"},
)


async def test_where_a_token_is_taken_from(client: Client, owner: Person) -> None:
    for expected, kinds in ((200, TAKEN), (401, NOT_TAKEN)):
        for headers in kinds:
            sent = {name: value.format(token=owner.token) for name, value in headers.items()}
            assert (await client.get(f"{API}/interceptions", headers=sent)).status == expected, headers
    for name in ("coder_session_token", "Coder-Session-Token", "token", "access_token"):
        response = await client.get(f"{API}/interceptions", params={name: owner.token})
        assert response.status == 401, "URLs end in access logs"


# -- walks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def twenty(sql: Sql) -> list[str]:
    """Twenty interceptions, ten of them of one instant, and a running decoy between them: their ids in order."""
    generator = random.Random(11)
    rows: list[Row] = [
        {
            "id": numbered(generator.getrandbits(60)),
            "started_at": "2026-03-01T10:00:00Z" if number < 10 else f"2026-03-01T{number:02}:00:00Z",
            "metadata": {"nasty": NASTY},
            "model": NASTY,
        }
        for number in range(20)
    ]
    put(sql, "interceptions", *rows, {"ended_at": None, "started_at": "2026-03-01T10:00:00Z", "model": NASTY})
    ordered = sorted(rows, key=lambda row: (row["started_at"], row["id"].int), reverse=True)
    return [str(row["id"]) for row in ordered]


async def test_one_by_one_by_cursor(client: Client, owner: Person, twenty: list[str]) -> None:
    for _ in range(2):
        seen: list[str] = []
        while True:
            body = await page(client, owner, limit=1, **({"after_id": seen[-1]} if seen else {}))
            assert (body["total"], body["count"]) == (20, 20)
            if not body["results"]:
                break
            assert len(body["results"]) == 1
            seen += ids(body)
        assert seen == twenty


async def test_one_by_one_by_offset(client: Client, owner: Person, twenty: list[str]) -> None:
    for _ in range(2):
        seen: list[str] = []
        for offset in range(20):
            body = await page(client, owner, limit=1, offset=offset)
            assert (body["total"], body["count"], len(body["results"])) == (20, 20, 1)
            seen += ids(body)
        assert seen == twenty
    for offset in (20, 21, 2**31 - 1):
        assert await page(client, owner, limit=1, offset=offset) == {"results": [], "total": 20, "count": 20}


async def test_the_cursor_need_not_match_the_search(client: Client, owner: Person, sql: Sql) -> None:
    put(
        sql,
        "interceptions",
        {"id": numbered(1), "model": "wanted", "started_at": "2026-03-01T10:00:00Z"},
        {"id": numbered(2), "model": "other", "started_at": "2026-03-01T11:00:00Z"},
        {"id": numbered(3), "model": "wanted", "started_at": "2026-03-01T12:00:00Z"},
    )
    body = await page(client, owner, q="model:wanted", after_id=numbered(2))
    assert (ids(body), body["total"]) == ([str(numbered(1))], 2)


# -- links -----------------------------------------------------------------------------------------------------------


def target(link: str) -> Iterator[tuple[str, str]]:
    """The parts of a Link header that this service writes: relation and reference."""
    for value in link.split(", "):
        reference, _, relation = value.partition("; ")
        assert reference.startswith("<?")
        assert reference.endswith(">")
        assert relation.startswith('rel="')
        yield relation[5:-1], reference[1:-1]


async def follow(client: Client, person: Person, start: URL, relation: str) -> list[list[str]]:
    """The ids of each page on the way along one relation."""
    url: Any = start
    pages: list[list[str]] = []
    while url is not None:
        assert len(pages) < 100, "a walk without end"
        response = await client.session.get(url, headers=person.headers)
        body = await response.json()
        assert response.status == 200, body
        assert body["total"] == 20
        pages.append(ids(body))
        link = response.links.get(relation)
        url = link.get("url") if link else None
    return pages


QUERY = quote(f'model:"{NASTY}"', safe="")


async def test_following_next_by_offset_gives_everything_once(client: Client, owner: Person, twenty: list[str]) -> None:
    for prefix, size, q in product(PREFIXES[1:3], (1, 3, 7, 20, 21), ("", f"&q={QUERY}")):
        start = client.make_url("/").join(URL(f"{prefix}/interceptions?limit={size}{q}", encoded=True))
        pages = await follow(client, owner, start, "next")
        assert list(chain.from_iterable(pages)) == twenty
        assert all(pages), "no next where nothing follows"


async def test_following_next_by_cursor_gives_the_rest_once(client: Client, owner: Person, twenty: list[str]) -> None:
    for size, q in product((1, 3, 7, 19, 20), ("", f"&q={QUERY}")):
        start = client.make_url("/").join(
            URL(f"{API}/interceptions?after_id={twenty[0]}&limit={size}{q}", encoded=True)
        )
        pages = await follow(client, owner, start, "next")
        assert list(chain.from_iterable(pages)) == twenty[1:]
        assert all(pages), "no next where nothing follows"


async def test_first_last_prev_and_next_by_offset(client: Client, owner: Person, twenty: list[str]) -> None:
    async def links(**query: object) -> dict[str, dict[str, list[str]]]:
        params = {name: str(value) for name, value in query.items()}
        response = await client.get(f"{API}/interceptions", params=params, headers=owner.headers)
        assert response.status == 200
        return {relation: parse_qs(reference[1:]) for relation, reference in target(response.headers["Link"])}

    def at(offset: int, limit: int = 6) -> dict[str, list[str]]:
        return {"limit": [str(limit)], "offset": [str(offset)]}

    assert await links(limit=6) == {"first": at(0), "next": at(6), "last": at(18)}
    assert await links(limit=6, offset=6) == {"first": at(0), "prev": at(0), "next": at(12), "last": at(18)}
    assert await links(limit=6, offset=18) == {"first": at(0), "prev": at(12), "last": at(18)}
    assert await links(limit=5, offset=15) == {"first": at(0, 5), "prev": at(10, 5), "last": at(15, 5)}
    assert await links(limit=20) == {"first": at(0, 20), "last": at(0, 20)}
    # From beyond the end, prev leads back to something.
    beyond = await links(limit=6, offset=1000)
    assert "next" not in beyond
    body = await page(client, owner, limit=6, offset=beyond["prev"]["offset"][0])
    assert body["results"]
    assert twenty[-1] in ids(body)
    # prev leads all the way back.
    start = client.make_url(f"{API}/interceptions").with_query(limit=6, offset=18)
    pages = await follow(client, owner, start, "prev")
    assert list(chain.from_iterable(reversed(pages))) == twenty


async def test_by_cursor_there_is_only_next(client: Client, owner: Person, twenty: list[str]) -> None:
    response = await client.get(
        f"{API}/interceptions", params={"after_id": twenty[0], "limit": "3"}, headers=owner.headers
    )
    [(relation, reference)] = target(response.headers["Link"])
    assert relation == "next"
    assert parse_qs(reference[1:]) == {"after_id": [twenty[3]], "limit": ["3"]}
    response = await client.get(f"{API}/interceptions", params={"after_id": twenty[16]}, headers=owner.headers)
    assert "Link" not in response.headers


async def test_links_keep_the_search_percent_encoded(client: Client, owner: Person, twenty: list[str]) -> None:
    q = f'model:"{NASTY}"'
    response = await client.get(f"{API}/interceptions", params={"q": q, "limit": "7"}, headers=owner.headers)
    link = response.headers["Link"]
    assert link.isascii()
    for _, reference in target(link):
        assert not set(reference) & set(' <>"\\^`{|}#')
        assert parse_qs(reference[1:])["q"] == [q]
    assert len((await response.json())["results"]) == min(7, len(twenty))


async def test_an_unknown_parameter_does_not_grow_the_links(client: Client, owner: Person, twenty: list[str]) -> None:
    query = urlencode({"limit": 1, "x": "y" * 3000})
    response = await client.get(f"{API}/interceptions?{query}", headers=owner.headers)
    assert response.status == 200
    assert len(response.headers["Link"]) < 1000
    assert ids(await response.json()) == twenty[:1]
