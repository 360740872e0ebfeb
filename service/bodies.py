"""Reading request bodies: bounded, unpacked, strict JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from service import errors, jsontext


async def read_body(request: web.Request, *, most: int) -> object:
    """The JSON value of a body of at most `most` bytes, unpacked where it came compressed.

    Raises BodyTooLarge, MalformedRequest (the encoding is broken), InvalidJSON, or InvalidBody (nested too deep).
    """
    if request.content_length is not None and request.content_length > most:
        raise errors.BodyTooLarge(f"The limit is {most} bytes.")
    collected = bytearray()
    async for chunk in read_chunks(request):
        collected += chunk
        if len(collected) > most:
            raise errors.BodyTooLarge(f"The limit is {most} bytes, counted unpacked.")
    return jsontext.parse(bytes(collected))


async def read_chunks(request: web.Request) -> AsyncIterator[bytes]:
    """A body of any length as it arrives, unpacked where it came compressed; raises MalformedRequest."""
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (HttpProcessingError, ClientPayloadError, web.RequestPayloadError) as problem:
        raise errors.MalformedRequest("The request body does not match its Content-Encoding or framing.") from problem
