# SPDX-License-Identifier: Apache-2.0
"""Conversion of a file's `networks` and `volumes`, and its services' attachments and mounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.stack import StackNetwork, StackVolume
from orchestrator.compose.tree import ComposeError, Map, hint, key_path
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

DEFAULT_NETWORK = "default"
"""Key of the network of services without `networks`; it need not be declared."""
_ENCRYPTED = "encrypted"


def volumes_of(document: Map, stack: str) -> dict[str, StackVolume]:
    """The declared volumes, by key. Raises ComposeError."""
    entries = document.section("volumes").entries
    return {key: _volume(stack, key, cast(Map, each)) for key, each in entries.items()}


def networks_of(document: Map, stack: str, reading: ReadContext) -> dict[str, StackNetwork]:
    """The declared networks, by key, and the default one. Raises ComposeError."""
    entries = document.section("networks").entries
    found = {key: _network(stack, key, cast(Map, each), reading) for key, each in entries.items()}
    if DEFAULT_NETWORK not in found:
        implied = Map({}, document.section("services").place)
        found[DEFAULT_NETWORK] = _network(stack, DEFAULT_NETWORK, implied, reading)
    return found


def network_keys(service: Map) -> tuple[str, ...]:
    """Keys of the networks that a service is attached to."""
    if service.text("network_mode"):
        return ()
    return tuple(service.section("networks").entries) or (DEFAULT_NETWORK,)


def attachments_of(
    key: str, section: Map, at: str, known: Mapping[str, StackNetwork]
) -> tuple[NetworkAttachment, ...]:
    """A service's network attachments; its name in the file is an alias. Raises ComposeError for an
    undeclared network."""
    mode, networks = section.text("network_mode"), section.section("networks")
    if mode:
        place = section.place_of("network_mode")
        if networks.entries:
            message = "network_mode and networks exclude each other; leave one out"
            raise ComposeError(place, key_path(at, "network_mode"), message)
        if mode not in ("none", "host", "bridge"):
            message = (
                f"{mode!r} is not supported: tasks may be on any node; use none, host or bridge"
            )
            raise ComposeError(place, key_path(at, "network_mode"), message)
        return (NetworkAttachment(mode),)
    found = []
    for name, value in networks.entries.items() or ((DEFAULT_NETWORK, Map({}, section.place)),):
        each, where = cast(Map, value), f"{at}.networks.{name}"
        network = known.get(name)
        if network is None:
            message = f"network {name!r} is not declared; add it under networks"
            others = set(known) - {DEFAULT_NETWORK}
            message += f"; {hint(name, others)}" if others else ""
            raise ComposeError(each.place, where, message)
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


def _full_name(stack: str, key: str, section: Map) -> str:
    """The name in the cluster."""
    external = section.flag("external")
    return section.text("name") or (key if external else f"{stack}_{key}")


def _labels(stack: str, section: Map) -> dict[str, str]:
    return {**section.pairs("labels"), STACK_LABEL: stack}


def _volume(stack: str, key: str, section: Map) -> StackVolume:
    at, name = key_path("volumes", key), _full_name(stack, key, section)
    driver, options = section.text("driver"), section.pairs("driver_opts")
    _checked(section, at, "name", check_volume_name, name)
    if section.flag("external"):
        _check_external(section, at)
        return StackVolume(name, section.place, external=True)
    _checked(section, at, "driver_opts", check_driver_options, driver, options)
    labels = _labels(stack, section)
    return StackVolume(name, section.place, False, driver, options, labels)


def _network(stack: str, key: str, section: Map, reading: ReadContext) -> StackNetwork:
    at, name = key_path("networks", key), _full_name(stack, key, section)
    _checked(section, at, "name", check_name, name, "network name")
    if section.flag("external"):
        for each in _definition_keys(section):
            message = "ignored: the network is external"
            reading.note(section.place_of(each), key_path(at, each), message)
        return StackNetwork(name, section.place, external=True)
    options = section.pairs("driver_opts")
    encryption = options.pop(_ENCRYPTED, None)
    _checked(section, at, "driver_opts", read_encrypted, encryption)
    _checked(section, at, "driver_opts", checks_sources, options)
    _checked(section, at, "driver_opts", allowed_sources, options)
    ipam = section.section("ipam")
    configs = [cast(Map, each) for each in ipam.items_of("config")]
    driver = section.text("driver")
    if driver == "bridge":
        message = (
            "bridge networks are local to a node; they do not connect services on different nodes"
        )
        reading.note(section.place_of("driver"), key_path(at, "driver"), message)
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


def _definition_keys(section: Map) -> list[str]:
    """The keys that define an object, other than `name` and `external`."""
    return [
        key
        for key in section.entries
        if key not in ("external", "name") and not key.startswith("x-")
    ]


def _check_external(section: Map, at: str) -> None:
    """Raises ComposeError if an external object has keys that define it."""
    for key in _definition_keys(section):
        message = f"{key} and external exclude each other; leave one out"
        raise ComposeError(section.place_of(key), key_path(at, key), message)


def _checked(
    section: Map, at: str, key: str, check: Callable[..., object], *arguments: object
) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise ComposeError(section.place_of(key), key_path(at, key), str(error)) from None


def mounts_of(service: Map, at: str, volumes: Mapping[str, StackVolume]) -> tuple[MountSpec, ...]:
    """A service's mounts. `volumes` are the declared ones, by key. Raises ComposeError for an
    undeclared volume."""
    return tuple(
        _mount(cast(Map, each), key_path(f"{at}.volumes", index), volumes)
        for index, each in enumerate(service.items_of("volumes"))
    )


def _mount(entry: Map, at: str, volumes: Mapping[str, StackVolume]) -> MountSpec:
    kind, source, target = entry.text("type"), entry.text("source"), entry.text("target")
    for other in ("bind", "volume", "tmpfs"):
        if other != kind and entry.section(other).entries:
            message = f"a mount of type {kind} takes no {other} options"
            raise ComposeError(entry.place_of(other), key_path(at, other), message)
    read_only = entry.flag("read_only")
    if kind == "bind":
        options = entry.section("bind")
        if not source.startswith("/"):
            message = f"source {source!r} of a bind mount must begin with / or ./"
            raise ComposeError(entry.place, at, message)
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
            f"/){_volume_hint(source, volumes)}",
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


def _volume_hint(source: str, volumes: Mapping[str, StackVolume]) -> str:
    return f"; {hint(source, volumes)}" if volumes else ""
