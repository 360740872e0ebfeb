"""Content-encodings: what the bridge reads is what was packed, whatever the chunks."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bridge.encodings import unpacker

TEXT = b"".join(b"data: %d\n\n" % number for number in range(3_000))


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def unpacked(encoding: str, data: bytes, size: int) -> bytes:
    found = unpacker(encoding)
    assert found is not None
    return b"".join(piece for start in range(0, len(data), size) for piece in found.feed(data[start : start + size]))


PACKED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "gzip"),
    "gzip in members": (lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]), "gzip"),
    "x-gzip": (gzip.compress, "X-GZIP"),
    "deflate": (zlib.compress, "deflate"),
    "deflate without frame": (bare, "deflate"),
    "two": (lambda data: gzip.compress(zlib.compress(data)), "deflate, gzip"),
    "identity": (bytes, "identity"),
    "none": (bytes, ""),
}


@pytest.mark.parametrize("kind", PACKED)
@given(data=st.binary(max_size=200), size=st.integers(1, 50))
def test_any_split_unpacks(kind: str, data: bytes, size: int) -> None:
    pack, encoding = PACKED[kind]
    assert unpacked(encoding, pack(data), size) == data


@pytest.mark.parametrize("kind", PACKED)
def test_what_was_flushed_is_read_at_once(kind: str) -> None:
    pack, encoding = PACKED[kind]
    assert unpacked(encoding, pack(TEXT), 4096) == TEXT


def test_a_flushed_event_does_not_wait_for_the_next() -> None:
    packer, found = zlib.compressobj(wbits=16 + zlib.MAX_WBITS), unpacker("gzip")
    assert found
    first = packer.compress(b"data: 1\n\n") + packer.flush(zlib.Z_SYNC_FLUSH)
    assert b"".join(found.feed(first)) == b"data: 1\n\n"


def test_what_unpacks_to_much_comes_in_pieces() -> None:
    found = unpacker("gzip")
    assert found
    pieces = list(found.feed(gzip.compress(bytes(10_000_000))))
    assert sum(map(len, pieces)) == 10_000_000
    assert max(map(len, pieces)) <= 64 * 1024


def test_of_many_layers_nothing_is_read() -> None:
    assert unpacker(", ".join(["gzip"] * 4)) is not None
    assert unpacker(", ".join(["gzip"] * 5)) is None


def test_whatever_can_be_told_of_a_prefix_is_told() -> None:
    """Also what found no room in a piece although all bytes were taken in."""
    packed = zlib.compress(bytes(400_000))
    for length in range(len(packed) + 1):
        told = unpacked("deflate", packed[:length], len(packed))
        assert told == zlib.decompressobj().decompress(packed[:length]), length


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(data=st.lists(st.binary(max_size=30)))
def test_garbage_gives_nothing_and_raises_nothing(encoding: str, data: list[bytes]) -> None:
    found = unpacker(encoding)
    assert found
    for chunk in data:
        list(found.feed(chunk))


def test_a_body_that_breaks_off_gives_what_came_before() -> None:
    packed = gzip.compress(TEXT)
    begun = unpacked("gzip", packed[: len(packed) // 2], 100)
    assert begun
    assert TEXT.startswith(begun)


@pytest.mark.parametrize("kind", ["gzip", "deflate", "deflate without frame"])
def test_what_follows_the_end_is_not_read(kind: str) -> None:
    pack, encoding = PACKED[kind]
    assert unpacked(encoding, pack(TEXT) + b"garbage", 100) == TEXT


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "compress"])
def test_others_are_not_read(encoding: str) -> None:
    assert unpacker(encoding) is None
