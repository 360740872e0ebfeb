"""JSON text that comes from outside: read exactly, and checked against what PostgreSQL can hold.

Numbers keep their decimal value (`int`, or `Decimal` where there is a fraction, an exponent or thousands of digits), so
that what is recorded reads back equal. Of members that share a name in one object the last wins, as in `jsonb`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Final

import simplejson

from service.errors import InvalidBody, InvalidJSON, Validation

MAX_DEPTH: Final = 64

_MAX_FRACTION: Final = 1_100  # digits after the point; the smallest double has 1,074
_MAX_DIGITS: Final = 1_000_000  # of all numbers with a point or an exponent in one object, written out
_BEYOND_DOUBLE: Final = Decimal("1E+400")
_ALWAYS_AN_INT: Final = 640  # Python can be told to refuse longer ones, but not these

_SYNTAX: Final = {
    "Expecting value": "a value is expected",
    "Expecting value or ']'": "a value or ']' is expected",
    "Expecting property name enclosed in double quotes": "a member name in double quotes is expected",
    "Expecting property name enclosed in double quotes or '}'": "a member name in double quotes, or '}', is expected",
    "Expecting ':' delimiter": "':' is expected",
    "Expecting ',' delimiter or '}'": "',' or '}' is expected",
    "Expecting ',' delimiter or ']'": "',' or ']' is expected",
    "Illegal trailing comma before end of object": "no comma may stand before '}'",
    "Illegal trailing comma before end of array": "no comma may stand before ']'",
    "Invalid control character %r at": "a control character in a string must be escaped",
    "Invalid \\X escape sequence %r": "this escape sequence does not exist",
    "Invalid \\uXXXX escape sequence": "'\\u' must be followed by four hexadecimal digits",
    "Unterminated string starting at": "this string has no end",
    "Extra data": "nothing may follow the value",
}


def parse(data: bytes) -> object:
    """Read one JSON value from UTF-8, after a byte order mark or not.

    A number whose exponent not even `Decimal` holds becomes another that is beyond double range as well (a zero, 0).

    Raises `InvalidJSON`, whose detail says where and what, without quoting the text; and `InvalidBody` on the member
    that nests so deep that it cannot be read. What nests deeper than `MAX_DEPTH` but can be read is left to
    `object_problem`.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"The byte at offset {error.start} is not part of valid UTF-8.") from None
    try:
        return _loads(text)
    except RecursionError:
        pass
    # Out here, the traceback no longer holds the frames that the stack ran out of.
    path = _deep_path(data)
    raise InvalidBody(validations=[Validation(path, f"must not nest deeper than {MAX_DEPTH} levels")])


def dump(value: object, *, default: Callable[[object], object] | None = None) -> str:
    """JSON text for PostgreSQL, as exact as `parse` read it. `default` makes JSON of what is none."""
    encoder = _ENCODER if default is None else _encoder(default)
    return encoder.encode(value)


@cache
def _encoder(default: Callable[[object], object] | None) -> simplejson.JSONEncoder:
    # Made once: that takes longer than to write a small object.
    return simplejson.JSONEncoder(
        use_decimal=True,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        for_json=False,
        default=default,
    )


_ENCODER: Final = _encoder(None)


def text_problem(text: str) -> str | None:
    """Why PostgreSQL cannot hold this text, if it cannot."""
    if "\0" in text:
        return "must not contain U+0000"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "must not contain unpaired surrogates"
    return None


