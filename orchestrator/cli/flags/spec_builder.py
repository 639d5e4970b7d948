# SPDX-License-Identifier: Apache-2.0
"""Specs from flags: a new one for `service create`, `run` and `create`, edits for `service update`.

Pure: after a conflict an edit is applied again to the newer spec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.flags.container_flags import (
    image_and_command,
    logging_options,
    repeatable_edit_options,
    with_logging,
    with_repeatable,
)
from orchestrator.cli.flags.flag_types import WORDS, pairs
from orchestrator.cli.flags.mount_flags import apply_mounts, edit_mounts, mount_edit_options
from orchestrator.cli.flags.network_flags import attachments, edited_attachments
from orchestrator.cli.flags.placement_flags import with_placement
from orchestrator.cli.flags.secret_config_flags import (
    document_edit_options,
    edit_documents,
    with_documents,
)
from orchestrator.cli.flags.spec_flags import (
    checked_image,
    environment,
    ports,
    preferences,
    replicas_error,
    validated_spec,
)
from orchestrator.cli.flags.spec_settings import apply_settings, default_job_spec, with_value
from orchestrator.model.names import parse_image
from orchestrator.model.specs import PortSpec, Protocol, ServiceMode, ServiceSpec


def new_spec(values: dict[str, Any]) -> ServiceSpec:
    """The spec that the flags of `create` describe. Raises a usage error for a bad one."""
    if values["entrypoint"] == ():
        # An explicit empty value overrides the image's.
        values = {**values, "entrypoint": ("",)}
    mode = ServiceMode[values["mode"].upper().replace("-", "_")]
    if mode.is_global and values["replicas"] is not None:
        raise replicas_error(mode)
    image, command = image_and_command(values)
    name = values["name"] if values["name"] is not None else _name_for(image or "host")
    spec = with_placement(apply_settings(default_job_spec(name, mode), values), values)
    container = replace(
        spec.task.container,
        image=image,
        command=command,
        env=environment(values["env"], values["env_file"]),
        labels=pairs("container label", values["container_label"]),
    )
    container = apply_mounts(container, values)
    container = with_documents(container, values)
    container = with_logging(with_repeatable(container, values), values)
    task = replace(
        spec.task,
        container=container,
        ports=ports(values["publish"]),
        networks=attachments(values),
    )
    return validated_spec(
        replace(
            spec,
            task=task,
            labels=pairs("label", values["label"]),
            constraints=(
                *values["constraint"],
                *filter(None, [values.get("platform")]),
            ),
            spread=preferences(values.get("placement_pref") or ()),
        )
    )


def _name_for(image: str) -> str:
    """A generated name: the image's, and a random suffix to be unique."""
    import secrets  # slow to import, and rarely needed

    base = re.sub("[^a-z0-9]+", "-", parse_image(image).repository.rpartition("/")[2])
    return f"{base[:50]}-{secrets.token_hex(3)}"


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
    """Add the flags of an update that are not in SETTINGS."""
    function = document_edit_options(mount_edit_options(function))
    for name, added, removed, what in reversed(_LISTS):
        function = click.option(
            f"--{name}-rm", multiple=True, metavar=removed, help=f"Remove a {what}; repeatable."
        )(function)
        function = click.option(
            f"--{name}-add", multiple=True, metavar=added, help=f"Add a {what}; repeatable."
        )(function)
    function = repeatable_edit_options(logging_options(function))
    function = click.option(
        "--args", "arguments", type=WORDS, help="New command of the container."
    )(function)
    function = click.option("--image", metavar="IMAGE", help="New image.")(function)
    return click.option("--force", is_flag=True, help="Replace tasks even if nothing changed.")(
        function
    )


def edited_spec(spec: ServiceSpec, values: Mapping[str, Any]) -> ServiceSpec:
    """The spec with an update's flags applied. Raises a usage error for invalid values."""
    if values["replicas"] is not None and spec.mode.is_global:
        raise replicas_error(spec.mode)
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
    container = with_logging(with_repeatable(container, values), values)
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


def scaled_spec(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    """The spec with another number of replicas."""
    if spec.mode.is_job:
        raise click.UsageError(
            f"'{spec.name}' is a job: 'orc service update --replicas' begins another run with "
            "that many completions"
        )
    if spec.mode is ServiceMode.GLOBAL:
        raise click.UsageError(f"service '{spec.name}' is global: a task on each node, no replicas")
    scale = spec.autoscale
    if scale.enabled and not scale.least <= replicas <= scale.most:
        raise click.UsageError(
            f"service '{spec.name}' has {scale.least} to {scale.most} replicas by autoscaling, "
            f"{replicas} is outside; change the limits with 'orc service update --autoscale-min N "
            f"--autoscale-max N {spec.name}', or end autoscaling with '--autoscale-max 0'"
        )
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
    """Removes ports by target as in Docker (`80`, `80/udp`), or by the whole entry. An added port
    replaces one published at the same number."""
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
