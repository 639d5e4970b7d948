"""Traces (opentelemetry.io): who waited for what, from a user's call to the process that runs.

Off unless a process is told where they go; then nothing of OpenTelemetry is imported, and what is
asked of `Tracer` costs as much as a function that does nothing.

A *place* in a trace is handed on as text, W3C's `traceparent` (w3.org/TR/trace-context): in a
call's metadata, in the store with what the call wrote, and in a node's orders. Empty: in no trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import click

F = TypeVar("F")
Kind = Literal["", "client", "server"]
"""Which end of a call a span is; empty: none."""

HEADER = "traceparent"
"""Of a call's metadata."""

_current: ContextVar[str] = ContextVar("place in a trace", default="")
_BASE, _TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


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

        `parent` is where we are unless told; in no trace, nothing is made, but by what has a
        `kind`: that begins a trace where there is none.
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


def configured(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's standard variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return bool(environment.get(_BASE) or environment.get(_TRACES))


def tracer(service: str, instance: str, endpoint: str = "") -> Tracer:
    """What a process traces with: to `endpoint` (of OTLP, without a path), else to where
    OpenTelemetry's variables say, else nowhere. `service` is its name unless OTEL_SERVICE_NAME
    says otherwise, `instance` tells it from others of that name. Raises CannotTrace."""
    if not endpoint and not configured(os.environ):
        return OFF
    try:
        from orchestrator.tracing.otlp import OtlpTracer
    except ImportError as error:
        raise CannotTrace(
            f"traces need OpenTelemetry's packages ({error.name} is missing); install them with "
            "pip install 'orc[traces]'"
        ) from None
    return OtlpTracer(service, instance, endpoint)


def _url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
        raise click.BadParameter(f"'{value}' is not a URL such as http://collector:4318")
    return value


def endpoint_option(function: F) -> F:
    """A daemon's option for where its traces go."""
    return click.option(
        "--otlp-endpoint",
        default="",
        metavar="URL",
        callback=_url,
        help="Send traces there (OTLP), such as http://collector:4318; none else.",
    )(function)  # type: ignore[type-var]
