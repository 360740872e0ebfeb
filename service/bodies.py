"""Reading request bodies: bounded, unpacked, strict JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from service import errors, jsontext
from service.held import Share

T = TypeVar("T")

# A body of this many bytes is parsed and checked in some ten milliseconds; a larger one must not keep others waiting.
_AT_ONCE = 64 * 1024


async def read_body(request: web.Request, *, most: int, share: Share) -> object:
    """The JSON value of a body of at most `most` bytes, unpacked where it came compressed.

    Counted in `share`. Raises BodyTooLarge, MalformedRequest (the encoding is broken), Overloaded, InvalidJSON, or
    InvalidBody (nested too deep).
    """
    return jsontext.parse(await _collect(request, most=most, share=share))


async def load_body(request: web.Request, load: Callable[[object], T], *, most: int, share: Share) -> T:
    """What `load` makes of such a body's JSON value; raises what `read_body` and `load` raise."""
    data = await _collect(request, most=most, share=share)

    def work() -> T:
        return load(jsontext.parse(data))

    return work() if len(data) <= _AT_ONCE else await asyncio.to_thread(work)


async def _collect(request: web.Request, *, most: int, share: Share) -> bytes:
    if request.content_length is not None and request.content_length > most:
        raise errors.BodyTooLarge(f"The limit is {most} bytes.")
    collected = bytearray()
    async for chunk in read_chunks(request):
        collected += chunk
        if len(collected) > most:
            raise errors.BodyTooLarge(f"The limit is {most} bytes, counted unpacked.")
        share.hold(len(collected))
    return bytes(collected)


async def read_chunks(request: web.Request, *, patience: float | None = None) -> AsyncIterator[bytes]:
    """A body of any length as it arrives, unpacked where it came compressed.

    Raises MalformedRequest, and RequestTooSlow where nothing comes for `patience` seconds.
    """
    try:
        while True:
            if patience is None:
                chunk = await request.content.readany()
            else:
                async with asyncio.timeout(patience):
                    chunk = await request.content.readany()
            if not chunk:
                return
            yield chunk
    except TimeoutError as problem:
        raise errors.RequestTooSlow("Its body did not go on.") from problem
    except (HttpProcessingError, ClientPayloadError, web.RequestPayloadError) as problem:
        # Else aiohttp reads on after the answer, meets the same problem, and cuts the connection before the answer is out.
        # (The answer to a malformed request closes it in order.)
        request.content.feed_eof()
        raise errors.MalformedRequest("The request body does not match its Content-Encoding or framing.") from problem
