# SPDX-License-Identifier: Apache-2.0
"""Whether and where a process sends traces: OpenTelemetry's variables and `--otlp-endpoint`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import click

from orchestrator.tracing.spans import OFF, CannotTrace, Tracer

F = TypeVar("F")

_BASE, _TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


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
