"""Instants as text: RFC 3339, read strictly and written in one way.

Every instant is an aware `datetime` in UTC, to the microsecond, which is what PostgreSQL keeps.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone

LAYOUT = "2006-01-02T15:04:05.999999999Z07:00"
"""RFC 3339 as Go spells a layout, which is how the API's errors name the format."""


# Nearly all that come: read without the reader, which takes several times as long.
_USUAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")


class InstantError(ValueError):
    """The text is no instant. The message says where it stops being one, in the words of Go's time.Parse.

    That is `cannot parse "24" as "2006"` (what was left to read, and the element of `LAYOUT` due there),
    `month out of range` (likewise year, day, hour, …) or `extra text: "…"`.
    """


def parse(text: str) -> datetime:
    """The instant that `text` writes, in UTC; more than six digits of a fraction are cut, not rounded.

    Read are the date-times of RFC 3339, section 5.6, without leap seconds. Raises `InstantError`.
    """
    if _USUAL.fullmatch(text):
        with contextlib.suppress(ValueError):  # the reader tells why
            return datetime.fromisoformat(text)
    reader = _Reader(text)
    year = reader.number("2006", "year", 1, 9999)
    reader.literal("-")
    month = reader.number("01", "month", 1, 12)
    reader.literal("-")
    day = reader.number("02", "day", 0, 99)  # what the month allows is known only to datetime, below
    reader.literal("T")
    hour = reader.number("15", "hour", 0, 23)
    reader.literal(":")
    minute = reader.number("04", "minute", 0, 59)
    reader.literal(":")
    second = reader.number("05", "second", 0, 59)
    microsecond = reader.fraction()
    zone = reader.zone()
    reader.end()
    try:
        local = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=zone)
    except ValueError:
        raise InstantError("day out of range") from None
    try:
        return local.astimezone(UTC)
    except OverflowError:
        raise InstantError("year out of range") from None


def format(instant: datetime) -> str:
    """`instant` in UTC, ending in `Z`; the fraction without trailing zeros, and left out where it is zero."""
    if instant.tzinfo is None:
        raise ValueError("an instant without a time zone would be read in that of the host")
    text = instant.astimezone(UTC).replace(tzinfo=None).isoformat()
    return (text.rstrip("0") if "." in text else text) + "Z"


class _Reader:
    """Takes the elements of an instant from the front of a text, one call each."""

    def __init__(self, text: str) -> None:
        self._rest = text

    def number(self, element: str, name: str, least: int, most: int) -> int:
        """As many digits as the layout's `element` has."""
        digits = self._rest[: len(element)]
        if len(digits) < len(element) or not _is_digits(digits):
            raise self._cannot_parse(element)
        if not least <= int(digits) <= most:
            raise InstantError(f"{name} out of range")
        self._rest = self._rest[len(element) :]
        return int(digits)

    def literal(self, element: str) -> None:
        """That one character, in either case."""
        if self._rest[:1].upper() != element:
            raise self._cannot_parse(element)
        self._rest = self._rest[1:]

    def fraction(self) -> int:
        """Microseconds; 0 where there is no fraction. A dot without a digit is left to be refused as a zone."""
        if not self._rest.startswith("."):
            return 0
        rest = self._rest[1:].lstrip("0123456789")
        digits = self._rest[1 : len(self._rest) - len(rest)]
        if not digits:
            return 0
        self._rest = rest
        return int(digits[:6].ljust(6, "0"))

    def zone(self) -> timezone:
        """`Z` in either case, or a sign, hours, a colon and minutes."""
        if self._rest[:1] in ("Z", "z"):
            self._rest = self._rest[1:]
            return UTC
        sign, hours, colon, minutes = self._rest[:1], self._rest[1:3], self._rest[3:4], self._rest[4:6]
        if sign not in ("+", "-") or colon != ":" or len(minutes) < 2 or not _is_digits(hours + minutes):
            raise self._cannot_parse("Z07:00")
        if int(hours) > 23:
            raise InstantError("time zone offset hour out of range")
        if int(minutes) > 59:
            raise InstantError("time zone offset minute out of range")
        self._rest = self._rest[6:]
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(-offset if sign == "-" else offset)

    def end(self) -> None:
        """Nothing is left."""
        if self._rest:
            raise InstantError(f"extra text: {_quoted(self._rest)}")

    def _cannot_parse(self, element: str) -> InstantError:
        return InstantError(f"cannot parse {_quoted(self._rest)} as {_quoted(element)}")


def _is_digits(text: str) -> bool:
    """ASCII digits only: `str.isdigit` alone, and `int`, take those of every script."""
    return text.isascii() and text.isdigit()


def _quoted(text: str) -> str:
    """`text` in double quotes, fit to be sent: an unpaired surrogate, which UTF-8 cannot hold, reads `?`."""
    return f'"{text.encode("utf-8", "replace").decode("utf-8")}"'
