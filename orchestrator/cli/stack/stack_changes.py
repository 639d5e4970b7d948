# SPDX-License-Identifier: Apache-2.0
"""The steps of a deployment: the difference between a stack's files and the cluster. Pure.

Unchanged objects are not touched, so a second deployment of the same files does nothing, and an
interrupted one continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.compose.stack import (
    Stack,
    StackFile,
    StackNetwork,
    StackService,
    StackVolume,
)
from orchestrator.compose.tree import Place
from orchestrator.model.dependencies import start_order
from orchestrator.model.documents import Document, DocumentKind, references
from orchestrator.model.formats.spec_diff import differences
from orchestrator.model.mounts import LOCAL_DRIVER
from orchestrator.model.names import near_miss
from orchestrator.model.networks import BRIDGE, OVERLAY
from orchestrator.model.objects import Network, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import STACK_LABEL, PublishMode, ServiceSpec

CREATE, CHANGE, REMOVE = "create", "change", "remove"


class Conflict(ValueError):
    """An object of the stack belongs to another owner, or an external one is missing. One line."""

    def __init__(self, place: Place, words: str) -> None:
        super().__init__(f"{place}: {words}")


@dataclass(frozen=True, slots=True)
class Observed:
    """The objects in the cluster, by name."""

    services: Mapping[str, Service] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)
    volumes: Mapping[str, Volume] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    """Image name → its id in the cluster."""
    volume_names: frozenset[str] = frozenset()
    """Including those known only to a node or a plugin."""
    documents: Mapping[tuple[DocumentKind, str], Document] = field(default_factory=dict)
    """Secrets and configs."""
    outdated: frozenset[tuple[DocumentKind, str]] = frozenset()
    """Those whose data differs."""


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a deployment."""

    action: str
    kind: str
    name: str
    keys: tuple[str, ...] = ()
    """Changed fields."""
    wanted: Any = None
    """The object of the stack, as declared."""

    def __str__(self) -> str:
        keys = f" ({', '.join(self.keys)})" if self.keys else ""
        return f"{self.kind} {self.name}{keys}"


def changes(
    stack: Stack,
    observed: Observed,
    *,
    prune: bool,
    resolve: bool,
    built: frozenset[str] = frozenset(),
) -> list[Change]:
    """The ordered steps that deploy a stack: removals, networks, volumes, secrets and configs,
    services after their dependencies, and then removals of what those needed until then.

    An image name that now resolves to another image is a change: of all images if `resolve`, else
    of those `built`. Raises Conflict."""
    early, late = _obsolete_services(stack, observed) if prune else ([], [])
    found = [*early]
    for network in stack.networks:
        found += _network(network, observed.networks.get(network.name), stack.name)
    for volume in stack.volumes:
        found += _volume(volume, observed.volumes.get(volume.name))
    for file in stack.files:
        found += _file(file, observed, stack.name)
    drivers = {each.name: each.driver or OVERLAY for each in stack.networks if not each.external}
    drivers = {**{each.name: each.driver for each in observed.networks.values()}, **drivers}
    for service in stack.services:
        newest = resolve or service.spec.task.container.image in built
        found += _service(service, observed, drivers, stack.name, newest)
    networks = {each.name for each in stack.networks}
    found += late
    if prune:
        found += [
            Change(REMOVE, "network", each.name)
            for each in observed.networks.values()
            if each.labels.get(STACK_LABEL) == stack.name and each.name not in networks
        ]
        found += _documents_of(
            stack.name, observed, {(each.kind, each.name) for each in stack.files}
        )
    return found


def removals(name: str, observed: Observed) -> list[Change]:
    """The steps that remove a stack, except its volumes. Services are removed before their
    dependencies."""
    services = stop_order(each for each in observed.services.values() if _is_of(each, name))
    networks = sorted(
        n.name for n in observed.networks.values() if n.labels.get(STACK_LABEL) == name
    )
    return [
        *(Change(REMOVE, "service", each) for each in services),
        *(Change(REMOVE, "network", each) for each in networks),
        *_documents_of(name, observed, set()),
    ]


