"""The records of an import stream, one at a time: NDJSON or a JSON array, told apart by the first character.

Records are only separated here; what is inside one is left to `jsontext.parse`, so that a bad one rejects itself and
not its neighbours. What is held never exceeds one record and one chunk, whatever arrives, and how the stream is cut
into chunks makes no difference.
"""

from __future__ import annotations

import enum
import io
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from service.jsontext import balanced, skip

_BOM: Final = b"\xef\xbb\xbf"
_BLANK: Final = b" \t\r\n"
_QUOTE: Final = b'"'[0]
_OPENING: Final = b"[{"
_END: Final = b"]"[0]
_SEPARATORS: Final = b",]"
_NOT_CLOSED: Final = "the stream ended before the array did"

_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_STRING_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_UNMARKED: Final = re.compile(rb'[^",\[\]{]*+')

# What lies deeper than these levels is read once more for each of them, so there are no more than usual records have.
_LEVELS: Final = 5
_BRACKETED: Final = re.compile(rb"[\[{]" + balanced(_LEVELS) + rb"[\]}]", re.DOTALL)
_BALANCED: Final = re.compile(balanced(_LEVELS), re.DOTALL)


@dataclass(slots=True)
class Record:
    """One record of a stream: its text, without white space around it, or why there is none.

    `line` counts from 1: lines, blank ones too; in an array, elements.
    """

    line: int
    data: bytes | None
    problem: str | None = None


async def split(
    chunks: AsyncIterable[bytes], *, max_record: int, collecting: Callable[[int], None] = lambda _: None
) -> AsyncIterator[Record]:
    """Yield the records of a stream in order; none is longer than `max_record` bytes.

    `collecting` hears, before more is waited for, how many bytes are held of the record that is coming.

    Blank lines yield nothing. Problems are: a record that is too long; in an array, an element that is empty or that
    another follows without a comma, an array that is not closed, and, once, whatever follows its closing bracket.
    The stream is read to its end in any case, so that a client which is still sending gets to read its answer.
    """
    line = 1
    splitter: _Lines | _Array | None = None
    async for chunk in _after_mark(chunks):
        begin = 0
        if splitter is None:
            begin = skip(_SPACE, chunk, 0)
            line += chunk.count(b"\n", 0, begin)
            if begin == len(chunk):
                continue
            if chunk.startswith(b"[", begin):
                begin += 1
                splitter = _Array(max_record)
            else:
                splitter = _Lines(max_record, line=line)
        for record in splitter.feed(chunk[begin:]):
            yield record
        collecting(splitter.held.text.tell())
    if splitter is not None:
        for record in splitter.finish():
            yield record


async def _after_mark(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The chunks, without a byte order mark at the start."""
    start: bytes | None = b""
    async for chunk in chunks:
        if start is None:
            yield chunk
        else:
            start += chunk
            if len(start) >= len(_BOM) or not _BOM.startswith(start):
                yield start.removeprefix(_BOM)
                start = None
    if start:
        yield start


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
        """Hand the record over, and start afresh."""
        # BytesIO gives its buffer away here; a bytearray would be copied.
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
                begin = skip(_SPACE, chunk, position)
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


class _At(enum.Enum):
    """How much of an element has been read."""

    NOTHING = enum.auto()
    INSIDE = enum.auto()
    CLOSED = enum.auto()  # its last bracket: only a separator may follow
    END = enum.auto()  # there are no more elements
    JUNK = enum.auto()


class _Array:
    """Elements end at a comma, or the closing bracket, that is outside strings and outside brackets of either kind."""

    def __init__(self, max_record: int) -> None:
        self.max_record = max_record
        self.element = 1
        self.held = _Held(max_record)
        self.at = _At.NOTHING
        self.begin = 0  # of what the chunk holds of the element
        self.depth = 0  # of brackets open inside the element
        self.in_string = False
        self.escaped = False  # the chunk before ended in a backslash, inside a string

    def feed(self, chunk: bytes) -> Iterator[Record]:
        position = self.begin = 0
        while position < len(chunk):
            if self.in_string:
                position = self._string(chunk, position)
            elif self.depth:
                position = self._bracketed(chunk, position)
            else:
                position = self._plain(chunk, position)
                if position < len(chunk):
                    if record := self._mark(chunk, position):
                        yield record
                    position += 1
        if self.at is _At.INSIDE:
            self.held.add(chunk, self.begin, len(chunk))

    def finish(self) -> Iterator[Record]:
        if self.at in (_At.END, _At.JUNK):
            return
        if self.depth or self.in_string:
            self.held.fail(_NOT_CLOSED)
            yield self.held.take(self.element)
            return
        if self.at is not _At.NOTHING:
            yield self.held.take(self.element)
            self.element += 1
        yield Record(self.element, None, _NOT_CLOSED)

    def _string(self, chunk: bytes, position: int) -> int:
        end = skip(_STRING_REST, chunk, position + self.escaped)
        self.escaped = chunk.startswith(b"\\", end)
        self.in_string = end == len(chunk) or self.escaped
        return end + 1

    def _bracketed(self, chunk: bytes, position: int) -> int:
        """Go on behind the next bracket that changes the depth, or into a string that goes beyond the chunk."""
        position = skip(_BALANCED, chunk, position)
        if position == len(chunk):
            return position
        if chunk[position] == _QUOTE:
            self.in_string = True
        else:
            self.depth += 1 if chunk[position] in _OPENING else -1
            if not self.depth:
                self.held.add(chunk, self.begin, position + 1)
                self.at = _At.CLOSED
        return position + 1

    def _plain(self, chunk: bytes, position: int) -> int:
        """Go on to the next byte that means something outside strings and brackets."""
        if self.at is _At.JUNK:
            return len(chunk)
        if self.at is not _At.INSIDE:
            self.begin = position = skip(_SPACE, chunk, position)
        if self.at is _At.END:
            return position
        if self.at is _At.NOTHING and (whole := _BRACKETED.match(chunk, position)):
            # The usual element: all of it lies in this chunk.
            self.held.add(chunk, position, whole.end())
            self.at = _At.CLOSED
            position = skip(_SPACE, chunk, whole.end())
        end = skip(_UNMARKED, chunk, position)
        if self.at is _At.CLOSED and position < len(chunk) and chunk[position] not in _SEPARATORS:
            self.held.fail("must be followed by a comma or the end of the array")
            self.at = _At.INSIDE
        elif end > position:
            self.at = _At.INSIDE
        return end

    def _mark(self, chunk: bytes, position: int) -> Record | None:
        """Take note of a separator, of a quote or bracket that opens, or of what follows the array."""
        if self.at is _At.END:
            self.at = _At.JUNK
            return Record(self.element, None, "nothing may follow the array")
        if chunk[position] not in _SEPARATORS:
            self.at = _At.INSIDE
            self.in_string = chunk[position] == _QUOTE
            self.depth = 0 if self.in_string else 1
            return None
        before, self.at = self.at, _At.END if chunk[position] == _END else _At.NOTHING
        if before is _At.INSIDE:
            self.held.add(chunk, self.begin, position)
        elif before is _At.NOTHING:
            if self.at is _At.END and self.element == 1:
                return None
            self.held.fail("must not be empty")
        self.element += 1
        return self.held.take(self.element - 1)
