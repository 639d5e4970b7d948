# SPDX-License-Identifier: Apache-2.0
"""CNI results in the format of each version, and their comparison by a later CHECK. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network

from orchestrator.cni import jsonfields
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.netconf import VERSION, NetConf
from orchestrator.cni.netlink.links import Address, Interface, Link, Network
from orchestrator.cni.overlay.veth import VethConfig

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

MAIN_TABLE = 254


def success(
    conf: NetConf, pair: VethConfig, bridge: Link, host: Link, netns: str
) -> dict[str, Any]:
    """The result of ADD: bridge, both ends of the veth pair, addresses, routes."""
    sandbox: dict[str, Any] = {"name": pair.ifname, "mac": pair.mac, "sandbox": netns}
    addresses: list[dict[str, Any]] = []
    for ip in pair.ips:
        address = {
            "address": str(ip.address),
            "gateway": str(ip.gateway),
            "interface": 2,
        }
        if conf.version == "0.4.0":
            address["version"] = str(ip.address.version)
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
            for one in pair.routes
            if one.gateway is not None
        ],
    }
    if conf.dns:
        result["dns"] = dict(conf.dns)
    return result


@record
class Claims:
    """Addresses and routes of the container in `prevResult`. Plugins later in the chain may have
    added some, so that the lease does not have all of them."""

    addresses: tuple[Interface, ...]
    routes: tuple[tuple[Network, Address | None], ...]
    """(destination, gateway if one is given) of those in the main table."""


def contradiction(
    previous: Mapping[str, Any], pair: VethConfig, bridge: str, sandbox: Callable[[str], bool]
) -> str:
    """How `prevResult` contradicts the lease, for the user; empty if it does not.

    `sandbox` tells whether a path is of the container's namespace.
    """
    interfaces = _list(previous, "interfaces")
    for name in (bridge, pair.host):
        if not any(_get(one, "name") == name and not _get(one, "sandbox") for one in interfaces):
            return f"prevResult does not have the interface {name} of this host"
    inside = [
        number
        for number, one in enumerate(interfaces)
        if _get(one, "name") == pair.ifname and _get(one, "sandbox")
    ]
    if pair.mac not in [_get(interfaces[number], "mac") for number in inside]:
        return f"prevResult does not have the interface {pair.ifname} with MAC {pair.mac}"
    for number in inside:
        path = _get(interfaces[number], "sandbox")
        if not sandbox(path):
            return f"prevResult has {pair.ifname} in {path}, which is not the container's sandbox"
    for ip in pair.ips:
        found = [one for one in _list(previous, "ips") if _get(one, "address") == str(ip.address)]
        if not found:
            return f"prevResult does not have the address {ip.address} that this container has"
        for one in found:
            if _get(one, "gateway") != str(ip.gateway):
                return (
                    f"prevResult has the gateway {_get(one, 'gateway') or 'none'} for"
                    f" {ip.address} instead of {ip.gateway}"
                )
            if one.get("interface") not in (None, *inside):
                return f"prevResult has {ip.address} on another interface than {pair.ifname}"
    return ""


def claims(previous: Mapping[str, Any], pair: VethConfig) -> Claims:
    """The claims of `prevResult` about this container; raises `CniError` INVALID_CONFIG."""
    interfaces = _list(previous, "interfaces")
    own = {
        number
        for number, one in enumerate(interfaces)
        if _get(one, "name") == pair.ifname and _get(one, "sandbox")
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
