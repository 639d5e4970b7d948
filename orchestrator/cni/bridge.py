"""The bridge of a network on this host, and the cables from it into the containers."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from . import namespaces, netlink, peers, routing
from .errors import CniError, Code
from .netlink import Link, VethPair
from .routing import RouteEntry
from .rtnetlink import NetlinkError, RouteSocket

VETH_PREFIX = "orcv"
ANYWHERE = IPv4Network("0.0.0.0/0")
NOWHERE = IPv4Address(0)


@dataclass(frozen=True, slots=True)
class Cable:
    """One attachment of a container: identity, and what its interface is to be."""

    container_id: str
    ifname: str
    address: IPv4Interface
    gateway: IPv4Address

    @property
    def host(self) -> str:
        """The name of the end on the bridge."""
        return veth_name(self.container_id, self.ifname)

    @property
    def mac(self) -> str:
        """The MAC inside: follows the address, so a neighbour's cache stays right on reuse."""
        return peers.derived_mac("c", self.address.ip)


def veth_name(container_id: str, ifname: str) -> str:
    """The end on the bridge of an attachment: `orcv` and 44 bits of a hash, 15 characters.

    FNV-1a (RFC 9923), since `hashlib` brings libcrypto: 5 MB of memory for a name.
    """
    value = 0xCBF29CE484222325
    for byte in f"{container_id}/{ifname}".encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return VETH_PREFIX + f"{value:016x}"[: netlink.NAME_LIMIT - len(VETH_PREFIX)]


def ensure(sock: RouteSocket, name: str, subnet: IPv4Network, mtu: int) -> Link:
    """Have the bridge exist with the gateway's address, up; return it. `mtu` 0: leave it."""
    address = IPv4Interface((peers.gateway(subnet), subnet.prefixlen))
    mac = peers.derived_mac("b", address.ip)
    link = netlink.get_link(sock, name)
    if link is None:
        try:
            netlink.create_bridge(sock, name, mac)
        except NetlinkError as error:
            # Another process that connects a container may have been faster.
            if error.errno == errno.EPERM:
                raise CniError(
                    Code.IO_FAILURE, "networks need root (CAP_NET_ADMIN)", str(error)
                ) from error
            if error.errno != errno.EEXIST:
                raise
        link = netlink.get_link(sock, name)
    if link is None or link.kind != "bridge":
        raise CniError(
            Code.INVALID_CONFIG,
            f"interface {name} exists and is not a bridge: remove it or name another one",
        )
    if not link.up or link.mac != mac or (mtu and link.mtu != mtu):
        sock.execute(netlink.link_request(link.index, mtu=mtu, mac=mac))
    netlink.ensure_addresses(sock, link.index, {address})
    return link


def connect(sock: RouteSocket, bridge: Link, cable: Cable, namespace: int) -> Link:
    """Lay the cable into the namespace (a descriptor); return the end on the bridge.

    Laying it again mends and keeps it. If anything fails, neither end remains.
    """
    pair = VethPair(
        host=cable.host,
        master=bridge.index,
        inside=cable.ifname,
        inside_mac=cable.mac,
        mtu=bridge.mtu,
    )
    with namespaces.route_socket(namespace) as within:
        try:
            netlink.create_veth(sock, pair, namespace)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            _take_over(sock, within, pair, namespace)
        try:
            _configure(within, cable, bridge.mtu)
            host = netlink.get_link(sock, cable.host)
            if host is None:
                raise CniError(
                    Code.TRY_AGAIN_LATER, f"interface {cable.host} vanished while being made"
                )
            label = f"{cable.container_id}/{cable.ifname}"
            sock.execute(netlink.port_request(host.index, label))
        except BaseException:
            disconnect(sock, cable.host)
            raise
    return host


def _take_over(sock: RouteSocket, within: RouteSocket, pair: VethPair, namespace: int) -> None:
    """One end exists. If both are ours, keep them; if only the host's end, lay a new cable."""
    host = netlink.get_link(sock, pair.host)
    inside = netlink.get_link(within, pair.inside)
    if inside is not None:
        if host is None or host.peer != inside.index:
            raise CniError(
                Code.INTERFACE_IN_USE,
                f"the container already has an interface {pair.inside} that is not from here:"
                " choose another CNI_IFNAME or remove it",
            )
        within.execute(netlink.link_request(inside.index, mac=pair.inside_mac))
        sock.execute(netlink.link_request(host.index, mtu=pair.mtu, master=pair.master))
        return
    if host is not None:
        netlink.delete_link(sock, host.index)
    netlink.create_veth(sock, pair, namespace)


