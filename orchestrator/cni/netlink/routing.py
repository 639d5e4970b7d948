# SPDX-License-Identifier: Apache-2.0
"""Routes, neighbours and FDB entries of one interface, typed; see `links`."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Network, IPv6Network

from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.netlink.links import (
    FAMILIES,
    Address,
    Network,
    address,
    family,
    mac_bytes,
    mac_text,
    number,
)
from orchestrator.cni.netlink.netlinksocket import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    NetlinkError,
    Request,
    RouteSocket,
    attribute,
    attributes,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
RT_TABLE_MAIN, RTPROT_KERNEL, RTPROT_STATIC, RTN_UNICAST, RTNH_F_ONLINK = 254, 2, 4, 1, 4
RTPROT_RA = 9
RTN_LOCAL = 2
RTMGRP_IPV6_ROUTE = 0x400
LOCAL_SECONDS = 10.0
DEFAULT_METRIC6 = 1024  # IP6_RT_PRIO_USER
NDA_DST, NDA_LLADDR, NDA_IFINDEX, NDA_MASTER = 1, 2, 8, 9
NUD_NOARP, NUD_PERMANENT, NTF_SELF, NTF_MASTER = 0x40, 0x80, 0x02, 0x04
AF_BRIDGE = 7
RTMSG = struct.Struct("=BBBBBBBBI")
NDMSG = struct.Struct("=BxxxiHBB")


@record
class RouteEntry:
    """A route of the main table: `destination` via `gateway` (None: on-link), with source address.

    `metric` 0 is the family's default.
    """

    destination: Network
    gateway: Address | None
    source: Address | None = None
    metric: int = 0
    onlink: bool = False


def routes(sock: RouteSocket, index: int) -> list[RouteEntry]:
    """The routes of the main table via that interface, except those that the kernel added."""
    found = []
    for kind in FAMILIES:
        head = RTMSG.pack(kind, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
        body = head + u32(RTA_OIF, index) + u32(RTA_TABLE, RT_TABLE_MAIN)
        for answer in sock.dump(Request(RTM_GETROUTE, body)):
            if (route := read_route(answer)) is not None:
                found.append(route)
    return found


def read_route(body: bytes) -> RouteEntry | None:
    """Decode a route; None if the kernel added it."""
    kind, length, _, _, _, protocol, _, _, flags = RTMSG.unpack_from(body)
    if protocol in (RTPROT_KERNEL, RTPROT_RA):
        return None
    parts = attributes(body, RTMSG.size)
    metric = number(parts.get(RTA_PRIORITY))
    return RouteEntry(
        destination=_network(kind, parts.get(RTA_DST), length),
        gateway=address(parts.get(RTA_GATEWAY)),
        source=address(parts.get(RTA_PREFSRC)),
        metric=0 if kind == socket.AF_INET6 and metric == DEFAULT_METRIC6 else metric,
        onlink=bool(flags & RTNH_F_ONLINK),
    )


def _network(kind: int, raw: bytes | None, length: int) -> Network:
    if kind == socket.AF_INET:
        return IPv4Network((raw or bytes(4), length))
    return IPv6Network((raw or bytes(16), length))


def route_request(index: int, route: RouteEntry, *, remove: bool = False) -> Request:
    """Add or replace a route of the main table via that interface, or remove it."""
    flags = RTNH_F_ONLINK if route.onlink and not remove else 0
    # 255 (RT_SCOPE_NOWHERE) matches any scope on removal; 253 is a route to a neighbour.
    scope = 255 if remove else 0 if route.gateway is not None else 253
    body = RTMSG.pack(
        family(route.destination),
        route.destination.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        0 if remove else RTPROT_STATIC,
        scope,
        0 if remove else RTN_UNICAST,
        flags,
    )
    body += attribute(RTA_DST, route.destination.network_address.packed) + u32(RTA_OIF, index)
    if route.gateway is not None:
        body += attribute(RTA_GATEWAY, route.gateway.packed)
    if route.source is not None:
        body += attribute(RTA_PREFSRC, route.source.packed)
    if route.metric:
        body += u32(RTA_PRIORITY, route.metric)
    if remove:
        return Request(RTM_DELROUTE, body)
    return Request(RTM_NEWROUTE, body, NLM_F_CREATE | NLM_F_REPLACE)


def is_local(sock: RouteSocket, address: Address) -> bool:
    """Whether the kernel delivers packets to that address locally."""
    body = RTMSG.pack(family(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    try:
        answer = sock.get(Request(RTM_GETROUTE, body + attribute(RTA_DST, address.packed)))
    except NetlinkError:  # unreachable
        return False
    return bool(RTMSG.unpack_from(answer)[7] == RTN_LOCAL)


def await_local(
    sock: RouteSocket,
    addresses: Iterable[Address],
    events: Callable[[int], AbstractContextManager[RouteSocket]],
) -> None:
    """Wait until the kernel delivers packets to these addresses of the socket's namespace locally.

    An IPv6 address becomes local in a kernel worker (addrconf_dad_work), also without
    duplicate address detection: milliseconds after it was added, more on a busy host. Packets are
    dropped until then. `events` opens a socket of the same namespace that receives groups.
    Raises `NetlinkError` after `LOCAL_SECONDS` without an event.
    """
    pending = [one for one in addresses if one.version == 6 and not is_local(sock, one)]
    if not pending:
        return
    with events(RTMGRP_IPV6_ROUTE) as listener:
        for one in pending:
            while not is_local(sock, one):
                try:
                    listener.wait(LOCAL_SECONDS)
                except TimeoutError:
                    message = f"the kernel did not make {one} local within {LOCAL_SECONDS:.0f} s"
                    raise NetlinkError(errno.ETIMEDOUT, message) from None


def neighbours(sock: RouteSocket, index: int) -> list[tuple[Address, str]]:
    """(address, MAC) of the permanent neighbour entries of that interface."""
    found = []
    for kind in FAMILIES:
        body = NDMSG.pack(kind, 0, 0, 0, 0) + u32(NDA_IFINDEX, index)
        for answer in sock.dump(Request(RTM_GETNEIGH, body)):
            if (neighbour := read_neighbour(answer)) is not None:
                found.append(neighbour)
    return found


def read_neighbour(body: bytes) -> tuple[Address, str] | None:
    """Decode (address, MAC); None if the entry is not permanent."""
    _, _, state, _, _ = NDMSG.unpack_from(body)
    parts = attributes(body, NDMSG.size)
    owner = address(parts.get(NDA_DST))
    if owner is None or not state & NUD_PERMANENT or NDA_LLADDR not in parts:
        return None
    return owner, mac_text(parts[NDA_LLADDR])


def vxlan_fdb(sock: RouteSocket, index: int) -> list[tuple[str, Address]]:
    """(MAC, remote host) of the FDB entries of that VXLAN device."""
    found = []
    for answer in sock.dump(Request(RTM_GETNEIGH, NDMSG.pack(AF_BRIDGE, index, 0, 0, 0))):
        _, owner, _, _, _ = NDMSG.unpack_from(answer)
        parts = attributes(answer, NDMSG.size)
        host = address(parts.get(NDA_DST))
        if owner == index and NDA_LLADDR in parts and host is not None:
            found.append((mac_text(parts[NDA_LLADDR]), host))
    return found


def neighbour_request(index: int, address: Address, mac: str, *, remove: bool = False) -> Request:
    """Add or remove a permanent neighbour entry."""
    head = NDMSG.pack(family(address), index, NUD_PERMANENT, 0, 0)
    body = head + attribute(NDA_DST, address.packed)
    if remove:
        return Request(RTM_DELNEIGH, body)
    body += attribute(NDA_LLADDR, mac_bytes(mac))
    return Request(RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE)


def vxlan_fdb_request(index: int, mac: str, host: Address, *, remove: bool = False) -> Request:
    """Add or remove a permanent FDB entry of a VXLAN device."""
    head = NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF, 0)
    body = head + attribute(NDA_LLADDR, mac_bytes(mac)) + attribute(NDA_DST, host.packed)
    if remove:
        return Request(RTM_DELNEIGH, body)
    return Request(RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE)


def bridge_fdb(sock: RouteSocket, bridge: int) -> list[tuple[str, int]]:
    """(MAC, port) of the static FDB entries of that bridge (an index)."""
    head = NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0)
    found = []
    for answer in sock.dump(Request(RTM_GETNEIGH, head + u32(NDA_MASTER, bridge))):
        _, port, state, _, _ = NDMSG.unpack_from(answer)
        parts = attributes(answer, NDMSG.size)
        if port != bridge and state & NUD_NOARP and NDA_LLADDR in parts:
            found.append((mac_text(parts[NDA_LLADDR]), port))
    return found


def bridge_fdb_request(index: int, mac: str, *, remove: bool = False) -> Request:
    """Add or remove a static FDB entry of a bridge: the MAC is at the port with that index."""
    head = NDMSG.pack(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER, 0)
    body = head + attribute(NDA_LLADDR, mac_bytes(mac))
    if remove:
        return Request(RTM_DELNEIGH, body)
    return Request(RTM_NEWNEIGH, body, NLM_F_CREATE | NLM_F_REPLACE)
