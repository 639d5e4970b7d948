# SPDX-License-Identifier: Apache-2.0
"""Ingress: published ports on every node, with the client's own address, and the return path.

The node to which a client connects (the ingress node) translates the destination only, and sends
the packet through the overlay to the selected task's node. There the reply's destination is the
client, to which that node has its own route; the client would not recognise a packet that came that
way. So the reply must return through the ingress node:

    the task's node    marks a connection that begins with a packet from the VXLAN device and a
                       source outside the network with the ingress node's VTEP
    routing            replies of such a connection from the bridge are routed to the VXLAN device
    egress             and sent to the VTEP of the mark, whatever the route's gateway is

A client may connect to two nodes from one port, and both may select the same task: there, the two
connections have the same addresses and ports. So connections from a VTEP are also distinguished by
the node (a conntrack zone, in the direction to the task only). NAT selects another client port
where the first one is in use, as for any two connections that clash.

At egress the destination MAC is rewritten (the netdev family's egress hook, since Linux 5.16) from
a map. Routing rules are evaluated one after the other for each packet: one for each node would slow
down every packet of a large cluster. So there is one per network, and only on a node that has a
task with a published port there: without any rule, the kernel takes a fast path.

The ingress node may be the client itself. A packet from 127.0.0.1 cannot be answered from another
host, so it leaves with the address of the node's VTEP. So does a packet that returns to the node
from which it came, which would not accept its own address as a source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Self

from orchestrator.cni import peers
from orchestrator.cni.balancing.endpointtable import Network, Node, Service
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall.ruleset import INET, NETDEV, Chain, RuleFragment
from orchestrator.cni.netlink import links, policyrouting
from orchestrator.cni.netlink.links import Address
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.netlink.policyrouting import MarkedRoute


@dataclass(frozen=True, slots=True)
class RemoteNodes:
    """The other nodes of a `network` with the VXLAN device `device` (an index) here.

    A network may have a thousand nodes: slow computations are done once.
    """

    network: Network
    device: int
    own_addresses: frozenset[Address]
    nodes: tuple[Node, ...]
    prefixes: frozenset[tuple[int, int, int]]
    """Their subnets: version, prefix length, prefix."""
    lengths: frozenset[tuple[int, int]]
    single_addresses: frozenset[Address]

    @classmethod
    def of(cls, sock: RouteSocket, network: Network, before: Self | None) -> Self | None:
        """The current ones; `before` itself if nothing differs; None without a VXLAN device."""
        link = links.get_link(sock, network.device) if network.device else None
        if link is None:
            return None
        own_addresses = frozenset(address.ip for _, address in links.addresses(sock, link.index))
        known = before is not None and (before.device, before.own_addresses) == (
            link.index,
            own_addresses,
        )
        if before is not None and known and before.network == network:
            return before
        nodes = tuple(
            one for one in network.nodes if peers.vtep_address(one.subnet) not in own_addresses
        )
        prefixes = frozenset(
            (each.version, each.prefixlen, _prefix(each.network_address, each.prefixlen))
            for node in nodes
            for each in (node.subnet, node.subnet6)
            if each is not None
        )
        lengths = frozenset((version, length) for version, length, _ in prefixes)
        single_addresses = frozenset(address for node in nodes for address in node.addresses)
        return cls(network, link.index, own_addresses, nodes, prefixes, lengths, single_addresses)

    def __contains__(self, address: Address) -> bool:
        return address in self.single_addresses or any(
            (version, length, _prefix(address, length)) in self.prefixes
            for version, length in self.lengths
            if version == address.version
        )

    def needs_return_path(self, service: Service) -> bool:
        """Whether another node may forward a published port's connections to a task of this
        node."""
        return bool(service.ports) and any(
            address not in self
            for endpoint in service.endpoints
            for address in (endpoint.address, endpoint.address6)
            if address is not None
        )


def _prefix(address: Address, length: int) -> int:
    return int(address) >> (address.max_prefixlen - length)


OURS, MASK = 0x4F000000, 0xFF000000  # the upper byte identifies our marks

BRIDGES, TUNNELS = f"{INET} bridges", f"{INET} tunnels"
ENTRANCES, ORIGINS = f"{INET} entrances", f"{INET} origins"
THRESHOLDS, ZONES = f"{INET} thresholds", f"{INET} zones"
RETURNS = f"{INET} returns"
TUNNEL_ENDS = f"{NETDEV} tunnel_ends"
MARKED = f"mark & {MASK:#x} == {OURS:#x}"
SYSCTL = Path("/proc/sys/net/ipv4/conf")

BASE = RuleFragment(
    sets={
        BRIDGES: "set {name} {{ type ifname; }}",
        TUNNELS: "set {name} {{ type ifname; }}",
        ENTRANCES: "map {name} {{ type ifname : verdict; }}",
        ORIGINS: "map {name} {{ type ether_addr : mark; }}",
        THRESHOLDS: "map {name} {{ type ifname : verdict; }}",
        ZONES: "map {name} {{ typeof ether saddr : ct zone; }}",
        RETURNS: "set {name} {{ type ipv4_addr . ipv4_addr; flags interval; }}",
        TUNNEL_ENDS: "map {name} {{ type mark : ether_addr; }}",
    },
    chains={
        f"{INET} postrouting": Chain(
            (
                "oifname @tunnels ip saddr 127.0.0.0/8 masquerade",
                "oifname @tunnels ip saddr . ip daddr @returns masquerade",
                "oifname @tunnels ip6 saddr ::1 masquerade",
                "oifname @bridges ip6 saddr ::1 masquerade",
            ),
            "type nat hook postrouting priority srcnat;",
        ),
    },
)

RETURN_PATH = RuleFragment(
    chains={
        f"{INET} threshold": Chain(
            ("iifname vmap @thresholds",), "type filter hook prerouting priority raw;"
        ),
        f"{INET} origin": Chain(
            (
                f"ct {MARKED} iifname @bridges meta mark set ct mark",
                # Most packets belong to established connections.
                "ct state established,related accept",
                "iifname vmap @entrances",
            ),
            "type filter hook prerouting priority mangle;",
        ),
    }
)
"""Additional rules of a node that has tasks with published ports."""


def fragment(network: Network, device_exists: bool, needs_return_path: bool) -> RuleFragment:
    """The rules of one network; pure. A device's chain needs `device_exists`.

    `needs_return_path`: another node may forward connections to a task of this node.
    """
    elements = {BRIDGES: {f'"{network.bridge}"': ""}}
    if not network.device or not device_exists:
        return RuleFragment(elements=elements)
    elements |= {
        TUNNELS: {f'"{network.device}"': ""},
        RETURNS: {
            f"{node.address} . {destination}": ""
            for node in network.nodes
            if node.address is not None
            for destination in (
                node.subnet,
                *(each for each in node.addresses if each.version == 4),
            )
        },
    }
    if not needs_return_path:
        return RuleFragment(elements=elements)
    threshold, entrance = f"threshold/{network.id}", f"entrance/{network.id}"
    outside = [f"ip saddr != {network.cluster}"]
    if network.cluster6 is not None:
        outside.append(f"ip6 saddr != {network.cluster6}")
    marked = (f"ct state new {one} ct mark set ether saddr map @origins" for one in outside)
    zoned = (f"{one} ct original zone set ether saddr map @zones" for one in outside)
    marks = {peers.vtep_mac(node.subnet): f"{_mark(node.subnet):#010x}" for node in network.nodes}
    elements |= {
        THRESHOLDS: {f'"{network.device}"': f"jump {threshold}"},
        ENTRANCES: {f'"{network.device}"': f"jump {entrance}"},
        ZONES: {
            peers.vtep_mac(node.subnet): str(_zone(network, node.subnet)) for node in network.nodes
        },
        ORIGINS: marks,
        TUNNEL_ENDS: {mark: mac for mac, mark in marks.items()},
    }
    chains = {
        f"{INET} {threshold}": Chain(tuple(zoned)),
        f"{INET} {entrance}": Chain(("ip daddr 127.0.0.0/8 drop", *marked)),
        f"{NETDEV} {network.device}": Chain(
            (f"meta {MARKED} ether daddr set meta mark map @tunnel_ends meta mark set 0x0",),
            f'type filter hook egress device "{network.device}" priority 0;',
        ),
    }
    return RuleFragment(chains, elements=elements)


def _mark(subnet: IPv4Network) -> int:
    """The mark of a node: 24 bits of its VTEP's address, so that it never changes."""
    return OURS | int(peers.vtep_address(subnet)) & ~MASK


