# SPDX-License-Identifier: Apache-2.0
"""Move interfaces that another program created on this host into a container, and back.

A network plugin of Docker's protocol creates an interface and returns its name; the container
engine moves it. Moving it back restores its name, by which the plugin finds and removes it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any

from orchestrator.cni import jsonfields
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netlink import links, namespaces, routing
from orchestrator.cni.netlink.links import (
    IFINFO,
    IFLA_IFNAME,
    IFLA_NET_NS_FD,
    RTM_NEWLINK,
    Address,
    Interface,
)
from orchestrator.cni.netlink.netlinksocket import Request, RouteSocket, text, u32
from orchestrator.cni.netlink.routing import RouteEntry

DEFAULTS: dict[int, IPv4Network | IPv6Network] = {
    4: IPv4Network("0.0.0.0/0"),
    6: IPv6Network("::/0"),
}


@dataclass(frozen=True, slots=True)
class Transfer:
    """An interface to move, and its configuration in the container."""

    source: str
    """Its name on the host."""
    ifname: str
    """Its name in the container."""
    mac: str = ""
    """Empty: unchanged."""
    addresses: tuple[Interface, ...] = ()
    routes: tuple[RouteEntry, ...] = ()


def parse(raw: Mapping[str, Any]) -> Transfer:
    """From JSON's types: `source ifname mac addresses gateways routes`, of which `routes` are
    `{"to", "by"}`. Raises CniError."""
    try:
        addresses = tuple(ip_interface(str(each)) for each in raw.get("addresses", ()))
        routes = [
            RouteEntry(_to(str(each["to"])), _by(each.get("by"))) for each in raw.get("routes", ())
        ]
        for each in raw.get("gateways", ()):
            gateway = ip_address(str(each))
            routes.append(RouteEntry(DEFAULTS[gateway.version], gateway))
    except (ValueError, KeyError, TypeError) as error:
        raise jsonfields.invalid(f"invalid address or route: {error}") from error
    mac = raw.get("mac")
    return Transfer(
        source=jsonfields.interface(raw.get("source", ""), "source"),
        ifname=jsonfields.interface(raw.get("ifname", ""), "ifname"),
        mac=jsonfields.mac(mac, "mac") if mac else "",
        addresses=addresses,
        routes=tuple(routes),
    )


def _to(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)


def _by(text: object) -> Address | None:
    return ip_address(str(text)) if text else None


def move_in(sock: RouteSocket, namespace: int, transfer: Transfer) -> None:
    """Move the interface into a namespace (a descriptor) and configure it. Idempotent. Raises
    CniError."""
    with namespaces.route_socket(namespace) as within:
        inside = links.get_link(within, transfer.ifname)
        if inside is None:
            host = links.get_link(sock, transfer.source)
            if host is None:
                raise CniError(
                    Code.NOT_AVAILABLE,
                    f"its plugin created interface {transfer.source}, but this node does not "
                    "have it",
                )
            sock.execute(_move(host.index, namespace, transfer.ifname))
            inside = links.get_link(within, transfer.ifname)
        if inside is None:
            raise CniError(Code.TRY_AGAIN_LATER, f"interface {transfer.source} vanished")
        index = inside.index
        within.execute(
            links.link_request(links.LOOPBACK),
            *(links.address_request(index, address) for address in transfer.addresses),
            links.link_request(index, mac=transfer.mac),
            *(routing.route_request(index, route) for route in transfer.routes),
        )


def move_out(namespace: int, source: str, ifname: str) -> None:
    """Move the interface back to this host, under its old name, if it exists."""
    with (
        namespaces.opened(namespaces.OWN_NAMESPACE) as original,
        namespaces.route_socket(namespace) as within,
    ):
        inside = links.get_link(within, ifname)
        if inside is not None:
            within.execute(_move(inside.index, original, source))


def _move(index: int, namespace: int, name: str) -> Request:
    """Move to another namespace and rename; the interface is down then, without addresses."""
    head = IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, links.IFF_UP)
    return Request(RTM_NEWLINK, head + u32(IFLA_NET_NS_FD, namespace) + text(IFLA_IFNAME, name))
