"""Instants as text: RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import instants

reproducible = settings(derandomize=True, deadline=None)

offsets = st.integers(min_value=-1439, max_value=1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(  # a day clear of both ends, so that every offset leaves the year within 0001-9999
    min_value=datetime(1, 1, 2),  # noqa: DTZ001  # hypothesis gives it the zone
    max_value=datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=offsets,
)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2025-01-01T00:00:00Z", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01t00:00:00z", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T00:00:00+00:00", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T00:00:00-00:00", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T02:30:00+02:30", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2024-12-31T00:01:00-23:59", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2024-02-29T12:00:00Z", datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ("9999-12-31T23:59:59.999999999Z", datetime.max.replace(tzinfo=UTC)),
        ("2025-01-01T00:00:00.5Z", datetime(2025, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("2025-01-01T00:00:00.000001+00:00", datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC)),
        ("2025-01-01T00:00:00.0000009Z", datetime(2025, 1, 1, tzinfo=UTC)),
        (f"2025-01-01T00:00:00.{'9' * 5000}Z", datetime(2025, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC)),
    ],
)
def test_parse(text: str, instant: datetime) -> None:
    assert instants.parse(text) == instant
    assert instants.parse(text).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("INVALID", 'cannot parse "INVALID" as "2006"'),
        ("", 'cannot parse "" as "2006"'),
        ("202", 'cannot parse "202" as "2006"'),
        (" 2025-01-01T00:00:00Z", 'cannot parse " 2025-01-01T00:00:00Z" as "2006"'),
        ("+2025-01-01T00:00:00Z", 'cannot parse "+2025-01-01T00:00:00Z" as "2006"'),
        ("\u0662025-01-01T00:00:00Z", 'cannot parse "\u0662025-01-01T00:00:00Z" as "2006"'),
        ("\ud800", 'cannot parse "?" as "2006"'),
        ("2025", 'cannot parse "" as "-"'),
        ("20250101T000000Z", 'cannot parse "0101T000000Z" as "-"'),
        ("2025-1-01T00:00:00Z", 'cannot parse "1-01T00:00:00Z" as "01"'),
        ("2025-01", 'cannot parse "" as "-"'),
        ("2025-01-", 'cannot parse "" as "02"'),
        ("2025-01-01", 'cannot parse "" as "T"'),
        ("2025-01-01 00:00:00Z", 'cannot parse " 00:00:00Z" as "T"'),
        ("2025-01-01T0:00:00Z", 'cannot parse "0:00:00Z" as "15"'),
        ("2025-01-01T00", 'cannot parse "" as ":"'),
        ("2025-01-01T00:", 'cannot parse "" as "04"'),
        ("2025-01-01T00:00Z", 'cannot parse "Z" as ":"'),
        ("2025-01-01T00:00:Z", 'cannot parse "Z" as "05"'),
        ("2025-01-01T00:00:00", 'cannot parse "" as "Z07:00"'),
        ("2025-01-01T00:00:00.Z", 'cannot parse ".Z" as "Z07:00"'),
        ("2025-01-01T00:00:00,5Z", 'cannot parse ",5Z" as "Z07:00"'),
        ("2025-01-01T00:00:00.5\u0665Z", 'cannot parse "\u0665Z" as "Z07:00"'),
        ("2025-01-01T00:00:00+0000", 'cannot parse "+0000" as "Z07:00"'),
        ("2025-01-01T00:00:00+00", 'cannot parse "+00" as "Z07:00"'),
        ("2025-01-01T00:00:00+00:0", 'cannot parse "+00:0" as "Z07:00"'),
        ("2025-01-01T00:00:00 00:00", 'cannot parse " 00:00" as "Z07:00"'),
        ("2025-01-01T00:00:00\u221200:00", 'cannot parse "\u221200:00" as "Z07:00"'),
        ("0000-01-01T00:00:00Z", "year out of range"),
        ("0001-01-01T00:00:00+00:01", "year out of range"),
        ("9999-12-31T23:59:59-00:01", "year out of range"),
        ("2025-00-01T00:00:00Z", "month out of range"),
        ("2025-13-01T00:00:00Z", "month out of range"),
        ("2025-01-00T00:00:00Z", "day out of range"),
        ("2025-02-29T00:00:00Z", "day out of range"),
        ("2025-01-01T24:00:00Z", "hour out of range"),
        ("2025-01-01T00:60:00Z", "minute out of range"),
        ("2016-12-31T23:59:60Z", "second out of range"),
        ("2025-01-01T00:00:00+24:00", "time zone offset hour out of range"),
        ("2025-01-01T00:00:00+00:60", "time zone offset minute out of range"),
        ("2025-01-01T00:00:00Z ", 'extra text: " "'),
        ("2025-01-01T00:00:00+00:000", 'extra text: "0"'),
        ("2025-01-01T00:00:00Z\n", 'extra text: "\n"'),
    ],
)
def test_what_is_no_instant_is_refused_where_it_goes_wrong(text: str, message: str) -> None:
    with pytest.raises(instants.InstantError) as refused:
        instants.parse(text)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        (datetime(2025, 1, 1, tzinfo=UTC), "2025-01-01T00:00:00Z"),
        (datetime(2025, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC), "2025-01-01T00:00:00.5Z"),
        (datetime(2025, 1, 1, 0, 0, 10, 1, tzinfo=UTC), "2025-01-01T00:00:10.000001Z"),
        (datetime(2025, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2024-12-31T23:00:00Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00Z"),
    ],
)
def test_format(instant: datetime, text: str) -> None:
    assert instants.format(instant) == text


def test_format_refuses_an_instant_without_a_time_zone() -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        instants.format(datetime(2025, 1, 1, tzinfo=UTC).replace(tzinfo=None))


@reproducible
@given(moments)
def test_what_is_formatted_parses_back(instant: datetime) -> None:
    assert instants.parse(instants.format(instant)) == instant


@reproducible
@given(moments)
def test_parse_agrees_with_the_standard_library(instant: datetime) -> None:
    text = instant.isoformat()
    assert instants.parse(text) == datetime.fromisoformat(text)


@reproducible
@given(moments, st.text("0123456789", max_size=12))
def test_a_fraction_is_cut_to_microseconds(instant: datetime, beyond: str) -> None:
    text = instant.isoformat(timespec="microseconds")
    fraction_ends = len("2006-01-02T15:04:05.000000")
    assert instants.parse(text[:fraction_ends] + beyond + text[fraction_ends:]) == instant


@reproducible
@given(st.text(st.characters(codec=None)) | st.text("0123456789-+:.TZtz ", max_size=30))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        instants.parse(text)
    except instants.InstantError as error:
        str(error).encode("utf-8")


@reproducible
@given(moments.map(datetime.isoformat), st.integers(0, 31), st.characters(codec=None))
def test_one_wrong_character_is_read_as_the_standard_library_does_or_refused(text: str, at: int, wrong: str) -> None:
    changed = text[:at] + wrong + text[at + 1 :]
    try:
        parsed = instants.parse(changed)
    except instants.InstantError:
        return
    assert parsed == datetime.fromisoformat(changed.upper())