def _zone(network: Network, subnet: IPv4Network) -> int:
    """The conntrack zone of a node, 16 bits: the index of its subnet, from 1. 0 is the default."""
    offset = int(subnet.network_address) - int(network.cluster.network_address)
    return 1 + (offset // subnet.num_addresses) % 0xFFFF


def ensure(
    sock: RouteSocket, networks: Iterable[RemoteNodes], return_paths: Collection[str]
) -> None:
    """Ensure the routes of the return paths, and the sysctls that they need.

    `return_paths` are the networks (ids) in which a published port of another node may lead to a
    task of this one.
    """
    marked_routes = []
    for remote_nodes in networks:
        network = remote_nodes.network
        if not remote_nodes.nodes:
            continue
        _relax_sysctls(network.device)
        if network.id not in return_paths:
            continue
        # Any node's VTEP: its neighbour entry exists, and the MAC is rewritten.
        via = min(remote_nodes.nodes, key=lambda node: node.subnet)
        gateways: list[Address] = [peers.vtep_address(via.subnet)]
        if via.subnet6 is not None:
            gateways.append(via.subnet6.network_address)
        marked_routes += [
            MarkedRoute(network.bridge, remote_nodes.device, one, OURS, MASK) for one in gateways
        ]
    policyrouting.ensure(sock, marked_routes)


def _relax_sysctls(device: str) -> None:
    """Accept packets with sources outside the device's routes, and packets to 127.0.0.1."""
    strict = _read("all/rp_filter") == "1"
    for name, value in (
        (f"{device}/route_localnet", "1"),
        # The stricter of `all` and the device's counts, and 2 (loose) is more than 1.
        (f"{device}/rp_filter", "2" if strict else "0"),
    ):
        if _read(name) == value:
            continue
        try:
            (SYSCTL / name).write_text(value)
        except OSError as error:
            setting = name.replace("/", ".")
            raise CniError(
                Code.IO_FAILURE,
                f"sysctl net.ipv4.conf.{setting} cannot be set: {error.strerror}",
            ) from error


def _read(name: str) -> str:
    try:
        return (SYSCTL / name).read_text().strip()
    except OSError:
        return ""
