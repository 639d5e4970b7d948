# SPDX-License-Identifier: Apache-2.0
"""A file's `networks` and `volumes`, and its services' attachments and mounts, converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from orchestrator.compose.schema.value_kinds import Reading
from orchestrator.compose.stack import StackNetwork, StackVolume
from orchestrator.compose.tree import ComposeError, Map, hint, within
from orchestrator.model.mounts import MountSpec, MountType, check_volume_name
from orchestrator.model.names import check_name
from orchestrator.model.networks import (
    DOCKER_MTU,
    MTU,
    allowed_sources,
    checks_sources,
    read_encrypted,
)
from orchestrator.model.specs import STACK_LABEL, NetworkAttachment
from orchestrator.model.units import parse_memory
from orchestrator.model.validation.mount_specs import check_driver_options

DEFAULT = "default"
"""Key of the network of services that name none; it need not be declared."""
_ENCRYPTED = "encrypted"


def volumes_of(document: Map, stack: str) -> dict[str, StackVolume]:
    """The volumes that a file declares, by their keys. Raises ComposeError."""
    entries = document.section("volumes").entries
    return {key: _volume(stack, key, cast(Map, each)) for key, each in entries.items()}


def networks_of(document: Map, stack: str, reading: Reading) -> dict[str, StackNetwork]:
    """The networks that a file declares, by their keys, and the default one. Raises
    ComposeError."""
    entries = document.section("networks").entries
    found = {key: _network(stack, key, cast(Map, each), reading) for key, each in entries.items()}
    if DEFAULT not in found:
        implied = Map({}, document.section("services").place)
        found[DEFAULT] = _network(stack, DEFAULT, implied, reading)
    return found


def network_keys(service: Map) -> tuple[str, ...]:
    """Keys of the networks that a service is on."""
    if service.text("network_mode"):
        return ()
    return tuple(service.section("networks").entries) or (DEFAULT,)


def attachments_of(
    key: str, section: Map, at: str, known: Mapping[str, StackNetwork]
) -> tuple[NetworkAttachment, ...]:
    """The networks that a service is on, where its name in the file is an alias of it. Raises
    ComposeError for one that is not declared."""
    mode, networks = section.text("network_mode"), section.section("networks")
    if mode:
        place = section.place_of("network_mode")
        if networks.entries:
            words = "with network_mode there can be no networks; leave one of both out"
            raise ComposeError(place, within(at, "network_mode"), words)
        if mode not in ("none", "host", "bridge"):
            words = f"{mode!r} is not supported: tasks may be on any node; use none, host or bridge"
            raise ComposeError(place, within(at, "network_mode"), words)
        return (NetworkAttachment(mode),)
    found = []
    for name, value in networks.entries.items() or ((DEFAULT, Map({}, section.place)),):
        each, where = cast(Map, value), f"{at}.networks.{name}"
        network = known.get(name)
        if network is None:
            words = f"network {name!r} is not declared; add it under networks"
            others = set(known) - {DEFAULT}
            words += f"; {hint(name, others)}" if others else ""
            raise ComposeError(each.place, where, words)
        aliases = dict.fromkeys((key, *each.texts("aliases")))
        found.append(
            NetworkAttachment(
                network.name,
                tuple(aliases),
                tuple(filter(None, each.text("ipv4_address").replace(" ", "").split(","))),
                tuple(filter(None, each.text("ipv6_address").replace(" ", "").split(","))),
                each.text("mac_address").lower(),
            )
        )
    return tuple(found)


def _full(stack: str, key: str, section: Map) -> str:
    """The name in the cluster."""
    external = section.flag("external")
    return section.text("name") or (key if external else f"{stack}_{key}")


def _labels(stack: str, section: Map) -> dict[str, str]:
    return {**section.pairs("labels"), STACK_LABEL: stack}


def _volume(stack: str, key: str, section: Map) -> StackVolume:
    at, name = within("volumes", key), _full(stack, key, section)
    driver, options = section.text("driver"), section.pairs("driver_opts")
    _guard(section, at, "name", check_volume_name, name)
    if section.flag("external"):
        _alone(section, at)
        return StackVolume(name, section.place, external=True)
    _guard(section, at, "driver_opts", check_driver_options, driver, options)
    labels = _labels(stack, section)
    return StackVolume(name, section.place, False, driver, options, labels)


def _network(stack: str, key: str, section: Map, reading: Reading) -> StackNetwork:
    at, name = within("networks", key), _full(stack, key, section)
    _guard(section, at, "name", check_name, name, "network name")
    if section.flag("external"):
        for each in _foreign(section):
            words = "this makes no difference: the network is external"
            reading.note(section.place_of(each), within(at, each), words)
        return StackNetwork(name, section.place, external=True)
    options = section.pairs("driver_opts")
    encryption = options.pop(_ENCRYPTED, None)
    _guard(section, at, "driver_opts", read_encrypted, encryption)
    _guard(section, at, "driver_opts", checks_sources, options)
    _guard(section, at, "driver_opts", allowed_sources, options)
    ipam = section.section("ipam")
    configs = [cast(Map, each) for each in ipam.items_of("config")]
    driver = section.text("driver")
    if driver == "bridge":
        words = "this is one network on each node; services on other nodes are not reached by it"
        reading.note(section.place_of("driver"), within(at, "driver"), words)
    return StackNetwork(
        name=name,
        place=section.place,
        driver=driver,
        internal=section.flag("internal"),
        attachable=section.flag("attachable"),
        encrypted=read_encrypted(encryption),
        ipv6=section.flag("enable_ipv6"),
        options={MTU if key == DOCKER_MTU else key: value for key, value in options.items()},
        labels=_labels(stack, section),
        subnets=tuple(filter(None, (each.text("subnet") for each in configs))),
        ip_range=next(filter(None, (each.text("ip_range") for each in configs)), ""),
        gateway=next(filter(None, (each.text("gateway") for each in configs)), ""),
        ipam_driver="" if ipam.text("driver") == "default" else ipam.text("driver"),
        ipam_options=ipam.pairs("options"),
    )


def _foreign(section: Map) -> list[str]:
    """The keys that say what something is that is not of this stack."""
    return [
        key
        for key in section.entries
        if key not in ("external", "name") and not key.startswith("x-")
    ]


def _alone(section: Map, at: str) -> None:
    """Refuse what is said of something that is not of this stack."""
    for key in _foreign(section):
        words = f"it is external, so {key} is not this stack's to say; leave one of both out"
        raise ComposeError(section.place_of(key), within(at, key), words)


def _guard(
    section: Map, at: str, key: str, check: Callable[..., object], *arguments: object
) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise ComposeError(section.place_of(key), within(at, key), str(error)) from None


def mounts_of(service: Map, at: str, volumes: Mapping[str, StackVolume]) -> tuple[MountSpec, ...]:
    """The mounts of a service. `volumes` are those that the file declares, by their keys. Raises
    ComposeError for one that it does not declare."""
    return tuple(
        _mount(cast(Map, each), within(f"{at}.volumes", index), volumes)
        for index, each in enumerate(service.items_of("volumes"))
    )


def _mount(entry: Map, at: str, volumes: Mapping[str, StackVolume]) -> MountSpec:
    kind, source, target = entry.text("type"), entry.text("source"), entry.text("target")
    for other in ("bind", "volume", "tmpfs"):
        if other != kind and entry.section(other).entries:
            words = f"a mount of type {kind} has no {other} options"
            raise ComposeError(entry.place_of(other), within(at, other), words)
    read_only = entry.flag("read_only")
    if kind == "bind":
        options = entry.section("bind")
        if not source.startswith("/"):
            words = f"the source {source!r} of a bind is a path that begins with / or ./"
            raise ComposeError(entry.place, at, words)
        return MountSpec(
            type=MountType.BIND,
            source=source,
            target=target,
            read_only=read_only,
            propagation=options.text("propagation"),
            non_recursive=options.text("recursive") == "disabled",
            create_source=options.text("create_host_path", "true") == "true",
        )
    if kind == "tmpfs":
        options = entry.section("tmpfs")
        size = options.text("size")
        return MountSpec(
            type=MountType.TMPFS,
            source=source,
            target=target,
            read_only=read_only,
            tmpfs_size=parse_memory(size) if size else 0,
            tmpfs_mode=int(options.text("mode", "0")),
        )
    options = entry.section("volume")
    labels = options.pairs("labels")
    no_copy, subpath = options.flag("nocopy"), options.text("subpath")
    if not source:
        return MountSpec(
            target=target, read_only=read_only, no_copy=no_copy, subpath=subpath, labels=labels
        )
    volume = volumes.get(source)
    if volume is None:
        raise ComposeError(
            entry.place,
            at,
            f"volume {source!r} is not declared; add it under volumes (a folder begins with ./ or "
            f"/){_meant(source, volumes)}",
        )
    return MountSpec(
        source=volume.name,
        target=target,
        read_only=read_only,
        no_copy=no_copy,
        subpath=subpath,
        driver=volume.driver,
        options=dict(volume.options),
        labels={} if volume.external else {**labels, **volume.labels},
    )


def _meant(source: str, volumes: Mapping[str, StackVolume]) -> str:
    return f"; {hint(source, volumes)}" if volumes else ""
