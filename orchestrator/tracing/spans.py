# SPDX-License-Identifier: Apache-2.0
"""The interface for spans that the code calls. Does not import OpenTelemetry.

Unless a process is configured to send traces (`configuration`), calls of `Tracer` are no-ops.

A *trace context* is passed on as text, W3C's `traceparent` (w3.org/TR/trace-context): in a call's
metadata, in the store with the objects that the call wrote, and in a node's assignments. Empty: not
part of a trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, Protocol

Kind = Literal["", "client", "server"]
"""The side of a call that a span describes; empty: internal."""

HEADER = "traceparent"
"""Key of a call's metadata."""

_current: ContextVar[str] = ContextVar("trace context", default="")


class TracingError(Exception):
    """Tracing is enabled but cannot be set up; the text is one line with reason and remedy."""


def current() -> str:
    """The current trace context; empty outside of a trace."""
    return _current.get()


@contextmanager
def attached(context: str) -> Iterator[str]:
    """Make `context` the current trace context for the duration of the block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


class Tracer(Protocol):
    """Creates spans. Names are few and fixed; details are in attributes, named without `orc.`."""

    @property
    def on(self) -> bool:
        """Whether spans are recorded."""
        ...

    def span(
        self, name: str, parent: str | None = None, /, *, kind: Kind = "", **attributes: Any
    ) -> AbstractContextManager[str]:
        """A span for the duration of the block, which receives its trace context; an exception
        sets its error.

        `parent` defaults to the current span. Outside of a trace, only a span with a `kind` is
        created, which starts a trace.
        """
        ...

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
        """Record a finished span; times are Unix seconds. `context` is its trace context if it was
        `derived` before; otherwise the span requires a parent."""
        ...

    def derived(self, parent: str, key: str) -> str:
        """The trace context of a span that will be recorded later; deterministic by `key`. It is
        below `parent`, or starts a trace if that is empty. Empty if tracing is off."""
        ...

    def close(self) -> None:
        """Send pending spans, within a second."""
        ...


class NoTraces:
    """A tracer that does nothing."""

    on = False
    _block = nullcontext("")

    def span(
        self, name: str, parent: str | None = None, /, *, kind: Kind = "", **attributes: Any
    ) -> AbstractContextManager[str]:
        """See `Tracer`."""
        return self._block

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

    def derived(self, parent: str, key: str) -> str:
        """See `Tracer`."""
        return ""

    def close(self) -> None:
        """See `Tracer`."""


OFF: Tracer = NoTraces()