def cleaned(text: str) -> str:
    """The text as PostgreSQL can hold it: what `text_problem` objects to becomes U+FFFD, halves of a pair become whole."""
    if text_problem(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace("\0", "\ufffd")


def object_problem(value: dict[str, object]) -> str | None:
    """Why an object that `parse` read cannot be stored and read back equal, if it cannot; it is level 1 itself."""
    level: list[dict[str, object] | list[object]] = [value]
    digits = 0
    for _ in range(MAX_DEPTH):
        below: list[dict[str, object] | list[object]] = []
        for container in level:
            members: list[object] = container if isinstance(container, list) else [*container, *container.values()]
            for member in members:
                if isinstance(member, (dict, list)):
                    below.append(member)
                    continue
                problem = None
                if isinstance(member, str):
                    problem = text_problem(member)
                elif isinstance(member, Decimal):
                    problem = _number_problem(member)
                    # PostgreSQL writes an exponent out: nine bytes could come back as thousands.
                    digits += 0 if problem else abs(member.adjusted()) + len(member.as_tuple().digits)
                elif isinstance(member, int):
                    problem = _number_problem(member)
                if problem is None and digits > _MAX_DIGITS:
                    problem = f"must not contain numbers that are over {_MAX_DIGITS:,} digits long together"
                if problem is not None:
                    return problem
        if not below:
            return None
        level = below
    return f"must not nest deeper than {MAX_DEPTH} levels"


def _number_problem(number: int | Decimal) -> str | None:
    try:
        double = float(number)
    except OverflowError:
        double = float("inf")
    if double in (float("inf"), float("-inf")) or (double == 0 and number != 0):
        return "must not contain a number beyond the range of double precision"
    if isinstance(number, Decimal):
        # Millions of digits would make a tuple of millions of integers, hence the look at the text before.
        exponent = _MAX_FRACTION + 1 if len(str(number)) > 2 * _MAX_FRACTION else number.as_tuple().exponent
        if not isinstance(exponent, int) or abs(exponent) > _MAX_FRACTION:
            return f"must not contain a number with more than {_MAX_FRACTION:,} digits after the point"
    return None


def balanced(levels: int) -> bytes:
    """A pattern for text whose brackets, of either kind, pair up and stand at most so many levels deep."""
    string, other = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', rb'[^"\[\]{}]*+'
    pattern = other + rb"(?:" + string + other + rb")*+"
    for _ in range(levels):
        pattern = other + rb"(?:(?:" + string + rb"|[\[{]" + pattern + rb"[\]}])" + other + rb")*+"
    return pattern


def skip(pattern: re.Pattern[bytes], data: bytes, position: int) -> int:
    """Where a pattern that matches the empty string as well stops matching."""
    match = pattern.match(data, position)
    return match.end() if match else position


def _loads(text: str) -> object:
    try:
        try:
            return simplejson.loads(text, use_decimal=True)
        except simplejson.JSONDecodeError:
            raise
        except (ValueError, InvalidOperation):
            # Too many digits for `int`, or for the exponent of a `Decimal`. A call for each number costs half as much
            # again as reading does, so only such a text pays for it.
            return simplejson.loads(text, parse_int=_integer, parse_float=_decimal)
    except simplejson.JSONDecodeError as error:
        if error.pos >= len(text):
            what = "the text ends too early"
        elif re.compile("-?(?:NaN|Infinity)").match(text, error.pos):
            what = "NaN and Infinity are not JSON"
        else:
            what = _SYNTAX.get(error.msg, "this is not JSON")
        raise InvalidJSON(f"Line {error.lineno}, column {error.colno}: {what}.") from None


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _ALWAYS_AN_INT else Decimal(digits)


def _decimal(number: str) -> Decimal:
    try:
        return Decimal(number)
    except InvalidOperation:
        significand = number.lower().partition("e")[0]
        return _BEYOND_DOUBLE if significand.strip("-0.") else Decimal(0)


def _deep_path(data: bytes) -> str:
    """The member in which `parse` ran out of stack: its name, or its index, or `3.metadata` for a member of an element.

    Before the place where that happened, the text is valid JSON. A body whose metadata is as deep as allowed may be a
    few levels deeper itself, yet never twice as deep; the stack holds more than that.
    """
    outer = skip(re.compile(rb"[^\[{]*+"), data, 0)
    inner = skip(_within(2 * MAX_DEPTH), data, outer + 1)
    path = [_last_step(data[:inner])]
    if data.startswith(b"[", outer) and data.startswith(b"{", inner):
        path.append(_last_step(data[inner : skip(_within(2 * MAX_DEPTH - 1), data, inner + 1)]))
    return ".".join(path)


@cache
def _within(levels: int) -> re.Pattern[bytes]:
    return re.compile(balanced(levels), re.DOTALL)


def _last_step(data: bytes) -> str:
    """The name or the index in an object or array that breaks off where its next value begins."""
    array = data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    text = data.decode() + ("0]" if array else "0}")
    members = simplejson.loads(text, object_pairs_hook=list, parse_int=str, parse_float=str)
    return str(len(members) - 1 if array else members[-1][0])
