"""UUIDs as text."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.identifiers import parse_uuid

reproducible = settings(derandomize=True, deadline=None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "06588898-9a84-4b35-ba8f-f9cbd64946f",
        "06588898-9a84-4b35-ba8f-f9cbd64946f34",
        "06588898-9a84-4b35-ba8f-f9cbd64946f3\n",
        " 06588898-9a84-4b35-ba8f-f9cbd64946f3",
        "065888989a844b35ba8ff9cbd64946f3",
        "0658889-89a84-4b35-ba8f-f9cbd64946f3",
        "{06588898-9a84-4b35-ba8f-f9cbd64946f3}",
        "urn:uuid:06588898-9a84-4b35-ba8f-f9cbd64946f3",
        "g6588898-9a84-4b35-ba8f-f9cbd64946f3",
        "\u0660\u0666588898-9a84-4b35-ba8f-f9cbd64946f3",  # digits, but not those of ASCII
    ],
)
def test_any_other_form_is_refused(text: str) -> None:
    assert parse_uuid(text) is None


@reproducible
@given(st.uuids())
def test_the_canonical_form_is_read_in_either_case(identifier: UUID) -> None:
    assert parse_uuid(str(identifier)) == parse_uuid(str(identifier).upper()) == identifier


@reproducible
@given(st.text(st.characters(codec=None)))
def test_no_text_is_an_error(text: str) -> None:
    parse_uuid(text)
