# SPDX-License-Identifier: Apache-2.0
"""WireGuard over generic netlink, typed.

Keys are in base64, 44 characters, as `wg` shows them. A private key is given to the kernel and
never read back; the kernel computes its public key. `devices` creates the devices.

pyroute2 encodes requests. Dumps are decoded here: every tunnel is dumped at every pass, and `wgmsg`
takes up to a millisecond for a peer with all its attributes. That would keep the helper of a host
with 100 tunnels busy for 0.2 s of every 5 s; this takes a tenth of it.
"""

from __future__ import annotations

import base64
import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

from orchestrator.cni.netlink import messages
from orchestrator.cni.netlink.messages import CONTROL, parsed, request
from orchestrator.cni.netlink.netlinksocket import (
    ATTRIBUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    attributes,
)

NETLINK_GENERIC = 16
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
FAMILY, VERSION = "wireguard", 1
GET_DEVICE, SET_DEVICE = 0, 1
REMOVE_ME, REPLACE_ALLOWED_IPS = 1, 2
DEVICE_PUBLIC_KEY, DEVICE_LISTEN_PORT, DEVICE_PEERS = 4, 6, 8
PEER_PUBLIC_KEY, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 4, 5
PEER_LAST_HANDSHAKE, PEER_RX_BYTES, PEER_TX_BYTES, PEER_ALLOWED_IPS = 6, 7, 8, 9
ALLOWED_ADDRESS, ALLOWED_MASK = 2, 3
GENERIC_HEADER = 4  # bytes: command, version, reserved

OVERHEAD = 60  # bytes: outer IPv4 20, UDP 8, WireGuard's header and authenticator 32
BATCH = 64  # peers in one message, whose attribute of peers may have 64 KiB
Attributes = list[tuple[str, Any]]  # by their names in pyroute2


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The destination of a peer's UDP packets."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer of a device.

    `allowed` is its only allowed IP, `keepalive` in seconds (0: off).
    """

    public: str
    endpoint: Endpoint | None
    allowed: IPv6Address | None
    keepalive: int


@dataclass(frozen=True, slots=True)
class Session:
    """A peer's session: `handshake` is the time of the last one (Unix seconds; 0: none yet),
    `received` and `sent` are bytes."""

    peer: Peer
    handshake: float
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the kernel reports it."""

    public: str
    port: int
    sessions: tuple[Session, ...]


class WireGuard:
    """WireGuard in the network namespace of the process. Raises NetlinkError."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_GENERIC)
        self._family = self._find()

    def _find(self) -> int | None:
        """The id of the generic netlink family; None without WireGuard.

        The query makes the kernel load the module, where it can.
        """
        fields = {"cmd": CTRL_CMD_GETFAMILY, "version": 1}
        ask = request(CONTROL, GENL_ID_CTRL, fields, [("CTRL_ATTR_FAMILY_NAME", FAMILY)])
        try:
            answer = parsed(CONTROL, self._socket.get(ask))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return int(answer.get_attr("CTRL_ATTR_FAMILY_ID"))

    @property
    def present(self) -> bool:
        """Whether this kernel has WireGuard."""
        return self._family is not None

    def device(self, name: str) -> Device | None:
        """The device of that name, with its peers, or None."""
        try:
            answers = self._socket.dump(self._request(GET_DEVICE, name))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return device_of(answers)

    def set_key(self, name: str, private: bytes, port: int) -> None:
        """Give a device its private key (32 bytes) and UDP port."""
        self._set(name, key_attributes(private, port))

    def put(self, name: str, peers: Iterable[Peer]) -> None:
        """Add or change peers of a device. `endpoint` None leaves a peer's endpoint unchanged."""
        self._set_peers(name, [peer_attributes(each) for each in peers])

    def drop(self, name: str, publics: Iterable[str]) -> None:
        """Remove peers from a device; missing ones are ignored."""
        self._set_peers(name, [removed_peer_attributes(public) for public in publics])

    def _set_peers(self, name: str, peers: list[Attributes]) -> None:
        for start in range(0, len(peers), BATCH):
            self._set(name, peers_attributes(peers[start : start + BATCH]))

    def _set(self, name: str, attributes: Attributes) -> None:
        self._socket.execute(self._request(SET_DEVICE, name, attributes))

    def _request(self, command: int, name: str, attributes: Attributes | None = None) -> Request:
        if self._family is None:
            raise NetlinkError(errno.EOPNOTSUPP, "this kernel has no WireGuard")
        return device_request(self._family, command, name, attributes or [])


