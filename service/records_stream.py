"""The records of an import stream, one at a time: NDJSON or a JSON array, told apart by the first character.

Records are only separated here; what is inside one is left to `jsontext.parse`, so that a bad one rejects itself and
not its neighbours. What is held never exceeds one record and one chunk, whatever arrives, and how the stream is cut
into chunks makes no difference.
"""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from service.jsontext import BALANCED, CLOSING, OPENING, QUOTE, SKIP

_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = b" \t\r\n"
_SEPARATORS: Final = b",]"

_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_STRING_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_UNBRACKETED: Final = re.compile(rb'[^",\[\]{]*+')
_WHOLE_ELEMENT: Final = re.compile(rb"[ \t\r\n]*+([\[{]" + BALANCED + rb"[\]}])[ \t\r\n]*+,", re.DOTALL)


@dataclass(slots=True)
class Record:
    """One record of a stream: its text, without white space around it, or why there is none.

    `line` counts from 1: lines, blank ones too; in an array, elements.
    """

    line: int
    data: bytes | None
    problem: str | None = None


async def split(chunks: AsyncIterable[bytes], *, max_record: int) -> AsyncIterator[Record]:
    """Yield the records of a stream in order; none is longer than `max_record` bytes.

    Blank lines yield nothing. Problems are: a record that is too long; in an array, an element that is empty or that
    another follows without a comma, an array that is not closed, and, once, whatever follows its closing bracket.
    The stream is read to its end in any case, so that a client which is still sending gets to read its answer.
    """
    start = b""
    lines = 1
    splitter: _Lines | _Array | None = None
    first = True
    async for chunk in chunks:
        if splitter is None:
            if first:
                start += chunk
                if len(start) < len(_BOM) and _BOM.startswith(start):
                    continue
                first = False
                chunk, start = start.removeprefix(_BOM), b""
            begin = _skip_space(chunk, 0)
            lines += chunk.count(b"\n", 0, begin)
            if begin == len(chunk):
                continue
            array = chunk.startswith(b"[", begin)
            splitter = _Array(max_record) if array else _Lines(max_record, line=lines)
            chunk = chunk[begin + array :]
        for record in splitter.feed(chunk):
            yield record
    if splitter is None and start:
        yield Record(1, start)
    elif splitter is not None:
        for record in splitter.finish():
            yield record


class _Held:
    """The record that is being collected; of one that has a problem, nothing is kept."""

    def __init__(self, max_record: int) -> None:
        self.max_record = max_record
        self.problem: str | None = None
        self.text = io.BytesIO()

    def add(self, chunk: bytes, begin: int, end: int) -> None:
        # One byte more than allowed: the carriage return of a line that is exactly as long as allowed.
        if self.problem is None and self.text.tell() + end - begin > self.max_record + 1:
            self.fail(f"must not be longer than {self.max_record:,} bytes")
        if self.problem is None:
            self.text.write(memoryview(chunk)[begin:end])

    def fail(self, problem: str) -> None:
        self.problem = self.problem or problem
        self.text = io.BytesIO()

    def take(self, line: int) -> Record:
        """The record, and a fresh start. (`getvalue` hands the buffer over, where a bytearray would be copied.)"""
        data = self.text.getvalue().rstrip(_BLANK)
        if len(data) > self.max_record:
            self.fail(f"must not be longer than {self.max_record:,} bytes")
        record = Record(line, data) if self.problem is None else Record(line, None, self.problem)
        self.problem = None
        self.text = io.BytesIO()
        return record


class _Lines:
    def __init__(self, max_record: int, *, line: int) -> None:
        self.max_record = max_record
        self.line = line
        self.held = _Held(max_record)
        self.inside = False

    def feed(self, chunk: bytes) -> Iterator[Record]:
        position = 0
        while position < len(chunk):
            if not self.inside:
                begin = _skip_space(chunk, position)
                self.line += chunk.count(b"\n", position, begin)
                position = begin
            end = chunk.find(b"\n", position)
            if end < 0:
                self.inside = self.inside or position < len(chunk)
                self.held.add(chunk, position, len(chunk))
                return
            self.held.add(chunk, position, end)
            yield self.held.take(self.line)
            self.inside = False
            self.line += 1
            position = end + 1

    def finish(self) -> Iterator[Record]:
        if self.inside:
            yield self.held.take(self.line)


class _Array:
    """Elements end at a comma, or at the closing bracket, outside strings and outside brackets of any kind."""

    def __init__(self, max_record: int) -> None:
        self.held = _Held(max_record)
        self.max_record = max_record
        self.element = 1
        self.depth = 0  # open brackets inside the element
        self.in_string = False
        self.escaped = False  # the chunk before ended in a backslash inside a string
        self.state = _EMPTY

    def feed(self, chunk: bytes) -> Iterator[Record]:
        ...

    def finish(self) -> Iterator[Record]:
        ...
