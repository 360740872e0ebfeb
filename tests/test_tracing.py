"""Spans: of requests and statements, below the caller's own, and with nothing in them that is anybody's business."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import API, MakeClient, Person, interception
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from served import StartService, needs_proc, until

from service import tracing
from service.store import names

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "sEcReT-tExT-0815"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "otlp_provider", lambda: provider)
    return exporter


def of_kind(exporter: InMemorySpanExporter, kind: SpanKind) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind is kind]


async def test_a_request_is_a_span_below_the_callers_and_its_statements_below_that(
    make_client: MakeClient, owner: Person, spans: InMemorySpanExporter
) -> None:
    client = await make_client(tracing="otlp")
    headers = owner.headers | {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert (await client.get(f"{API}/models?q=gpt", headers=headers)).status == 200
    [request] = of_kind(spans, SpanKind.SERVER)
    assert request.name == "GET /models"
    assert request.attributes == {
        "http.request.method": "GET",
        "http.route": "/models",
        "http.response.status_code": 200,
    }
    assert request.context
    assert request.parent
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    statements = of_kind(spans, SpanKind.CLIENT)
    assert [span.name for span in statements] == ["tokens/find_tokens", "tokens/touch_token", "rollups/list_models"]
    for span in statements:
        assert span.parent
        assert span.parent.span_id == request.context.span_id
        assert span.attributes == {"db.system.name": "postgresql", "db.query.summary": span.name}
        assert span.start_time
        assert span.end_time
        assert request.start_time
        assert request.end_time
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time


async def test_nothing_that_a_caller_sent_is_in_a_span(
    make_client: MakeClient, owner: Person, spans: InMemorySpanExporter
) -> None:
    client = await make_client(tracing="otlp")
    body = interception(
        model=SECRET,
        metadata={"x": SECRET},
        user_prompts=[{"provider_response_id": "r", "created_at": "2026-03-01T10:00:00Z", "prompt": SECRET}],
    )
    baggage = {"baggage": f"user={SECRET}", "X-Other": SECRET}
    assert (await client.post(f"{API}/interceptions", json=body, headers=owner.headers | baggage)).status == 201
    assert (await client.get(f"{API}/interceptions?q=model:{SECRET}", headers=owner.headers)).status == 200
    assert (await client.get(f"{API}/{SECRET}", headers=owner.headers)).status == 404
    assert (await client.get(f"{API}/models?q={SECRET}:1", headers=owner.headers)).status == 400
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert told.count("http.route") == 4
    for word in (SECRET, owner.token, owner.token.partition("-")[2], body["id"], str(owner.id)):
        assert word not in told


async def test_a_crash_is_an_error_whose_text_is_not_told(
    make_client: MakeClient, owner: Person, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await make_client(tracing="otlp")

    async def broken(*_: object, **__: object) -> list[str]:
        raise LookupError(SECRET)

    monkeypatch.setattr(names, "list_names", broken)
    assert (await client.get(f"{API}/models", headers=owner.headers)).status == 500
    assert (await client.get(f"{API}/nothing", headers=owner.headers)).status == 404
    crashed, missing = of_kind(spans, SpanKind.SERVER)
    assert crashed.status.status_code is StatusCode.ERROR
    assert missing.status.status_code is StatusCode.UNSET
    assert SECRET not in crashed.to_json()


async def test_what_runs_by_itself_makes_no_spans(make_client: MakeClient, spans: InMemorySpanExporter) -> None:
    client = await make_client(tracing="otlp", upkeep=True)
    await client.get("/healthz")
    assert of_kind(spans, SpanKind.CLIENT) == []


async def test_by_default_there_are_none(make_client: MakeClient, owner: Person, spans: InMemorySpanExporter) -> None:
    client = await make_client()
    assert (await client.get(f"{API}/models", headers=owner.headers)).status == 200
    assert spans.get_finished_spans() == ()


def test_without_the_packages_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_PACKAGES", ("opentelemetry", "no_such_package.sdk"))
    with pytest.raises(tracing.TracingMissing, match=r"pip install 'bridgelog\[tracing\]'"):
        tracing.check()


# -- a collector -----------------------------------------------------------------------------------------------------


class Collector:
    """Takes spans as an OpenTelemetry collector does, over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in sent.resource_spans:
                    named = {item.key: item.value.string_value for item in resource.resource.attributes}
                    collector.resources.append(named)
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """It is quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@needs_proc
def test_every_worker_sends_its_spans_where_the_standard_variables_say(
    start_service: StartService, collector: Collector, owner: Person
) -> None:
    service = start_service(
        "--workers",
        "2",
        BRIDGELOG_TRACING="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
        OTEL_SERVICE_NAME="audit",
    ).wait_ready()
    for worker in service.workers:
        with service.only(worker):
            assert service.get(f"{API}/clients", owner.token)[0] == 200
    logged = {event["trace_id"] for event in service.logged("request")}
    service.stop()  # which sends what is left
    until(lambda: len(collector.spans) >= 4, "the spans arrive")
    requests = [span for span in collector.spans if span.name == "GET /clients"]
    assert {span.trace_id.hex() for span in requests} == logged
    assert len(logged) == 2
    for resource in collector.resources:
        assert (resource["service.name"], resource["deployment.environment"]) == ("audit", "test")
        assert resource["service.version"]
