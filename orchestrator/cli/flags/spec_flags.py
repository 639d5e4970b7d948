# SPDX-License-Identifier: Apache-2.0
"""Flags with a syntax of their own: variables, labels, published ports, image names.

A container's `-p 80` and `-P` leave the choice of the node's port to the manager; the port stays
the same for the container's life.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import click

from orchestrator.model.convert import ConvertError, to_proto
from orchestrator.model.names import parse_image
from orchestrator.model.specs import PortSpec, Protocol, PublishMode, ServiceMode, ServiceSpec
from orchestrator.model.validation.service_specs import InvalidSpec, validate_service


def validated_spec(spec: ServiceSpec) -> ServiceSpec:
    """The spec if it is valid; else raises a usage error with the validator's message."""
    try:
        validate_service(spec)
        to_proto(spec)
    except InvalidSpec as error:
        raise click.UsageError(str(error)) from None
    except ConvertError as error:  # an absurdly large number
        raise click.UsageError(str(error.__cause__ or error)) from None
    return spec


def replicas_error(mode: ServiceMode) -> click.UsageError:
    """The error of a number of tasks for a global service or job."""
    if mode.is_job:
        return click.UsageError("a global job has a task on each node; it takes no completions")
    return click.UsageError("a global service has a task on each node; it takes no --replicas")


def checked_image(text: str) -> str:
    """An image's name with its tag (`hello` is `hello:latest`), else a usage error."""
    try:
        return str(parse_image(text))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def label_lines(files: Iterable[str]) -> list[str]:
    """The `KEY=VALUE` lines of `--label-file`s. Raises a usage error for one that cannot be
    read."""
    return list(_env_lines(files, "label"))


def preferences(texts: Iterable[str]) -> tuple[str, ...]:
    """The attributes of `spread=node.labels.zone` texts."""
    found = []
    for text in texts:
        strategy, _, attribute = text.partition("=")
        if strategy != "spread" or not attribute:
            raise click.BadParameter(
                f"placement preference {text!r} is not of the form spread=node.labels.NAME"
            )
        found.append(attribute)
    return tuple(found)


def environment(texts: Iterable[str], files: Iterable[str] = ()) -> tuple[str, ...]:
    """`KEY=VALUE` of `--env-file` and then `--env`; the last of a key wins. `KEY` alone takes the
    value from the client's environment, and is omitted if unset, as in Docker."""
    result: dict[str, str] = {}
    for text in [*_env_lines(files), *texts]:
        key, equals, value = text.partition("=")
        if not key or re.search(r"\s", key):
            raise click.BadParameter(f"env {text!r} is not of the form KEY=VALUE")
        if equals:
            result[key] = value
        elif (own := os.environ.get(key)) is not None:
            result[key] = own
    return tuple(f"{key}={value}" for key, value in result.items())


def _env_lines(files: Iterable[str], what: str = "env") -> Iterable[str]:
    for name in files:
        try:
            with open(name, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise click.BadParameter(f"cannot read {what} file {name}: {reason}") from None
        yield from (line for line in map(str.lstrip, lines) if line and not line.startswith("#"))


def ports(texts: Iterable[str]) -> tuple[PortSpec, ...]:
    """Ports of `8080:80[/udp]`, `8000-8002:80-82` or `published=8080,target=80,protocol=tcp`,
    which may say `mode=host`, too."""
    return tuple(port for text in texts for port in _ports(text))


def _ports(text: str) -> list[PortSpec]:
    if "=" in text:
        fields = dict(part.partition("=")[::2] for part in text.lower().split(","))
        unknown = fields.keys() - {"published", "target", "protocol", "mode"}
        mode = fields.get("mode", "ingress").upper()
        if unknown or mode not in PublishMode.__members__ or "published" not in fields:
            raise _bad_port(text)
        published, target = fields["published"], fields.get("target", "")
        protocol = fields.get("protocol", "tcp")
    else:
        addresses, _, protocol = text.lower().partition("/")
        published, _, target = addresses.rpartition(":")
        protocol, mode = protocol or "tcp", "INGRESS"
    if protocol.upper() not in Protocol.__members__:
        raise click.BadParameter(
            f"port {text!r} has the protocol {protocol!r}; tcp and udp are known"
        )
    outside, inside = _range(text, published), _range(text, target)
    if len(outside) != len(inside):
        raise click.BadParameter(f"port {text!r} has ranges of different lengths")
    kind = Protocol[protocol.upper()]
    where = PublishMode[mode]
    return [PortSpec(one, other, kind, where) for one, other in zip(outside, inside, strict=True)]


def _range(whole: str, text: str) -> range:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    if match is None:
        raise _bad_port(whole)
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65535:
        raise click.BadParameter(f"port {text} of {whole!r} is not in 1-65535")
    return range(first, last + 1)


def _bad_port(text: str) -> click.BadParameter:
    return click.BadParameter(
        f"port {text!r} is not of the form PUBLISHED:TARGET[/udp], such as 8080:80"
    )


def split_publish(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """The values of `-p` that name a port of the node, and those that only name the container's.
    Raises a usage error for an address other than all addresses."""
    named: list[str] = []
    targets: list[str] = []
    for text in texts:
        text = text.removeprefix("0.0.0.0:").removeprefix("[::]:")
        outside, _, inside = text.rpartition(":")
        if "=" not in text and ":" in outside:
            raise click.BadParameter(
                f"port {text!r} is for one address; a port is published on all addresses of its "
                "node; for example 8080:80"
            )
        (named if "=" in text or outside else targets).append(text if outside else inside)
    return named, targets


def unassigned_ports(targets: Iterable[str], but: Sequence[PortSpec] = ()) -> tuple[PortSpec, ...]:
    """Ports of a container, such as `80` or `8000-8002/udp`, to publish at a port chosen by the
    manager; without those already published."""
    taken = {(port.target, port.protocol) for port in but}
    found: dict[tuple[int, int], PortSpec] = {}
    for text in targets:
        numbers, slash, protocol = text.partition("/")
        for port in ports([f"{numbers}:{numbers}{slash}{protocol}"]):
            if (key := (port.target, port.protocol)) not in taken:
                found[key] = replace(port, published=0)
    return tuple(found.values())
