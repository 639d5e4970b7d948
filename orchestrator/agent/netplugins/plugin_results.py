# SPDX-License-Identifier: Apache-2.0
"""The result of a chain of CNI plugins as an attachment. Pure except for `answers_here`.

Source: CNI specification 1.1, section 5 ("ADD Success").
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from orchestrator.agent.netplugins.attachment_records import AttachmentRecord
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Attachment, Guest
from orchestrator.model.formats.conflist import leases, parse_conflist


@dataclass(frozen=True, slots=True)
class Given:
    """An address of a container."""

    address: IPv4Interface | IPv6Interface
    gateway: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where this node can serve DNS in a network: its own addresses there, and the ranges of its
    clients."""

    gateways: tuple[str, ...]
    ranges: tuple[str, ...]


def given(result: Mapping[str, Any], ifname: str) -> list[Given]:
    """The container's addresses in a result: those of its interface, or without an interface.
    Raises NetworkError for an invalid result."""
    return list(_given(result, ifname))


def _given(result: Mapping[str, Any], ifname: str) -> Iterator[Given]:
    interfaces = [each for each in _list(result, "interfaces") if isinstance(each, dict)]
    for each in _list(result, "ips"):
        try:
            address, index = ip_interface(each["address"]), each.get("interface")
            gateway = str(ip_address(each["gateway"])) if each.get("gateway") else ""
            of = interfaces[int(index)] if index is not None else None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise NetworkError(f"a CNI plugin answered with an invalid address: {each}") from None
        if of is None or (of.get("sandbox") and of.get("name", ifname) == ifname):
            yield Given(address, gateway)


def attachment_of(
    record: AttachmentRecord, result: Mapping[str, Any], is_own: Callable[[str], bool]
) -> Attachment:
    """A container's attachment by a result. `is_own`: whether the node has an address. Raises
    NetworkError."""
    found = given(result, record.ifname)
    addresses = {4: "", 6: ""}
    for each in found:
        addresses[each.address.version] = addresses[each.address.version] or str(each.address.ip)
    dns = result.get("dns")
    servers = dns.get("nameservers") if isinstance(dns, dict) else None
    return Attachment(
        container_id=record.container,
        netns=record.netns,
        network=record.network,
        address=addresses[4],
        gateway=next((each.gateway for each in found if is_own(each.gateway)), ""),
        mac=_mac(record, result),
        ifname=record.ifname,
        result=result,
        address6=addresses[6],
        leads_out=any(
            isinstance(each, dict) and each.get("dst") == "0.0.0.0/0"
            for each in _list(result, "routes")
        ),
        nameservers=tuple(map(str, servers)) if isinstance(servers, list) else (),
    )


def guest_of(
    record: AttachmentRecord, result: Mapping[str, Any], allowed: tuple[str, ...]
) -> Guest:
    """The permitted source addresses of a container on a chain's network. Raises NetworkError."""
    return Guest(
        network=record.network,
        container=record.container,
        netns=record.netns,
        ifname=record.ifname,
        mac=_mac(record, result),
        addresses=tuple(str(each.address.ip) for each in given(result, record.ifname)),
        allowed=allowed,
        dhcp=leases(parse_conflist(record.body["conflist"])),
    )


def _mac(record: AttachmentRecord, result: Mapping[str, Any]) -> str:
    """The MAC of the container's interface; empty if the result lacks it."""
    return next(
        (
            str(each.get("mac") or "")
            for each in _list(result, "interfaces")
            if isinstance(each, dict) and each.get("sandbox") and each.get("name") == record.ifname
        ),
        "",
    )


def places_of(
    found: Iterable[tuple[str, str, str]], is_own: Callable[[str], bool]
) -> dict[str, Place]:
    """Network id → where this node can serve DNS in it, from the (network id, gateway, range) of
    each container. `is_own`: whether the node has an address."""
    gateways: dict[str, set[str]] = {}
    ranges: dict[str, set[str]] = {}
    ours: dict[str, bool] = {}
    for network, gateway, subnet in found:
        if gateway not in ours:
            ours[gateway] = is_own(gateway)
        if ours[gateway]:
            gateways.setdefault(network, set()).add(gateway)
            ranges.setdefault(network, set()).add(subnet)
    return {
        network: Place(tuple(sorted(each)), tuple(sorted(ranges[network])))
        for network, each in gateways.items()
    }


def answers_here(gateway: str) -> bool:
    """Whether this node has an address, so that its name server can listen on it."""
    if not gateway:
        return False
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((gateway, 0))
        return True
    return False


def _list(result: Mapping[str, Any], key: str) -> list[Any]:
    found = result.get(key)
    return found if isinstance(found, list) else []
