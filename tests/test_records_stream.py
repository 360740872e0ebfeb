"""The import stream: whatever arrives, in whatever chunks, falls into records, and no more than one is held."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import AsyncIterator, Coroutine, Iterable
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service import jsontext
from service.errors import InvalidJSON
from service.records_stream import Record, split

T = TypeVar("T")

MIB = 1 << 20

EMPTY = "must not be empty"
NO_COMMA = "must be followed by a comma or the end of the array"
NOT_CLOSED = "the stream ended before the array did"
FOLLOWED = "nothing may follow the array"

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.text('[]{}",\\ä'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[]{}",\\ä'), inner, max_size=4),
    max_leaves=20,
)
# Bytes of which each means something to one of the two forms, and quotes and backslashes often enough to pair up.
NOISE = st.lists(
    st.sampled_from(
        [b"[", b"]", b"{", b"}", b'"', b'"', b"\\", b",", b" ", b"\r", b"\n", b"a", b"1", b"\xc3\xa4", b'"{"']
    )
).map(b"".join)


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def records(*chunks: bytes, max_record: int = 1_000) -> list[Record]:
    async def collect() -> list[Record]:
        return [record async for record in split(stream(chunks), max_record=max_record)]

    return finish(collect())


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits; a property is tried too often to start a loop each time."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    value: T = stopped.value.value
    return value


def too_long(limit: int) -> str:
    return f"must not be longer than {limit:,} bytes"


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(borders)]


# -- NDJSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b" \r\n\n\t", []),
        (b"\xef\xbb\xbf", []),
        (b'{"a":1}\n{"b":2}\n', [(1, b'{"a":1}'), (2, b'{"b":2}')]),
        (b'{"a":1}\r\n{"b":2}', [(1, b'{"a":1}'), (2, b'{"b":2}')]),
        (b'\n \r\n{"a":1}\n\n\t\n  {"b":2} \r', [(3, b'{"a":1}'), (6, b'{"b":2}')]),
        (b'\xef\xbb\xbf\n{"a":1}\n', [(2, b'{"a":1}')]),
        (b'{"a":\n1}\n[2]\n', [(1, b'{"a":'), (2, b"1}"), (3, b"[2]")]),
        (b'nonsense\n{"a":1}', [(1, b"nonsense"), (2, b'{"a":1}')]),
        (b"\xef\xbb", [(1, b"\xef\xbb")]),
        (b"\xef\xbb\n1", [(1, b"\xef\xbb"), (2, b"1")]),
    ],
)
def test_lines(data: bytes, expected: list[tuple[int, bytes]]) -> None:
    assert records(data) == [Record(*pair) for pair in expected]
    assert records(*(data[i : i + 1] for i in range(len(data)))) == [Record(*pair) for pair in expected]


@given(st.lists(st.binary(max_size=12) | VALUES.map(json.dumps).map(str.encode)), st.sampled_from([b"\n", b"\r\n"]))
@settings(derandomize=True)
def test_lines_are_those_of_a_naive_split(lines: list[bytes], newline: bytes) -> None:
    data = b"{}" + newline + newline.join(lines)
    naive = [(number, line.strip(b" \t\r\n")) for number, line in enumerate(data.split(b"\n"), 1)]
    assert records(data) == [Record(number, line) for number, line in naive if line]


def test_a_line_over_the_limit_rejects_itself() -> None:
    data = b"\n".join([b"1" * 10, b"2" * 11, b"3" * 10 + b"\r", b"4" * 12 + b"\r", b"5"])
    expected = [
        Record(1, b"1" * 10),
        Record(2, None, too_long(10)),
        Record(3, b"3" * 10),
        Record(4, None, too_long(10)),
        Record(5, b"5"),
    ]
    assert records(data, max_record=10) == expected
    assert records(*(data[i : i + 1] for i in range(len(data))), max_record=10) == expected


# -- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[]", []),
        (b"\n[ \n]\r\n", []),
        (b'[{"a":1}]', [b'{"a":1}']),
        (
            b'\xef\xbb\xbf\n [ {"a": [1, {"b": "]"}]} ,\n{"c": "\\\\\\"}," } \n]\n',
            [b'{"a": [1, {"b": "]"}]}', b'{"c": "\\\\\\"}," }'],
        ),
        (b'["a,b", 1 , null]', [b'"a,b"', b"1", b"null"]),
        (b'[{"a": NaN}, {"a": tru}, {"b": 2}]', [b'{"a": NaN}', b'{"a": tru}', b'{"b": 2}']),
        (b'[{"a":1]},{"b":2}]', [NO_COMMA, b'{"b":2}']),
        (b"[1}, {]]", [b"1}", b"{]"]),
        (b"[1,,2]", [b"1", EMPTY, b"2"]),
        (b"[1,]", [b"1", EMPTY]),
        (b"[,]", [EMPTY, EMPTY]),
        (b'[{"a":1} {"b":2}, {"c":3}]', [NO_COMMA, b'{"c":3}']),
        (b'[{"a":1}x, [2]"y", {"c":3}]', [NO_COMMA, NO_COMMA, b'{"c":3}']),
        (b"[", [NOT_CLOSED]),
        (b"[1", [b"1", NOT_CLOSED]),
        (b'[{"a":1} ', [b'{"a":1}', NOT_CLOSED]),
        (b'[{"a":1}, ', [b'{"a":1}', NOT_CLOSED]),
        (b'[{"a":1}, {"b":', [b'{"a":1}', NOT_CLOSED]),
        (b'[{"a":1}, "b', [b'{"a":1}', NOT_CLOSED]),
        (b'[{"a":1}]\n[{"b":2}]\n[3]', [b'{"a":1}', FOLLOWED]),
        (b"[] ]", [FOLLOWED]),
        (b"[" + b"[" * 40 + b"]" * 40 + b",{}]", [b"[" * 40 + b"]" * 40, b"{}"]),
    ],
)
def test_elements(data: bytes, expected: list[bytes | str]) -> None:
    numbered = [
        Record(number, item) if isinstance(item, bytes) else Record(number, None, item)
        for number, item in enumerate(expected, 1)
    ]
    assert records(data) == numbered
    assert records(*(data[i : i + 1] for i in range(len(data)))) == numbered


@given(
    st.lists(VALUES), st.sampled_from([{}, {"indent": 1}, {"ensure_ascii": False}]), st.lists(st.integers(0, 1 << 20))
)
@settings(derandomize=True)
def test_elements_are_those_that_json_reads(values: list[Any], style: dict[str, Any], cuts: list[int]) -> None:
    data = json.dumps(values, **style).encode("utf-8")
    found = records(*cut(data, cuts), max_record=100_000)
    assert [record.line for record in found] == list(range(1, len(values) + 1))
    assert [json.loads(record.data or b"") for record in found] == json.loads(data)


def test_a_bad_element_rejects_itself() -> None:
    read: list[object] = []
    for record in records(b'[{"a": 1.10}, {"a": NaN}, {"a": tru}, {"a" 1}, {"b\x00": 1}, {"\xff": 1}, {"a": "]"}]'):
        try:
            read.append(jsontext.parse(record.data or b""))
        except InvalidJSON as error:
            read.append(type(error))
    assert read == [{"a": Decimal("1.10")}, *[InvalidJSON] * 5, {"a": "]"}]


@pytest.mark.parametrize(
    "long", [b'{"a": "' + b"]," * 40 + b'"}', b"[" * 60 + b"]" * 60, b'"' + b"\\" * 100 + b'"', b"7" * 90]
)
def test_an_element_over_the_limit_rejects_itself(long: bytes) -> None:
    data = b'[{"a":1},' + long + b' ,{"b":2}]'
    expected = [Record(1, b'{"a":1}'), Record(2, None, too_long(80)), Record(3, b'{"b":2}')]
    assert records(data, max_record=80) == expected
    assert records(*(data[i : i + 1] for i in range(len(data))), max_record=80) == expected
    assert records(data, max_record=len(long))[1] == Record(2, long)


# -- chunks ----------------------------------------------------------------------------------------------------------


@given(
    NOISE,
    st.sampled_from([b"", b"[", b"[{", b'["', b"\xef\xbb\xbf["]),
    st.lists(st.integers(0, 1 << 20)),
    st.integers(0, 20),
)
@example(b'"\\"]\\\\",{"\xc3\xa4":[]}]', b"[", list(range(40)), 20)
@settings(derandomize=True, max_examples=500)
def test_how_the_stream_is_cut_makes_no_difference(noise: bytes, start: bytes, cuts: list[int], limit: int) -> None:
    data = start + noise
    whole = records(data, max_record=limit)
    assert records(*cut(data, cuts), max_record=limit) == whole
    assert records(*(data[i : i + 1] for i in range(len(data))), max_record=limit) == whole


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "middle", "end", "expected"),
    [
        (b"", b"x", b"\n{}", [Record(1, None, too_long(MIB)), Record(2, b"{}")]),
        (b"", b" ", b"{}", [Record(1, b"{}")]),
        (b"{", b" ", b"\n{}", [Record(1, None, too_long(MIB)), Record(2, b"{}")]),
        (b'[{"a":"', b"x", b'"},{}]', [Record(1, None, too_long(MIB)), Record(2, b"{}")]),
        (b'[{"a":"', b"\\", b"", [Record(1, None, too_long(MIB))]),
        (b"[", b" ", b"{}]", [Record(1, b"{}")]),
        (b"[{} ", b" ", b",{}]", [Record(1, b"{}"), Record(2, b"{}")]),
        (b"[{}]", b" ", b"", [Record(1, b"{}")]),
        (b"[{}]", b"]", b"", [Record(1, b"{}"), Record(2, None, FOLLOWED)]),
        (b"[{}", b"x", b",{}]", [Record(1, None, NO_COMMA), Record(2, b"{}")]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_huge_stream_is_not_held(start: bytes, middle: bytes, end: bytes, expected: list[Record]) -> None:
    def chunks() -> Iterable[bytes]:
        yield start
        block = middle * 65_536
        for _ in range(200 * MIB // 65_536):
            yield block
        yield end

    assert peak(chunks(), expected) < 2 * MIB


@pytest.mark.parametrize("block", [b"[" * 8 + b"x" * 56, b"{}[]" * 16, b'"a",' * 16, b"[[],{}," * 10])
def test_brackets_and_strings_without_end_are_not_held(block: bytes) -> None:
    limit = MIB // 4
    expected = [Record(1, None, too_long(limit))]
    assert peak([b"[{", *[block * 1_000] * 20], expected, max_record=limit) < MIB // 2


def test_a_record_as_long_as_allowed_is_held_once() -> None:
    text = b'{"a":"' + b"x" * (8 * MIB - 8) + b'"}'
    chunks = [text[i : i + 65_536] for i in range(0, len(text), 65_536)]
    assert peak([*chunks, b"\n"], [Record(1, text)], max_record=8 * MIB) < 10 * MIB
    assert peak([b"[", *chunks, b"]"], [Record(1, text)], max_record=8 * MIB) < 10 * MIB


def peak(chunks: Iterable[bytes], expected: list[Record], max_record: int = MIB) -> int:
    """The memory that splitting takes, where it finds the records that are expected."""

    async def run() -> int:
        remaining = iter(expected)
        tracemalloc.start()
        try:
            async for record in split(stream(chunks), max_record=max_record):
                assert record == next(remaining)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert next(remaining, None) is None

    return finish(run())
