# SPDX-License-Identifier: Apache-2.0
"""CNI results, in the shape of each version, and what a later CHECK finds in them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network

from orchestrator.cni import jsonfields
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.netconf import VERSION, NetConf
from orchestrator.cni.netlink.links import Address, Interface, Link, Network
from orchestrator.cni.overlay.veth import Cable

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

MAIN_TABLE = 254


def success(conf: NetConf, cable: Cable, bridge: Link, host: Link, netns: str) -> dict[str, Any]:
    """The result of ADD: bridge, both ends of the cable, addresses, routes."""
    sandbox: dict[str, Any] = {"name": cable.ifname, "mac": cable.mac, "sandbox": netns}
    addresses: list[dict[str, Any]] = []
    for place in cable.places:
        address = {
            "address": str(place.address),
            "gateway": str(place.gateway),
            "interface": 2,
        }
        if conf.version == "0.4.0":
            address["version"] = str(place.address.version)
        addresses.append(address)
    if conf.version == VERSION:
        sandbox["mtu"] = bridge.mtu
    result: dict[str, Any] = {
        "cniVersion": conf.version,
        "interfaces": [
            {"name": bridge.name, "mac": bridge.mac},
            {"name": host.name, "mac": host.mac},
            sandbox,
        ],
        "ips": addresses,
        "routes": [
            {"dst": str(one.destination), "gw": str(one.gateway)}
            for one in cable.routes
            if one.gateway is not None
        ],
    }
    if conf.dns:
        result["dns"] = dict(conf.dns)
    return result


@record
class Claims:
    """What an earlier result says of the container besides what the plugin itself has put there: a
    plugin that was called after it may have added to it, so it has to be looked for."""

    addresses: tuple[Interface, ...]
    routes: tuple[tuple[Network, Address | None], ...]
    """(destination, gateway if one is given) of those in the main table."""


def contradiction(
    previous: Mapping[str, Any], cable: Cable, bridge: str, sandbox: Callable[[str], bool]
) -> str:
    """What an earlier result says otherwise than the lease; empty if they agree.

    `sandbox` says whether a path is of the container's namespace.
    """
    interfaces = _list(previous, "interfaces")
    for name in (bridge, cable.host):
        if not any(_get(one, "name") == name and not _get(one, "sandbox") for one in interfaces):
            return f"prevResult does not hold the interface {name} of this host"
    inside = [
        number
        for number, one in enumerate(interfaces)
        if _get(one, "name") == cable.ifname and _get(one, "sandbox")
    ]
    if cable.mac not in [_get(interfaces[number], "mac") for number in inside]:
        return f"prevResult does not hold the interface {cable.ifname} with MAC {cable.mac}"
    for number in inside:
        path = _get(interfaces[number], "sandbox")
        if not sandbox(path):
            return f"prevResult has {cable.ifname} in {path}, which is not the container's sandbox"
    for place in cable.places:
        held = [one for one in _list(previous, "ips") if _get(one, "address") == str(place.address)]
        if not held:
            return f"prevResult does not hold the address {place.address} that this container has"
        for one in held:
            if _get(one, "gateway") != str(place.gateway):
                return (
                    f"prevResult has the gateway {_get(one, 'gateway') or 'none'} for"
                    f" {place.address} instead of {place.gateway}"
                )
            if one.get("interface") not in (None, *inside):
                return f"prevResult has {place.address} on another interface than {cable.ifname}"
    return ""


def claims(previous: Mapping[str, Any], cable: Cable) -> Claims:
    """What to look for of an earlier result; raises `CniError` INVALID_CONFIG."""
    interfaces = _list(previous, "interfaces")
    own = {
        number
        for number, one in enumerate(interfaces)
        if _get(one, "name") == cable.ifname and _get(one, "sandbox")
    }
    addresses = [
        _parsed(ip_interface, one, "address")
        for one in _list(previous, "ips")
        if isinstance(one, Mapping) and one.get("interface") in (None, *own)
    ]
    routes = [
        (
            _parsed(ip_network, one, "dst"),
            _parsed(ip_address, one, "gw") if _get(one, "gw") else None,
        )
        for one in _list(previous, "routes")
        if isinstance(one, Mapping) and one.get("table") in (None, MAIN_TABLE)
    ]
    return Claims(tuple(addresses), tuple(routes))


def _parsed(read: Callable[[str], T], entry: Mapping[str, Any], key: str) -> T:
    try:
        return read(_get(entry, key))
    except ValueError as error:
        raise jsonfields.invalid(f"prevResult: {error}") from error


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []


def _get(entry: object, key: str) -> str:
    return str(entry.get(key, "")) if isinstance(entry, Mapping) else ""
