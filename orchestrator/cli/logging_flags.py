"""`--log-driver` and `--log-opt`: where a container's output goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.flag_types import Parsed
from orchestrator.model import logdrivers
from orchestrator.model.specs import ContainerSpec, LogConfig

F = TypeVar("F", bound=Callable[..., Any])


def _driver(text: str) -> str:
    logdrivers.check(LogConfig(text))
    return text


def _option(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"log option {text!r} is not of the form KEY=VALUE, such as max-size=10m")
    logdrivers.check(LogConfig("", {key: value}))
    return key, value


def logging_options(function: F) -> F:
    """Add the flags, as Docker names them."""
    function = click.option(
        "--log-opt",
        type=Parsed("LOGOPT=VALUE", _option),
        multiple=True,
        help="Option of the logging driver, such as max-size=10m; repeatable.",
    )(function)
    return click.option(
        "--log-driver",
        type=Parsed("|".join(logdrivers.DRIVERS), _driver),
        help="Logging driver.  [default: the node's]",
    )(function)


def with_logging(container: ContainerSpec, values: Mapping[str, Any]) -> ContainerSpec:
    """The container with the driver and options that were given. A driver takes the place of
    another one with its options; options alone are set beside those that are there. Raises a
    usage error for an option that the driver does not take."""
    driver, options = values.get("log_driver"), dict(values.get("log_opt") or ())
    if driver is None and not options:
        return container
    old = container.logging
    if driver not in (None, old.driver):
        old = LogConfig(driver)
    logging = replace(old, options={**old.options, **options})
    try:
        logdrivers.check(logging)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return replace(container, logging=logging)
