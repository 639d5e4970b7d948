# SPDX-License-Identifier: Apache-2.0
"""Links and addresses, typed: read, change, remove; create veth pairs.

`routing` has routes and neighbours, `devices` creates the devices of networks.

Reads return plain values. Writes come in two forms: functions that act at once, and functions named
`*_request` that return a message, so that callers can batch them.
Addresses are `ipaddress` objects, MACs lower-case text, interfaces their index.

Encoded and decoded here, as in `routing`: this is the path of every container, and each link is
read at every pass. All messages of one ADD take 0.2 ms here and 5.1 ms with pyroute2's classes, as
much as the whole ADD; a link takes 19 and 414 µs to read, a route 7 and 87 µs, and a network of a
thousand peers has five thousand entries (`make bench ARGS="--only encoding"`). A unit test compares
what both encode, byte by byte.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

from orchestrator.cni.fastrecord import record
from orchestrator.cni.netlink.netlinksocket import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkError,
    Request,
    RouteSocket,
    attribute,
    attributes,
    text,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 27, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_STATE, IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING = 1, 4, 8
BR_STATE_DISABLED, BR_STATE_FORWARDING = 0, 3
VETH_INFO_PEER = 1
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PORT = 1, 4, 7, 15
IFLA_VXLAN_UDP_ZERO_CSUM6_RX = 20
IFLA_BRPORT_ISOLATED, IFLA_BRPORT_LOCKED = 33, 39
IFLA_LINK_NETNSID = 37
RTEXT_FILTER_SKIP_STATS = 8
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
LOOPBACK = 1

IFINFO = struct.Struct("=BxHiII")
IFADDR = struct.Struct("=BBBBI")

FAMILIES = (socket.AF_INET, socket.AF_INET6)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

DELETION_GROUP = 0x6F7263  # group of links that are deleted together
NAME_LIMIT = 15  # IFNAMSIZ without its terminating zero


@record
class Vxlan:
    """The properties of a VXLAN device that cannot be changed later.

    `local` is 0.0.0.0 where the route to the other host determines the source address.
    `ipv6`: the underlay is IPv6, without UDP checksums.
    """

    vni: int
    local: IPv4Address
    port: int
    learning: bool
    ipv6: bool = False


@record
class Port:
    """Settings of a bridge port; `isolated`: it forwards only to and from the bridge's own device.

    `locked`: it accepts only frames from MACs that the bridge's FDB has for this port.
    """

    forwarding: bool
    isolated: bool
    learning: bool
    locked: bool


@record
class Link:
    """An interface as the kernel reports it.

    `peer` is the index of a veth's peer, `peer_namespace` the id of the peer's namespace if that is
    another one (`devices.namespace_id`); `port` is set for ports of bridges.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int = 0
    peer: int = 0
    peer_namespace: int | None = None
    vxlan: Vxlan | None = None
    port: Port | None = None


def mac_text(raw: bytes) -> str:
    """Six bytes as `02:76:0a:80:03:00`."""
    return raw.hex(":")


def mac_bytes(mac: str) -> bytes:
    """The reverse of `mac_text`."""
    return bytes.fromhex(mac.replace(":", ""))


def number(raw: bytes | None) -> int:
    """A 32-bit attribute; 0 if it is absent."""
    return struct.unpack("=I", raw)[0] if raw else 0


def ipv4(raw: bytes | None) -> IPv4Address:
    """An address attribute; 0.0.0.0 if it is absent."""
    return IPv4Address(raw or 0)


