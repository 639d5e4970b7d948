# SPDX-License-Identifier: Apache-2.0
"""WireGuard's messages, byte by byte, by the kernel's include/uapi/linux/wireguard.h."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv6Address

import pytest

from orchestrator.cni.netlink import wireguard
from orchestrator.cni.netlink.wireguard import Device, Endpoint, Peer, Session

FAMILY, NAME = 0x1D, "orcwg0"
PRIVATE, PUBLIC, OTHER = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
NESTED = 0x8000  # NLA_F_NESTED
IFNAME, PRIVATE_KEY, PUBLIC_KEY, LISTEN_PORT, PEERS = 2, 3, 4, 6, 8  # enum wgdevice_attribute
(
    PEER_PUBLIC_KEY,
    PEER_FLAGS,
    PEER_ENDPOINT,
    PEER_KEEPALIVE,
    PEER_LAST_HANDSHAKE,
    PEER_RX_BYTES,
    PEER_TX_BYTES,
    PEER_ALLOWEDIPS,
) = (1, 3, 4, 5, 6, 7, 8, 9)  # enum wgpeer_attribute
ALLOWED_FAMILY, ALLOWED_IPADDR, ALLOWED_MASK = 1, 2, 3  # enum wgallowedip_attribute
REMOVE_ME, REPLACE_ALLOWEDIPS = 1, 2  # enum wgpeer_flag
AF_INET, AF_INET6 = 2, 10
ENDPOINT = Endpoint(IPv4Address("192.0.2.12"), 51840)
ALLOWED = IPv6Address("fd6f:7263::1")
PEER = Peer(wireguard.encode_key(PUBLIC), ENDPOINT, ALLOWED, 25)
# struct sockaddr_in: the family in host order, port and address in network order.
SOCKADDR = struct.pack("=H", AF_INET) + bytes.fromhex("ca80 c000020c") + bytes(8)


def attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)


def kinds(data: bytes) -> dict[int, tuple[bool, bytes]]:
    """Attributes by type: whether they are flagged as nested, and the payload."""
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = bool(kind & NESTED), data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def set_device(attributes: wireguard.Attributes) -> bytes:
    """The attributes of a request to set a device, after the checked head."""
    request = wireguard.device_request(FAMILY, wireguard.SET_DEVICE, NAME, attributes)
    head = bytes([1, 1, 0, 0]) + attribute(IFNAME, NAME.encode() + b"\0")  # struct genlmsghdr
    assert request.kind == FAMILY
    assert request.body[: len(head)] == head
    return request.body[len(head) :]


def peer_of(attributes: wireguard.Attributes) -> bytes:
    """The attributes of the one peer of a request, whose arrays are nested."""
    ((number_, (nested, peers)),) = kinds(
        set_device(wireguard.peers_attributes([attributes]))
    ).items()
    assert (number_, nested) == (PEERS, True)
    ((_, (nested, peer)),) = kinds(peers).items()
    assert nested
    return peer


def test_a_device_is_queried_by_name() -> None:
    request = wireguard.device_request(FAMILY, wireguard.GET_DEVICE, NAME, [])
    assert request.body == bytes([0, 1, 0, 0]) + attribute(IFNAME, NAME.encode() + b"\0")


def test_a_private_key_and_a_port() -> None:
    assert set_device(wireguard.key_attributes(PRIVATE, 51841)) == (
        attribute(PRIVATE_KEY, PRIVATE) + attribute(LISTEN_PORT, number(51841, 2))
    )


def test_a_peer_replaces_its_allowed_ips() -> None:
    found = kinds(peer_of(wireguard.peer_attributes(PEER)))
    nested, allowed_ips = found.pop(PEER_ALLOWEDIPS)
    assert nested
    assert found == {
        PEER_PUBLIC_KEY: (False, PUBLIC),
        PEER_FLAGS: (False, number(REPLACE_ALLOWEDIPS, 4)),
        PEER_KEEPALIVE: (False, number(25, 2)),
        PEER_ENDPOINT: (False, SOCKADDR),
    }
    ((_, (nested, allowed)),) = kinds(allowed_ips).items()
    assert nested
    assert kinds(allowed) == {
        ALLOWED_FAMILY: (False, number(AF_INET6, 2)),
        ALLOWED_IPADDR: (False, ALLOWED.packed),
        ALLOWED_MASK: (False, b"\x80"),
    }


@pytest.mark.parametrize("part", ["endpoint", "allowed"])
def test_absent_parts_of_a_peer_are_not_sent(part: str) -> None:
    without = Peer(
        PEER.public,
        None if part == "endpoint" else ENDPOINT,
        None if part == "allowed" else ALLOWED,
        0,
    )
    found = kinds(peer_of(wireguard.peer_attributes(without)))
    assert (PEER_ENDPOINT in found, PEER_ALLOWEDIPS in found) == (
        part != "endpoint",
        part != "allowed",
    )
    assert found[PEER_KEEPALIVE] == (False, number(0, 2))  # switches the keepalive off


def test_a_removed_peer() -> None:
    assert peer_of(wireguard.removed_peer_attributes(PEER.public)) == (
        attribute(PEER_PUBLIC_KEY, PUBLIC) + attribute(PEER_FLAGS, number(REMOVE_ME, 4))
    )


def test_other_peers_of_a_device_stay() -> None:
    """WGDEVICE_A_FLAGS would have WGDEVICE_F_REPLACE_PEERS."""
    found = kinds(set_device(wireguard.peers_attributes([wireguard.peer_attributes(PEER)])))
    assert list(found) == [PEERS]


def test_a_dump_is_read() -> None:
    """As the kernel sends it: peers over several messages, the device's attributes in the first."""
    allowed = attribute(
        NESTED,
        attribute(ALLOWED_FAMILY, number(AF_INET6, 2))
        + attribute(ALLOWED_IPADDR, ALLOWED.packed)
        + attribute(ALLOWED_MASK, b"\x80"),
    )
    peer = (
        attribute(PEER_PUBLIC_KEY, PUBLIC)
        + attribute(PEER_ENDPOINT, SOCKADDR)
        + attribute(PEER_KEEPALIVE, number(25, 2))
        + attribute(PEER_LAST_HANDSHAKE, struct.pack("=qq", 1_700_000_000, 500_000_000))
        + attribute(PEER_RX_BYTES, number(5 << 32, 8))
        + attribute(PEER_TX_BYTES, number(7, 8))
        + attribute(NESTED | PEER_ALLOWEDIPS, allowed)
    )
    head = bytes([0, 1, 0, 0])
    first = (
        head
        + attribute(PUBLIC_KEY, OTHER)
        + attribute(LISTEN_PORT, number(51840, 2))
        + attribute(NESTED | PEERS, attribute(NESTED, peer))
    )
    second = head + attribute(NESTED | PEERS, attribute(NESTED, attribute(PEER_PUBLIC_KEY, OTHER)))
    assert wireguard.device_of([first, second]) == Device(
        wireguard.encode_key(OTHER),
        51840,
        (
            Session(PEER, 1_700_000_000.5, 5 << 32, 7),
            Session(Peer(wireguard.encode_key(OTHER), None, None, 0), 0.0, 0, 0),
        ),
    )
