# SPDX-License-Identifier: Apache-2.0
"""WireGuard keys of hosts, their rotation, and the choice of a tunnel to each host; pure.

A host has one WireGuard device with a key, and each other host is one peer of it, whatever the
number of encrypted networks. A key's address inside the tunnels derives from the key, so addresses
need no allocation, and no host can take the address of another's key.

Rotation creates the new key first. For a while the host has two devices, one for each key; the
other hosts know both, so there are up to four tunnels to a host. Every host receives on all of
them. Packets leave on the newest one with a completed handshake, which proves that both ends have
it; each host decides at each pass. The old key is removed when nothing was received on its device
for `QUIET` seconds, which is more than `KEEPALIVE`, the interval at which hosts that still use it
send; and after `LIMIT` seconds in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from orchestrator.cni.firewall.tunnelguard import DEVICES, PORTS, PREFIX
from orchestrator.cni.netlink.wireguard import Device, Endpoint, Peer

KEEPALIVE = 25
"""Interval of WireGuard's persistent keepalive, in seconds."""
ALIVE = 190.0
"""Seconds since the last handshake; after 180 WireGuard rejects a session's packets."""
QUIET = 40.0
"""Seconds without received packets after which an old key is removed."""
LIMIT = 600.0
"""Seconds after which an old key is removed in any case."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A key of this host, on the device of `slot`. `made_at` is Unix time; `rotation` is the number
    of the rotation order that created it."""

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
    """A key of another host, and the UDP port of its device."""

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
    """The address inside the tunnels of the host that has this key."""
    import hashlib  # loads libcrypto, 4 MiB, which hosts without encrypted networks do not need

    digest = hashlib.sha256(public.encode()).digest()
    return PREFIX[int.from_bytes(digest[:12], "big")]


# -- this host's keys ----------------------------------------------------------------------------


def rotation_due(keys: Sequence[OwnKey], rotation: int, max_age: float, now: float) -> bool:
    """Whether to create a new key: there is none, a rotation was ordered, or the key has reached
    `max_age` seconds (0: no limit). Not while a rotation is in progress."""
    if len(keys) != 1:
        return not keys
    (key,) = keys
    return rotation > key.rotation or 0 < max_age <= now - key.made_at


def free_slot(keys: Sequence[OwnKey]) -> int:
    """The slot of the next key."""
    return 1 if keys and keys[-1].slot == 0 else 0


def can_retire(keys: Sequence[OwnKey], quiet: float, now: float) -> bool:
    """Whether the older of two keys can be removed, after `quiet` seconds without packets."""
    return len(keys) > 1 and (quiet >= QUIET or now - keys[-1].made_at >= LIMIT)


# -- the tunnels to another host -----------------------------------------------------------------


def active_tunnel(
    own: Sequence[OwnKey], host: Host, handshakes: Handshakes, now: float
) -> tuple[OwnKey, RemoteKey]:
    """The tunnel for packets to a host; both hosts have a key.

    It is the newest live one, else the newest that ever was live. Before any handshake it is the
    one that both hosts know: with our old key, as the new one may not have reached the other host,
    and with that host's new key, which it announces only once its device exists.
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
    """Indexes of (the host's key, our key), the oldest pair first."""
    return [(theirs, ours) for theirs in range(len(host.keys)) for ours in range(len(own))]


def peers(
    own: Sequence[OwnKey], hosts: Iterable[Host], handshakes: Handshakes, now: float
) -> dict[int, dict[str, Peer]]:
    """Slot → key → the desired peers of its device.

    A tunnel that is older than the active one is kept, without keepalive.
    """
    found: dict[int, dict[str, Peer]] = {key.slot: {} for key in own}
    mine = {key.public for key in own}
    for host in hosts:
        if not host.keys:
            continue
        key, remote = active_tunnel(own, host, handshakes, now)
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


def egress_keys(
    own: Sequence[OwnKey], hosts: Iterable[Host], handshakes: Handshakes, now: float
) -> dict[str, OwnKey]:
    """Each key of another host → the own key on whose device packets to it leave."""
    return {
        key.public: active_tunnel(own, Host(host.address, (key,)), handshakes, now)[0]
        for host in hosts
        for key in host.keys
    }


def difference(
    wanted: Mapping[str, Peer], device: Device, now: float
) -> tuple[list[Peer], list[str]]:
    """The changes to a device's peers: peers to add or change, and keys to remove.

    WireGuard learns a peer's endpoint from its packets: a learned one stays while it is live.
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