def address(raw: bytes | None) -> Address | None:
    """An address attribute of either family; None if it is absent."""
    if not raw:
        return None
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def family(address: Address | Network) -> int:
    """The family number of an address or a network."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _string(raw: bytes | None) -> str:
    return raw.rstrip(b"\0").decode(errors="replace") if raw else ""


# -- links ---------------------------------------------------------------------------------------


def read_link(body: bytes) -> Link:
    """Decode an interface."""
    _, _, index, flags, _ = IFINFO.unpack_from(body)
    found = attributes(body, IFINFO.size)
    info = attributes(found.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND))
    vxlan = None
    if kind == "vxlan":
        data = attributes(info.get(IFLA_INFO_DATA, b""))
        vxlan = Vxlan(
            vni=number(data.get(IFLA_VXLAN_ID)),
            local=ipv4(data.get(IFLA_VXLAN_LOCAL)),
            port=int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
            learning=any(data.get(IFLA_VXLAN_LEARNING, b"")),
            ipv6=any(data.get(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, b"")),
        )
    port = None
    if IFLA_INFO_SLAVE_DATA in info and _string(info.get(IFLA_INFO_SLAVE_KIND)) == "bridge":
        data = attributes(info[IFLA_INFO_SLAVE_DATA])
        port = Port(
            forwarding=data.get(IFLA_BRPORT_STATE, b"\0")[0] == BR_STATE_FORWARDING,
            isolated=any(data.get(IFLA_BRPORT_ISOLATED, b"")),
            learning=any(data.get(IFLA_BRPORT_LEARNING, b"")),
            locked=any(data.get(IFLA_BRPORT_LOCKED, b"")),
        )
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME)),
        kind=kind,
        mac=mac_text(found.get(IFLA_ADDRESS, b"")),
        mtu=number(found.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        master=number(found.get(IFLA_MASTER)),
        peer=number(found.get(IFLA_LINK)),
        peer_namespace=number(found[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in found else None,
        vxlan=vxlan,
        port=port,
    )


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)


def link_query(name: str = "", index: int = 0) -> Request:
    """A query for the interface of that name or index."""
    body = _ifinfo(index) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    if name:
        body += text(IFLA_IFNAME, name)
    return Request(RTM_GETLINK, body)


def get_link(sock: RouteSocket, name: str = "", index: int = 0) -> Link | None:
    """The interface of that name or index, or None."""
    try:
        return read_link(sock.get(link_query(name, index)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def links(sock: RouteSocket, master: int = 0) -> list[Link]:
    """All interfaces, or the ports of one bridge."""
    body = _ifinfo() + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    if master:
        body += u32(IFLA_MASTER, master)
    return [read_link(answer) for answer in sock.dump(Request(RTM_GETLINK, body))]


@record
class VethPair:
    """A veth pair: `host` is a port of the bridge with index `master`, `inside` is its peer."""

    host: str
    master: int
    inside: str
    inside_mac: str
    mtu: int


def veth_request(pair: VethPair, namespace: int) -> Request:
    """Create a veth pair whose peer is created in `namespace` (a descriptor), under its name."""
    peer = (
        _ifinfo()
        + text(IFLA_IFNAME, pair.inside)
        + attribute(IFLA_ADDRESS, mac_bytes(pair.inside_mac))
        + u32(IFLA_MTU, pair.mtu)
        + u32(IFLA_NET_NS_FD, namespace)
    )
    head = (
        _ifinfo(0, IFF_UP, IFF_UP)
        + text(IFLA_IFNAME, pair.host)
        + u32(IFLA_MTU, pair.mtu)
        + u32(IFLA_MASTER, pair.master)
    )
    data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    body = head + attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth") + data)
    return Request(RTM_NEWLINK, body, NLM_F_CREATE | NLM_F_EXCL)


def link_request(index: int, *, mtu: int = 0, mac: str = "", master: int = 0) -> Request:
    """Set an interface up, and the other properties that are given."""
    body = _ifinfo(index, IFF_UP, IFF_UP)
    if mtu:
        body += u32(IFLA_MTU, mtu)
    if mac:
        body += attribute(IFLA_ADDRESS, mac_bytes(mac))
    if master:
        body += u32(IFLA_MASTER, master)
    return Request(RTM_NEWLINK, body)


def _port(index: int, more: bytes, port: bytes) -> Request:
    info = text(IFLA_INFO_SLAVE_KIND, "bridge") + attribute(IFLA_INFO_SLAVE_DATA, port)
    return Request(RTM_NEWLINK, _ifinfo(index) + more + attribute(IFLA_LINKINFO, info))


def port_request(index: int, alias: str, *, isolated: bool, locked: bool) -> Request:
    """Configure a port of a bridge, with an alias.

    Its FDB entries are static (`routing.bridge_fdb_request`), not learned, and a `locked` port
    drops frames from other MACs (since Linux 5.18; older kernels ignore it). An `isolated` port
    forwards only to and from the bridge's own device; others are in hairpin mode.
    """
    return _port(
        index,
        text(IFLA_IFALIAS, alias),
        attribute(IFLA_BRPORT_LEARNING, b"\0")
        + attribute(IFLA_BRPORT_ISOLATED, bytes([isolated]))
        + attribute(IFLA_BRPORT_MODE, bytes([not isolated]))
        + attribute(IFLA_BRPORT_LOCKED, bytes([locked])),
    )


def enable_port_request(index: int) -> Request:
    """Set a disabled bridge port to forwarding.

    Fails with ENETDOWN while the kernel has not noticed the carrier; it enables the port then, as
    it does with a new one.
    """
    return _port(index, b"", attribute(IFLA_BRPORT_STATE, bytes([BR_STATE_FORWARDING])))


def disable_port_request(index: int) -> Request:
    """Set a bridge port to disabled: it forwards nothing."""
    return _port(index, b"", attribute(IFLA_BRPORT_STATE, bytes([BR_STATE_DISABLED])))


def set_loopback_up(sock: RouteSocket) -> None:
    """Set loopback up, which is down in a new namespace; its index is always 1."""
    sock.execute(link_request(LOOPBACK))


def delete_link(sock: RouteSocket, index: int) -> bool:
    """Remove an interface (a veth with both ends); return False if it did not exist."""
    try:
        sock.execute(Request(RTM_DELLINK, _ifinfo(index)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def delete_links(sock: RouteSocket, indexes: Collection[int]) -> None:
    """Remove many interfaces in the time of one: the kernel waits for RCU readers once."""
    marks = [
        Request(RTM_NEWLINK, _ifinfo(index) + u32(IFLA_GROUP, DELETION_GROUP)) for index in indexes
    ]
    if any(outcome is None for outcome in sock.attempt(marks)):
        sock.execute(Request(RTM_DELLINK, _ifinfo() + u32(IFLA_GROUP, DELETION_GROUP)))


# -- addresses -----------------------------------------------------------------------------------


def addresses(sock: RouteSocket, index: int = 0) -> list[tuple[int, Interface]]:
    """(interface, address) of one interface or of all; without IPv6's link-local ones."""
    found: list[tuple[int, Interface]] = []
    for kind in FAMILIES:
        request = Request(RTM_GETADDR, IFADDR.pack(kind, 0, 0, 0, index))
        for body in sock.dump(request):
            _, prefix, _, _, owner = IFADDR.unpack_from(body)
            parts = attributes(body, IFADDR.size)
            present = address(parts.get(IFA_LOCAL) or parts.get(IFA_ADDRESS))
            if present is not None and not present.is_link_local:
                found.append((owner, with_prefix(present, prefix)))
    return found


