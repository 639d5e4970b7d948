# SPDX-License-Identifier: Apache-2.0
"""Tracing with OpenTelemetry's SDK, exported by OTLP; no other module imports it.

Variables of the specification apply (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER,
OTEL_RESOURCE_ATTRIBUTES, …; opentelemetry.io, "Environment Variable Specification"). A thread sends
spans from a bounded queue: while the receiver is unavailable, spans are lost and nothing blocks.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from orchestrator import __version__
from orchestrator.tracing.spans import Kind, TracingError, attached, current

log = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT = 1.0
"""Seconds for sending the remaining spans at shutdown."""
_KINDS = {"": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "server": SpanKind.SERVER}
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
"""Future versions may append fields after a dash."""
_PROTOCOLS = ("http/protobuf", "grpc")


class OtlpTracer:
    """See `Tracer`. Spans are created by one thread."""

    on = True

    def __init__(self, service: str, instance: str, endpoint: str) -> None:
        """See `tracing.tracer`."""
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        logging.getLogger("opentelemetry").propagate = False
        known = {
            "service.name": service,
            "service.version": __version__,
            "service.namespace": "orc",
            "service.instance.id": instance,
            "host.name": socket.gethostname(),
        }
        self._ids = _PresetIds()
        self._provider = TracerProvider(
            # Variables take precedence.
            resource=Resource.create(known).merge(OTELResourceDetector().detect()),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(_AvailabilityLogger(_exporter(endpoint)))
        )
        self._tracer = self._provider.get_tracer("orc", __version__)

    @contextmanager
    def span(
        self, name: str, parent: str | None = None, /, *, kind: Kind = "", **attributes: Any
    ) -> Iterator[str]:
        """See `Tracer`."""
        above = current() if parent is None else parent
        if not above and not kind:
            yield ""
            return
        span = self._tracer.start_span(
            name, _parent_context(above), _KINDS[kind], _attributes(attributes)
        )
        try:
            with attached(_traceparent(span.get_span_context())) as context:
                yield context
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError | GeneratorExit):
                _fail(span, str(error) or type(error).__name__)
            raise
        finally:
            span.end()

    def record(
        self,
        name: str,
        start: float,
        end: float,
        parent: str,
        /,
        *,
        context: str = "",
        error: str = "",
        **attributes: Any,
    ) -> None:
        """See `Tracer`."""
        if not parent and not context:
            return
        if context:
            self._ids.preset = _parsed(context)
        span = self._tracer.start_span(
            name,
            _parent_context(parent),
            attributes=_attributes(attributes),
            start_time=_nanoseconds(start),
        )
        self._ids.preset = None
        if error:
            _fail(span, error)
        # Clocks of hosts differ; a span must not end before it starts.
        span.end(_nanoseconds(max(start, end)))

    def derived(self, parent: str, key: str) -> str:
        """See `Tracer`."""
        digest = hashlib.sha256(key.encode()).digest()
        if (above := _parsed(parent)) is not None:
            trace_id, flags = above.trace_id, above.trace_flags
        else:
            trace_id = int.from_bytes(digest[8:24])
            decision = self._provider.sampler.should_sample(None, trace_id, "task").decision
            sampled = decision is Decision.RECORD_AND_SAMPLE
            flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        return _traceparent(SpanContext(trace_id, int.from_bytes(digest[:8]), False, flags))

    def close(self) -> None:
        """See `Tracer`."""
        # A silent receiver must not keep the process from exiting.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_SHUTDOWN_TIMEOUT)


class _PresetIds(RandomIdGenerator):
    """Uses the ids of a `preset` span context for the next span."""

    def __init__(self) -> None:
        self.preset: SpanContext | None = None

    def generate_span_id(self) -> int:
        return self.preset.span_id if self.preset else super().generate_span_id()

    def generate_trace_id(self) -> int:
        return self.preset.trace_id if self.preset else super().generate_trace_id()


class _AvailabilityLogger(SpanExporter):
    """Logs once that exports fail, and once that they succeed again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._available = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if (available := result is SpanExportResult.SUCCESS) is not self._available:
            self._available = available
            if available:
                log.info("trace export recovered")
            else:
                log.warning("trace export failed; spans are lost until it recovers")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _exporter(endpoint: str) -> SpanExporter:
    """The exporter for the protocol that the variables configure. Raises TracingError."""
    known = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _PROTOCOLS[0]
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or known
    # Each exporter has its own client library: only the needed one is imported.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        return grpc_exporter.OTLPSpanExporter(endpoint=endpoint or None)
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        return trace_exporter.OTLPSpanExporter(endpoint=url)
    raise TracingError(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is '{protocol}'; set it to {' or '.join(_PROTOCOLS)}"
    )


def _parsed(traceparent: str) -> SpanContext | None:
    """The span context of a `traceparent`; None if invalid."""
    if (parts := _TRACEPARENT.fullmatch(traceparent)) is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parts.groups())
    context = SpanContext(trace_id, span_id, True, TraceFlags(flags))
    return context if context.is_valid else None


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _parent_context(traceparent: str) -> Context:
    above = _parsed(traceparent)
    return Context() if above is None else set_span_in_context(NonRecordingSpan(above), Context())


def _attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that are set, prefixed with `orc.`."""
    return {f"orc.{name}": value for name, value in attributes.items() if value not in ("", None)}


def _fail(span: Span, why: str) -> None:
    span.set_status(Status(StatusCode.ERROR, why))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
