"""What `service update` does to a spec: the `-add` and `-rm` flags.

Pure: an edit is applied again to a newer spec when somebody else was faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.container_flags import many_edit_options, with_many
from orchestrator.cli.document_flags import document_edit_options, edit_documents
from orchestrator.cli.flag_types import WORDS, pairs
from orchestrator.cli.logging_flags import logging_options, with_logging
from orchestrator.cli.mount_flags import edit_mounts, mount_edit_options
from orchestrator.cli.network_flags import edited_attachments
from orchestrator.cli.placement_flags import with_placement
from orchestrator.cli.settings import apply_settings, with_value
from orchestrator.cli.spec_flags import checked_image, environment, no_number, ports, preferences
from orchestrator.model.specs import PortSpec, Protocol, ServiceMode, ServiceSpec

F = TypeVar("F", bound=Callable[..., Any])

_LISTS = (
    ("env", "KEY[=VALUE]", "KEY", "environment variable"),
    ("label", "KEY=VALUE", "KEY", "label of the service"),
    ("container-label", "KEY=VALUE", "KEY", "label of its containers"),
    (
        "publish",
        "PORTS",
        "PORT",
        "published port (PUBLISHED:TARGET; removed by target or the same)",
    ),
    ("constraint", "RULE", "RULE", "placement rule such as node.labels.zone==a"),
    ("network", "NAME", "NAME", "network"),
    ("placement-pref", "spread=RULE", "spread=RULE", "preference such as spread=node.labels.zone"),
)


def edit_options(function: F) -> F:
    """Add the flags of an update that are not of SETTINGS."""
    function = document_edit_options(mount_edit_options(function))
    for name, added, removed, what in reversed(_LISTS):
        function = click.option(
            f"--{name}-rm", multiple=True, metavar=removed, help=f"Remove a {what}; repeatable."
        )(function)
        function = click.option(
            f"--{name}-add", multiple=True, metavar=added, help=f"Add a {what}; repeatable."
        )(function)
    function = many_edit_options(logging_options(function))
    function = click.option("--args", "arguments", type=WORDS, help="The command's new words.")(
        function
    )
    function = click.option("--image", metavar="IMAGE", help="Run this image from now on.")(
        function
    )
    return click.option("--force", is_flag=True, help="Replace tasks although nothing changed.")(
        function
    )


def edited(spec: ServiceSpec, values: Mapping[str, Any]) -> ServiceSpec:
    """The spec with an update's flags applied. Raises a usage error for what cannot be."""
    if values["replicas"] is not None and spec.mode.is_global:
        raise no_number(spec.mode)
    spec = with_placement(apply_settings(spec, values), values)
    container = spec.task.container
    container = replace(
        container,
        env=_without(environment([*container.env, *values["env_add"]]), values["env_rm"]),
        labels=_labels(
            container.labels, values["container_label_add"], values["container_label_rm"]
        ),
    )
    if values["image"] is not None:
        container = replace(container, image=checked_image(values["image"]))
    if values["arguments"] is not None:
        container = replace(container, command=values["arguments"])
    container = with_logging(with_many(container, values), values)
    container = edit_mounts(container, values)
    container = edit_documents(container, values)
    task = replace(
        spec.task,
        container=container,
        ports=_ports(spec.task.ports, values["publish_add"], values["publish_rm"]),
        networks=edited_attachments(
            spec.task.networks, values["network_add"], values["network_rm"]
        ),
        force=spec.task.force + int(values["force"]),
    )
    return replace(
        spec,
        task=task,
        labels=_labels(spec.labels, values["label_add"], values["label_rm"]),
        constraints=_list(spec.constraints, values["constraint_add"], values["constraint_rm"]),
        spread=_list(
            spec.spread,
            preferences(values["placement_pref_add"]),
            preferences(values["placement_pref_rm"]),
        ),
    )


def scaled(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    """The spec with another number of replicas."""
    if spec.mode.is_job:
        raise click.UsageError(
            f"'{spec.name}' is a job: 'orc service update --replicas' begins another run with "
            "that many completions"
        )
    if spec.mode is ServiceMode.GLOBAL:
        raise click.UsageError(f"service '{spec.name}' is global: a task on each node, no replicas")
    result: ServiceSpec = with_value(spec, "replicas", replicas)
    return result


def _without(entries: tuple[str, ...], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(entry for entry in entries if entry.partition("=")[0] not in keys)


def _labels(
    labels: Mapping[str, str], add: tuple[str, ...], remove: tuple[str, ...]
) -> dict[str, str]:
    merged = {**labels, **pairs("label", add)}
    return {key: value for key, value in merged.items() if key not in remove}


def _list(
    entries: tuple[str, ...], add: tuple[str, ...], remove: tuple[str, ...]
) -> tuple[str, ...]:
    kept = [entry for entry in entries if entry not in remove]
    return tuple(dict.fromkeys([*kept, *add]))


def _ports(
    entries: tuple[PortSpec, ...], add: tuple[str, ...], remove: tuple[str, ...]
) -> tuple[PortSpec, ...]:
    """Removal is by target port as Docker has it (`80`, `80/udp`), or by the whole entry. An
    added port takes the place of one that is published at the same number."""
    kept = [port for port in entries if not any(_is_port(port, text) for text in remove)]
    added = ports(add)
    taken = {(port.published, port.protocol) for port in added}
    return (*(port for port in kept if (port.published, port.protocol) not in taken), *added)


def _is_port(port: PortSpec, text: str) -> bool:
    if ":" in text or "=" in text:
        return port in ports([text])
    number, _, protocol = text.partition("/")
    if not number.isdecimal():
        raise click.BadParameter(f"port {text!r} is not a number, such as 80 or 80/udp")
    return port.target == int(number) and port.protocol is Protocol.__members__.get(
        (protocol or "tcp").upper()
    )
