# SPDX-License-Identifier: Apache-2.0
"""The veth pair of one attachment, from the network's bridge into a container.

All packets of a container are routed by its host, also those to a container on the same bridge. So
one set of rules sees every packet (policies, service NAT, isolation), and no frame can bypass it.
The bridge's ports are therefore isolated from each other, except where bridged packets pass the
rules (br_netfilter), since the kernel then bridges a translated packet without routing it.

Neighbours and FDB entries are static on both ends: no ARP, no neighbour discovery, no learning. So
no container can spoof a reply, and the first packet need not wait for one. Source addresses are
checked by `firewall.antispoofing`.
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
class IPConfig:
    """An address of the attachment, its network, and the host's address there (`gateway`).

    `local`: it is in this host's subnet; else the host has a host route to it.
    """

    address: Interface
    gateway: Address
    network: Network
    local: bool = True


@record
class VethConfig:
    """The desired veth pair of one attachment: identity, addresses, routes."""

    container_id: str
    ifname: str
    mac: str
    ips: tuple[IPConfig, ...]
    default_route: bool = True
    locked: bool = True
    """The bridge port accepts frames from this MAC only."""

    @property
    def host(self) -> str:
        """The name of the bridge port."""
        return veth_name(self.container_id, self.ifname)

    @property
    def label(self) -> str:
        """The alias of the bridge port, for operators (`ip link`)."""
        return f"{self.container_id}/{self.ifname}"

    @property
    def addresses(self) -> list[Interface]:
        """The container's addresses."""
        return [ip.address for ip in self.ips]

    @property
    def routes(self) -> list[RouteEntry]:
        """The container's routes, in an order in which they can be added."""
        found = []
        for ip in self.ips:
            found.append(RouteEntry(ip_network(ip.gateway), None))
            found.append(RouteEntry(ip.network, ip.gateway))
            if self.default_route:
                found.append(RouteEntry(ANYWHERE[ip.gateway.version], ip.gateway))
        return found

    @property
    def host_routes(self) -> list[RouteEntry]:
        """The host's routes via the bridge to addresses outside its subnet."""
        return [
            RouteEntry(ip_network(ip.address.ip), None, ip.gateway)
            for ip in self.ips
            if not ip.local
        ]

    @property
    def neighbours(self) -> list[tuple[Address, str]]:
        """The host's neighbour entries on the bridge."""
        return [(ip.address.ip, self.mac) for ip in self.ips]


def veth_name(container_id: str, ifname: str) -> str:
    """The name of an attachment's bridge port: `orcv` and 44 bits of a hash, 15 characters.

    FNV-1a (RFC 9923), since `hashlib` loads libcrypto, which takes 5 MB of memory.
    """
    value = 0xCBF29CE484222325
    for byte in f"{container_id}/{ifname}".encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return VETH_PREFIX + f"{value:016x}"[: links.NAME_LIMIT - len(VETH_PREFIX)]


def isolated() -> bool:
    """Whether ports of a bridge must be isolated: bridged packets do not pass the rules."""
    return not antispoofing.bridged_families()


def connect(sock: RouteSocket, bridge: Link, pair: VethConfig, namespace: int) -> Link:
    """Create the pair, its peer in the namespace (a descriptor); return the bridge port.

    An existing pair is repaired and kept. If anything fails, the pair is removed.
    """
    ends = VethPair(
        host=pair.host,
        master=bridge.index,
        inside=pair.ifname,
        inside_mac=pair.mac,
        mtu=bridge.mtu,
    )
    with namespaces.route_socket(namespace) as within:
        kept = False
        try:
            sock.execute(links.veth_request(ends, namespace))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            kept = _reuse(sock, within, ends, namespace)
        try:
            _configure(within, pair, bridge, kept=kept)
            host = links.get_link(sock, pair.host)
            if host is None:
                raise interface_vanished(pair.host)
            sock.execute(
                links.port_request(host.index, pair.label, isolated=isolated(), locked=pair.locked),
                routing.bridge_fdb_request(host.index, pair.mac),
                *_host_entries(bridge.index, pair),
            )
            if kept:
                sock.attempt([links.enable_port_request(host.index)])
            sync_carrier(sock, host.index, bridge.index)
            routing.await_local(
                within,
                [address.ip for address in pair.addresses],
                lambda groups: namespaces.route_socket(namespace, groups),
            )
        except BaseException:
            disconnect(sock, pair.host)
            raise
    return host


def interface_vanished(name: str) -> CniError:
    """The error for an interface that was removed while it was being created."""
    return CniError(Code.TRY_AGAIN_LATER, f"interface {name} vanished while being created")


def _host_entries(bridge: int, pair: VethConfig) -> list[Request]:
    """The host's neighbour entries and routes to the container."""
    return [
        *(routing.neighbour_request(bridge, one, mac) for one, mac in pair.neighbours),
        *(routing.route_request(bridge, route) for route in pair.host_routes),
    ]


def _reuse(sock: RouteSocket, within: RouteSocket, ends: VethPair, namespace: int) -> bool:
    """Keep an existing pair if both ends are ours; replace it if only the host's end exists."""
    host = links.get_link(sock, ends.host)
    inside = links.get_link(within, ends.inside)
    if inside is not None:
        if host is None or host.peer != inside.index:
            raise CniError(
                Code.INTERFACE_IN_USE,
                f"the container already has an interface {ends.inside} that is not Orc's:"
                " choose another CNI_IFNAME or remove it",
            )
        within.execute(links.link_request(inside.index, mac=ends.inside_mac))
        sock.execute(links.link_request(host.index, mtu=ends.mtu, master=ends.master))
        return True
    if host is not None:
        links.delete_link(sock, host.index)
    sock.execute(links.veth_request(ends, namespace))
    return False


