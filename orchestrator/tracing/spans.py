# SPDX-License-Identifier: Apache-2.0
"""Spans: what the code calls to record who waited for what. Nothing of OpenTelemetry is imported.

Off unless a process is configured to send traces (`configuration`); then a call of `Tracer` costs
as much as a function that does nothing.

A *place* in a trace is passed on as text, W3C's `traceparent` (w3.org/TR/trace-context): in a
call's metadata, in the store with what the call wrote, and in a node's assignments. Empty: in no
trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, Protocol

Kind = Literal["", "client", "server"]
"""Which end of a call a span is; empty: none."""

HEADER = "traceparent"
"""Of a call's metadata."""

_current: ContextVar[str] = ContextVar("place in a trace", default="")


class CannotTrace(Exception):
    """Traces are asked for and cannot be made; one line that says why and what to do."""


def current() -> str:
    """The place of what is being done; empty where that is in no trace."""
    return _current.get()


@contextmanager
def at(place: str) -> Iterator[str]:
    """Be at that place for as long as this lasts."""
    token = _current.set(place)
    try:
        yield place
    finally:
        _current.reset(token)


class Tracer(Protocol):
    """Makes spans. Names are few and fixed; what differs is in the attributes, without `orc.`."""

    @property
    def on(self) -> bool:
        """Whether any are made."""
        ...

    def span(
        self, name: str, parent: str | None = None, /, *, kind: Kind = "", **attributes: Any
    ) -> AbstractContextManager[str]:
        """A span as long as the block, which gets its place; an exception is its error.

        `parent` is the current span by default; outside of a trace no span is made, except with a
        `kind`, which starts a trace.
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
        place: str = "",
        error: str = "",
        **attributes: Any,
    ) -> None:
        """A span that is over; seconds since 1970. `place` is what it was given beforehand, with
        or without `parent`; else it is made only below a parent."""
        ...

    def derived(self, parent: str, key: str) -> str:
        """The place of a span that is yet to be recorded, the same for each who asks: below
        `parent`, or where that is empty in a trace of its own. Empty while no spans are made."""
        ...

    def close(self) -> None:
        """Send what is there, within a second."""
        ...


class NoTraces:
    """Makes none."""

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
        place: str = "",
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
