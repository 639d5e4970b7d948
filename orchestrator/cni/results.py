"""CNI results, in the shape of each version, and what a later CHECK finds in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from .cable import Cable
from .config import VERSION, NetConf
from .netlink import Link
from .records import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


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


def contradiction(previous: Mapping[str, Any], cable: Cable) -> str:
    """What an earlier result says otherwise than the lease; empty if they agree."""
    addresses = [_get(entry, "address") for entry in _list(previous, "ips")]
    for address in cable.addresses:
        if str(address) not in addresses:
            return f"prevResult does not hold the address {address} that this container has"
    macs = [
        _get(entry, "mac")
        for entry in _list(previous, "interfaces")
        if _get(entry, "name") == cable.ifname and _get(entry, "sandbox")
    ]
    if cable.mac not in macs:
        return f"prevResult does not hold the interface {cable.ifname} with MAC {cable.mac}"
    return ""


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []


def _get(entry: object, key: str) -> str:
    return str(entry.get(key, "")) if isinstance(entry, Mapping) else ""
