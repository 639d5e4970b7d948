"""The flags of order and place: what a service waits for, and which nodes it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.model.dependencies import Dependency, parse_dependency
from orchestrator.model.specs import ServiceSpec

F = TypeVar("F", bound=Callable[..., Any])

_DEPENDENCY = "SERVICE[:started|healthy|completed]"


def placement_options(function: F) -> F:
    """Add the flags to `service create`."""
    return click.option(
        "--depends-on",
        multiple=True,
        metavar=_DEPENDENCY,
        help="Start only once a task of that service runs, is healthy, or all have completed.",
    )(function)


def placement_edit_options(function: F) -> F:
    """Add the flags to `service update`."""
    function = click.option(
        "--depends-on-rm", multiple=True, metavar="SERVICE", help="Wait no more for a service."
    )(function)
    return click.option(
        "--depends-on-add",
        multiple=True,
        metavar=_DEPENDENCY,
        help="Wait for a service; repeatable.",
    )(function)


def with_placement(spec: ServiceSpec, values: Mapping[str, Any]) -> ServiceSpec:
    """The spec with what was given of the flags, on `create`, or `-add` and `-rm` on `update`.
    Raises a usage error for what cannot be read."""
    added = _dependencies(values.get("depends_on") or values.get("depends_on_add") or ())
    removed = values.get("depends_on_rm") or ()
    kept = {each.service: each for each in spec.depends_on if each.service not in removed}
    kept.update({each.service: each for each in added})
    return replace(spec, depends_on=tuple(kept.values()))


def _dependencies(texts: Iterable[str]) -> list[Dependency]:
    try:
        return [parse_dependency(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"--depends-on {error}") from None
