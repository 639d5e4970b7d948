# SPDX-License-Identifier: Apache-2.0
"""The kernel's entries for the other hosts of an overlay: desired, and the difference to present.

Pure: no socket, no clock. A peer is three entries (see the package's docstring), two more where the
network has IPv6, and a route for each address that its containers have outside of its subnet. All
of them are compared with the kernel at each pass, so an entry that was removed comes back, a
stale one is removed, and a lost message loses nothing.
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
    """A host of the overlay: its part of the network, the address that leads to it.

    `addresses` are those of its containers that are not of its part.
    """

    subnet: IPv4Network
    address: Address
    subnet6: IPv6Network | None = None
    addresses: tuple[Address, ...] = ()


@record
class Neighbour:
    """`address`, on the VXLAN device, has `mac`."""

    address: Address
    mac: str


@record
class Forward:
    """`mac`, on the VXLAN device, is behind `host`."""

    mac: str
    host: Address


Entry = RouteEntry | Neighbour | Forward


@record
class Operations:
    """First remove, then put; each in an order that never leaves a route to an unknown MAC."""

    remove: tuple[Entry, ...]
    put: tuple[Entry, ...]


def derived_mac(role: str, address: IPv4Address) -> str:
    """A locally administered MAC that anyone can derive: 02, the role's letter, the address."""
    return (b"\x02" + role.encode()[:1] + address.packed).hex(":")


def vtep_address(subnet: IPv4Network) -> IPv4Address:
    """The tunnel end of a subnet's host: the network address, which no container can have."""
    return subnet.network_address


def vtep_mac(subnet: IPv4Network) -> str:
    """The MAC of the tunnel end of a subnet's host."""
    return derived_mac("v", vtep_address(subnet))


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The bridge's address on a subnet's host: the first one."""
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
    """The IPv6 address at the place that `address` has in the IPv4 network.

    That is the same place in the same host's part; the parts follow each other in both families.
    """
    if address in subnet:
        return subnet6.network_address + (int(address) - int(subnet.network_address))
    size = subnet.num_addresses
    part, place = divmod(int(address) - int(cluster.network_address), size)
    return cluster6.network_address + part * subnet6.num_addresses + place


def desired(
    me: Peer, peers: Iterable[Peer], source: IPv4Address, held: Collection[Address] = ()
) -> frozenset[Entry]:
    """The entries for all peers but myself; packets of this host itself come from `source`.

    An address that is `held` here has no route to another host: such a peer's data is outdated.
    Raises ValueError, with words for the user, if two hosts claim the same or overlapping subnets.
    """
    mine = (me.subnet, me.address)
    others = {peer for peer in peers if (peer.subnet, peer.address) != mine}
    _refuse_overlaps({(each.subnet, each.address) for each in (me, *others)})
    _refuse_overlaps({(each.subnet6, each.address) for each in (me, *others) if each.subnet6})
    entries: set[Entry] = set()
    claimed = set(held)
    for peer in sorted(others, key=lambda peer: (peer.subnet, str(peer.addresses))):
        mac = vtep_mac(peer.subnet)
        entries.add(Forward(mac, peer.address))
        source6 = gateway6(me.subnet6) if me.subnet6 else None
        ways: list[tuple[Network | None, Address | None]] = [(peer.subnet, source)]
        if source6 is not None:
            ways.append((peer.subnet6, source6))
        for network, own in ways:
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
    """What the kernel replaces an entry by."""
    match entry:
        case RouteEntry():
            return ("route", entry.destination, entry.metric)
        case Neighbour():
            return ("neighbour", entry.address)
        case Forward():
            return ("forward", entry.mac)


def _dependency(entry: Entry) -> tuple[int, str]:
    match entry:
        case Forward():
            return 0, entry.mac
        case Neighbour():
            return 1, entry.mac
        case RouteEntry():
            return 2, str(entry.destination)


def diff(wanted: frozenset[Entry], present: frozenset[Entry]) -> Operations:
    """What turns `present` into `wanted`. Entries in both are left alone.

    An entry that a wanted one replaces is not removed first, so its traffic is not interrupted.
    If a second one with the same key was appended, replacing would keep one of them: then all
    stale ones are removed.
    """
    kept = {_key(entry) for entry in wanted}
    count = Counter(_key(entry) for entry in present)

    def obsolete(entry: Entry) -> bool:
        key = _key(entry)
        return key not in kept or count[key] > 1

    remove = sorted(filter(obsolete, present - wanted), key=_dependency, reverse=True)
    put = sorted(wanted - present, key=_dependency)
    return Operations(tuple(remove), tuple(put))
