"""WireGuard over generic netlink, typed (include/uapi/linux/wireguard.h).

Keys are the 44 characters of base64 that `wg` shows. A private key goes into the kernel and is
never read back; the public key that belongs to it is the kernel's answer, so nothing here computes
on curves. `links` makes the links.
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

from orchestrator.cni.netlink.netlinksocket import (
    ATTRIBUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
    text,
    u32,
)

NETLINK_GENERIC = 16
HEAD = struct.Struct("=BBH")  # genlmsghdr: command, version, reserved
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 3, 1, 2


class GenericSocket(NetlinkSocket):
    """A socket for the families of generic netlink."""

    def __init__(self) -> None:
        super().__init__(NETLINK_GENERIC)

    def family(self, name: str) -> int | None:
        """The number of a family; None if the kernel has none of this name.

        The kernel loads the module that has it, where it can.
        """
        body = HEAD.pack(CTRL_CMD_GETFAMILY, 1, 0) + text(CTRL_ATTR_FAMILY_NAME, name)
        try:
            answer = self.get(Request(GENL_ID_CTRL, body))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return int.from_bytes(attributes(answer, HEAD.size)[CTRL_ATTR_FAMILY_ID], sys.byteorder)


FAMILY, VERSION = "wireguard", 1
GET_DEVICE, SET_DEVICE = 0, 1
DEVICE_IFNAME, DEVICE_PRIVATE_KEY, DEVICE_PUBLIC_KEY = 2, 3, 4
DEVICE_LISTEN_PORT, DEVICE_PEERS = 6, 8
PEER_PUBLIC_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 3, 4, 5
PEER_LAST_HANDSHAKE, PEER_RX_BYTES, PEER_TX_BYTES, PEER_ALLOWED_IPS = 6, 7, 8, 9
REMOVE_ME, REPLACE_ALLOWED_IPS = 1, 2
ALLOWED_FAMILY, ALLOWED_ADDRESS, ALLOWED_MASK = 1, 2, 3
NESTED = 0x8000

OVERHEAD = 60  # bytes: outer IPv4 20, UDP 8, WireGuard's header and authenticator 32
BATCH = 64  # peers in one message, whose attribute of peers may have 64 KiB


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer's UDP packets go."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer of a device.

    `allowed` is the one address that packets from it may have, `keepalive` in seconds (0: none).
    """

    public: str
    endpoint: Endpoint | None
    allowed: IPv6Address | None
    keepalive: int


@dataclass(frozen=True, slots=True)
class Session:
    """What the kernel tells of a peer: `handshake` is the time of the last one (Unix seconds; 0:
    none yet), `received` and `sent` are bytes."""

    peer: Peer
    handshake: float
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the kernel has it."""

    public: str
    port: int
    sessions: tuple[Session, ...]


class WireGuard:
    """The kernel's WireGuard, in the network namespace of the process. Raises NetlinkError."""

    def __init__(self) -> None:
        self._socket = GenericSocket()
        self._family = self._socket.family(FAMILY)

    @property
    def present(self) -> bool:
        """Whether this kernel has it."""
        return self._family is not None

    def device(self, name: str) -> Device | None:
        """The device of that name, with its peers; None if there is none."""
        body = HEAD.pack(GET_DEVICE, VERSION, 0) + text(DEVICE_IFNAME, name)
        try:
            answers = self._socket.dump(Request(self._number(), body))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return device_of(answers)

    def set_key(self, name: str, private: bytes, port: int) -> None:
        """Give a device its private key (32 bytes) and UDP port."""
        self._set(
            name,
            attribute(DEVICE_PRIVATE_KEY, private)
            + attribute(DEVICE_LISTEN_PORT, port.to_bytes(2, sys.byteorder)),
        )

    def put(self, name: str, peers: Iterable[Peer]) -> None:
        """Add peers to a device, or change those that it has. A peer's `endpoint` None leaves that
        as it is."""
        self._set_peers(name, [_peer(each) for each in peers])

    def drop(self, name: str, publics: Iterable[str]) -> None:
        """Remove peers from a device; what it has not is fine."""
        gone = u32(PEER_FLAGS, REMOVE_ME)
        self._set_peers(name, [attribute(PEER_PUBLIC_KEY, raw(key)) + gone for key in publics])

    def _set_peers(self, name: str, peers: list[bytes]) -> None:
        for start in range(0, len(peers), BATCH):
            items = b"".join(attribute(NESTED, each) for each in peers[start : start + BATCH])
            self._set(name, attribute(DEVICE_PEERS | NESTED, items))

    def _set(self, name: str, what: bytes) -> None:
        body = HEAD.pack(SET_DEVICE, VERSION, 0) + text(DEVICE_IFNAME, name) + what
        self._socket.execute(Request(self._number(), body))

    def _number(self) -> int:
        if self._family is None:
            raise NetlinkError(errno.EOPNOTSUPP, "this kernel has no WireGuard")
        return self._family


def raw(key: str) -> bytes:
    """The 32 bytes of a key; raises ValueError if it is none."""
    try:
        found = base64.b64decode(key, validate=True)
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ValueError(f"{key!r} is no WireGuard key")
    return found


def shown(key: bytes) -> str:
    """A key as people see it."""
    return base64.b64encode(key).decode()


def _peer(peer: Peer) -> bytes:
    body = attribute(PEER_PUBLIC_KEY, raw(peer.public))
    body += u32(PEER_FLAGS, REPLACE_ALLOWED_IPS)
    body += attribute(PEER_KEEPALIVE, peer.keepalive.to_bytes(2, sys.byteorder))
    if peer.endpoint is not None:
        port, address = peer.endpoint.port, peer.endpoint.address
        place = struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + address.packed
        body += attribute(PEER_ENDPOINT, place + bytes(8))
    if peer.allowed is not None:
        allowed = (
            attribute(ALLOWED_FAMILY, socket.AF_INET6.to_bytes(2, sys.byteorder))
            + attribute(ALLOWED_ADDRESS, peer.allowed.packed)
            + attribute(ALLOWED_MASK, bytes([128]))
        )
        body += attribute(PEER_ALLOWED_IPS | NESTED, attribute(NESTED, allowed))
    return body


def device_of(answers: Iterable[bytes]) -> Device:
    """A device from the messages of its dump, over which its peers are spread."""
    public, port, sessions = "", 0, dict[str, Session]()
    for answer in answers:
        found = attributes(answer, HEAD.size)
        public = shown(found[DEVICE_PUBLIC_KEY]) if DEVICE_PUBLIC_KEY in found else public
        port = _number(found[DEVICE_LISTEN_PORT]) if DEVICE_LISTEN_PORT in found else port
        for item in _items(found.get(DEVICE_PEERS, b"")):
            session = _session(item)
            # The next message may go on with the addresses of the peer that was cut off.
            sessions.setdefault(session.peer.public, session)
    return Device(public, port, tuple(sessions.values()))


def _session(item: bytes) -> Session:
    found = attributes(item)
    seconds, nanoseconds = struct.unpack("=qq", found.get(PEER_LAST_HANDSHAKE, bytes(16)))
    peer = Peer(
        public=shown(found[PEER_PUBLIC_KEY]),
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
    """The one address that is allowed; None if there is another number of them, or a network."""
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
