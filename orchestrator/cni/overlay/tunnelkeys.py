# SPDX-License-Identifier: Apache-2.0
"""Which tunnels this host has to other hosts, their keys, and which tunnel carries packets; pure.

A host has one WireGuard device with a key of its own, and each other host is one peer of it,
whatever the number of encrypted networks. A key's address inside the tunnels derives from the key,
so nothing is allocated, and no host can take the address of another's key.

Rotation makes the new key first. For a while the host then has two devices and answers to both
keys; the other hosts know both, so there are up to four tunnels to a host. Every host receives by
any of them. Packets leave by the newest one with a completed handshake, which proves that both ends
have it: each host decides by itself at each pass. The old key is removed when nothing has come by
its device for `QUIET` seconds, more than `KEEPALIVE`, at which every host that still uses it sends
something; after `LIMIT` seconds in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from orchestrator.cni.firewall.tunnelguard import DEVICES, PORTS, PREFIX
from orchestrator.cni.netlink.wireguard import Device, Endpoint, Peer

KEEPALIVE = 25
"""Seconds of silence after which a tunnel is used for its own sake."""
ALIVE = 190.0
"""Seconds since the last handshake; after 180 WireGuard accepts nothing from a session."""
QUIET = 40.0
"""Seconds of silence after which an old key is not needed any more."""
LIMIT = 600.0
"""Seconds that an old key lives at most beside the new one."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key of this host: its device is the one in `slot`. `made_at` is Unix time; `rotation`
    numbers the order to have a new key that it obeys."""

    slot: int
    public: str
    private: str
    made_at: float
    rotation: int

    @property
    def device(self) -> str:
        """The name of its device."""
        return DEVICES[self.slot]

    @property
    def port(self) -> int:
        """The UDP port of its device."""
        return PORTS[self.slot]


@dataclass(frozen=True, slots=True)
class RemoteKey:
    """A key of another host, and the UDP port that answers to it."""

    public: str
    port: int


@dataclass(frozen=True, slots=True)
class Host:
    """Another host: its address on the underlay, its keys, the oldest first."""

    address: IPv4Address
    keys: tuple[RemoteKey, ...]


Handshakes = Mapping[tuple[int, str], float]
"""(slot of the own device, other's key) → Unix time of the last handshake, where there was one."""


def address_of(public: str) -> IPv6Address:
    """The address inside the tunnels of the host that has this key, for as long as it has it."""
    import hashlib  # with it comes libcrypto: 4 MiB for hosts that have no encrypted network

    digest = hashlib.sha256(public.encode()).digest()
    return PREFIX[int.from_bytes(digest[:12], "big")]


# -- this host's keys ----------------------------------------------------------------------------


def due(keys: Sequence[OwnKey], rotation: int, most_age: float, now: float) -> bool:
    """Whether a new key is to be made: there is none, it was ordered, or the key is of that age in
    seconds (0: no age is too much). Not before the last change of keys is over."""
    if len(keys) != 1:
        return not keys
    (key,) = keys
    return rotation > key.rotation or 0 < most_age <= now - key.made_at


def free_slot(keys: Sequence[OwnKey]) -> int:
    """Where the next key goes."""
    return 1 if keys and keys[-1].slot == 0 else 0


def over(keys: Sequence[OwnKey], quiet: float, now: float) -> bool:
    """Whether the older of two keys can go; nothing came by its device for `quiet` seconds."""
    return len(keys) > 1 and (quiet >= QUIET or now - keys[-1].made_at >= LIMIT)


# -- the tunnels to another host -----------------------------------------------------------------


def used(
    own: Sequence[OwnKey], host: Host, handshakes: Handshakes, now: float
) -> tuple[OwnKey, RemoteKey]:
    """The tunnel by which packets to a host leave; it and we have a key.

    Of those that live the newest, of the others the newest that ever has; before any handshake
    the one that surely both know: with our old key, as the new one may not have reached it, and its
    new key, which it tells only once it answers to that.
    """

    def rank(pair: tuple[int, int]) -> tuple[int, int, int]:
        theirs, ours = pair
        last = handshakes.get((own[ours].slot, host.keys[theirs].public), 0.0)
        if not last:
            return 0, theirs, -ours
        return 2 if now - last < ALIVE else 1, theirs, ours

    theirs, ours = max(_pairs(own, host), key=rank)
    return own[ours], host.keys[theirs]


def _pairs(own: Sequence[OwnKey], host: Host) -> list[tuple[int, int]]:
    """Places of (the host's key, our key), the oldest pair first."""
    return [(theirs, ours) for theirs in range(len(host.keys)) for ours in range(len(own))]


def peers(
    own: Sequence[OwnKey], hosts: Iterable[Host], handshakes: Handshakes, now: float
) -> dict[int, dict[str, Peer]]:
    """Slot → key → the peers that the device there is to have.

    A tunnel that is older than the one in use is kept, but not used for its own sake.
    """
    found: dict[int, dict[str, Peer]] = {key.slot: {} for key in own}
    mine = {key.public for key in own}
    for host in hosts:
        if not host.keys:
            continue
        key, remote = used(own, host, handshakes, now)
        least = host.keys.index(remote), list(own).index(key)
        for theirs, ours in _pairs(own, host):
            other = host.keys[theirs]
            if other.public in mine:
                continue
            found[own[ours].slot][other.public] = Peer(
                public=other.public,
                endpoint=Endpoint(host.address, other.port),
                allowed=address_of(other.public),
                keepalive=KEEPALIVE if (theirs, ours) >= least else 0,
            )
    return found


def ways(
    own: Sequence[OwnKey], hosts: Iterable[Host], handshakes: Handshakes, now: float
) -> dict[str, OwnKey]:
    """Each key of others → the own key by whose device packets to it leave."""
    return {
        key.public: used(own, Host(host.address, (key,)), handshakes, now)[0]
        for host in hosts
        for key in host.keys
    }


def difference(
    wanted: Mapping[str, Peer], device: Device, now: float
) -> tuple[list[Peer], list[str]]:
    """What a device lacks of its peers: those to put, and the keys to drop.

    Where a peer's packets come from, WireGuard learns by itself: while they do, that stands.
    """
    put = []
    present = {session.peer.public: session for session in device.sessions}
    for public, peer in wanted.items():
        session = present.get(public)
        if session is None:
            put.append(peer)
            continue
        learnt = now - session.handshake < ALIVE and session.peer.endpoint is not None
        endpoint = session.peer.endpoint if learnt else peer.endpoint
        meant = Peer(public, endpoint, peer.allowed, peer.keepalive)
        if meant != session.peer:
            put.append(meant)
    return put, sorted(present.keys() - wanted.keys())
