"""The search language of `q`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import instants, search
from service.errors import InvalidClientsQuery, InvalidInterceptionsQuery, InvalidModelsQuery, Refusal
from service.identifiers import parse_uuid
from service.search import InterceptionFilter

reproducible = settings(derandomize=True, deadline=None, max_examples=300)

CALLER = UUID("11111111-1111-4111-8111-111111111111")
ALICE = UUID("22222222-2222-4222-8222-222222222222")
SOMEONE = "06588898-9a84-4b35-ba8f-f9cbd64946f3"
LAYOUT = "2006-01-02T15:04:05.999999999Z07:00"


def read(q: str, **known: UUID) -> InterceptionFilter:
    """What a handler does with `q`, where `known` are the users by name."""
    asked = search.parse_interceptions(q)
    user_id = known.get(asked.username) if asked.username is not None else None
    return asked.resolve(caller_id=CALLER, user_id=user_id)


def refusals(parse: Callable[[str], object], q: str) -> list[tuple[str, str]]:
    with pytest.raises(Refusal) as refused:
        parse(q)
    assert refused.value.detail == ""
    return [(validation.field, validation.detail) for validation in refused.value.validations]


# -- what a query means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "wanted"),
    [
        # nothing asked
        ("", InterceptionFilter()),
        ("   ", InterceptionFilter()),
        ('""', InterceptionFilter()),
        ('"', InterceptionFilter()),
        ('model:""', InterceptionFilter()),
        ('model:"', InterceptionFilter()),
        ('started_after:""', InterceptionFilter()),
        ('initiator:""', InterceptionFilter()),
        ("initiator:00000000-0000-0000-0000-000000000000", InterceptionFilter()),
        # each key
        ("provider:openai", InterceptionFilter(provider="openai")),
        ("provider_name:my-openai", InterceptionFilter(provider_name="my-openai")),
        ("model:gpt-4", InterceptionFilter(model="gpt-4")),
        ("client:Unknown", InterceptionFilter(client="Unknown")),
        (
            'started_after:"2025-01-01T00:00:00Z"',
            InterceptionFilter(started_after=datetime(2025, 1, 1, tzinfo=UTC)),
        ),
        (
            'started_before:"2025-01-01t02:00:00.0000019+02:00"',
            InterceptionFilter(started_before=datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        ),
        # keys in any case, with or without quotes; values as typed
        ("MoDeL:GPT-4", InterceptionFilter(model="GPT-4")),
        ('"Model":x', InterceptionFilter(model="x")),
        ('"model":"x"', InterceptionFilter(model="x")),
        # several terms
        ("provider:openai  model:x ", InterceptionFilter(provider="openai", model="x")),
        # quotes keep spaces and colons together, and are taken off at either end only
        ('model:"a b"', InterceptionFilter(model="a b")),
        ('model:" a "', InterceptionFilter(model=" a ")),
        ('model:"a:b"', InterceptionFilter(model="a:b")),
        ('model:":"', InterceptionFilter(model=":")),
        ('model:a" b"', InterceptionFilter(model='a" b')),
        ('model:a"b"c', InterceptionFilter(model='a"b"c')),
        ('model:""a""', InterceptionFilter(model="a")),
        ('model:"a""b"', InterceptionFilter(model='a""b')),
        ("model:a\\", InterceptionFilter(model="a\\")),
        # an open quote runs to the end
        ('model:"a provider:b', InterceptionFilter(model="a provider:b")),
        ('model:"abc:', InterceptionFilter(model="abc:")),
        ('model:a"', InterceptionFilter(model="a")),
        # colons in a row, other white space
        ("model::x", InterceptionFilter(model="x")),
        ("model:::x", InterceptionFilter(model="x")),
        ("model:a\tb", InterceptionFilter(model="a\tb")),
        ("model:a\N{NO-BREAK SPACE}b", InterceptionFilter(model="a\N{NO-BREAK SPACE}b")),
        ("model:\N{REPLACEMENT CHARACTER}", InterceptionFilter(model="\N{REPLACEMENT CHARACTER}")),
        # initiators
        ("initiator:me", InterceptionFilter(initiator_id=CALLER)),
        ('initiator:"me"', InterceptionFilter(initiator_id=CALLER)),
        ("me", InterceptionFilter(initiator_id=CALLER)),
        (f"initiator:{SOMEONE}", InterceptionFilter(initiator_id=UUID(SOMEONE))),
        (f"initiator:{SOMEONE.upper()}", InterceptionFilter(initiator_id=UUID(SOMEONE))),
        (SOMEONE, InterceptionFilter(initiator_id=UUID(SOMEONE))),
        ('"" me ""', InterceptionFilter(initiator_id=CALLER)),
        ('initiator:me ""', InterceptionFilter(initiator_id=CALLER)),
    ],
)
def test_meaning(q: str, wanted: InterceptionFilter) -> None:
    assert read(q) == wanted


@pytest.mark.parametrize(
    ("q", "username"),
    [
        ("initiator:alice", "alice"),
        ("alice", "alice"),
        ("initiator:ALICE", "ALICE"),
        ("initiator:ME", "ME"),
        ("initiator:065888989a844b35ba8ff9cbd64946f3", "065888989a844b35ba8ff9cbd64946f3"),
        ("a  b", "a b"),
        ("a model:x b", "a b"),
        ('a "" b', "a b"),
        ('"a:b"', "a:b"),
        ('":a:"', ":a:"),
        ('":a:', ":a:"),
        ('"model:x y', "model:x y"),
        ('"a b" c', "a b c"),
        ('"a"b"', 'a"b'),
        ('"a:b"c', 'a:b"c'),
    ],
)
def test_username_for_the_handler_to_look_up(q: str, username: str) -> None:
    asked = search.parse_interceptions(q)
    assert asked.username == username
    assert asked.resolve(caller_id=CALLER, user_id=ALICE).initiator_id == ALICE


# -- what is refused -------------------------------------------------------------------------------------------------


def repeated(key: str, times: int = 2) -> tuple[str, str]:
    return (
        key,
        (
            f'Query param "{key}" provided more than once, found {times} times. '
            "Only provide 1 instance of this query param."
        ),
    )


def no_instant(key: str, echo: str, why: str) -> tuple[str, str]:
    return (
        key,
        f'Query param "{key}" must be a valid date format ({LAYOUT}): parsing time "{echo}" as "{LAYOUT}": {why}',
    )


def unknown_user(name: str) -> tuple[str, str]:
    return (
        "initiator",
        (
            f'Query param "initiator" has invalid value: user "{name}" either does not exist, '
            "or you are unauthorized to view them"
        ),
    )


def unstorable(key: str) -> tuple[str, str]:
    return (
        key,
        (
            f'Query param "{key}" must not contain U+0000 or unpaired surrogates. '
            "Remove them, and percent-encode the query as UTF-8."
        ),
    )


def at_either_end(element: str) -> tuple[str, str]:
    return ("q", f"Query element \"{element}\" cannot start or end with ':'")


def too_many(element: str) -> tuple[str, str]:
    return ("q", f"Query element \"{element}\" can only contain 1 ':'")


NOT_AFTER = (
    "started_before",
    'Query param "started_before" has invalid value: "started_before" must be after "started_after" if set',
)


def test_messages_to_the_letter() -> None:
    """One of each, as a client reads it; the tables below build theirs from parts."""
    assert refusals(read, "model:") == [("q", "Query element \"model:\" cannot start or end with ':'")]
    assert refusals(read, "a:b:c") == [("q", "Query element \"a:b:c\" can only contain 1 ':'")]
    assert refusals(read, "K:x") == [("k", '"k" is not a valid query param')]
    assert refusals(read, "model:a model:b") == [
        (
            "model",
            'Query param "model" provided more than once, found 2 times. Only provide 1 instance of this query param.',
        )
    ]
    assert refusals(read, "initiator:unknown") == [
        (
            "initiator",
            (
                'Query param "initiator" has invalid value: user "unknown" either does not exist, '
                "or you are unauthorized to view them"
            ),
        )
    ]
    assert refusals(read, "started_after:invalid") == [
        (
            "started_after",
            (
                'Query param "started_after" must be a valid date format (2006-01-02T15:04:05.999999999Z07:00): '
                'parsing time "INVALID" as "2006-01-02T15:04:05.999999999Z07:00": cannot parse "INVALID" as "2006"'
            ),
        )
    ]


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        # the grammar: the first mistake alone
        ("model:", [at_either_end("model:")]),
        (":x", [at_either_end(":x")]),
        (":", [at_either_end(":")]),
        ('model:"x":', [at_either_end('model:"x":')]),
        ("Model::", [at_either_end("Model::")]),
        (":a:b:c", [at_either_end(":a:b:c")]),
        ("a:b:c", [too_many("a:b:c")]),
        ('a:"b c":d', [too_many('a:"b c":d')]),
        ("started_after:2025-01-01T00:00:00Z", [too_many("started_after:2025-01-01T00:00:00Z")]),
        ("a:b:c model: nope:x", [too_many("a:b:c")]),
        ("nope:x model: a:b:c", [at_either_end("model:")]),
        (":\ud800", [at_either_end(":?")]),
        # unknown keys: lower-cased, once each, in the order typed, after all others
        ("nope:x", [("nope", '"nope" is not a valid query param')]),
        ('nope:""', [("nope", '"nope" is not a valid query param')]),
        ("B:1 a:1 b:2", [("b", '"b" is not a valid query param'), ("a", '"a" is not a valid query param')]),
        ('"":x', [("", '"" is not a valid query param')]),
        ('"a:b":c', [("a:b", '"a:b" is not a valid query param')]),
        ("\ud800:x \udfff:x", [("?", '"?" is not a valid query param')]),
        # repeated keys; an empty value counts
        ("model:a model:a", [repeated("model")]),
        ("model:a MODEL:b model:c", [repeated("model", 3)]),
        ('model:"" model:a', [repeated("model")]),
        ("initiator:a b", [repeated("initiator")]),
        ("b initiator:a c", [repeated("initiator")]),
        ("started_after:x started_after:y", [repeated("started_after")]),
        # instants
        ("started_after:invalid", [no_instant("started_after", "INVALID", 'cannot parse "INVALID" as "2006"')]),
        ("started_before:2025-01-01", [no_instant("started_before", "2025-01-01", 'cannot parse "" as "T"')]),
        (
            'started_after:"2025-13-01t00:00:00z"',
            [no_instant("started_after", "2025-13-01T00:00:00Z", "month out of range")],
        ),
        ('started_after:"2025-01-01T00:00:00Z" started_before:"2025-01-01T01:00:00+01:00"', [NOT_AFTER]),
        ('started_after:"2025-01-02T00:00:00Z" started_before:"2025-01-01T00:00:00Z"', [NOT_AFTER]),
        (  # unequal as typed, equal to the microsecond
            'started_after:"2025-01-01T00:00:00.0000001Z" started_before:"2025-01-01T00:00:00.0000002Z"',
            [NOT_AFTER],
        ),
        (
            'started_after:x started_before:"2025-01-01T00:00:00Z"',
            [no_instant("started_after", "X", 'cannot parse "X" as "2006"')],
        ),
        # what the database cannot hold
        ("model:a\0", [unstorable("model")]),
        ("client:\udc80", [unstorable("client")]),
        ("a\0b", [unstorable("initiator")]),
        ("started_after:\ud800", [unstorable("started_after")]),
        # users
        ("initiator:unknown", [unknown_user("unknown")]),
        ("Some  body", [unknown_user("Some body")]),
        # all together, in the order of the keys
        (
            (
                "x:1 started_before:b started_after:a client:\0 model:a model:b provider_name:\0 "
                "provider:a provider:b initiator:ghost"
            ),
            [
                unknown_user("ghost"),
                repeated("provider"),
                unstorable("provider_name"),
                repeated("model"),
                unstorable("client"),
                no_instant("started_after", "A", 'cannot parse "A" as "2006"'),
                no_instant("started_before", "B", 'cannot parse "B" as "2006"'),
                ("x", '"x" is not a valid query param'),
            ],
        ),
    ],
)
def test_refusals(q: str, expected: list[tuple[str, str]]) -> None:
    assert refusals(read, q) == expected


def test_a_known_username_does_not_hide_other_mistakes() -> None:
    assert refusals(lambda q: read(q, alice=ALICE), "alice nope:x") == [("nope", '"nope" is not a valid query param')]


def test_an_unusable_username_is_not_looked_up() -> None:
    assert search.parse_interceptions("initiator:a\0").username is None
    assert search.parse_interceptions("initiator:a initiator:b").username is None


def test_length() -> None:
    longest = "model:" + "x" * (8192 - len("model:"))
    assert read(longest).model == longest.removeprefix("model:")
    detail = 'Query param "q" must not exceed 8192 characters, found 8193. Use fewer or shorter terms.'
    assert refusals(read, ":" + "x" * 8192) == [("q", detail)]


# -- models and clients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model", "client"])
@pytest.mark.parametrize(
    ("q", "prefix"),
    [
        ("", ""),
        ('""', ""),
        ('KEY:""', ""),
        ("KEY:gpt-4", "gpt-4"),
        ("gpt-4", "gpt-4"),
        ("Claude  Code", "Claude Code"),
        ('"a:b"', "a:b"),
        ('KEY:"Claude Code"', "Claude Code"),
        ("me", "me"),
        ("100%_", "100%_"),
        (SOMEONE, SOMEONE),
    ],
)
def test_prefix(key: Literal["model", "client"], q: str, prefix: str) -> None:
    assert search.parse_prefix(q.replace("KEY", key), key=key) == prefix


@pytest.mark.parametrize(
    ("key", "q", "refusal", "expected"),
    [
        ("model", "client:x", InvalidModelsQuery, [("client", '"client" is not a valid query param')]),
        ("client", "model:x", InvalidClientsQuery, [("model", '"model" is not a valid query param')]),
        ("model", "model:a b", InvalidModelsQuery, [repeated("model")]),
        ("client", "x:y a\0", InvalidClientsQuery, [unstorable("client"), ("x", '"x" is not a valid query param')]),
        ("model", "model:", InvalidModelsQuery, [at_either_end("model:")]),
        ("client", "a:b:c", InvalidClientsQuery, [too_many("a:b:c")]),
    ],
)
def test_prefix_refusals(
    key: Literal["model", "client"], q: str, refusal: type[Refusal], expected: list[tuple[str, str]]
) -> None:
    assert refusals(lambda q: search.parse_prefix(q, key=key), q) == expected
    with pytest.raises(refusal):
        search.parse_prefix(q, key=key)


# -- properties ------------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(codec=None))
likely_words = st.sampled_from(
    ["initiator", "model", "client", "started_after", "2025-01-01T00:00:00Z", "me", "x", SOMEONE, "\0", "\ud800"]
)
likely_text = st.lists(likely_words | st.sampled_from(' :"'), max_size=20).map("".join)


@reproducible
@given(any_text | likely_text)
def test_no_text_raises_anything_but_the_refusal(q: str) -> None:
    for parse, refusal in (
        (read, InvalidInterceptionsQuery),
        (lambda q: search.parse_prefix(q, key="model"), InvalidModelsQuery),
        (lambda q: search.parse_prefix(q, key="client"), InvalidClientsQuery),
    ):
        try:
            parse(q)
        except refusal as refused:
            told = refused.validations
        else:
            continue
        assert told
        for validation in told:
            f"{validation.field}{validation.detail}".encode()


@reproducible
@given(any_text | likely_text)
def test_whatever_is_let_through_can_be_stored(q: str) -> None:
    try:
        prefix = search.parse_prefix(q, key="model")
    except Refusal:
        return
    assert "\0" not in prefix
    prefix.encode("utf-8")


values = st.text(st.characters(codec="utf-8", exclude_characters='\0"'), min_size=1)
usernames = values.filter(lambda name: name != "me" and parse_uuid(name) is None)
instants_of_time = st.datetimes(timezones=st.just(UTC))
initiators = st.one_of(
    st.none(),
    st.just(("me", CALLER)),
    st.uuids().map(lambda identifier: (str(identifier), identifier)),
    usernames.map(lambda name: (name, ALICE)),
)


@reproducible
@given(
    initiator=initiators,
    others=st.builds(
        InterceptionFilter,
        initiator_id=st.none(),
        provider=st.none() | values,
        provider_name=st.none() | values,
        model=st.none() | values,
        client=st.none() | values,
        started_after=st.none() | instants_of_time,
        started_before=st.none() | instants_of_time,
    ).filter(lambda f: not (f.started_after and f.started_before) or f.started_after < f.started_before),
    data=st.data(),
)
def test_a_filter_written_with_quotes_reads_back(
    initiator: tuple[str, UUID] | None, others: InterceptionFilter, data: st.DataObject
) -> None:
    written: dict[str, str] = {"initiator": initiator[0]} if initiator else {}
    for field in fields(others):
        value = getattr(others, field.name)
        if value is not None:
            written[field.name] = instants.format(value) if isinstance(value, datetime) else value
    terms = data.draw(st.permutations([f'{key}:"{value}"' for key, value in written.items()]))
    separator = data.draw(st.sampled_from([" ", "   "]))

    found = search.parse_interceptions(separator.join(terms)).resolve(caller_id=CALLER, user_id=ALICE)

    wanted = {field.name: getattr(others, field.name) for field in fields(others)}
    wanted["initiator_id"] = initiator[1] if initiator else None
    assert found == InterceptionFilter(**wanted)


@reproducible
@given(values)
@example("model:a b")
@example(":")
def test_a_quoted_term_is_a_word(value: str) -> None:
    assert search.parse_prefix(f'"{value}"', key="model") == value
    assert search.parse_prefix(f'"{value}', key="model") == value
