# SPDX-License-Identifier: Apache-2.0
"""ICMP echoes from an address of this node, plain or in VXLAN: reachability, latency, path MTU.

Echoes use a raw socket (RFC 792), which allows packets of any size. They carry the "don't
fragment" bit and bypass the kernel's cache of path MTUs (`IP_PMTUDISC_PROBE`), so every result
is measured.

Many firewalls drop pings but pass UDP port 4789, which overlays need. `VxlanEcho` therefore sends
echoes as containers' packets travel, in VXLAN (RFC 7348). It builds the frames itself and sends
them from an ordinary UDP socket, because the kernel's tunnel device controls neither the size nor
the "don't fragment" bit of its outer packets. The peer's kernel decapsulates the frame, and its
reply returns through the tunnel.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from statistics import median
from typing import Self

from orchestrator.agent.network.network_types import NetworkConfig
from orchestrator.cni.netconf import DEFAULT_PORT, OVERHEAD
from orchestrator.cni.peers import vtep_address, vtep_mac

SMALL = 84
"""Bytes of an ordinary echo's packet, as `ping` sends it."""
PATIENCE = 1.0
"""Default timeout of a reply in seconds."""
LEAST = 68
"""The minimum MTU of IPv4 in bytes (RFC 791)."""

_IP_HEADER = 20
_ECHO = struct.Struct("!BBHHH")
_REQUEST, _REPLY = 8, 0
_ICMP_FILTER = 1
IP_MTU_DISCOVER, _IP_MTU = 10, 14
IP_PMTUDISC_PROBE = 3
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_TIMESPEC = struct.Struct("@ll")
_DISCARD = 9
"""A UDP port (RFC 863); nothing is sent to it."""
_BUFFER = 1 << 21
_LARGEST = 1 << 16
_LEAST_PATIENCE = 0.25
"""Minimum timeout of a reply in seconds, also on short paths, since a host may be busy."""
_COPIES = 3
"""Packets of one size that must be lost before the size counts as too large."""
_STEPS = 16
"""Sizes that are probed concurrently."""


@dataclass(frozen=True, slots=True)
class Series:
    """A series of echoes to one address: packets sent, and round-trip times in seconds."""

    sent: int = 0
    times: tuple[float, ...] = ()

    @property
    def received(self) -> int:
        return len(self.times)

    @property
    def latency(self) -> float:
        """Median round-trip time in seconds; 0 without replies."""
        return median(self.times) if self.times else 0.0

    def __add__(self, other: Series) -> Series:
        return Series(self.sent + other.sent, self.times + other.times)


class Echo:
    """Sends ICMP echoes from `source`, an address of this node; a context manager. Needs root.

    Entering raises OSError if the address is not one of this node.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._id = int.from_bytes(os.urandom(2), "big")
        self._sequence = 0
        self._waiting: dict[int, tuple[str, asyncio.Future[float]]] = {}
        """Sequence number → expected source of the reply, and its arrival time."""

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP
        )
        try:
            self._socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            only_replies = struct.pack("=I", ~(1 << _REPLY) & 0xFFFFFFFF)
            self._socket.setsockopt(socket.IPPROTO_RAW, _ICMP_FILTER, only_replies)
            self._socket.bind((self._source, 0))
            self._guide = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._guide.bind((self._source, 0))
        except BaseException:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket.fileno(), self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._guide.close()

    def known_mtu(self, address: str) -> int:
        """The path MTU in bytes as the kernel knows it, from the interface, the route and earlier
        ICMP errors; 0: no route."""
        try:
            self._guide.connect((address, _DISCARD))
        except OSError:
            return 0
        return self._guide.getsockopt(socket.IPPROTO_IP, _IP_MTU)

    async def ask(
        self, address: str, size: int = SMALL, patience: float = PATIENCE
    ) -> float | None:
        """Send a packet of `size` bytes, headers included; return the round-trip time in seconds.

        None: no reply within `patience` seconds, or the packet could not be sent.
        """
        number = self._sequence = self._sequence + 1 & 0xFFFF
        answer: asyncio.Future[float] = self._loop.create_future()
        self._waiting[number] = self._answerer(address), answer
        began = time.time()
        try:
            self._send(address, number, size)
            async with asyncio.timeout(patience):
                await answer
        except (TimeoutError, OSError):  # or too large for its interface, no route, forbidden
            # The reply may have arrived in time while this process was delayed.
            if not answer.done() or answer.cancelled():
                return None
        finally:
            self._waiting.pop(number, None)
        return max(0.0, answer.result() - began)

    def _send(self, address: str, number: int, size: int) -> None:
        self._socket.sendto(request(self._id, number, size), (address, 0))

    def _answerer(self, address: str) -> str:
        """The address that the reply comes from."""
        return address

    async def series(self, address: str, count: int, pause: float, size: int = SMALL) -> Series:
        """Send `count` packets, `pause` seconds apart, without waiting for replies in between."""
        asked = []
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                asked.append(group.create_task(self.ask(address, size)))
                await asyncio.sleep(pause)
        return Series(count, tuple(took for each in asked if (took := each.result()) is not None))

    def _receive(self) -> None:
        while True:
            try:
                data, extra, _, (host, _) = self._socket.recvmsg(_LARGEST, 64)
            except OSError:  # no further packet, or an error of a packet that was sent
                return
            _, _, _, whose, number = _ECHO.unpack_from(data, (data[0] & 0xF) * 4)
            address, answer = self._waiting.get(number, ("", None))
            if whose == self._id and host == address and answer is not None and not answer.done():
                answer.set_result(_stamped(extra))


def request(identity: int, number: int, size: int) -> bytes:
    """An ICMP echo request, padded with zeros to an IP packet of `size` bytes. The zeros do not
    change the checksum."""
    total = (_REQUEST << 8) + identity + number
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = _ECHO.pack(_REQUEST, 0, checksum, identity, number)
    return head + bytes(max(0, size - _IP_HEADER - len(head)))


def _stamped(extra: Sequence[tuple[int, int, bytes]]) -> float:
    """The kernel's time of arrival, which excludes delays of this process."""
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return float(seconds + nanoseconds / 1e9)
    return time.time()


