"""Requests and answers as clients and providers write them, and what a protocol reads of them."""

from __future__ import annotations

import json
from typing import Any

from service.bridge import sse
from service.bridge.protocols import Observed, Protocol, Question

UNREADABLE = (
    b"",
    b"<html>502 Bad Gateway</html>",
    b"\xff\xfe\x00",
    b'{"id": "cut',
    b"[]",
    b"null",
    b'"text"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 10_000,
    b"NaN",
)


def ask(protocol: Protocol, **members: Any) -> Question:
    """What a request means."""
    return protocol.read(json.dumps({"model": "m", **members}).encode())


def named(*events: dict[str, Any]) -> bytes:
    """A stream whose events are named by their type, as messages and responses have it."""
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events
    )


def unnamed(*events: dict[str, Any] | str) -> bytes:
    """A stream of data alone, as chat completions have it; a text stands as it is."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return b"".join(b"data: %s\n\n" % text.encode() for text in texts)


def streamed(protocol: Protocol, stream: bytes, **members: Any) -> Observed:
    """What a stream tells that answers a request."""
    return relayed(protocol, stream, ask(protocol, stream=True, **members))[0]


def relayed(protocol: Protocol, stream: bytes, question: Question) -> tuple[Observed, bytes]:
    """What a stream tells, and what of it the client sees."""
    reader, decoder, seen = protocol.reader(question), sse.Decoder(1_000_000), b""
    for event in [*decoder.feed(stream), *decoder.close()]:
        if reader.event(event):
            seen += event.raw
    return reader.observed, seen


def answered(protocol: Protocol, answer: dict[str, Any] | bytes, *, status: int = 200, **members: Any) -> Observed:
    """What an answer in one piece tells."""
    reader = protocol.reader(ask(protocol, **members))
    reader.whole(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), status)
    return reader.observed
