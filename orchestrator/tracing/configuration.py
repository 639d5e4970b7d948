# SPDX-License-Identifier: Apache-2.0
"""Whether and where a process sends traces: OpenTelemetry's variables and `--otlp-endpoint`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import click

from orchestrator.tracing.spans import OFF, Tracer, TracingError

F = TypeVar("F")

_BASE, _TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def configured(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's standard variables enable traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return bool(environment.get(_BASE) or environment.get(_TRACES))


def tracer(service: str, instance: str, endpoint: str = "") -> Tracer:
    """The process's tracer: sends to `endpoint` (OTLP, without a path), else as OpenTelemetry's
    variables configure, else does nothing. `service` is the service name, which OTEL_SERVICE_NAME
    overrides; `instance` distinguishes processes of that name. Raises TracingError."""
    if not endpoint and not configured(os.environ):
        return OFF
    try:
        from orchestrator.tracing.otlp import OtlpTracer
    except ImportError as error:
        raise TracingError(
            f"traces need OpenTelemetry's packages ({error.name} is missing); install them with "
            "pip install 'orc[traces]'"
        ) from None
    return OtlpTracer(service, instance, endpoint)


def _url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
        raise click.BadParameter(f"'{value}' is not a URL, such as http://collector:4318")
    return value


def endpoint_option(function: F) -> F:
    """A daemon's option `--otlp-endpoint`."""
    return click.option(
        "--otlp-endpoint",
        default="",
        metavar="URL",
        callback=_url,
        help="OTLP endpoint for traces, such as http://collector:4318; empty: none.",
    )(function)  # type: ignore[type-var]