def with_prefix(address: Address, prefix: int) -> Interface:
    """An address and the length of its network's prefix."""
    if isinstance(address, IPv4Address):
        return IPv4Interface((address, prefix))
    return IPv6Interface((address, prefix))


def address_request(
    index: int, address: Interface, *, no_prefix_route: bool = False, remove: bool = False
) -> Request:
    """Add or remove an address. `no_prefix_route`: without a route to its network.

    It can be used at once, without IPv6's duplicate address detection.
    """
    flags = IFA_F_NOPREFIXROUTE if no_prefix_route else 0
    if address.version == 6:
        flags |= IFA_F_NODAD
    head = IFADDR.pack(family(address.ip), address.network.prefixlen, 0, 0, index)
    packed = address.ip.packed
    body = head + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if remove:
        return Request(RTM_DELADDR, body)
    return Request(RTM_NEWADDR, body + u32(IFA_FLAGS, flags), NLM_F_CREATE | NLM_F_REPLACE)


def ensure_addresses(
    sock: RouteSocket, index: int, wanted: Collection[Interface], *, no_prefix_route: bool = False
) -> None:
    """Give the interface exactly these addresses, besides link-local ones."""
    present = {address for _, address in addresses(sock, index)}
    stale = [address_request(index, one, remove=True) for one in present if one not in wanted]
    missing = [
        address_request(index, one, no_prefix_route=no_prefix_route)
        for one in wanted
        if one not in present
    ]
    for outcome in sock.attempt(stale):
        if outcome is not None and outcome.errno != errno.EADDRNOTAVAIL:
            raise outcome
    sock.execute(*missing)
