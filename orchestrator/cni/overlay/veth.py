# SPDX-License-Identifier: Apache-2.0
"""The veth pair of one attachment, from the network's bridge into a container.

Containers send everything through their host, which routes: to a neighbour on the same bridge as to
a container of another host. So one set of rules sees every packet (policies, translation of service
addresses, isolation), and no frame can bypass it. The bridge's ports are therefore isolated from
each other, except where bridged packets pass the rules anyway (br_netfilter), since the kernel then
hands a translated packet to the neighbour's port without routing it.

Addresses, MACs and ports are configured statically on both ends: no ARP, no neighbour discovery, no
learning. So no container can spoof an answer, and the first packet need not wait for one. What a
container sends must have its own addresses (`firewall.antispoofing`).
"""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from orchestrator.cni import peers
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import record
from orchestrator.cni.firewall import antispoofing
from orchestrator.cni.netlink import links, namespaces, routing
from orchestrator.cni.netlink.links import Address, Interface, Link, Network, VethPair
from orchestrator.cni.netlink.netlinksocket import NetlinkError, Request, RouteSocket
from orchestrator.cni.netlink.routing import RouteEntry

VETH_PREFIX = "orcv"
ANYWHERE: dict[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@record
class Place:
    """An address of the attachment: in which network, and by which address of the host.

    `local` says whether it is of this host's part; else the host has a route to it alone.
    """

    address: Interface
    gateway: Address
    network: Network
    local: bool = True


@record
class Cable:
    """One attachment of a container: identity, and what its interface is to be."""

    container_id: str
    ifname: str
    mac: str
    places: tuple[Place, ...]
    default_route: bool = True
    locked: bool = True
    """Frames come from this MAC only."""

    @property
    def host(self) -> str:
        """The name of the end on the bridge."""
        return veth_name(self.container_id, self.ifname)

    @property
    def label(self) -> str:
        """What an operator sees at the end on the bridge (`ip link`: alias)."""
        return f"{self.container_id}/{self.ifname}"

    @property
    def addresses(self) -> list[Interface]:
        """The addresses inside."""
        return [place.address for place in self.places]

    @property
    def routes(self) -> list[RouteEntry]:
        """The routes inside; one that a later route needs comes before it."""
        found = []
        for place in self.places:
            found.append(RouteEntry(ip_network(place.gateway), None))
            found.append(RouteEntry(place.network, place.gateway))
            if self.default_route:
                found.append(RouteEntry(ANYWHERE[place.gateway.version], place.gateway))
        return found

    @property
    def host_routes(self) -> list[RouteEntry]:
        """The host's routes by the bridge to addresses that are not of its part."""
        return [
            RouteEntry(ip_network(place.address.ip), None, place.gateway)
            for place in self.places
            if not place.local
        ]

    @property
    def neighbours(self) -> list[tuple[Address, str]]:
        """What the host knows by the bridge."""
        return [(place.address.ip, self.mac) for place in self.places]


def veth_name(container_id: str, ifname: str) -> str:
    """The end on the bridge of an attachment: `orcv` and 44 bits of a hash, 15 characters.

    FNV-1a (RFC 9923), since `hashlib` brings libcrypto: 5 MB of memory for a name.
    """
    value = 0xCBF29CE484222325
    for byte in f"{container_id}/{ifname}".encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return VETH_PREFIX + f"{value:016x}"[: links.NAME_LIMIT - len(VETH_PREFIX)]


def isolated() -> bool:
    """Whether the ports of a bridge are to be isolated: bridged packets pass no rules."""
    return not antispoofing.bridged_families()


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
        kept = False
        try:
            sock.execute(links.veth_request(pair, namespace))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            kept = _take_over(sock, within, pair, namespace)
        try:
            _configure(within, cable, bridge, kept=kept)
            host = links.get_link(sock, cable.host)
            if host is None:
                raise vanished(cable.host)
            sock.execute(
                links.port_request(
                    host.index, cable.label, isolated=isolated(), locked=cable.locked
                ),
                routing.station_request(host.index, cable.mac),
                *_announcements(bridge.index, cable),
            )
            if kept:
                sock.attempt([links.open_request(host.index)])
            settle(sock, host.index, bridge.index)
            routing.await_local(
                within,
                [address.ip for address in cable.addresses],
                lambda groups: namespaces.route_socket(namespace, groups),
            )
        except BaseException:
            disconnect(sock, cable.host)
            raise
    return host


def vanished(name: str) -> CniError:
    """An interface was removed while it was being made."""
    return CniError(Code.TRY_AGAIN_LATER, f"interface {name} vanished while being made")


def _announcements(bridge: int, cable: Cable) -> list[Request]:
    """What tells the host where the container is."""
    return [
        *(routing.neighbour_request(bridge, one, mac) for one, mac in cable.neighbours),
        *(routing.route_request(bridge, route) for route in cable.host_routes),
    ]


def _take_over(sock: RouteSocket, within: RouteSocket, pair: VethPair, namespace: int) -> bool:
    """One end exists. If both are ours, keep them; if only the host's end, lay a new cable."""
    host = links.get_link(sock, pair.host)
    inside = links.get_link(within, pair.inside)
    if inside is not None:
        if host is None or host.peer != inside.index:
            raise CniError(
                Code.INTERFACE_IN_USE,
                f"the container already has an interface {pair.inside} that is not from here:"
                " choose another CNI_IFNAME or remove it",
            )
        within.execute(links.link_request(inside.index, mac=pair.inside_mac))
        sock.execute(links.link_request(host.index, mtu=pair.mtu, master=pair.master))
        return True
    if host is not None:
        links.delete_link(sock, host.index)
    sock.execute(links.veth_request(pair, namespace))
    return False


def _configure(within: RouteSocket, cable: Cable, bridge: Link, *, kept: bool) -> None:
    inside = links.get_link(within, cable.ifname)
    if inside is None:
        raise vanished(cable.ifname)
    index = inside.index
    if kept:
        links.ensure_addresses(within, index, cable.addresses, alone=True)
        stale = set(routing.routes(within, index)) - set(cable.routes)
        within.attempt([routing.route_request(index, route, remove=True) for route in stale])
    within.execute(
        links.link_request(links.LOOPBACK),
        *(links.address_request(index, one, alone=True) for one in cable.addresses),
        links.link_request(index, mtu=bridge.mtu),
        *(routing.neighbour_request(index, place.gateway, bridge.mac) for place in cable.places),
        *(routing.route_request(index, route) for route in cable.routes),
    )
    settle(within, index)


def settle(sock: RouteSocket, *indexes: int) -> None:
    """Have the kernel see now that interfaces' cables are whole: a bridge by its first port.

    It sees by itself in a moment, which is long on a busy host, and drops all packets until then.
    Being asked for a link it looks first (linkwatch, from Linux 6.9 on).
    """
    for index in indexes:
        links.get_link(sock, index=index)


def connected(sock: RouteSocket, within: RouteSocket, container_id: str, ifname: str) -> bool:
    """Whether that interface of a namespace is the other end of the container's cable."""
    host = links.get_link(sock, veth_name(container_id, ifname))
    inside = links.get_link(within, ifname)
    return host is not None and inside is not None and host.peer == inside.index


def disconnect(sock: RouteSocket, host: str) -> bool:
    """Cut the cable whose end on the bridge has that name; False if there is none."""
    link = links.get_link(sock, host)
    return link is not None and links.delete_link(sock, link.index)


def abandon(sock: RouteSocket, cable: Cable, namespace: int) -> None:
    """Silence a cable whose namespace is about to go, and the cable with it.

    Cutting it would wait for all of the kernel's readers, 30 ms each time; the kernel removes the
    devices of dead namespaces by itself, many at once. Until then, and for as long as a stray
    process holds the namespace, nothing may answer at the address, which is free from now on, nor
    make the bridge believe that the address' MAC is still there.
    """
    namespaces.give_up_orphans(namespace)
    with namespaces.route_socket(namespace) as within:
        inside = links.get_link(within, cable.ifname)
        if inside is not None:
            links.ensure_addresses(within, inside.index, ())
    link = links.get_link(sock, cable.host)
    if link is not None:
        mute = links.mute_request(link.index)
        # Refused if the pair was unplugged by hand, or this was done before: both are fine.
        sock.attempt([mute, routing.station_request(link.index, cable.mac, remove=True)])


def withdraw(sock: RouteSocket, bridge: int, cable: Cable) -> None:
    """Have the host not look for the container by the bridge (an index) any more."""
    sock.attempt(
        [
            *(
                routing.neighbour_request(bridge, one, mac, remove=True)
                for one, mac in cable.neighbours
            ),
            *(routing.route_request(bridge, route, remove=True) for route in cable.host_routes),
        ]
    )


def deviation(sock: RouteSocket, within: RouteSocket, bridge: str, cable: Cable) -> str:
    """A description of how the pair differs from what ADD made; empty if it does not."""
    link = links.get_link(sock, bridge)
    host = links.get_link(sock, cable.host)
    inside = links.get_link(within, cable.ifname)
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
    if host.port is not None and host.port.locked is not cable.locked:
        takes = "this one" if host.port.locked else "any"
        return f"interface {cable.host} takes frames from {takes} hardware address"
    if inside.mac != cable.mac:
        return f"interface {cable.ifname} has the MAC {inside.mac} instead of {cable.mac}"
    present = links.addresses(within, inside.index)
    for address in cable.addresses:
        if (inside.index, address) not in present:
            return f"interface {cable.ifname} has lost the address {address}"
    ways = {(way.destination, way.gateway) for way in routing.routes(within, inside.index)}
    for route in cable.routes:
        if (route.destination, route.gateway) not in ways:
            by = f" by {route.gateway}" if route.gateway else ""
            return f"the container has lost its route to {route.destination}{by}"
    return ""


def derived_mac(address: IPv4Address) -> str:
    """The MAC inside, unless one was asked for: it follows the IPv4 address."""
    return peers.derived_mac("c", address)
