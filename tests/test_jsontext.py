"""JSON from outside: exact when it is read, refused where PostgreSQL could not hold it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import jsontext
from service.errors import InvalidBody, InvalidJSON, Validation

TOO_DEEP = "must not nest deeper than 64 levels"
BEYOND = "must not contain a number beyond the range of double precision"
TOO_LONG = "must not contain a number with more than 1,100 digits after the point"

NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidJSON) as caught:
        jsontext.parse(data)
    assert caught.value.__suppress_context__
    return caught.value.detail


def too_deep(data: bytes) -> str:
    with pytest.raises(InvalidBody) as caught:
        jsontext.parse(data)
    (validation,) = caught.value.validations
    assert validation == Validation(validation.field, TOO_DEEP)
    return validation.field


def nested(levels: int, kind: str = "{") -> Any:
    """An object that is so many levels deep, itself included."""
    value: Any = 1
    for _ in range(levels - 1):
        value = {"a": value} if kind == "{" else [value]
    return {"a": value}


# -- parse, dump -----------------------------------------------------------------------------------------------------


def test_numbers_keep_their_decimal_value() -> None:
    parsed = jsontext.parse(b"[1, 0.1, 1e2, -0.10, 12345678901234567890.12345678901234567890, 9007199254740993]")
    assert isinstance(parsed, list)
    assert [repr(number) for number in parsed] == [
        "1",
        "Decimal('0.1')",
        "Decimal('1E+2')",
        "Decimal('-0.10')",
        "Decimal('12345678901234567890.12345678901234567890')",
        "9007199254740993",
    ]


def test_integers_of_any_length_are_read() -> None:
    digits = b"7" * 100_000
    assert jsontext.parse(b"[-" + digits + b",1]") == [Decimal("-" + digits.decode()), 1]
    assert jsontext.parse(b"1" * 4_000) == int("1" * 4_000)


@pytest.mark.parametrize("number", ["1e99999999999999999999", "-2.5E+99999999999999999999", "1e-99999999999999999999"])
def test_an_exponent_that_no_decimal_holds_is_still_a_number(number: str) -> None:
    parsed = jsontext.parse(b'{"a": 1.5, "b": %s}' % number.encode())
    assert isinstance(parsed, dict)
    assert parsed["a"] == Decimal("1.5")
    assert jsontext.object_problem(parsed) == BEYOND


def test_a_zero_with_such_an_exponent_is_zero() -> None:
    assert jsontext.parse(b"[0e99999999999999999999, -0.00E-99999999999999999999]") == [0, 0]


def test_a_byte_order_mark_is_tolerated() -> None:
    assert jsontext.parse(b'\xef\xbb\xbf {"a": 1}') == {"a": 1}


def test_of_members_with_one_name_the_last_wins() -> None:
    assert jsontext.parse(b'{"a": 1, "b": 2, "a": 3}') == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "Line 1, column 1: the text ends too early."),
        (b'{"a":', "Line 1, column 6: the text ends too early."),
        (b'{\n "a": tru}', "Line 2, column 7: a value is expected."),
        (b'{"a": NaN}', "Line 1, column 7: NaN and Infinity are not JSON."),
        (b"[Infinity]", "Line 1, column 2: NaN and Infinity are not JSON."),
        (b"[-Infinity]", "Line 1, column 2: NaN and Infinity are not JSON."),
        (b"[1 2]", "Line 1, column 4: ',' or ']' is expected."),
        (b'{"a":1 "b":2}', "Line 1, column 8: ',' or '}' is expected."),
        (b'{"a" 1}', "Line 1, column 6: ':' is expected."),
        (b"{a: 1}", "Line 1, column 2: a member name in double quotes, or '}', is expected."),
        (b'{"a":1,b:2}', "Line 1, column 8: a member name in double quotes is expected."),
        (b'{"a":1,}', "Line 1, column 7: no comma may stand before '}'."),
        (b"[1,]", "Line 1, column 3: no comma may stand before ']'."),
        (b'"secret', "Line 1, column 1: this string has no end."),
        (b'"secret\x01"', "Line 1, column 8: a control character in a string must be escaped."),
        (b'"secret\\x"', "Line 1, column 9: this escape sequence does not exist."),
        (b'"\\u00zz"', "Line 1, column 2: '\\u' must be followed by four hexadecimal digits."),
        (b"1 secret", "Line 1, column 3: nothing may follow the value."),
        (b"[01]", "Line 1, column 3: ',' or ']' is expected."),
        (b'"\xff"', "The byte at offset 1 is not part of valid UTF-8."),
        (b'"\xed\xa0\x80"', "The byte at offset 1 is not part of valid UTF-8."),
        ("{}".encode("utf-16-le"), "Line 1, column 2: a member name in double quotes, or '}', is expected."),
        (b"7" * 5_000 + b" secret", "Line 1, column 5002: nothing may follow the value."),
    ],
)
def test_what_is_not_json_is_refused_where_it_is_wrong(data: bytes, detail: str) -> None:
    assert refusal(data) == detail


@given(st.binary(max_size=40) | st.text('[]{}",:\\u0123eE-+.tnr \n', max_size=40).map(str.encode))
@settings(derandomize=True)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    detail = ""
    try:
        jsontext.parse(data)
    except InvalidJSON as error:
        detail = error.detail
    assert not detail.endswith("this is not JSON."), "every reason has words of its own"


@given(VALUES)
@settings(derandomize=True)
def test_what_is_dumped_reads_back_equal(value: object) -> None:
    text = jsontext.dump(value)
    json.loads(text)
    assert jsontext.parse(text.encode()) == value


@given(NUMBERS)
@settings(derandomize=True)
def test_numbers_read_back_exactly(number: str) -> None:
    again = jsontext.dump(jsontext.parse(number.encode()))
    assert Decimal(again) == Decimal(number)
    json.loads(again)


def test_dumped_text_is_compact_and_not_escaped() -> None:
    assert jsontext.dump({"ä": [1, Decimal("1.50"), Decimal("1E+2"), None, True]}) == '{"ä":[1,1.50,1E+2,null,true]}'


# -- nesting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "field"),
    [
        (b"[", "0"),
        (b"\xef\xbb\xbf\n[1, [2], {}, ", "3"),
        (b"[[1, ", "0"),
        (b'{"a": 1, "metadata": ', "metadata"),
        (b'{"a": "[[]", "b\\"{": {"x": [1, "]"]}, "metadata" : {"x": ', "metadata"),
        (b'{"a": 1e99999999999999999999, "metadata": ' + b"7" * 5_000 + b', "b": [', "b"),
        (b'{"metadata": 1, "\xc3\xa4": ', "ä"),
        (b'[{"metadata": {}}, {"metadata": 1, "b": 2, "metadata": ', "1.metadata"),
        (b'[{"metadata": ' + b'{"a":' * 64 + b"1" + b"}" * 65 + b', {"b": ', "1.b"),
        (b'[[],[{"metadata": ', "1"),
        (b'[[],{"metadata": 1, "": ', "1."),
    ],
)
@pytest.mark.parametrize("closings", [0, 10_000])
def test_what_nests_too_deep_to_be_read_is_refused_on_its_member(before: bytes, field: str, closings: int) -> None:
    assert too_deep(before + b"[" * 10_000 + b"]" * closings) == field
    assert too_deep(before + b'[{"a":' * 10_000 + b"1" + b"}]" * closings) == field


def test_a_whole_body_of_brackets_is_refused() -> None:
    assert too_deep(b"[" * (16 << 20)) == "0"
    assert too_deep(b'{"":' * (4 << 20)) == ""
    assert too_deep(b'{"a":"' + b"[" * (1 << 20) + b'","b":[' + b"[]," * (1 << 20) + b"[" * 10_000) == "b"


def test_a_syntax_error_that_comes_first_is_reported() -> None:
    assert refusal(b"[tru, " + b"[" * 20_000) == "Line 1, column 2: a value is expected."


@pytest.mark.parametrize("kind", ["{", "["])
def test_an_object_may_nest_64_levels(kind: str) -> None:
    assert jsontext.object_problem(nested(64, kind)) is None
    assert jsontext.object_problem(nested(65, kind)) == TOO_DEEP
    assert jsontext.object_problem({"a": [1], "b": nested(64, kind), "c": {}}) == TOO_DEEP
    assert jsontext.object_problem(nested(100_000, kind)) == TOO_DEEP


# -- what PostgreSQL can hold ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "plain", "ä€😀", "\ufeff", "\uffff", "\x01\x7f"])
def test_text_that_can_be_stored(text: str) -> None:
    assert jsontext.text_problem(text) is None


@pytest.mark.parametrize(
    ("escaped", "problem"),
    [
        (rb"a\u0000b", "must not contain U+0000"),
        (rb"\ud800", "must not contain unpaired surrogates"),
        (rb"\udc00\ud800", "must not contain unpaired surrogates"),
        (rb"\ud83d\ude00", None),
    ],
)
@pytest.mark.parametrize("shape", [b'{"a":"%s"}', b'{"%s":1}', b'{"a":[1,{"b":["%s"]}]}', b'{"a":[{"%s":{}}]}'])
def test_text_that_cannot_be_stored_is_found_wherever_it_is(shape: bytes, escaped: bytes, problem: str | None) -> None:
    text = jsontext.parse(b'"' + escaped + b'"')
    assert isinstance(text, str)
    assert jsontext.text_problem(text) == problem
    value = jsontext.parse(shape % escaped)
    assert isinstance(value, dict)
    assert jsontext.object_problem(value) == problem


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        ("0", None),
        ("-0.0", None),
        ("1.7976931348623157e308", None),
        ("-1.7976931348623157e308", None),
        ("1.7976931348623159e308", BEYOND),
        ("-1e309", BEYOND),
        ("1" + "0" * 308, None),
        ("1" + "0" * 309, BEYOND),
        ("-1" + "0" * 309, BEYOND),
        ("9" * 20_000, BEYOND),
        ("5e-324", None),
        ("1e-400", BEYOND),
        ("1." + "0" * 1_100, None),
        ("1." + "0" * 1_101, TOO_LONG),
        ("1" * 308 + "." + "3" * 1_100, None),
        ("1" * 308 + "." + "3" * 1_101, TOO_LONG),
        ("0." + "0" * 1_101, TOO_LONG),
        ("0." + "3" * 1_000_000, TOO_LONG),
        ("1" + "0" * 16_400 + "e-16400", TOO_LONG),
        ("0e-1100", None),
        ("0e-1101", TOO_LONG),
        ("0e9999999999", TOO_LONG),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("shape", ['{"a":%s}', '{"a":[true,null,{"b":[%s]}]}'])
def test_numbers_that_cannot_be_stored_are_found_wherever_they_are(
    shape: str, number: str, problem: str | None
) -> None:
    value = jsontext.parse((shape % number).encode())
    assert isinstance(value, dict)
    assert jsontext.object_problem(value) == problem


def test_numbers_that_postgresql_writes_out_are_bounded_together() -> None:
    """Nine bytes each, which it would give back as a thousand."""
    few: dict[str, object] = {"a": [Decimal("0e-1100")] * 900}
    many: dict[str, object] = {"a": [Decimal("0e-1100")] * 1_000}
    assert jsontext.object_problem(few) is None
    assert jsontext.object_problem(many) == "must not contain numbers that are over 1,000,000 digits long together"
