# SPDX-License-Identifier: Apache-2.0
"""A command as a span, where OpenTelemetry's variables ask for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from orchestrator.tracing.configuration import tracer
from orchestrator.tracing.spans import CannotTrace


@contextmanager
def traced(command: str) -> Iterator[str]:
    """The trace context of a command while it runs, below TRACEPARENT if set, as build systems do.
    A problem with traces never fails a command."""
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
