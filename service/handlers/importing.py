"""…/interceptions/import: finished interceptions, as many as there are."""

from __future__ import annotations

from aiohttp import web

from service import errors
from service.answers import json_answer
from service.bodies import read_chunks
from service.context import DATABASE, METRICS, SETTINGS, SHARE, caller
from service.importing import Report, import_stream


async def import_interceptions(request: web.Request) -> web.Response:
    """Store a stream of finished interceptions, NDJSON or a JSON array, and tell what became of them."""
    if not caller(request).can_record:
        raise errors.RecordingForbidden
    if not request.app[DATABASE].writable:
        raise errors.ReadOnlyDatabase
    counted = Report()

    def count(report: Report) -> None:
        # Batch by batch: what is stored counts, also where the stream breaks off.
        metric = request.app[METRICS].recorded
        metric.labels("imported").inc(report.imported - counted.imported)
        metric.labels("unchanged").inc(report.unchanged - counted.unchanged)
        metric.labels("rejected").inc(report.rejected_total - counted.rejected_total)
        counted.imported, counted.unchanged = report.imported, report.unchanged
        counted.rejected_total = report.rejected_total

    chunks = read_chunks(request, patience=request.app[SETTINGS].request_timeout)
    report = await import_stream(request.app[DATABASE], chunks, progress=count, hold=request[SHARE].hold)
    return json_answer(report.as_json())
