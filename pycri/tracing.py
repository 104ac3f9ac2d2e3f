# SPDX-License-Identifier: Apache-2.0
"""Traces of calls for OpenTelemetry: the only user of it, and only where it is installed.

Each call is a span below that of its caller (the kubelet sends its own as `traceparent`, W3C Trace
Context), and each stage of making a pod or container a span below the call. Spans go to a collector
by OTLP over gRPC, in batches, from a thread of the library; a collector that is away costs spans.

    pip install 'pycri[tracing]'
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

# TID251: this module is OpenTelemetry's one home.
from opentelemetry import context as otel_context  # noqa: TID251
from opentelemetry import trace  # noqa: TID251
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: TID251
    OTLPSpanExporter,
)
from opentelemetry.sdk.resources import Resource  # noqa: TID251
from opentelemetry.sdk.trace import TracerProvider  # noqa: TID251
from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: TID251
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: TID251
from opentelemetry.trace.propagation.tracecontext import (  # noqa: TID251
    TraceContextTextMapPropagator,
)

from pycri import __version__
from pycri.cri.account import Look, subject
from pycri.logs import request_id
from pycri.model.pod import Stage

_SERVICE: Final = "runtime.v1"
_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that are a server's own fault (semantic conventions for RPC spans)."""
_MILLION: Final = 1_000_000


class Tracing:
    """Spans of one daemon, of calls (as `pycri.cri.account.Observer`) and of their stages."""

    def __init__(self, endpoint: str, sampling_per_million: int) -> None:
        """endpoint: "HOST:PORT" of a collector, without TLS.

        sampling_per_million: of calls whose caller sends no trace; others follow their caller.
        """
        resource = Resource.create({"service.name": "pycri", "service.version": __version__})
        sampler = ParentBased(TraceIdRatioBased(sampling_per_million / _MILLION))
        self._provider = TracerProvider(resource=resource, sampler=sampler)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pycri", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, request: Any, headers: Mapping[str, str]) -> Callable[[str], None]:
        """Begin the span of a call; what it does from now on is below that span."""
        parent = self._propagator.extract(headers)
        span = self._tracer.start_span(f"{_SERVICE}/{method}", parent, trace.SpanKind.SERVER)
        if span.is_recording():
            _describe(span, method, request_id.get(), subject(request))
        token = otel_context.attach(trace.set_span_in_context(span))

        def end(code: str) -> None:
            otel_context.detach(token)
            _conclude(span, code)
            span.end()

        return end

    def looked(self, look: Look) -> None:
        """Add the span of a call that is over."""
        parent = self._propagator.extract(look.headers)
        name, kind = f"{_SERVICE}/{look.method}", trace.SpanKind.SERVER
        span = self._tracer.start_span(name, parent, kind, start_time=look.start_ns)
        if span.is_recording():
            _describe(span, look.method, look.request, look.subject)
        _conclude(span, look.code)
        span.end(look.start_ns + look.duration_ns)

    def observe_stages(self, stages: tuple[Stage, ...]) -> None:
        """Add the stages of a call below the span of the caller; the first is the whole call."""
        if not trace.get_current_span().is_recording():
            return
        for stage in stages[1:]:
            name = stage.name.partition("/")[2]
            span = self._tracer.start_span(name, start_time=stage.start_ns)
            span.end(stage.start_ns + stage.duration_ns)

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""
        self._provider.shutdown()


def _describe(span: trace.Span, method: str, request: str, about: Mapping[str, object]) -> None:
    span.set_attribute("rpc.system", "grpc")
    span.set_attribute("rpc.method", method)
    span.set_attribute("pycri.request", request)
    for name, value in about.items():
        span.set_attribute(f"pycri.{name}", str(value))


def _conclude(span: trace.Span, code: str) -> None:
    span.set_attribute("rpc.grpc.status_code", code)
    if code in _FAULTS:
        span.set_status(trace.StatusCode.ERROR, code)