def _documents_of(
    stack: str, observed: Observed, kept: set[tuple[DocumentKind, str]]
) -> list[Change]:
    return [
        Change(REMOVE, kind.word, name)
        for (kind, name), each in sorted(observed.documents.items())
        if each.labels.get(STACK_LABEL) == stack and (kind, name) not in kept
    ]


def stop_order(services: Iterable[Service]) -> list[str]:
    """Names, each before its dependencies."""
    ordered = sorted(services, key=lambda each: each.spec.name, reverse=True)
    needs = {each.spec.name: [d.service for d in each.spec.depends_on] for each in ordered}
    return start_order(needs)[::-1]


def _is_of(service: Service, stack: str) -> bool:
    return service.spec.labels.get(STACK_LABEL) == stack


def _obsolete_services(stack: Stack, observed: Observed) -> tuple[list[Change], list[Change]]:
    """Services no longer in the stack: those without dependents first, as their ports may be
    needed; the others after their dependents."""
    names = {each.spec.name for each in stack.services}
    obsolete = [
        s for s in observed.services.values() if _is_of(s, stack.name) and s.spec.name not in names
    ]
    kept = [s for s in observed.services.values() if s not in obsolete]
    needed = {each.service for service in kept for each in service.spec.depends_on}
    steps = [Change(REMOVE, "service", name) for name in stop_order(obsolete)]
    if any(each.name in needed for each in steps):
        return [], steps
    return steps, []


def _owner(labels: Mapping[str, str]) -> str:
    stack = labels.get(STACK_LABEL)
    return f"it is of stack '{stack}'" if stack else "it is of no stack"


def _missing(
    kind: str, wanted: StackNetwork | StackVolume | StackFile, known: Iterable[str]
) -> Conflict:
    meant = near_miss(wanted.name, known)
    hint = f"did you mean '{meant}'?" if meant else f"create it first, see 'orc {kind} ls'"
    return Conflict(wanted.place, f"{kind} '{wanted.name}' is external and does not exist; {hint}")


def _network(wanted: StackNetwork, observed: Network | None, stack: str) -> Iterator[Change]:
    if observed is None:
        if not wanted.external:
            yield Change(CREATE, "network", wanted.name, wanted=wanted)
        return
    if wanted.external:
        return
    if observed.labels.get(STACK_LABEL) != stack:
        raise Conflict(
            wanted.place,
            f"network '{wanted.name}' exists already, and {_owner(observed.labels)}; name another "
            f"one, or declare it external: true",
        )
    if keys := _network_differences(wanted, observed):
        raise Conflict(
            wanted.place,
            f"network '{wanted.name}' differs from the file in {', '.join(keys)}, and "
            f"networks cannot be changed; remove the stack first ('orc stack rm {stack}')",
        )


def _network_differences(wanted: StackNetwork, observed: Network) -> list[str]:
    compared: list[tuple[str, Any, Any]] = [
        ("driver", wanted.driver or OVERLAY, observed.driver),
        ("internal", wanted.internal, observed.internal),
        ("attachable", wanted.attachable, observed.attachable),
        ("encrypted", wanted.encrypted, observed.encrypted),
        ("driver_opts", dict(wanted.options), dict(observed.options)),
        ("ipam driver", wanted.ipam_driver, observed.ipam_driver),
        ("ipam options", dict(wanted.ipam_options), observed.ipam_options),
        ("ip_range", wanted.ip_range or observed.ip_range, observed.ip_range),
        ("gateway", wanted.gateway or observed.gateway, observed.gateway),
        ("enable_ipv6", wanted.ipv6 or _has_ipv6(wanted), bool(observed.subnet6)),
    ]
    keys = [key for key, one, other in compared if one != other]
    if not set(wanted.subnets) <= {observed.subnet, observed.subnet6}:
        keys.append("subnet")
    return keys


def _has_ipv6(wanted: StackNetwork) -> bool:
    return any(":" in subnet for subnet in wanted.subnets)


def _volume(wanted: StackVolume, observed: Volume | None) -> Iterator[Change]:
    if observed is None:
        if not wanted.external:
            yield Change(CREATE, "volume", wanted.name, wanted=wanted)
        return
    driver = wanted.driver or LOCAL_DRIVER
    if not wanted.external and (
        driver != observed.driver or dict(wanted.options) != observed.options
    ):
        raise Conflict(
            wanted.place,
            f"volume '{wanted.name}' exists with another driver or other options than in the file, "
            f"and volumes cannot be changed; name another one, or remove it with its data "
            f"('orc volume rm {wanted.name}')",
        )