def device_request(family: int, command: int, name: str, attributes: Attributes) -> Request:
    """A request about a device, to the generic netlink family with that id."""
    fields = {"cmd": command, "version": VERSION}
    return request(messages.wireguard(), family, fields, [("WGDEVICE_A_IFNAME", name), *attributes])


def decode_key(key: str) -> bytes:
    """The 32 bytes of a base64 key; raises ValueError."""
    try:
        found = base64.b64decode(key, validate=True)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ValueError(f"{key!r} is not a WireGuard key")
    return found


def encode_key(key: bytes) -> str:
    """A key in base64."""
    return base64.b64encode(key).decode()


def key_attributes(private: bytes, port: int) -> Attributes:
    """The attributes of a device's private key (32 bytes) and UDP port."""
    key = ("WGDEVICE_A_PRIVATE_KEY", encode_key(private))
    return [key, ("WGDEVICE_A_LISTEN_PORT", port)]


def peers_attributes(peers: Iterable[Attributes]) -> Attributes:
    """A device's attribute of peers; those that are not in it stay as they are."""
    return [("WGDEVICE_A_PEERS", [{"attrs": each} for each in peers])]


def removed_peer_attributes(public: str) -> Attributes:
    """The attributes that remove a peer."""
    return [("WGPEER_A_PUBLIC_KEY", public), ("WGPEER_A_FLAGS", REMOVE_ME)]


def peer_attributes(peer: Peer) -> Attributes:
    """The attributes of a peer in a request; allowed IPs replace the present ones."""
    found: Attributes = [
        ("WGPEER_A_PUBLIC_KEY", peer.public),
        ("WGPEER_A_FLAGS", REPLACE_ALLOWED_IPS),
        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive),
    ]
    if peer.endpoint is not None:
        place = {"addr": str(peer.endpoint.address), "port": peer.endpoint.port}
        found.append(("WGPEER_A_ENDPOINT", place))
    if peer.allowed is not None:
        allowed = [
            ("WGALLOWEDIP_A_FAMILY", socket.AF_INET6),
            ("WGALLOWEDIP_A_IPADDR", peer.allowed.packed),
            ("WGALLOWEDIP_A_CIDR_MASK", 128),
        ]
        found.append(("WGPEER_A_ALLOWEDIPS", [{"attrs": allowed}]))
    return found


def device_of(answers: Iterable[bytes]) -> Device:
    """Decode a device from the messages of its dump, over which its peers are spread."""
    public, port, sessions = "", 0, dict[str, Session]()
    for answer in answers:
        found = attributes(answer, GENERIC_HEADER)
        public = encode_key(found[DEVICE_PUBLIC_KEY]) if DEVICE_PUBLIC_KEY in found else public
        port = _number(found[DEVICE_LISTEN_PORT]) if DEVICE_LISTEN_PORT in found else port
        for item in _items(found.get(DEVICE_PEERS, b"")):
            session = _session(item)
            # The next message may continue the allowed IPs of the last peer.
            sessions.setdefault(session.peer.public, session)
    return Device(public, port, tuple(sessions.values()))


def _session(item: bytes) -> Session:
    found = attributes(item)
    seconds, nanoseconds = struct.unpack("=qq", found.get(PEER_LAST_HANDSHAKE, bytes(16)))
    peer = Peer(
        public=encode_key(found[PEER_PUBLIC_KEY]),
        endpoint=_endpoint(found.get(PEER_ENDPOINT, b"")),
        allowed=_allowed(found.get(PEER_ALLOWED_IPS, b"")),
        keepalive=_number(found.get(PEER_KEEPALIVE, b"")),
    )
    return Session(
        peer=peer,
        handshake=seconds + nanoseconds / 1e9,
        received=_number(found.get(PEER_RX_BYTES, b"")),
        sent=_number(found.get(PEER_TX_BYTES, b"")),
    )


def _endpoint(place: bytes) -> Endpoint | None:
    if len(place) < 8 or struct.unpack_from("=H", place)[0] != socket.AF_INET:
        return None
    return Endpoint(IPv4Address(place[4:8]), int.from_bytes(place[2:4], "big"))


def _allowed(data: bytes) -> IPv6Address | None:
    """The allowed IP if it is exactly one address; else None."""
    networks = [_network(attributes(item)) for item in _items(data)]
    if len(networks) != 1 or networks[0] is None or networks[0].prefixlen != 128:
        return None
    return networks[0].network_address


def _network(found: dict[int, bytes]) -> IPv6Network | None:
    address = found.get(ALLOWED_ADDRESS, b"")
    return IPv6Network((address, found[ALLOWED_MASK][0])) if len(address) == 16 else None


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _items(data: bytes) -> Iterator[bytes]:
    """The elements of a nested array, whose attributes all have the same type."""
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, _ = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            return
        yield data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