def _configure(within: RouteSocket, cable: Cable, mtu: int) -> None:
    """Give the end inside its address, and one way: everything goes by the gateway.

    Neighbours too. An answer that went to its neighbour directly would miss the host's tables, and
    with them the translation that its connection began with, and the policies.
    """
    inside = netlink.get_link(within, cable.ifname)
    if inside is None:
        raise CniError(Code.TRY_AGAIN_LATER, f"interface {cable.ifname} vanished while being made")
    within.execute(
        netlink.link_request(netlink.LOOPBACK),
        netlink.address_request(inside.index, cable.address, alone=True),
        netlink.link_request(inside.index, mtu=mtu),
        routing.route_request(
            inside.index, RouteEntry(IPv4Network(cable.gateway), NOWHERE, NOWHERE)
        ),
        routing.route_request(inside.index, RouteEntry(ANYWHERE, cable.gateway, NOWHERE)),
    )


def disconnect(sock: RouteSocket, host: str) -> bool:
    """Cut the cable whose end on the bridge has that name; False if there is none."""
    link = netlink.get_link(sock, host)
    return link is not None and netlink.delete_link(sock, link.index)


def abandon(sock: RouteSocket, host: str, ifname: str, mac: str, namespace: int) -> None:
    """Silence a cable whose namespace is about to go, and the cable with it.

    Cutting it would wait for all of the kernel's readers, 30 ms each time; the kernel removes the
    devices of dead namespaces by itself, many at once. Until then, and for as long as a stray
    process holds the namespace, nothing may answer at the address, which is free from now on, nor
    make the bridge believe that the address' MAC is still there.
    """
    with namespaces.route_socket(namespace) as within:
        inside = netlink.get_link(within, ifname)
        if inside is not None:
            netlink.ensure_addresses(within, inside.index, set())
    link = netlink.get_link(sock, host)
    if link is not None:
        mute = netlink.mute_request(link.index)
        # Refused if a hand has unplugged the cable, or if nothing was learned: both are fine.
        sock.attempt([mute, routing.forget_request(link.index, mac)])


def cables(sock: RouteSocket, name: str) -> list[Link]:
    """The ends of our cables on the bridge of that name."""
    bridge = netlink.get_link(sock, name)
    if bridge is None:
        return []
    ports = netlink.links(sock, master=bridge.index)
    return [port for port in ports if port.kind == "veth" and port.name.startswith(VETH_PREFIX)]


def ensure_plugged(sock: RouteSocket, bridge: Link, cables: Iterable[Cable]) -> None:
    """Have the ends of these cables in the bridge, up; those that are gone are left alone.

    A bridge that a hand removes lets go of its ports, and comes back without them.
    """
    wanted = {cable.host: cable for cable in cables}
    for end in netlink.links(sock) if wanted else ():
        cable = wanted.get(end.name)
        if cable is not None and (end.master != bridge.index or not end.up):
            label = f"{cable.container_id}/{cable.ifname}"
            plug = netlink.link_request(end.index, master=bridge.index)
            port = netlink.port_request(end.index, label)
            for outcome in sock.attempt([plug, port]):
                # It may go at the same moment.
                if outcome is not None and outcome.errno != errno.ENODEV:
                    raise outcome


def deviation(sock: RouteSocket, within: RouteSocket, bridge: str, cable: Cable) -> str:
    """What of the cable is not as it was laid, in words; empty if all is."""
    link = netlink.get_link(sock, bridge)
    host = netlink.get_link(sock, cable.host)
    inside = netlink.get_link(within, cable.ifname)
    if link is None:
        return f"bridge {bridge} is gone"
    if inside is None:
        return f"interface {cable.ifname} is gone from the container"
    if host is None or host.peer != inside.index:
        return f"interface {cable.host} of the container's cable is gone from the host"
    if host.master != link.index:
        return f"interface {cable.host} is not a port of bridge {bridge}"
    if not host.up or not inside.up:
        return f"interface {cable.ifname} or its other end {cable.host} is down"
    if inside.mac != cable.mac:
        return f"interface {cable.ifname} has the MAC {inside.mac} instead of {cable.mac}"
    if (inside.index, cable.address) not in netlink.addresses(within, inside.index):
        return f"interface {cable.ifname} has lost the address {cable.address}"
    ways = routing.routes(within, inside.index)
    if not any(w.destination == ANYWHERE and w.gateway == cable.gateway for w in ways):
        return f"the container has lost its default route by {cable.gateway}"
    return ""
