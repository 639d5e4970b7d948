# SPDX-License-Identifier: Apache-2.0
"""Traces by OpenTelemetry's SDK, sent in OTLP; nothing else imports it.

All that the specification's variables say holds (OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER,
OTEL_RESOURCE_ATTRIBUTES, …; opentelemetry.io, "Environment Variable Specification"). Spans are sent
by a thread from a queue with a bound: an unavailable receiver costs nothing but the spans.
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
from orchestrator.tracing.spans import CannotTrace, Kind, at, current

log = logging.getLogger(__name__)

_CLOSING = 1.0
"""Seconds in which what is left must be sent."""
_KINDS = {"": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "server": SpanKind.SERVER}
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
"""Versions to come may have more after a dash."""
_PROTOCOLS = ("http/protobuf", "grpc")


class OtlpTracer:
    """See `Tracer`. Spans are made by one thread."""

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
        self._ids = _Ids()
        self._provider = TracerProvider(
            # What the variables say counts more.
            resource=Resource.create(known).merge(OTELResourceDetector().detect()),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(_Told(_exporter(endpoint))))
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
        span = self._tracer.start_span(name, _below(above), _KINDS[kind], _named(attributes))
        try:
            with at(_place(span.get_span_context())) as place:
                yield place
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
        place: str = "",
        error: str = "",
        **attributes: Any,
    ) -> None:
        """See `Tracer`."""
        if not parent and not place:
            return
        if place:
            self._ids.wanted = _parsed(place)
        span = self._tracer.start_span(
            name, _below(parent), attributes=_named(attributes), start_time=_nanoseconds(start)
        )
        self._ids.wanted = None
        if error:
            _fail(span, error)
        # Clocks of hosts differ; a span is never over before it began.
        span.end(_nanoseconds(max(start, end)))

    def derived(self, parent: str, key: str) -> str:
        """See `Tracer`."""
        digest = hashlib.sha256(key.encode()).digest()
        if (above := _parsed(parent)) is not None:
            trace_id, flags = above.trace_id, above.trace_flags
        else:
            trace_id = int.from_bytes(digest[8:24])
            decision = self._provider.sampler.should_sample(None, trace_id, "task").decision
            taken = decision is Decision.RECORD_AND_SAMPLE
            flags = TraceFlags(TraceFlags.SAMPLED if taken else TraceFlags.DEFAULT)
        return _place(SpanContext(trace_id, int.from_bytes(digest[:8]), False, flags))

    def close(self) -> None:
        """See `Tracer`."""
        # A receiver that does not answer must not keep a process from ending.
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSING)


class _Ids(RandomIdGenerator):
    """Gives the next span the ids that it was promised."""

    def __init__(self) -> None:
        self.wanted: SpanContext | None = None

    def generate_span_id(self) -> int:
        return self.wanted.span_id if self.wanted else super().generate_span_id()

    def generate_trace_id(self) -> int:
        return self.wanted.trace_id if self.wanted else super().generate_trace_id()


class _Told(SpanExporter):
    """Says once that spans are not taken, and once that they are again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._well = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if (well := result is SpanExportResult.SUCCESS) is not self._well:
            self._well = well
            if well:
                log.info("traces are taken again")
            else:
                log.warning("traces are not taken, and those of the meantime are lost")
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _exporter(endpoint: str) -> SpanExporter:
    """The exporter of the protocol that the variables name. Raises CannotTrace."""
    known = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _PROTOCOLS[0]
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or known
    # Only that one's module is imported: each brings a client of its own.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

        return grpc_exporter.OTLPSpanExporter(endpoint=endpoint or None)
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http import trace_exporter

        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        return trace_exporter.OTLPSpanExporter(endpoint=url)
    raise CannotTrace(
        f"OTEL_EXPORTER_OTLP_PROTOCOL is '{protocol}'; set it to {' or '.join(_PROTOCOLS)}"
    )


def _parsed(place: str) -> SpanContext | None:
    """What a `traceparent` says; None for what is not one."""
    if (parts := _TRACEPARENT.fullmatch(place)) is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parts.groups())
    context = SpanContext(trace_id, span_id, True, TraceFlags(flags))
    return context if context.is_valid else None


def _place(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _below(place: str) -> Context:
    above = _parsed(place)
    return Context() if above is None else set_span_in_context(NonRecordingSpan(above), Context())


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say something, under our name."""
    return {f"orc.{name}": value for name, value in attributes.items() if value not in ("", None)}


def _fail(span: Span, why: str) -> None:
    span.set_status(Status(StatusCode.ERROR, why))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
