"""Pages of any size, joined, are the whole list exactly once; totals are what a naive count says. Held against plain
Python over the same rows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from conftest import API, Client, MakeClient, Person
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rows import Row, Sql, put

from service.context import DATABASE

bounded = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    # Shrinking takes minutes where each step fills a database, and an example is small as it is.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    # Each example begins by emptying the tables, so that one database, one application and its users serve them all.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Few, so that they often meet: equal instants, neighbours of a microsecond, both ends of what is an instant.
INSTANTS = [
    NOON,
    NOON,
    NOON + timedelta(microseconds=1),
    NOON - timedelta(microseconds=1),
    NOON + timedelta(days=1),
    NOON - timedelta(days=30),
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
]
NAMES = [
    "a",
    "A",
    "ab",
    "a b",
    "a:b",
    "a_b",
    "a%",
    "a\\b",
    "'",
    "é",
    "e\u0301",
    "中文",
    "😀",
    "\ufffd",
    "me",
    ";--",
    "$1",
]
PROVIDERS = ["a", "A"]
CLIENTS = ["Unknown", "Unknown", "unknown", "😀"]
# Ids that differ in their first and in their last bits, so that their order is put to the test.
IDS = [UUID(int=(high << 120) | low) for high in (0, 1, 127, 128, 255) for low in range(1, 7)]


@dataclass(frozen=True)
class Search:
    """A search, as text and as the condition that it means."""

    q: str
    matches: Callable[[Row], bool]


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[int, Row]]:
    """A dozen interceptions or two, each with the place of its initiator among the users, in the order of insertion."""
    ids = draw(st.lists(st.sampled_from(IDS), unique=True, min_size=12, max_size=len(IDS)))
    models = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=2, max_size=4))
    instants = [NOON, *draw(st.lists(st.sampled_from(INSTANTS), min_size=1, max_size=4))]
    return [
        (
            draw(st.integers(0, 3)),
            {
                "id": key,
                "provider": draw(st.sampled_from(["a", *PROVIDERS])),
                "provider_name": draw(st.sampled_from(["", *PROVIDERS])),
                "model": draw(st.sampled_from(models)),
                "client": draw(st.sampled_from([None, "", *CLIENTS[1:]])),
                "started_at": draw(st.sampled_from(instants)).isoformat(),
                "ended_at": draw(st.sampled_from([NOON, NOON, NOON, NOON, None])),
            },
        )
        for key in ids
    ]


def started(row: Row) -> datetime:
    return datetime.fromisoformat(row["started_at"])


def written(instant: datetime) -> str:
    return instant.replace(tzinfo=None).isoformat() + "Z"


@st.composite
def searches(draw: st.DrawFn, models: list[str], instants: list[datetime]) -> Search:
    """Up to two of the keys; the initiator is left to the caller."""
    terms: list[str] = []
    conditions: list[Callable[[Row], bool]] = []
    values = {"provider": PROVIDERS, "provider_name": PROVIDERS, "model": models, "client": CLIENTS}
    for key in draw(st.lists(st.sampled_from([*values, "bounds"]), unique=True, min_size=1, max_size=2)):
        if key == "bounds":
            after, before = sorted(draw(st.lists(st.sampled_from(instants), unique=True, min_size=2, max_size=2)))
            ends = draw(st.sampled_from(["after", "before", "both"]))
            if ends != "before":
                terms.append(f'started_after:"{written(after)}"')
                conditions.append(lambda row, after=after: started(row) >= after)  # type: ignore[misc]  # bound now
            if ends != "after":
                terms.append(f'started_before:"{written(before)}"')
                conditions.append(lambda row, before=before: started(row) <= before)  # type: ignore[misc]  # bound now
        else:
            value = draw(st.sampled_from(values[key]))
            terms.append(f'{draw(st.sampled_from([key, key.upper()]))}:"{value}"')
            conditions.append(lambda row, key=key, value=value: read(row, key) == value)  # type: ignore[misc]  # bound now
    return Search(" ".join(draw(st.permutations(terms))), lambda row: all(condition(row) for condition in conditions))


@st.composite
def logs_and_searches(draw: st.DrawFn) -> tuple[list[tuple[int, Row]], list[Search]]:
    """A log, and searches that have a chance to find something in it."""
    log = draw(logs())
    models = [row["model"] for _, row in log]
    instants = [NOON, NOON + timedelta(days=1), *(started(row) for _, row in log)]
    return log, draw(st.lists(searches(models, instants), min_size=6, max_size=6))


def read(row: Row, key: str) -> str:
    """A column as a search sees it."""
    return "Unknown" if row[key] is None else str(row[key])


@pytest.fixture
async def clients(make_client: MakeClient) -> dict[bool, Client]:
    """The service with and without rollups, on one database."""
    made = {True: await make_client(), False: await make_client()}
    made[False].app[DATABASE].rolled_up = False
    return made


@pytest.fixture
async def people(add_person: Callable[..., Awaitable[Person]]) -> list[Person]:
    """Who reads, and initiates: an owner, two members, an auditor."""
    return [
        await add_person("Olga", "owner"),
        await add_person("mia"),
        await add_person("max", "member"),
        await add_person("ada", "auditor"),
    ]


async def page(client: Client, reader: Person, **query: object) -> dict[str, Any]:
    params = {name: str(value) for name, value in query.items()}
    response = await client.get(f"{API}/interceptions", params=params, headers=reader.headers)
    body: dict[str, Any] = await response.json()
    assert response.status == 200, body
    assert body["total"] == body["count"]
    return body


async def all_by_offset(client: Client, reader: Person, *, q: str, size: int) -> tuple[list[Any], set[int]]:
    results: list[Any] = []
    totals: set[int] = set()
    while True:
        body = await page(client, reader, q=q, limit=size, offset=len(results))
        assert len(body["results"]) <= size
        totals.add(body["total"])
        if not body["results"]:
            return results, totals
        results += body["results"]
        assert len(results) <= len(IDS), "a walk without end"


async def all_by_cursor(client: Client, reader: Person, *, q: str, size: int) -> tuple[list[Any], set[int]]:
    results: list[Any] = []
    totals: set[int] = set()
    while True:
        after = {"after_id": results[-1]["id"]} if results else {}
        body = await page(client, reader, q=q, limit=size, **after)
        assert len(body["results"]) <= size
        totals.add(body["total"])
        if not body["results"]:
            return results, totals
        results += body["results"]
        assert len(results) <= len(IDS), "a walk without end"


SHOWN = ("id", "initiator_id", "started_at", "provider", "provider_name", "model", "client")


def shown(row: Row) -> dict[str, Any]:
    """What a result must show of a row."""
    instant = written(started(row))
    if "." in instant:
        instant = instant.removesuffix("Z").rstrip("0") + "Z"
    text = {"id": str(row["id"]), "initiator_id": str(row["initiator_id"]), "started_at": instant}
    return {name: text.get(name, row[name]) for name in SHOWN}


@bounded
@given(
    asked=logs_and_searches(),
    size=st.sampled_from([1, 2, 3, 5, 30, 1000]),
    who=st.sampled_from([0, 3, 0, 1, 2]),
    wanted=st.sampled_from([None, None, None, "me", "id", "name", "stranger"]),
    rolled_up=st.booleans(),
)
async def test_pages_joined_are_a_filter_and_a_sort(  # noqa: PLR0917  # fixtures and what is drawn
    clients: dict[bool, Client],
    sql: Sql,
    people: list[Person],
    asked: tuple[list[tuple[int, Row]], list[Search]],
    size: int,
    who: int,
    wanted: str | None,
    *,
    rolled_up: bool,
) -> None:
    client = clients[rolled_up]
    log, searches = asked
    sql("TRUNCATE aibridge_interceptions CASCADE")
    stranger = UUID(int=3)
    initiators = [person.id for person in people[:3]] + [stranger]
    rows = put(sql, "interceptions", *({**row, "initiator_id": initiators[place]} for place, row in log))
    reader = people[who]
    reads_all = who in {0, 3}
    # Whom to ask for: a member knows nobody but themselves by name.
    other = people[1] if reads_all else reader
    term, initiator = {
        None: ("", None),
        "me": ("initiator:me", reader.id),
        "id": (f"initiator:{people[1].id}", people[1].id),
        "name": (f'initiator:"{other.username.upper()}"', other.id),
        "stranger": (f"initiator:{stranger}", stranger),
    }[wanted]
    for search in searches:
        visible = [
            row
            for row in rows
            if row["ended_at"] is not None
            and (reads_all or row["initiator_id"] == reader.id)
            and (initiator is None or row["initiator_id"] == initiator)
            and search.matches(row)
        ]
        visible.sort(key=lambda row: (started(row), row["id"].int), reverse=True)
        expected = [shown(row) for row in visible]
        for walk in (all_by_offset, all_by_cursor):
            results, totals = await walk(client, reader, q=f"{search.q} {term}", size=size)
            assert [{name: result[name] for name in SHOWN} for result in results] == expected
            assert totals == {len(expected)}


@bounded
@given(
    log=logs(),
    size=st.sampled_from([1, 2, 3, 1000]),
    prefix=st.sampled_from(["", "a", "A", "a_", "U", "Unknown", "e", "é", "😀", "x", "\\", "%"]),
    rolled_up=st.booleans(),
)
async def test_names_joined_are_a_set_and_a_sort(  # noqa: PLR0917  # fixtures and what is drawn
    clients: dict[bool, Client],
    sql: Sql,
    people: list[Person],
    log: list[tuple[int, Row]],
    size: int,
    prefix: str,
    *,
    rolled_up: bool,
) -> None:
    client = clients[rolled_up]
    sql("TRUNCATE aibridge_interceptions CASCADE")
    initiators = [person.id for person in people[:3]] + [UUID(int=3)]
    rows = put(sql, "interceptions", *({**row, "initiator_id": initiators[place]} for place, row in log))
    for reader in people:
        reads_all = reader in {people[0], people[3]}
        for what, key in (("models", "model"), ("clients", "client")):
            names = {
                read(row, key)
                for row in rows
                if row["ended_at"] is not None and (reads_all or row["initiator_id"] == reader.id)
            }
            found: list[str] = []
            while True:
                params = {"q": f'{key}:"{prefix}"', "limit": str(size), "offset": str(len(found))}
                response = await client.get(f"{API}/{what}", params=params, headers=reader.headers)
                some = await response.json()
                if not some:
                    break
                found += some
            assert found == sorted(name for name in names if name.startswith(prefix))
