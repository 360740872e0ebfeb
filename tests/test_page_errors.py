"""What a page cannot be asked for, word for word."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from conftest import API, Client, Person
from rows import Sql, numbered, put
from yarl import URL

INVALID = "Query parameters have invalid values."
BOTH = "Cannot use both after_id and offset pagination in the same request."
RANGE = ("Invalid pagination limit value.", "Pagination limit must be in range (0, 1000]")
NOBODY_S = "497f6eca-6276-4993-bfeb-53cbbbba6f08"
NO_UUID = "00000000-0000-0000-0000-000000000000"
LISTS = ("interceptions", "models", "clients")
NO_INTEGERS = (
    "-1",
    "-0",
    "abc",
    "1.5",
    "1e2",
    "0x10",
    "1_0",
    "%D9%A3",  # an Arabic digit three
    "%EF%BC%91",  # a full-width one
    "%C2%B2",  # a superscript two
    "+5",  # a plus in a query is a space
    "%205",
    "5%20",
    "5%0A",
    "5%00",
    "%2B",
    "%2B%2B5",
    "%2B-5",
    "2147483648",
    "4294967296",
    "99999999999999999999",
    "9" * 5000,
    "null",
    "NaN",
    "%FF",
)
NO_UUIDS = (
    "abc",
    "497f6eca62764993bfeb53cbbbba6f08",
    "%7B497f6eca-6276-4993-bfeb-53cbbbba6f08%7D",
    "urn:uuid:497f6eca-6276-4993-bfeb-53cbbbba6f08",
    "497f6eca-6276-4993-bfeb-53cbbbba6f0",
    "497f6eca-6276-4993-bfeb-53cbbbba6f088",
    "497f6eca-6276-4993-bfeb-53cbbbba6f0g",
    "497f6eca-62764-993-bfeb-53cbbbba6f08",
    "%20497f6eca-6276-4993-bfeb-53cbbbba6f08",
    "497f6eca-6276-4993-bfeb-53cbbbba6f08%0A",
    "%D9%A397f6eca-6276-4993-bfeb-53cbbbba6f08",
    "0",
    "%00",
    "%ED%A0%80",
)
NOTHING = (
    "limit=1",
    "limit=%2B1",
    "limit=01",
    "limit=1000",
    "limit=0",
    "limit=%2B0",
    "limit=00",
    "limit=",
    "limit",
    "offset=0",
    "offset=",
    "offset",
    "offset=%2B0",
    "q=",
    "q",
    "q=%20",
    "q=+",
    "limit=&offset=&q=&after_id=",
    "",
    "&&",
)
UNKNOWN = ("x=1", "x=1&x=2", "LIMIT=x", "Limit=1001", "page=3", "q[]=a:", "%FF=1", "=", "a%00b=c")


async def ask(client: Client, person: Person, query: str, *, what: str = "interceptions") -> tuple[int, Any]:
    """The answer to a query as it stands in the URL."""
    response = await client.get(URL(f"{API}/{what}?{query}", encoded=True), headers=person.headers)
    assert response.content_type == "application/json"
    return response.status, await response.json()


def twice(name: str, times: int = 2) -> dict[str, str]:
    detail = (
        f'Query param "{name}" provided more than once, found {times} times. '
        "Only provide 1 instance of this query param."
    )
    return {"field": name, "detail": detail}


def integer(name: str) -> str:
    return f'Query param "{name}" must be a valid 32-bit positive integer: '


NOT_A_UUID = {"field": "after_id", "detail": 'Query param "after_id" must be a valid uuid'}


# -- limit -----------------------------------------------------------------------------------------------------------


async def test_limit_above_the_range(client: Client, owner: Person) -> None:
    for what in LISTS:
        for limit in ("1001", "2147483647", "%2B1001", "0001001"):
            message, detail = RANGE
            assert await ask(client, owner, f"limit={limit}", what=what) == (
                400,
                {"message": message, "detail": detail},
            )


async def test_what_is_no_integer(client: Client, owner: Person) -> None:
    for what in LISTS:
        for name in ("limit", "offset"):
            for value in NO_INTEGERS:
                status, body = await ask(client, owner, f"{name}={value}", what=what)
                assert status == 400, value
                assert set(body) == {"message", "validations"}
                assert body["message"] == INVALID
                [validation] = body["validations"]
                assert validation["field"] == name
                assert validation["detail"].startswith(integer(name))
                assert len(validation["detail"]) > len(integer(name))
                assert len(validation["detail"]) < 300, "a value is not echoed at any length"


async def test_the_empty_and_the_zero_count_as_absent(client: Client, owner: Person, sql: Sql) -> None:
    [row] = put(sql, "interceptions", {})
    for what in LISTS:
        for query in NOTHING:
            status, body = await ask(client, owner, query, what=what)
            assert status == 200, query
            if what == "interceptions":
                assert (len(body["results"]), body["total"]) == (1, 1)
            else:
                assert body == [row["model" if what == "models" else "client"]]


async def test_the_largest_offset(client: Client, owner: Person) -> None:
    for what in LISTS:
        status, body = await ask(client, owner, "offset=2147483647", what=what)
        assert status == 200
        assert body == ({"results": [], "total": 0, "count": 0} if what == "interceptions" else [])


# -- after_id --------------------------------------------------------------------------------------------------------


async def test_what_is_no_uuid(client: Client, owner: Person) -> None:
    for value in NO_UUIDS:
        expected = {"message": INVALID, "validations": [NOT_A_UUID]}
        assert await ask(client, owner, f"after_id={value}") == (400, expected), value


async def test_an_unknown_cursor(client: Client, owner: Person) -> None:
    expected = {
        "message": "Invalid pagination cursor.",
        "detail": f"after_id: interception {NOBODY_S} not found: invalid pagination cursor",
    }
    assert await ask(client, owner, f"after_id={NOBODY_S}") == (400, expected)
    assert await ask(client, owner, f"after_id={NOBODY_S.upper()}") == (400, expected)


async def test_a_running_interception_is_no_cursor(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": UUID(NOBODY_S), "ended_at": None})
    status, body = await ask(client, owner, f"after_id={NOBODY_S}")
    assert (status, body["message"]) == (400, "Invalid pagination cursor.")
    sql("UPDATE aibridge_interceptions SET ended_at = now()")
    assert (await ask(client, owner, f"after_id={NOBODY_S}"))[0] == 200


async def test_an_interception_of_others_is_no_cursor(client: Client, member: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": UUID(NOBODY_S)}, {"id": numbered(1), "initiator_id": member.id})
    expected = {
        "message": "Invalid pagination cursor.",
        "detail": f"after_id: interception {NOBODY_S} not found: invalid pagination cursor",
    }
    assert await ask(client, member, f"after_id={NOBODY_S}") == (400, expected)
    assert (await ask(client, member, f"after_id={numbered(1)}"))[0] == 200


async def test_a_cursor_in_upper_case(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": UUID(NOBODY_S)})
    assert (await ask(client, owner, f"after_id={NOBODY_S.upper()}"))[0] == 200


# -- both modes ------------------------------------------------------------------------------------------------------


async def test_both_modes_at_once(client: Client, owner: Person) -> None:
    for offset in ("1", "%2B1", "2147483647"):
        expected = {"message": INVALID, "detail": BOTH}
        assert await ask(client, owner, f"after_id={NOBODY_S}&offset={offset}") == (400, expected)
        assert await ask(client, owner, f"offset={offset}&after_id={NOBODY_S}") == (400, expected)


async def test_a_cursor_with_a_zero_offset(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1)}, {"id": numbered(2)})
    for query in ("offset=0", "offset=", "offset", "offset=%2B0"):
        status, body = await ask(client, owner, f"after_id={numbered(2)}&{query}")
        assert (status, body["total"]) == (200, 2)
        assert [result["id"] for result in body["results"]] == [str(numbered(1))]


async def test_a_zero_cursor_is_none(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1)}, {"id": numbered(2)})
    for query in (f"after_id={NO_UUID}", "after_id=", "after_id"):
        status, body = await ask(client, owner, query)
        assert (status, len(body["results"])) == (200, 2)
        status, body = await ask(client, owner, f"{query}&offset=1")
        assert (status, len(body["results"])) == (200, 1)


# -- several, and their order ----------------------------------------------------------------------------------------


async def test_a_parameter_given_more_than_once(client: Client, owner: Person) -> None:
    for name in ("after_id", "limit", "offset", "q"):
        for values in (
            ("", ""),
            ("1", "1"),
            ("bad%20bad", "x"),
            ("", "", ""),
        ):
            query = "&".join(f"{name}={value}" for value in values)
            expected = {"message": INVALID, "validations": [twice(name, len(values))]}
            assert await ask(client, owner, query) == (400, expected), query


async def test_a_parameter_of_the_names_given_twice(client: Client, owner: Person) -> None:
    for what in ("models", "clients"):
        for name in ("limit", "offset", "q"):
            expected = {"message": INVALID, "validations": [twice(name)]}
            assert await ask(client, owner, f"{name}=&{name}=", what=what) == (400, expected)


async def test_everything_wrong_at_once_in_one_order(client: Client, owner: Person) -> None:
    status, body = await ask(client, owner, "q=a&offset=-1&limit=x&q=b:&after_id=y")
    assert (status, body["message"]) == (400, INVALID)
    assert [validation["field"] for validation in body["validations"]] == ["after_id", "limit", "offset", "q"]
    assert body["validations"][0] == NOT_A_UUID
    assert body["validations"][3] == twice("q")
    status, body = await ask(client, owner, "offset=1&limit=1&limit=1&offset=1&after_id=&after_id=")
    assert body["validations"] == [twice("after_id"), twice("limit"), twice("offset")]


async def test_which_check_comes_first(client: Client, owner: Person) -> None:
    for query, message, detail in (
        # what cannot be read comes before both modes …
        (f"after_id={NOBODY_S}&offset=1&limit=x", INVALID, None),
        (f"after_id={NOBODY_S}&offset=1&q=a&q=b", INVALID, None),
        ("after_id=x&offset=1&limit=1001", INVALID, None),
        # … these before the range of the limit …
        (f"after_id={NOBODY_S}&offset=1&limit=1001", INVALID, BOTH),
        (f"after_id={NOBODY_S}&offset=1&limit=1001&q=:", INVALID, BOTH),
        # … that before the search …
        ("limit=1001&q=:", *RANGE),
        (f"limit=1001&q=:&after_id={NOBODY_S}", *RANGE),
        (f"limit=1001&after_id={NOBODY_S}", *RANGE),
        # … and this before the cursor.
        (f"q=model:&after_id={NOBODY_S}", "Invalid interceptions search query.", None),
        (f"q=bad:x&after_id={NOBODY_S}", "Invalid interceptions search query.", None),
        (f"q=nosuchuser&after_id={NOBODY_S}", "Invalid interceptions search query.", None),
    ):
        status, body = await ask(client, owner, query)
        assert (status, body["message"], body.get("detail")) == (400, message, detail), query


async def test_sign_in_comes_before_any_of_them(client: Client) -> None:
    assert (await client.get(f"{API}/interceptions?limit=x")).status == 401


async def test_an_unknown_extra_parameter_is_ignored(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {})
    for what in LISTS:
        for query in UNKNOWN:
            status, body = await ask(client, owner, query, what=what)
            assert status == 200, query
            assert body["total"] == 1 if what == "interceptions" else len(body) == 1


async def test_names_know_no_cursor(client: Client, owner: Person) -> None:
    for what in ("models", "clients"):
        assert (await ask(client, owner, "after_id=x&after_id=y&offset=1", what=what)) == (200, [])


# -- q ---------------------------------------------------------------------------------------------------------------


async def test_a_search_that_is_refused(client: Client, owner: Person) -> None:
    for query, validations in (
        ("q=model:", [("q", "Query element \"model:\" cannot start or end with ':'")]),
        ("q=a:b:c", [("q", "Query element \"a:b:c\" can only contain 1 ':'")]),
        ("q=Colour:red", [("colour", '"colour" is not a valid query param')]),
        (
            "q=nobody",
            [
                (
                    "initiator",
                    (
                        'Query param "initiator" has invalid value: user "nobody" either does not exist, '
                        "or you are unauthorized to view them"
                    ),
                )
            ],
        ),
        (
            "q=started_after:invalid",
            [
                (
                    "started_after",
                    (
                        'Query param "started_after" must be a valid date format (2006-01-02T15:04:05.999999999Z07:00): '
                        'parsing time "INVALID" as "2006-01-02T15:04:05.999999999Z07:00": cannot parse "INVALID" as "2006"'
                    ),
                )
            ],
        ),
        (
            "q=started_after:%222026-01-02T00:00:00Z%22+started_before:%222026-01-02T00:00:00Z%22",
            [
                (
                    "started_before",
                    (
                        'Query param "started_before" has invalid value: '
                        '"started_before" must be after "started_after" if set'
                    ),
                )
            ],
        ),
        (
            "q=zzz:1+model:a+model:b+nobody",
            [
                (
                    "initiator",
                    (
                        'Query param "initiator" has invalid value: user "nobody" either does not exist, '
                        "or you are unauthorized to view them"
                    ),
                ),
                (
                    "model",
                    (
                        'Query param "model" provided more than once, found 2 times. '
                        "Only provide 1 instance of this query param."
                    ),
                ),
                ("zzz", '"zzz" is not a valid query param'),
            ],
        ),
    ):
        assert await ask(client, owner, query) == (
            400,
            {
                "message": "Invalid interceptions search query.",
                "validations": [{"field": field, "detail": detail} for field, detail in validations],
            },
        )


async def test_text_that_no_database_holds(client: Client, owner: Person) -> None:
    for what in LISTS:
        for q in (
            "%00",
            "a%00b",
            "model:%00",
            "%ED%A0%80",
            "%FF",
            "model:%FF",
            "%",
            "%zz",
            "%C3",
            "%F0%9F%98",
        ):
            status, body = await ask(client, owner, f"q={q}", what=what)
            assert status in {200, 400}, q
            if status == 400:
                assert body["message"] == f"Invalid {what} search query."
                assert body["validations"]
            if "%00" in q:
                assert status == 400, q


async def test_a_plus_in_a_search_is_a_space(client: Client, owner: Person, sql: Sql) -> None:
    put(sql, "interceptions", {"id": numbered(1), "model": "a b"}, {"id": numbered(2), "model": "a+b"})
    for query, expected in (('q=model:"a+b"', 1), ('q=model:"a%2Bb"', 2), ('q=model:"a%20b"', 1)):
        _, body = await ask(client, owner, query.replace('"', "%22"))
        assert [result["id"] for result in body["results"]] == [str(numbered(expected))]
