"""Content-encodings of answers: what the bridge reads of one, while the client gets the bytes as they came.

Known are gzip and deflate, one or several of them. Others (br, zstd) would each need a library; such an answer is
relayed like any, but what it used is not seen. The bridge asks providers for none of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

_PIECE: Final = 64 * 1024  # bytes: what is unpacked is handed on in pieces, however much a chunk unpacks to
_MOST_LAYERS: Final = 4
_GZIP: Final = 16 + zlib.MAX_WBITS


class Unpacker(Protocol):
    """Takes an encoding off a body that comes in chunks."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What these bytes unpack to, as far as it can be told yet. To be read to its end before the next call."""


def unpacker(content_encoding: str) -> Unpacker | None:
    """For the value of a Content-Encoding header, empty where there is none; None for one that is not known."""
    names = [name.strip().lower() for name in content_encoding.split(",")]
    if len(names) > _MOST_LAYERS:
        return None
    unpackers: list[Unpacker] = []
    for name in reversed(names):  # the last was put on last
        if name in ("gzip", "x-gzip"):
            unpackers.append(_Zlib(gzip=True))
        elif name == "deflate":
            unpackers.append(_Zlib(gzip=False))
        elif name not in ("", "identity"):
            return None
    return _Chain(unpackers)


class _Chain:
    def __init__(self, unpackers: list[Unpacker]) -> None:
        self._unpackers = unpackers

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        pieces: Iterator[bytes] = iter((chunk,))
        for unpacker in self._unpackers:
            pieces = _through(unpacker, pieces)
        return pieces


def _through(unpacker: Unpacker, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield from unpacker.feed(piece)


class _Zlib:
    """gzip, in one or several members; or deflate, which comes with zlib's frame (RFC 9110) or, from some servers, bare."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._stream = zlib.decompressobj(_GZIP if gzip else zlib.MAX_WBITS)
        self._first = b""  # of a deflate stream whose frame is not known yet
        self._known = gzip
        self._broken = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        if not self._known:
            chunk = self._first = self._first + chunk
            if len(chunk) < 2:
                return
            self._known = True
            # zlib's frame: method 8, and a multiple of 31 (RFC 1950).
            if chunk[0] & 0x0F != 8 or int.from_bytes(chunk[:2], "big") % 31:
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        full = False  # what is unpacked already may not have found room
        while (chunk or full) and not self._broken:
            if self._stream.eof:
                if not self._gzip:
                    return
                self._stream = zlib.decompressobj(_GZIP)
            try:
                piece = self._stream.decompress(chunk, _PIECE)
            except zlib.error:
                self._broken = True
                return
            chunk = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            full = len(piece) == _PIECE and not self._stream.eof
            if piece:
                yield piece
