"""Spans by OpenTelemetry, where BRIDGELOG_TRACING asks for them: one for a request, and below it one for each statement.

What exports them is set by the standard OTEL_* variables. A span holds the route and the names of statements: never a path,
a query string, a parameter, a body or a header.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# The packages are an extra, so nothing of them is imported before tracing is asked for.
_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class TracingMissing(Exception):
    """BRIDGELOG_TRACING asks for what is not installed; the text says what to do."""


def check() -> None:
    """Raise TracingMissing where a package is not installed."""
    for name in _PACKAGES:
        try:
            found = find_spec(name)
        except ModuleNotFoundError:  # the package above it
            found = None
        if found is None:
            message = "BRIDGELOG_TRACING needs packages that are not installed: pip install 'bridgelog[tracing]'"
            raise TracingMissing(message)


def otlp_provider() -> TracerProvider:
    """What sends spans over OTLP, in batches, from a thread of its own: made in the process that serves, after its fork."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    ours = Resource({"service.name": "bridgelog", "service.version": version("bridgelog")})
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say counts most.
    resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """The spans of one application."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("bridgelog", version("bridgelog"))
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, headers: Mapping[str, str], *, method: str, route: str) -> Iterator[RequestSpan]:
        """A span around a request, below the one that `traceparent` names, if it names one."""
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        # The text of an exception may hold what a client sent.
        with self._trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield RequestSpan(span)

    def ran(self, statement: str, seconds: float) -> None:
        """A statement took so long, until now; told only within a request whose span is kept."""
        if self._trace.get_current_span().is_recording():
            ended = time.time_ns()
            self._tracer.start_span(
                statement,
                kind=self._trace.SpanKind.CLIENT,
                attributes={"db.system.name": "postgresql", "db.query.summary": statement},
                start_time=ended - int(seconds * 1e9),
            ).end(ended)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """The span of a request that is being answered."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        """Under which the trace is found, as `traceparent` writes it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def answered(self, status: int) -> None:
        """What the answer says; from 500 on it is an error."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
