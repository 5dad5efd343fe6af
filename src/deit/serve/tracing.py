"""Traces requests with OpenTelemetry where its extra is installed: a span for each, and one for each of its phases."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

from deit.core.errors import MissingPackageError, UserError, shown

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXPORTER = "OTEL_TRACES_EXPORTER"  # of the environment, as OpenTelemetry defines it: "otlp", "console" or "none"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_PROTOCOL = "http/protobuf"

# Asked every few seconds by machines; their spans would hide the others.
UNTRACED = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


def record(phase: str, started: float, ended: float, images: int = 0) -> None:
    """Records a phase of the request that this task or thread works on. Does nothing when it is not traced.

    Args:
        phase: "decode", "queue", "compute", ...
        started: `time.monotonic()` at its begin.
        ended: The same at its end.
        images: Number of images in this phase; 0 is not recorded.
    """
    current = _current.get()
    if current is not None:
        current.record(phase, started, ended, {"images": images} if images else {})


class _Request:
    """The span of a request, and how its clock relates to that of the spans.

    Args:
        tracer: Tracer of OpenTelemetry.
        context: Context with the span.
    """

    def __init__(self, tracer: Any, context: Any) -> None:
        self._tracer = tracer
        self._context = context
        self._offset = time.time_ns() - time.monotonic_ns()

    def record(self, phase: str, started: float, ended: float, attributes: dict[str, Any]) -> None:
        span = self._tracer.start_span(
            phase, self._context, start_time=self._nanoseconds(started), attributes=attributes
        )
        span.end(self._nanoseconds(ended))

    def _nanoseconds(self, seconds: float) -> int:
        return int(seconds * 1e9) + self._offset


_current: ContextVar[_Request | None] = ContextVar("traced_request", default=None)


class Traced:
    """Wraps an application so that its requests are traced; the caller's `traceparent` header is their parent.

    Args:
        app: The application.
        tracer: Result of `open_tracer`.
        paths: Endpoint -> address with its parameters in braces, for the names of spans.
    """

    def __init__(self, app: App, tracer: Any, paths: Mapping[Any, str]) -> None:
        self._app, self._tracer, self._paths = app, tracer, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carried = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "url.path": scope["path"][:200]}
        # It ignores a header that is malformed, as the standard asks.
        parent = TraceContextTextMapPropagator().extract(carried)
        span = self._tracer.start_span(method, parent, kind=SpanKind.SERVER, attributes=attributes)
        request = _Request(self._tracer, set_span_in_context(span))
        token = _current.set(request)
        try:
            await self._app(scope, _received(receive, request), _answered(send, span))
        except BaseException as error:
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            _current.reset(token)
            if (route := self._paths.get(scope.get("endpoint"))) is not None:
                span.set_attribute("http.route", route)
                span.update_name(f"{method} {route}")
            span.end()


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def _received(receive: Receive, request: _Request) -> Receive:
    """Records as "receive" the time until the whole body is here."""
    started = time.monotonic()
    bytes_so_far = 0
    done = False

    async def traced() -> Message:
        nonlocal bytes_so_far, done
        message = await receive()
        bytes_so_far += len(message.get("body", b""))
        if not done and not message.get("more_body", False):
            done = True
            request.record("receive", started, time.monotonic(), {"http.request.body.size": bytes_so_far})
        return message

    return traced


def _answered(send: Send, span: Any) -> Send:
    async def traced(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                from opentelemetry.trace import StatusCode

                span.set_status(StatusCode.ERROR)
        await send(message)

    return traced


def open_tracer() -> Any:
    """Returns the tracer that the environment asks for, or None.

    A provider that the process has already, such as that of `opentelemetry-instrument`, is used as it is. Otherwise the
    variables of OpenTelemetry decide: `OTEL_EXPORTER_OTLP_ENDPOINT` sends spans there, `OTEL_TRACES_EXPORTER=console`
    prints them, `OTEL_SDK_DISABLED=true` turns all off. With none of them nothing is imported.

    Raises:
        MissingPackageError: The environment asks for traces, and the extra "telemetry" is not installed.
        UserError: The environment asks for an exporter that is not supported.
    """
    exporter = os.environ.get(EXPORTER) or ("otlp" if any(os.environ.get(name) for name in ENDPOINTS) else "none")
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in ("none", "otlp", "console"):
        raise UserError(f'{EXPORTER} must be "otlp", "console" or "none". Received: {shown(exporter)}.')
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), _PROTOCOL)
    if exporter == "otlp" and protocol != _PROTOCOL:
        raise UserError(f"Traces are sent as {_PROTOCOL}, often to port 4318. Received: {shown(protocol)}.")
    if exporter == "none" and "opentelemetry.sdk.trace" not in sys.modules:
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        if exporter != "none" and not isinstance(trace.get_tracer_provider(), TracerProvider):
            trace.set_tracer_provider(_provider(exporter))
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'Traces need the {error.name!r} package. Install it with: pip install "deit[telemetry]"', name=error.name
        ) from error
    return trace.get_tracer("deit.serve")


def _provider(exporter: str) -> Any:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the environment does not name it
        resource = resource.merge(Resource({SERVICE_NAME: "deit"}))
    provider = TracerProvider(resource=resource)
    chosen: SpanExporter
    if exporter == "console":
        chosen = ConsoleSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        chosen = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(chosen))
    return provider
