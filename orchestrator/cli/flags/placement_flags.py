# SPDX-License-Identifier: Apache-2.0
"""Flags of placement and start order: constraints, affinities, resources, dependencies."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.flags.flag_types import Parsed
from orchestrator.model.dependencies import Dependency, parse_dependency
from orchestrator.model.formats.generic_resources import check_generic, parse_generic
from orchestrator.model.formats.platforms import platform_constraint
from orchestrator.model.placement import GenericResource
from orchestrator.model.scheduling.affinities import Affinity, parse_affinity
from orchestrator.model.specs import ServiceSpec

F = TypeVar("F", bound=Callable[..., Any])

_AFFINITY = "RULE[,weight=NUMBER][,within=ATTRIBUTE]"
_DEPENDENCY = "SERVICE[:started|healthy|completed]"


_GPU = "gpu"
"""The kind of generic resource that `--gpus` reserves."""


def _gpus(text: str) -> str:
    """The generic resource of Docker's `--gpus`: `2`, `all`, `device=0,1`, or CSV with `count`,
    `device`, `driver` and `capabilities`. Raises ValueError."""
    fields: dict[str, str] = {}
    try:
        parts = next(csv.reader([text]), [])
    except csv.Error:
        parts = []
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals and key not in fields and len(parts) == 1:
            fields["count"] = key
        elif not equals and list(fields)[-1:] == ["device"]:
            # Docker requires quotes around several ids, which shells remove.
            fields["device"] += f",{key}"
        elif key in ("count", "device", "driver", "capabilities") and value:
            fields[key] = value
        else:
            raise ValueError(f"{text!r} has {part!r}; for example 2, all or device=0,1")
    count, device = fields.get("count", ""), fields.get("device", "")
    if count == "-1":
        count = "all"
    if bool(count) == bool(device) or not (device or count == "all" or count.isdecimal()):
        raise ValueError(f"{text!r} is not a number of GPUs; for example 2, all or device=0,1")
    made = f"{_GPU}=device={device}" if device else f"{_GPU}={count}"
    return str(parse_generic(made))


def affinity_options(function: F) -> F:
    """Add `--affinity`, `--anti-affinity`, `--platform`, `--gpus` and `--generic-resource`, which
    services and containers have."""
    for name, what in (("anti-affinity", "far from"), ("affinity", "near")):
        function = click.option(
            f"--{name}",
            multiple=True,
            metavar=_AFFINITY,
            help=f"Run {what} nodes or services, such as node.labels.disk==ssd or service==db; "
            "with a weight (1 to 100) a preference.",
        )(function)
    function = click.option(
        "--gpus",
        type=Parsed("number", _gpus),
        metavar="NUMBER|all|device=ID[,ID...]",
        help="GPUs of the node to reserve, and to have as devices: the same as --generic-resource "
        "with the kind gpu.",
    )(function)
    function = click.option(
        "--platform",
        type=Parsed("platform", platform_constraint),
        metavar="OS/ARCH",
        help="Only nodes of this platform, such as linux/arm64.",
    )(function)
    return click.option(
        "--generic-resource",
        multiple=True,
        metavar="KIND=NUMBER|KIND=all|KIND=device=NAME[,NAME...]",
        help="Generic resources of the node to reserve, such as gpu=2; repeatable.",
    )(function)


def placement_options(function: F) -> F:
    """Add the flags to `service create`."""
    function = affinity_options(function)
    return click.option(
        "--depends-on",
        multiple=True,
        metavar=_DEPENDENCY,
        shell_complete=completes("services"),
        help="Start only once a task of that service runs, is healthy, or all have completed.",
    )(function)


def placement_edit_options(function: F) -> F:
    """Add the flags to `service update`."""
    for name in ("anti-affinity", "affinity"):
        function = click.option(
            f"--{name}-rm", multiple=True, metavar="RULE", help=f"Remove an {name}; repeatable."
        )(function)
        function = click.option(
            f"--{name}-add", multiple=True, metavar=_AFFINITY, help=f"Add an {name}; repeatable."
        )(function)
    function = click.option(
        "--generic-resource-rm",
        multiple=True,
        metavar="KIND",
        help="Reserve no resources of a kind; repeatable.",
    )(function)
    function = click.option(
        "--generic-resource-add",
        multiple=True,
        metavar="KIND=NUMBER|KIND=all|KIND=device=NAME[,NAME...]",
        help="Reserve generic resources, such as gpu=2; repeatable.",
    )(function)
    function = click.option(
        "--depends-on-rm",
        multiple=True,
        metavar="SERVICE",
        shell_complete=completes("services"),
        help="Remove a dependency on a service; repeatable.",
    )(function)
    return click.option(
        "--depends-on-add",
        multiple=True,
        metavar=_DEPENDENCY,
        shell_complete=completes("services"),
        help="Wait for a service; repeatable.",
    )(function)


def with_placement(spec: ServiceSpec, values: Mapping[str, Any]) -> ServiceSpec:
    """The spec with the given flags of `create`, or `-add` and `-rm` of `update`. Raises a usage
    error for invalid values."""
    added = _dependencies(values.get("depends_on") or values.get("depends_on_add") or ())
    removed = values.get("depends_on_rm") or ()
    kept = {each.service: each for each in spec.depends_on if each.service not in removed}
    kept.update({each.service: each for each in added})
    affinities = spec.affinities
    for anti in (False, True):
        affinities = _affinities(affinities, values, anti)
    generic = _generic(spec.task.generic_resources, values)
    return replace(
        spec,
        depends_on=tuple(kept.values()),
        affinities=affinities,
        task=replace(spec.task, generic_resources=generic),
    )


def _generic(
    known: tuple[GenericResource, ...], values: Mapping[str, Any]
) -> tuple[GenericResource, ...]:
    texts = [*(values.get("generic_resource") or values.get("generic_resource_add") or ())]
    if values.get("gpus"):
        texts.append(values["gpus"])
    try:
        added = [parse_generic(text) for text in texts]
        check_generic(added)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    removed = {text.partition("=")[0] for text in values.get("generic_resource_rm") or ()}
    by_kind = {each.kind: each for each in (*known, *added)}
    return tuple(each for kind, each in by_kind.items() if kind not in removed)


def _affinities(
    known: tuple[Affinity, ...], values: Mapping[str, Any], anti: bool
) -> tuple[Affinity, ...]:
    """The rules of one kind after adding and removing. An added one replaces one with the same
    rule."""
    name = "anti_affinity" if anti else "affinity"
    try:
        added = [
            parse_affinity(text, anti=anti)
            for text in values.get(name) or values.get(f"{name}_add") or ()
        ]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    gone = {*(values.get(f"{name}_rm") or ()), *(each.rule for each in added)}
    kept = [
        each for each in known if each.anti is not anti or gone.isdisjoint({each.rule, str(each)})
    ]
    return (*kept, *added)


def _dependencies(texts: Iterable[str]) -> list[Dependency]:
    try:
        return [parse_dependency(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"--depends-on {error}") from None
