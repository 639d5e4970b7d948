"""What the kernel must hold about the other hosts of an overlay, and how far it is from that.

Pure: no socket, no clock. A peer is three entries (see the package's docstring). All of them are
compared with what the kernel has on our own device at each pass, so an entry that somebody removed
comes back, one that nobody wants goes, and a lost message loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from .routing import RouteEntry


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A host of the overlay: the subnet that it owns, its address on the underlay."""

    subnet: IPv4Network
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`address`, on the VXLAN device, has `mac`."""

    address: IPv4Address
    mac: str


@dataclass(frozen=True, slots=True)
class Forward:
    """`mac`, on the VXLAN device, is behind `host`."""

    mac: str
    host: IPv4Address


Entry = RouteEntry | Neighbour | Forward


@dataclass(frozen=True, slots=True)
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


def desired(me: Peer, peers: Iterable[Peer]) -> frozenset[Entry]:
    """The entries for all peers but myself.

    Raises ValueError, with words for the user, if two hosts claim the same or overlapping subnets.
    """
    others = sorted({peer for peer in peers if peer != me})
    previous = None
    for claim in sorted([me, *others]):
        if previous is not None and previous.subnet.overlaps(claim.subnet):
            raise ValueError(
                f"{previous.address} has {previous.subnet} and {claim.address} has {claim.subnet}:"
                " subnets of two hosts must not overlap"
            )
        previous = claim
    entries: list[Entry] = []
    for peer in others:
        vtep, mac = vtep_address(peer.subnet), vtep_mac(peer.subnet)
        entries += [
            RouteEntry(peer.subnet, vtep, gateway(me.subnet), onlink=True),
            Neighbour(vtep, mac),
            Forward(mac, peer.address),
        ]
    return frozenset(entries)


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
    Where a hand has appended a second one with the same key, replacing would keep one of them: then
    all that are unwanted are removed.
    """
    kept = {_key(entry) for entry in wanted}
    count = Counter(_key(entry) for entry in present)

    def obsolete(entry: Entry) -> bool:
        key = _key(entry)
        return key not in kept or count[key] > 1

    remove = sorted(filter(obsolete, present - wanted), key=_dependency, reverse=True)
    put = sorted(wanted - present, key=_dependency)
    return Operations(tuple(remove), tuple(put))
