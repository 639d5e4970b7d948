# SPDX-License-Identifier: Apache-2.0
"""Ingress: published ports on every node, with the client's own address, and the return path.

The node that a client connects to (the ingress node) translates the destination only, and sends the
packet through the tunnel to the chosen task's node. There the reply's destination is the client, to
which that node has a route of its own; the client would not recognise a packet that came that way.
So the reply must return through the ingress node:

    the task's node    a connection that begins with a packet from the tunnel and a source outside
                       the network is marked with the ingress node's tunnel end
    then               packets of such a connection from the bridge are routed into the tunnel
    and there          leave for the tunnel end that the mark names, whatever the route's was

A client may connect to two nodes from one port, and both may choose the same task: there, the two
connections have the same addresses and ports. So connections that begin in a node's tunnel end are
also told apart by that node (a conntrack zone, of the direction to the task only). The translation
takes another client port where the first is in use, as for any two that clash.

The last step is a rewritten MAC address (the netdev family's egress hook, since Linux 5.16), looked
up in a map. Every packet walks the routing rules one after the other: one rule for each node would
make each packet of a large cluster slower. So there is one per network, and only on a node that has
a task with a published port there: without any, the kernel takes a short cut for every packet.

The ingress node may be the client itself. A packet from 127.0.0.1 cannot be answered over a wire,
so it leaves with the address of the node's tunnel end. So does one that returns to the node that it
came from, which would not accept its own address as a source.
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
from orchestrator.cni.firewall.ruleset import INET, NETDEV, Chain, Part
from orchestrator.cni.netlink import links, policyrouting
from orchestrator.cni.netlink.links import Address
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.netlink.policyrouting import Way


@dataclass(frozen=True, slots=True)
class RemoteNodes:
    """The other nodes of a `network` that has the tunnel end `device` (an index) here.

    A network may have a thousand nodes: what it takes long to find is found once.
    """

    network: Network
    device: int
    mine: frozenset[Address]
    nodes: tuple[Node, ...]
    parts: frozenset[tuple[int, int, int]]
    """Of their subnets: version, length of the prefix, prefix."""
    lengths: frozenset[tuple[int, int]]
    alone: frozenset[Address]

    @classmethod
    def of(cls, sock: RouteSocket, network: Network, before: Self | None) -> Self | None:
        """Those of a network, now; `before` again if nothing differs. None without a tunnel end."""
        link = links.get_link(sock, network.device) if network.device else None
        if link is None:
            return None
        mine = frozenset(address.ip for _, address in links.addresses(sock, link.index))
        known = before is not None and (before.device, before.mine) == (link.index, mine)
        if before is not None and known and before.network == network:
            return before
        nodes = tuple(one for one in network.nodes if peers.vtep_address(one.subnet) not in mine)
        parts = frozenset(
            (part.version, part.prefixlen, _prefix(part.network_address, part.prefixlen))
            for node in nodes
            for part in (node.subnet, node.subnet6)
            if part is not None
        )
        lengths = frozenset((version, length) for version, length, _ in parts)
        alone = frozenset(address for node in nodes for address in node.addresses)
        return cls(network, link.index, mine, nodes, parts, lengths, alone)

    def __contains__(self, address: Address) -> bool:
        return address in self.alone or any(
            (version, length, _prefix(address, length)) in self.parts
            for version, length in self.lengths
            if version == address.version
        )

    def answers(self, service: Service) -> bool:
        """Whether a published port of another node may lead to a task of this one."""
        return bool(service.ports) and any(
            address not in self
            for endpoint in service.endpoints
            for address in (endpoint.address, endpoint.address6)
            if address is not None
        )


def _prefix(address: Address, length: int) -> int:
    return int(address) >> (address.max_prefixlen - length)


OURS, MASK = 0x4F000000, 0xFF000000  # of a mark: the upper byte says that it is ours

BRIDGES, TUNNELS = f"{INET} bridges", f"{INET} tunnels"
ENTRANCES, ORIGINS = f"{INET} entrances", f"{INET} origins"
THRESHOLDS, ZONES = f"{INET} thresholds", f"{INET} zones"
RETURNS = f"{INET} returns"
TUNNEL_ENDS = f"{NETDEV} tunnel_ends"
MARKED = f"mark & {MASK:#x} == {OURS:#x}"
SYSCTL = Path("/proc/sys/net/ipv4/conf")

BASE = Part(
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

ANSWERS = Part(
    chains={
        f"{INET} threshold": Chain(
            ("iifname vmap @thresholds",), "type filter hook prerouting priority raw;"
        ),
        f"{INET} origin": Chain(
            (
                f"ct {MARKED} iifname @bridges meta mark set ct mark",
                # Most packets are of a connection whose first one went on.
                "ct state established,related accept",
                "iifname vmap @entrances",
            ),
            "type filter hook prerouting priority mangle;",
        ),
    }
)
"""What a node needs besides that has tasks with published ports."""


def part(network: Network, device_exists: bool, answers: bool) -> Part:
    """The rules of one network; pure. A chain of a device's can only be where the device is.

    `answers`: a published port of another node may lead to a task of this one.
    """
    elements = {BRIDGES: {f'"{network.bridge}"': ""}}
    if not network.device or not device_exists:
        return Part(elements=elements)
    elements |= {
        TUNNELS: {f'"{network.device}"': ""},
        RETURNS: {
            f"{node.address} . {part}": ""
            for node in network.nodes
            if node.address is not None
            for part in (node.subnet, *(each for each in node.addresses if each.version == 4))
        },
    }
    if not answers:
        return Part(elements=elements)
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
    return Part(chains, elements=elements)


def _mark(subnet: IPv4Network) -> int:
    """The mark of a node: 24 bits of its tunnel end's address, so that it never changes."""
    return OURS | int(peers.vtep_address(subnet)) & ~MASK


def _zone(network: Network, subnet: IPv4Network) -> int:
    """A node's, of 16 bits: which of the network's slices it has. 0 is the kernel's own."""
    offset = int(subnet.network_address) - int(network.cluster.network_address)
    return 1 + (offset // subnet.num_addresses) % 0xFFFF


def ensure(sock: RouteSocket, networks: Iterable[RemoteNodes], answering: Collection[str]) -> None:
    """Have the routes of the ways back, and what the kernel must let pass for them.

    `answering` are the networks (ids) in which a published port of another node may lead to a task
    of this one.
    """
    ways = []
    for abroad in networks:
        network = abroad.network
        if not abroad.nodes:
            continue
        _let_pass(network.device)
        if network.id not in answering:
            continue
        # Any node's tunnel end: the device takes it for resolved, and its MAC is rewritten.
        via = min(abroad.nodes, key=lambda node: node.subnet)
        gateways: list[Address] = [peers.vtep_address(via.subnet)]
        if via.subnet6 is not None:
            gateways.append(via.subnet6.network_address)
        ways += [Way(network.bridge, abroad.device, one, OURS, MASK) for one in gateways]
    policyrouting.ensure(sock, ways)


def _let_pass(device: str) -> None:
    """Take packets whose source is elsewhere by our own routes, and such as are for 127.0.0.1."""
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
