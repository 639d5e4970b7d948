# SPDX-License-Identifier: Apache-2.0
"""Peers of an overlay: the desired kernel entries, and the difference to the present ones.

Pure: no socket, no clock. A peer has three entries (see the package's docstring), two more where
the network has IPv6, and a route for each address of its containers outside its subnet. Each pass
compares all of them with the kernel, restores missing entries and removes stale ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)

from orchestrator.cni.fastrecord import record
from orchestrator.cni.netlink.links import Address, Network
from orchestrator.cni.netlink.routing import RouteEntry


@record
class Peer:
    """A host of the overlay: its subnet, and its address on the underlay.

    `addresses` are those of its containers that are outside its subnet.
    """

    subnet: IPv4Network
    address: Address
    subnet6: IPv6Network | None = None
    addresses: tuple[Address, ...] = ()


@record
class Neighbour:
    """A neighbour entry of the VXLAN device."""

    address: Address
    mac: str


@record
class FdbEntry:
    """An FDB entry of the VXLAN device: frames to `mac` go to the VTEP at `host`."""

    mac: str
    host: Address


Entry = RouteEntry | Neighbour | FdbEntry


@record
class Operations:
    """Entries to remove, then those to add or replace, ordered so that no route lacks its MAC."""

    remove: tuple[Entry, ...]
    put: tuple[Entry, ...]


def derive_mac(role: str, address: IPv4Address) -> str:
    """A locally administered MAC: 02, the role's letter, the IPv4 address."""
    return (b"\x02" + role.encode()[:1] + address.packed).hex(":")


def vtep_address(subnet: IPv4Network) -> IPv4Address:
    """The VTEP's address of a subnet's host: the network address, which no container can have."""
    return subnet.network_address


def vtep_mac(subnet: IPv4Network) -> str:
    """The VTEP's MAC of a subnet's host."""
    return derive_mac("v", vtep_address(subnet))


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The bridge's address on a subnet's host: the first of the subnet."""
    return subnet.network_address + 1


def gateway6(subnet: IPv6Network) -> IPv6Address:
    """The same in IPv6."""
    return subnet.network_address + 1


def twin(
    subnet: IPv4Network,
    cluster: IPv4Network,
    subnet6: IPv6Network,
    cluster6: IPv6Network,
    address: IPv4Address,
) -> IPv6Address:
    """The IPv6 address at the offset that `address` has in the IPv4 network.

    It is at the same offset of the same host's subnet; subnets have one order in both families.
    """
    if address in subnet:
        return subnet6.network_address + (int(address) - int(subnet.network_address))
    size = subnet.num_addresses
    slice_, offset = divmod(int(address) - int(cluster.network_address), size)
    return cluster6.network_address + slice_ * subnet6.num_addresses + offset


def desired(
    me: Peer, peers: Iterable[Peer], source: IPv4Address, held: Collection[Address] = ()
) -> frozenset[Entry]:
    """The entries for all peers except this host, whose own packets have the address `source`.

    An address that a container of this host has (`held`) gets no route to a peer: the peer's data
    is outdated. Raises ValueError, with a message for the user, if subnets of two hosts overlap.
    """
    mine = (me.subnet, me.address)
    others = {peer for peer in peers if (peer.subnet, peer.address) != mine}
    _refuse_overlaps({(each.subnet, each.address) for each in (me, *others)})
    _refuse_overlaps({(each.subnet6, each.address) for each in (me, *others) if each.subnet6})
    entries: set[Entry] = set()
    claimed = set(held)
    for peer in sorted(others, key=lambda peer: (peer.subnet, str(peer.addresses))):
        mac = vtep_mac(peer.subnet)
        entries.add(FdbEntry(mac, peer.address))
        source6 = gateway6(me.subnet6) if me.subnet6 else None
        sources: list[tuple[Network | None, Address | None]] = [(peer.subnet, source)]
        if source6 is not None:
            sources.append((peer.subnet6, source6))
        for network, own in sources:
            if network is None:
                continue
            end = network.network_address
            entries |= {RouteEntry(network, end, own, onlink=True), Neighbour(end, mac)}
            for address in peer.addresses:
                if address.version == network.version and address not in claimed:
                    claimed.add(address)
                    entries.add(RouteEntry(ip_network(address), end, own, onlink=True))
    return frozenset(entries)


def _refuse_overlaps(claims: Collection[tuple[Network, Address]]) -> None:
    previous: tuple[Network, Address] | None = None
    for network, address in sorted(claims, key=_place):
        if previous is not None and int(network[0]) <= int(previous[0][-1]):
            raise ValueError(
                f"{previous[1]} has {previous[0]} and {address} has {network}:"
                " subnets of two hosts must not overlap"
            )
        previous = network, address


def _place(claim: tuple[Network, Address]) -> tuple[int, int, int]:
    network, address = claim
    return int(network[0]), network.prefixlen, int(address)


def _key(entry: Entry) -> tuple[object, ...]:
    """The key by which the kernel replaces an entry."""
    match entry:
        case RouteEntry():
            return ("route", entry.destination, entry.metric)
        case Neighbour():
            return ("neighbour", entry.address)
        case FdbEntry():
            return ("forward", entry.mac)


def _dependency(entry: Entry) -> tuple[int, str]:
    match entry:
        case FdbEntry():
            return 0, entry.mac
        case Neighbour():
            return 1, entry.mac
        case RouteEntry():
            return 2, str(entry.destination)


def diff(wanted: frozenset[Entry], present: frozenset[Entry]) -> Operations:
    """The operations that turn `present` into `wanted`; entries in both stay untouched.

    An entry that a wanted one replaces is not removed first, so its traffic is not interrupted. If
    several have the same key, replacing would leave the others: then all stale ones are removed.
    """
    kept = {_key(entry) for entry in wanted}
    count = Counter(_key(entry) for entry in present)

    def obsolete(entry: Entry) -> bool:
        key = _key(entry)
        return key not in kept or count[key] > 1

    remove = sorted(filter(obsolete, present - wanted), key=_dependency, reverse=True)
    put = sorted(wanted - present, key=_dependency)
    return Operations(tuple(remove), tuple(put))
