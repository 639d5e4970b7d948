# SPDX-License-Identifier: Apache-2.0
"""Frames that a container forges with raw sockets, as CAP_NET_RAW allows it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from nshosts import within

IPV4, ARP, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
UDP, ICMPV6 = 17, 58
SOLICITATION, ADVERTISEMENT, ROUTER = 135, 136, 134
EVERYBODY = "ff:ff:ff:ff:ff:ff"


def raw_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def link_local(mac: str) -> str:
    """What a kernel makes of a hardware address (RFC 4291, appendix A)."""
    raw = raw_mac(mac)
    words = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + words))


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    words = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return struct.pack("!H", ~words & 0xFFFF)


def packet(source: str, target: str, protocol: int, payload: bytes, hops: int = 64) -> bytes:
    """An IP packet; the checksum of ICMPv6 is put in, that of UDP too where IPv6 demands it."""
    one, two = ip_address(source), ip_address(target)
    if isinstance(one, IPv4Address):
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, hops, protocol, 0)
        header += one.packed + two.packed
        return header[:10] + checksum(header) + header[12:] + payload
    pseudo = one.packed + two.packed + struct.pack("!II", len(payload), protocol)
    at = 6 if protocol == UDP else 2
    body = payload + b"\0" * (len(payload) % 2)
    payload = payload[:at] + checksum(pseudo + body) + payload[at + 2 :]
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
    return head + one.packed + two.packed + payload


def datagram(source: str, target: str, port: int, data: bytes) -> bytes:
    """An IP packet with UDP to a port."""
    udp = struct.pack("!4H", 4444, port, 8 + len(data), 0) + data
    return packet(source, target, UDP, udp)


def arp(operation: int, mac: str, sender: str, target: str) -> bytes:
    """A request (1) or reply (2)."""
    head = bytes.fromhex("000108000604") + struct.pack("!H", operation)
    return head + raw_mac(mac) + IPv4Address(sender).packed + bytes(6) + IPv4Address(target).packed


def neighbour(kind: int, mac: str, source: str, to: str, target: str) -> bytes:
    """A solicitation or an overriding advertisement, with the sender's hardware address."""
    flags = 0x60000000 if kind == ADVERTISEMENT else 0
    option = bytes([2 if kind == ADVERTISEMENT else 1, 1]) + raw_mac(mac)
    body = struct.pack("!BBHI", kind, 0, 0, flags) + IPv6Address(target).packed + option
    return packet(source, to, ICMPV6, body, hops=255)


def router_advertisement(source: str) -> bytes:
    """A router advertises itself as the default router."""
    body = struct.pack("!BBHBBHII", ROUTER, 0, 0, 64, 0, 1800, 0, 0)
    return packet(source, "ff02::1", ICMPV6, body, hops=255)


def multicast_report(source: str) -> bytes:
    """A kernel joins the group of a solicited node (RFC 3810, without the hop-by-hop option)."""
    group = IPv6Address("ff02::1:ff00:77").packed
    body = struct.pack("!BBHHH", 143, 0, 0, 0, 1) + struct.pack("!BBH", 4, 0, 0) + group
    return packet(source, "ff02::16", ICMPV6, body, hops=1)


class Wire:
    """A raw socket on a container's interface: frames are sent byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, to: str, source: str, content: bytes) -> None:
        """A frame; what it is follows from its content."""
        kind = {4: IPV4, 6: IPV6}.get(content[0] >> 4, ARP)
        self._sock.send(raw_mac(to) + raw_mac(source) + kind + content)


@contextmanager
def wire(netns: str | Path, device: str = "eth0") -> Iterator[Wire]:
    """A raw socket on a container's interface."""
    with within(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
        sock.bind((device, 0))
        yield Wire(sock)


class Ear:
    """A UDP listener that reports what it receives, in IPv4 and IPv6."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.port: int = sock.getsockname()[1]

    def until(self, last: bytes) -> list[bytes]:
        """All that arrives before `last`."""
        heard = []
        while (data := self._sock.recv(2048)) != last:
            heard.append(data)
        return heard

    def sender(self, last: bytes) -> str:
        """The address that `last` comes from."""
        while True:
            data, (address, *_) = self._sock.recvfrom(2048)
            if data == last:
                return str(address).removeprefix("::ffff:")


@contextmanager
def ear(netns: str | Path, port: int = 0) -> Iterator[Ear]:
    """A listener on all addresses of a namespace."""
    with within(netns, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port))
        sock.settimeout(30.0)
        yield Ear(sock)


def say(netns: str | Path, address: str, port: int, data: bytes) -> None:
    """Send a datagram as any program would."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with within(netns, lambda: socket.socket(kind, socket.SOCK_DGRAM)) as sock:
        sock.sendto(data, (address, port))