def _file(wanted: StackFile, observed: Observed, stack: str) -> Iterator[Change]:
    word, name = wanted.kind.word, wanted.name
    current = observed.documents.get((wanted.kind, name))
    if current is None:
        if not wanted.external:
            yield Change(CREATE, word, name, wanted=wanted)
        return
    if wanted.external:
        return
    if current.labels.get(STACK_LABEL) != stack:
        raise Conflict(
            wanted.place,
            f"{word} '{name}' exists already, and {_owner(current.labels)}; name another one, "
            "or declare it external: true",
        )
    if current.template_driver != wanted.template_driver:
        raise Conflict(
            wanted.place,
            f"{word} '{name}' has another template_driver than in the file, which cannot be "
            f"changed; remove the stack first ('orc stack rm {stack}')",
        )
    keys = ["data"] if (wanted.kind, name) in observed.outdated else []
    keys += ["labels"] if dict(wanted.labels) != current.labels else []
    if keys:
        yield Change(CHANGE, word, name, tuple(keys), wanted)


def _service(
    wanted: StackService,
    observed: Observed,
    drivers: Mapping[str, str],
    stack: str,
    newest: bool,
) -> Iterator[Change]:
    name = wanted.spec.name
    current = observed.services.get(name)
    if current is None:
        yield Change(CREATE, "service", name, wanted=wanted)
        return
    if not _is_of(current, stack):
        raise Conflict(
            wanted.place,
            f"service '{name}' exists already, and {_owner(current.spec.labels)}; choose "
            "another name for the stack, or remove the service",
        )
    if wanted.spec.mode is not current.spec.mode:
        raise Conflict(
            wanted.place,
            f"service '{name}' is {current.spec.mode.name.lower()} and is to be "
            f"{wanted.spec.mode.name.lower()}, which cannot be changed; remove it first "
            f"('orc service rm {name}')",
        )
    spec = as_stored(wanted.spec, current.spec, drivers)
    keys = differences(current.spec, spec)
    image = spec.task.container.image
    known = observed.images.get(image, current.image_digest)
    if newest and "image" not in keys and "@" not in image and known != current.image_digest:
        keys = ["image", *keys]
    keys += [
        f"{kind.word} {reference.source}"
        for kind, reference in references(spec.task.container)
        if (kind, reference.source) in observed.outdated
    ]
    if keys:
        yield Change(CHANGE, "service", name, tuple(keys), replace(wanted, spec=spec))


def as_stored(spec: ServiceSpec, current: ServiceSpec, drivers: Mapping[str, str]) -> ServiceSpec:
    """The spec as the manager would store it: forced restarts stay counted, and services on
    node-local networks publish their ports on the host."""
    task = replace(spec.task, force=current.task.force)
    if all(drivers.get(each.network) == BRIDGE for each in task.attachments):
        task = replace(task, ports=tuple(replace(p, mode=PublishMode.HOST) for p in task.ports))
    return replace(spec, task=task)


def check_external(stack: Stack, observed: Observed) -> None:
    """Raise Conflict for the first external object that is missing."""
    for network in stack.networks:
        if network.external and network.name not in observed.networks:
            if network.name in ("host", "none"):
                raise Conflict(
                    network.place,
                    f"'{network.name}' cannot be declared as a network; write "
                    f"network_mode: {network.name} at the service",
                )
            raise _missing("network", network, observed.networks)
    for volume in stack.volumes:
        if volume.external and volume.name not in observed.volume_names and "{{" not in volume.name:
            raise _missing("volume", volume, observed.volume_names)
    for file in stack.files:
        if file.external and (file.kind, file.name) not in observed.documents:
            known = [name for kind, name in observed.documents if kind is file.kind]
            raise _missing(file.kind.word, file, known)


def joined_steps(steps: Sequence[Change]) -> str:
    """Steps as a list for a message."""
    return ", ".join(f"{each.kind} {each.name}" for each in steps) or "nothing"
