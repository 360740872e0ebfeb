"""Server-sent events: whatever the chunks, the events of the standard and every byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bridge.sse import Decoder, Event

ENOUGH = 1_000_000
LINE_ENDS = ("\n", "\r\n", "\r")


def decode(chunks: Iterable[bytes], *, most_bytes: int = ENOUGH) -> list[Event]:
    decoder = Decoder(most_bytes)
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return [*events, *decoder.close()]


def dispatched(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.name, event.data) for event in events if event.data is not None]


def joined(events: Iterable[Event]) -> bytes:
    return b"".join(event.raw for event in events)


def standard(stream: bytes) -> list[tuple[str, str]]:
    """The events of a whole stream, step by step as section 9.2.6 of the HTML standard has it."""
    text = stream.decode(errors="replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events, data, name = [], "", ""
    for line in text.split("\n")[:-1]:  # what no line end closes is no line yet
        if line == "":
            if data:
                events.append((name or "message", data.removesuffix("\n")))
            data, name = "", ""
            continue
        if line.startswith(":"):
            continue
        field, value = line.split(":", 1) if ":" in line else (line, "")
        value = value.removeprefix(" ")
        if field == "data":
            data += value + "\n"
        elif field == "event":
            name = value
    return events


def split(stream: bytes, places: Sequence[int]) -> list[bytes]:
    cuts = sorted({place % (len(stream) + 1) for place in places})
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


texts = st.text(st.sampled_from('ab:{ \t"é漢😀\u2028\x0b\x85\ufeff'), max_size=12)
lines = st.one_of(
    st.just(""),
    st.builds("data:{}".format, texts),
    st.builds("data: {}".format, texts),
    st.builds("event: {}".format, texts),
    st.sampled_from([":", ": keep-alive", "data", "event", "id: 7", "retry: 10", "unknown: x", " data: x", "data : x"]),
)
streams = st.builds(
    lambda bom, parts: bom + b"".join(line.encode() + end.encode() for line, end in parts),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(lines, st.sampled_from(LINE_ENDS)), max_size=30),
)
# Bytes of which many are line ends, halves of characters, or of a byte order mark.
garbage = st.lists(
    st.sampled_from([b"\r", b"\n", b"data:", b"event:", b":", b"\xef", b"\xbb", b"\xbf", b"\xe6\xbc", b"x"])
).map(b"".join)
places = st.lists(st.integers(0, 10_000), max_size=20)


@given(st.one_of(streams, garbage), places)
def test_any_split_gives_the_events_of_the_standard_and_every_byte(stream: bytes, places: list[int]) -> None:
    events = decode(split(stream, places))
    assert dispatched(events) == standard(stream)
    assert joined(events) == stream


@given(st.one_of(streams, garbage))
def test_byte_by_byte_is_as_good_as_whole(stream: bytes) -> None:
    single = decode(bytes([byte]) for byte in stream)
    assert dispatched(single) == dispatched(decode([stream])) == standard(stream)
    assert joined(single) == stream


@given(streams, places, st.integers(1, 60))
def test_a_long_event_is_given_up_alone_and_no_byte_is_lost(stream: bytes, places: list[int], most: int) -> None:
    events = decode(split(stream, places), most_bytes=most)
    assert joined(events) == stream
    assert all(len(event.raw) <= most for event in events if event.data is not None)
    left = iter(dispatched(decode([stream])))
    # In order, though some are missing.
    assert all(event in left for event in dispatched(events))
    # After the pieces of one comes its end, before anything else.
    assert not events or not events[-1].open or not dispatched(events[-1:])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=40), st.integers(1, 50))
def test_memory_is_bounded(chunks: list[bytes], most: int) -> None:
    decoder = Decoder(most)
    held = 0
    for chunk in chunks:
        held += len(chunk) - sum(len(event.raw) for event in decoder.feed(chunk))
        assert held <= max(most, 3)  # of a long event, what may be the beginning of its end


@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize("most", [30, 31])
def test_what_is_too_long_does_not_depend_on_the_split(end: str, most: int) -> None:
    long, short = f"data: {'x' * 25}{end}{end}", f"data: y{end}{end}"
    stream = (long + short).encode()
    for place in range(len(stream) + 1):
        events = decode(split(stream, [place]), most_bytes=most)
        assert dispatched(events) == [("message", "y")]
        assert joined(events) == stream
        ends = [event for event in events if not event.open]
        assert ends[-1].raw == short.encode()


@pytest.mark.parametrize("end", LINE_ENDS)
def test_an_event_is_told_when_its_blank_line_is_whole(end: str) -> None:
    decoder = Decoder(ENOUGH)
    event = f"event: a{end}data: 1{end}data: 2{end}{end}".encode()
    assert list(decoder.feed(event[:-1])) == []
    assert list(decoder.feed(event[-1:])) == [Event("a", "1\n2", event)]


def test_a_crlf_between_chunks_stays_with_its_event() -> None:
    decoder = Decoder(ENOUGH)
    assert list(decoder.feed(b"data: 1\r\n\r")) == []
    assert list(decoder.feed(b"\ndata: 2\r\n\r\n")) == [
        Event("message", "1", b"data: 1\r\n\r\n"),
        Event("message", "2", b"data: 2\r\n\r\n"),
    ]
    assert list(decoder.feed(b"data: 3\r\n\r")) == []
    assert list(decoder.close()) == [Event("message", "3", b"data: 3\r\n\r")]


def test_an_event_that_is_cut_off_is_none() -> None:
    decoder = Decoder(ENOUGH)
    assert list(decoder.feed(b'data: {"a":1}\n')) == []
    assert list(decoder.close()) == [Event("message", None, b'data: {"a":1}\n')]


def test_a_comment_is_relayed_and_tells_nothing() -> None:
    assert decode([b": ping\n\ndata: 1\n\n"]) == [
        Event("message", None, b": ping\n\n"),
        Event("message", "1", b"data: 1\n\n"),
    ]


def test_a_long_event_comes_in_open_pieces() -> None:
    decoder = Decoder(10)
    pieces = [*decoder.feed(b"data: " + 20 * b"x"), *decoder.feed(20 * b"x"), *decoder.feed(b"\n\ndata: y\n\n")]
    assert [(piece.open, piece.data) for piece in pieces] == [(True, None), (True, None), (False, None), (False, "y")]
