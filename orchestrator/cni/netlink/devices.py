# SPDX-License-Identifier: Apache-2.0
"""Create bridges, VXLAN and WireGuard devices; look up namespace ids. With pyroute2.

Import it where a device is created: connecting a container does not need pyroute2 (`messages`).
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

from orchestrator.cni.netlink.links import IFF_UP, RTM_NEWLINK, Vxlan
from orchestrator.cni.netlink.messages import LINK, NAMESPACE, parsed, request
from orchestrator.cni.netlink.netlinksocket import NLM_F_CREATE, NLM_F_EXCL, RouteSocket

RTM_GETNSID = 90
UP = {"flags": IFF_UP, "change": IFF_UP}

Attributes = list[tuple[str, Any]]


def create_bridge(sock: RouteSocket, name: str, mac: str) -> None:
    """Create a bridge, up, with a fixed MAC; by default it has the lowest of its ports' MACs."""
    create(sock, UP, [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac)], "bridge")


def create_vxlan(sock: RouteSocket, name: str, mac: str, mtu: int, vxlan: Vxlan) -> None:
    """Create a VXLAN device, up, without a default destination."""
    data: Attributes = [
        ("IFLA_VXLAN_ID", vxlan.vni),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
        ("IFLA_VXLAN_PORT", vxlan.port),
    ]
    if vxlan.ipv6:  # from any address of this host
        data.append(("IFLA_VXLAN_LOCAL6", str(IPv6Address(0))))
        data.append(("IFLA_VXLAN_UDP_ZERO_CSUM6_TX", 1))
        data.append(("IFLA_VXLAN_UDP_ZERO_CSUM6_RX", 1))
    else:
        data.append(("IFLA_VXLAN_LOCAL", str(vxlan.local)))
    head = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_ADDRESS", mac)]
    create(sock, UP, head, "vxlan", data)


def create_wireguard(sock: RouteSocket, name: str, mtu: int) -> None:
    """Create a WireGuard device, down and without a key."""
    create(sock, {}, [("IFLA_IFNAME", name), ("IFLA_MTU", mtu)], "wireguard")


def create(
    sock: RouteSocket,
    fields: dict[str, int],
    head: Attributes,
    kind: str,
    data: Attributes | None = None,
) -> None:
    """Create a device of a kind (`ip link add type`): a message's `fields`, its attributes
    (`head`), and the kind's own attributes (`data`)."""
    info: Attributes = [("IFLA_INFO_KIND", kind)]
    if data:
        info.append(("IFLA_INFO_DATA", {"attrs": data}))
    attributes = [*head, ("IFLA_LINKINFO", {"attrs": info})]
    sock.execute(request(LINK, RTM_NEWLINK, fields, attributes, NLM_F_CREATE | NLM_F_EXCL))


def namespace_id(sock: RouteSocket, namespace: int) -> int:
    """The id (nsid) that the socket's namespace has for another one (a descriptor)."""
    ask = request(NAMESPACE, RTM_GETNSID, {}, [("NETNSA_FD", namespace)])
    return int(parsed(NAMESPACE, sock.get(ask)).get_attr("NETNSA_NSID"))