def _configure(within: RouteSocket, pair: VethConfig, bridge: Link, *, kept: bool) -> None:
    inside = links.get_link(within, pair.ifname)
    if inside is None:
        raise interface_vanished(pair.ifname)
    index = inside.index
    if kept:
        links.ensure_addresses(within, index, pair.addresses, no_prefix_route=True)
        stale = set(routing.routes(within, index)) - set(pair.routes)
        within.attempt([routing.route_request(index, route, remove=True) for route in stale])
    within.execute(
        links.link_request(links.LOOPBACK),
        *(links.address_request(index, one, no_prefix_route=True) for one in pair.addresses),
        links.link_request(index, mtu=bridge.mtu),
        *(routing.neighbour_request(index, ip.gateway, bridge.mac) for ip in pair.ips),
        *(routing.route_request(index, route) for route in pair.routes),
    )
    sync_carrier(within, index)


def sync_carrier(sock: RouteSocket, *indexes: int) -> None:
    """Make the kernel update the carrier state of interfaces now; a bridge has it from its ports.

    Otherwise it does so after a moment, which is long on a busy host, and drops packets until then.
    A query for a link updates it first (linkwatch, since Linux 6.9).
    """
    for index in indexes:
        links.get_link(sock, index=index)


def connected(sock: RouteSocket, within: RouteSocket, container_id: str, ifname: str) -> bool:
    """Whether that interface of a namespace is the peer of the container's bridge port."""
    host = links.get_link(sock, veth_name(container_id, ifname))
    inside = links.get_link(within, ifname)
    return host is not None and inside is not None and host.peer == inside.index


def disconnect(sock: RouteSocket, host: str) -> bool:
    """Remove the pair whose bridge port has that name; False if there is none."""
    link = links.get_link(sock, host)
    return link is not None and links.delete_link(sock, link.index)


def detach(sock: RouteSocket, pair: VethConfig, namespace: int) -> None:
    """Disable a pair whose namespace is about to be removed, and the pair with it.

    Deleting it would wait for all RCU readers, 30 ms each time; the kernel removes the devices of
    dead namespaces itself, many at once. Until then, and while a stray process keeps the namespace
    alive, nothing may reply at the address, which is free from now on, and the bridge's FDB must
    not have its MAC.
    """
    namespaces.limit_orphan_retries(namespace)
    with namespaces.route_socket(namespace) as within:
        inside = links.get_link(within, pair.ifname)
        if inside is not None:
            links.ensure_addresses(within, inside.index, ())
    link = links.get_link(sock, pair.host)
    if link is not None:
        mute = links.disable_port_request(link.index)
        # Fails if the pair was removed from the bridge by hand, or this was done before.
        sock.attempt([mute, routing.bridge_fdb_request(link.index, pair.mac, remove=True)])


def remove_host_entries(sock: RouteSocket, bridge: int, pair: VethConfig) -> None:
    """Remove the host's neighbour entries and routes to the container via the bridge (an index)."""
    sock.attempt(
        [
            *(
                routing.neighbour_request(bridge, one, mac, remove=True)
                for one, mac in pair.neighbours
            ),
            *(routing.route_request(bridge, route, remove=True) for route in pair.host_routes),
        ]
    )


def deviation(sock: RouteSocket, within: RouteSocket, bridge: str, pair: VethConfig) -> str:
    """How the pair differs from what ADD created, for the user; empty if it does not."""
    link = links.get_link(sock, bridge)
    host = links.get_link(sock, pair.host)
    inside = links.get_link(within, pair.ifname)
    if link is None:
        return f"bridge {bridge} is gone"
    if inside is None:
        return f"interface {pair.ifname} is gone from the container"
    if host is None or host.peer != inside.index:
        return f"interface {pair.host} (the container's veth pair) is gone from the host"
    if host.master != link.index:
        return f"interface {pair.host} is not a port of bridge {bridge}"
    if not host.up or not inside.up:
        return f"interface {pair.ifname} or its peer {pair.host} is down"
    if host.port is not None and host.port.locked is not pair.locked:
        accepted = "its own" if host.port.locked else "any"
        return f"interface {pair.host} accepts frames from {accepted} hardware address"
    if inside.mac != pair.mac:
        return f"interface {pair.ifname} has the MAC {inside.mac} instead of {pair.mac}"
    present = links.addresses(within, inside.index)
    for address in pair.addresses:
        if (inside.index, address) not in present:
            return f"interface {pair.ifname} has lost the address {address}"
    present_routes = {
        (one.destination, one.gateway) for one in routing.routes(within, inside.index)
    }
    for route in pair.routes:
        if (route.destination, route.gateway) not in present_routes:
            via = f" via {route.gateway}" if route.gateway else ""
            return f"the container has lost its route to {route.destination}{via}"
    return ""


def derive_mac(address: IPv4Address) -> str:
    """The container's MAC unless one is requested: it derives from the IPv4 address."""
    return peers.derive_mac("c", address)