async def path_mtu(echo: Echo, address: str) -> int:
    """Measure the path MTU to an address in bytes; 0: no reply.

    The kernel's value is probed first and is usually right. Otherwise a search with several sizes
    per round finds the exact value in three rounds.
    """
    most = echo.known_mtu(address)
    first = await _first(echo, address, SMALL, PATIENCE)
    if not most or first is None:
        return 0
    patience = min(PATIENCE, max(_LEAST_PATIENCE, 5 * first))
    if await _first(echo, address, most, patience) is not None:
        return most
    fits, too_large = LEAST, most
    while too_large - fits > 1:
        sizes = ladder(fits, too_large)
        answers = await asyncio.gather(*(_first(echo, address, size, patience) for size in sizes))
        fits = max(
            [size for size, took in zip(sizes, answers, strict=True) if took is not None],
            default=fits,
        )
        too_large = min([size for size in sizes if size > fits], default=too_large)
    return fits


def ladder(fits: int, too_large: int) -> list[int]:
    """Distinct, evenly spaced sizes between one that fits and one that does not."""
    steps = min(_STEPS, too_large - fits)
    return sorted({fits + (too_large - fits) * n // steps for n in range(1, steps)})


async def _first(echo: Echo, address: str, size: int, patience: float) -> float | None:
    """Send a few packets; return the round-trip time of the first reply in seconds, None without
    one."""
    asked = {asyncio.ensure_future(echo.ask(address, size, patience)) for _ in range(_COPIES)}
    try:
        for each in asyncio.as_completed(asked):
            if (took := await each) is not None:
                return took
        return None
    finally:
        for one in asked:
            one.cancel()


_VXLAN = struct.Struct("!B3xI")
_VNI_IS_VALID = 8
_ETHERNET = struct.Struct("!6s6sH")
_IPV4, _ICMP = 0x0800, 1
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_TTL = 64


class VxlanEcho(Echo):
    """Sends echoes to the underlay addresses of a network's nodes, through its tunnel.

    Sizes are those of the packets between the nodes. The network must not be encrypted.
    """

    def __init__(self, config: NetworkConfig) -> None:
        own = IPv4Network(config.subnet)
        super().__init__(str(vtep_address(own)))
        self._node = config.node_address
        self._head = _VXLAN.pack(_VNI_IS_VALID, config.vni << 8)
        self._mac = _mac(own)
        self._peers: Mapping[str, IPv4Network] = {
            peer.address: IPv4Network(peer.subnet) for peer in config.peers
        }

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._wire.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
            self._wire.bind((self._node, 0))
        except BaseException:
            super().__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()
        super().__exit__()

    def knows(self, address: str) -> bool:
        """Whether a node of the network has that address."""
        return address in self._peers

    def _answerer(self, address: str) -> str:
        return str(vtep_address(self._peers[address]))

    def _send(self, address: str, number: int, size: int) -> None:
        peer = self._peers[address]
        packet = request(self._id, number, size - OVERHEAD)
        frame = _ETHERNET.pack(_mac(peer), self._mac, _IPV4)
        frame += _ip_header(IPv4Address(self._source), vtep_address(peer), len(packet))
        self._wire.sendto(self._head + frame + packet, (address, DEFAULT_PORT))


def _mac(subnet: IPv4Network) -> bytes:
    return bytes.fromhex(vtep_mac(subnet).replace(":", ""))


def _ip_header(source: IPv4Address, target: IPv4Address, length: int) -> bytes:
    """An IPv4 header without options (RFC 791) for an ICMP message of `length` bytes."""

    def packed(checksum: int) -> bytes:
        total = _HEADER.size + length
        return _HEADER.pack(
            0x45, 0, total, 0, 0, _TTL, _ICMP, checksum, source.packed, target.packed
        )

    total = sum(struct.unpack("!10H", packed(0)))
    total = (total & 0xFFFF) + (total >> 16)
    return packed(~(total + (total >> 16)) & 0xFFFF)
