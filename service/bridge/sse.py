"""Server-sent events, read as the WHATWG's HTML standard says (9.2.6), in bounded memory, without losing a byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
# A line end, then another: an event's last line and the blank one. Atomic, for CRLF is never two line ends.
_END: Final = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_LONGEST_END: Final = 4
# Nearly all events: read without the loop over their lines.
_USUAL: Final = re.compile(rb"(?:event: ([^\r\n]+)\n)?data: ([^\r\n]*)\n\n")


@dataclass(frozen=True, slots=True)
class Event:
    """An event with the very bytes that it came in, or bytes that are no event.

    The `raw` of all events, joined, is the stream. `data` is None for what a client is not told either (comments, blank
    lines, an end that is cut off) and for an event that is too long to be kept, which comes in several pieces: after one
    that is `open`, the same event goes on, so nothing may be sent between the two.
    """

    name: str
    data: str | None
    raw: bytes
    open: bool = False


class Decoder:
    """Cuts a stream into events, wherever its chunks begin and end; `most_bytes` is how long an event may be to be read."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        self._seen = 0  # bytes at the front of the buffer in which no end begins
        self._given_up = False  # the beginning of the event in the buffer is gone
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that end in this chunk; what goes on stays here. To be read to its end before the next call."""
        if not self._buffer and not self._given_up:
            start = 0
            for ending in _END.finditer(chunk):
                end = ending.end()
                if end == len(chunk) and chunk.endswith(b"\r\n\r"):
                    break
                yield self._event(chunk[start:end])
                start = end
            chunk = chunk[start:]
            if not chunk:
                return
        buffer = self._buffer
        buffer += chunk
        while found := _END.search(buffer, self._seen):
            end = found.end()
            if end == len(buffer) and buffer.endswith(b"\r\n\r"):
                # Where the line before ended in CRLF, so will this one: its LF is about to come.
                break
            yield self._cut(end)
        if len(buffer) > self._most_bytes:
            # The last bytes may be the beginning of the end.
            length = len(buffer) - _LONGEST_END + 1
            if length > 0:
                yield self._give_up(length)
        self._seen = max(0, len(buffer) - _LONGEST_END + 1)

    def close(self) -> Iterator[Event]:
        """What was left at the end of the stream."""
        if self._buffer.endswith(b"\r\n\r"):
            yield self._cut(len(self._buffer))
        elif self._buffer:
            yield Event("message", None, self._take(len(self._buffer)))

    def _cut(self, end: int) -> Event:
        return self._event(self._take(end))

    def _event(self, raw: bytes) -> Event:
        whole = not self._given_up and len(raw) <= self._most_bytes
        self._given_up = False
        name, data = _parse(raw.removeprefix(_BOM) if self._first else raw) if whole else ("message", None)
        self._first = False
        return Event(name, data, raw)

    def _give_up(self, length: int) -> Event:
        self._given_up = True
        return Event("message", None, self._take(length), open=True)

    def _take(self, length: int) -> bytes:
        raw = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._seen = 0
        return raw


def _parse(raw: bytes) -> tuple[str, str | None]:
    if usual := _USUAL.fullmatch(raw):
        return (usual[1] or b"message").decode(errors="replace"), usual[2].decode(errors="replace")
    name, lines = "", []
    text = raw.decode(errors="replace")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            lines.append(value)
        elif field == "event":
            name = value
    return name or "message", "\n".join(lines) if lines else None
