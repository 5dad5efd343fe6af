"""Traces: a span for the request under the caller's, one for each phase; nothing imported where nobody asks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deit.serve.tracing import Traced, open_tracer, record

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def answer_slowly(scope, receive, send):
    while (await receive())["more_body"]:
        pass
    began = time.monotonic()
    await asyncio.sleep(0.01)
    record("compute", began, time.monotonic(), images=3)
    scope["endpoint"] = answer_slowly if scope["path"] == "/v1/classify" else None
    if scope["path"] == "/broken":
        raise RuntimeError("a bug")
    await send({"type": "http.response.start", "status": 503 if scope["path"] == "/full" else 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def spans_of(path: str = "/v1/classify", headers: tuple[tuple[bytes, bytes], ...] = ()):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parts = [{"type": "http.request", "body": b"ab", "more_body": more} for more in (True, False)]

    async def receive():
        return parts.pop(0)

    async def send(message):
        pass

    app = Traced(answer_slowly, provider.get_tracer("test"), {answer_slowly: "/v1/{verb}"})
    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    try:
        asyncio.run(app(scope, receive, send))
    except RuntimeError:
        assert path == "/broken"
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.fixture(autouse=True)
def _needs_the_extra():
    pytest.importorskip("opentelemetry.sdk.trace")


def test_the_phases_are_children_of_the_request_and_that_of_the_caller():
    spans = spans_of(headers=((b"traceparent", PARENT.encode()),))
    assert set(spans) == {"POST /v1/{verb}", "receive", "compute"}
    request = spans["POST /v1/{verb}"]
    assert request.attributes["http.route"] == "/v1/{verb}"
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert {spans[name].parent.span_id for name in ("receive", "compute")} == {request.context.span_id}
    assert request.attributes["http.response.status_code"] == 200
    assert spans["receive"].attributes["http.request.body.size"] == 4
    assert spans["compute"].attributes["images"] == 3
    took = (spans["compute"].end_time - spans["compute"].start_time) / 1e9
    assert 0.009 < took < 1
    assert request.start_time <= spans["compute"].start_time + 1_000_000
    assert spans["compute"].end_time <= request.end_time + 1_000_000


@pytest.mark.parametrize("header", [b"", b"00-zz-1-1", b"\xff" * 500, b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"])
def test_a_malformed_parent_begins_a_trace_anew(header):
    assert spans_of(headers=((b"traceparent", header),))["POST /v1/{verb}"].parent is None


def test_errors_are_marked():
    from opentelemetry.trace import StatusCode

    assert spans_of("/full")["POST"].status.status_code is StatusCode.ERROR
    broken = spans_of("/broken")["POST"]
    assert broken.attributes["error.type"] == "RuntimeError"


def test_probes_are_not_traced():
    assert spans_of("/readyz") == {}


def test_recording_outside_of_a_request_does_nothing():
    record("compute", 0, 1)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    kept = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_nothing_is_imported_unless_the_environment_asks():
    code = "import sys; from deit.serve.tracing import open_tracer as o; print(o(), 'opentelemetry' in sys.modules)"
    assert run(code).stdout.split() == ["None", "False"]
    assert run(code, OTEL_TRACES_EXPORTER="console", OTEL_SDK_DISABLED="true").stdout.split() == ["None", "False"]


def test_the_console_gets_what_is_asked_for():
    code = "from deit.serve.tracing import open_tracer as o; o().start_span('hello').end()"
    assert '"name": "hello"' in run(code, OTEL_TRACES_EXPORTER="console").stdout


def test_a_collector_is_sent_what_is_asked_for():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason='pip install "deit[telemetry]"')
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    sent: list[tuple[str, str, str]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                spans = [span.name for scope in resource.scope_spans for span in scope.spans]
                sent.extend((self.path, names["service.name"], span) for span in spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    code = "from deit.serve.tracing import open_tracer as o; o().start_span('hello').end()"
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        for named in ({}, {"OTEL_SERVICE_NAME": "birds"}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=owls"}):
            assert run(code, **endpoint, **named).stderr == ""
        collector.shutdown()
    assert sent == [("/v1/traces", name, "hello") for name in ("deit", "birds", "owls")]


def test_a_request_for_traces_is_never_ignored(monkeypatch):
    code = "import sys; sys.modules['opentelemetry'] = None; from deit.serve.tracing import open_tracer as o; o()"
    assert 'pip install "deit[telemetry]"' in run(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9").stderr
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    with pytest.raises(ValueError, match="jaeger"):
        open_tracer()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match=r"http/protobuf.* Received: 'grpc'"):
        open_tracer()
