"""…/interceptions/import: finished interceptions, as many as there are."""

from __future__ import annotations

from aiohttp import web

from service import errors
from service.answers import json_answer
from service.bodies import read_chunks
from service.context import DATABASE, METRICS, caller
from service.importing import import_stream


async def import_interceptions(request: web.Request) -> web.Response:
    """Store a stream of finished interceptions, NDJSON or a JSON array, and tell what became of them."""
    if not caller(request).can_record:
        raise errors.RecordingForbidden
    if not request.app[DATABASE].writable:
        raise errors.ReadOnlyDatabase
    report = await import_stream(request.app[DATABASE], read_chunks(request))
    metrics = request.app[METRICS].recorded
    metrics.labels("imported").inc(report.imported)
    metrics.labels("unchanged").inc(report.unchanged)
    metrics.labels("rejected").inc(report.rejected_total)
    return json_answer(report.as_json())
