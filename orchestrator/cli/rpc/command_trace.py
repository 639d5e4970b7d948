"""A command as a span, where OpenTelemetry's variables ask for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from orchestrator.tracing.configuration import tracer
from orchestrator.tracing.spans import CannotTrace


@contextmanager
def traced(command: str) -> Iterator[str]:
    """The place in a trace of a command, for as long as it goes on: below TRACEPARENT, which
    build systems set, if that is there. Nothing that is wrong with traces is a command's fault."""
    above = os.environ.get("TRACEPARENT", "")
    try:
        traces = tracer("orc", str(os.getpid()))
    except CannotTrace:
        yield above
        return
    if not traces.on:
        yield above
        return
    with closing(traces), traces.span(command, above, kind="client") as place:
        yield place
