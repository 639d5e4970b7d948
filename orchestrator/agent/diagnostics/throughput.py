# SPDX-License-Identifier: Apache-2.0
"""Datagrams and a stream of bytes from one node to another, for a test on request.

An agent opens no port. While a test lasts it listens, on its address in the network that is tested,
where only the network's own nodes and containers reach it, and accepts only peers that know the
test's token, which the manager makes for each test. A stream takes
a second or two and is discarded.

A datagram's checksum is left to the network card, if that says it computes it, as those of
containers' packets are; another one has none (RFC 768). Where the former get lost and the latter
arrive, a card does not keep its word.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

DATAGRAMS = 10
"""Of each kind to each node."""
TOKEN_BYTES = 16

_DATAGRAM = struct.Struct(f"!{TOKEN_BYTES}sIB")
_SIZE = 200
"""Bytes of a datagram."""
_PAUSE = 0.002
_SO_NO_CHECK = 11
_BUFFER = 1 << 21
_CHUNK = 1 << 18
_MOST_SECONDS = 2.0
"""Of a stream; and for each of its steps to come."""
_REPORT = struct.Struct("!Qd")
_RESERVED = 53


class Responder:
    """Hears datagrams and takes streams while its context lasts. Raises OSError when entered, if
    the address is not this node's or the port is taken."""

    def __init__(
        self, group: asyncio.TaskGroup, address: str, token: bytes, *, reserved: bool
    ) -> None:
        """`reserved`: at the name servers' port, which is open where others are not. Its task is
        one of the `group`."""
        self._group = group
        self._address = address
        self._token = token
        self._wanted = _RESERVED if reserved else 0
        self._heard: Counter[tuple[int, bool]] = Counter()

    async def __aenter__(self) -> Self:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._tcp.bind((self._address, self._wanted))
            self.port: int = self._tcp.getsockname()[1]
            self._udp.bind((self._address, self.port))
            self._tcp.listen(1)
        except BaseException:
            self._udp.close()
            self._tcp.close()
            raise
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._udp.fileno(), self._hear)
        self._server = self._group.create_task(self._serve(), name="rate test")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.cancel()
        self._loop.remove_reader(self._udp.fileno())
        self._udp.close()
        try:
            await asyncio.wait([self._server])  # it must have let go of the socket
        finally:
            self._tcp.close()

    @property
    def heard(self) -> Mapping[int, tuple[int, int]]:
        """Sender's number → its datagrams that arrived: with a checksum, without one."""
        numbers = {number for number, _ in self._heard}
        return {n: (self._heard[n, True], self._heard[n, False]) for n in sorted(numbers)}

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data = self._udp.recv(_SIZE)
                if len(data) != _SIZE:
                    continue
                token, number, checked = _DATAGRAM.unpack_from(data)
                if hmac.compare_digest(token, self._token):
                    self._heard[number, bool(checked)] += 1

    async def _serve(self) -> None:
        """Take one stream after the other."""
        while True:
            stream, _ = await self._loop.sock_accept(self._tcp)
            with stream, suppress(OSError, TimeoutError):
                async with asyncio.timeout(2 * _MOST_SECONDS):
                    await self._take(stream)

    async def _take(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        said = b""
        while len(said) < TOKEN_BYTES:
            data = await self._loop.sock_recv(stream, TOKEN_BYTES - len(said))
            if not data:
                return
            said += data
        if not hmac.compare_digest(said, self._token):
            return
        buffer, taken, began = memoryview(bytearray(_CHUNK)), 0, self._loop.time()
        while (size := await self._loop.sock_recv_into(stream, buffer)) > 0:
            taken += size
            if self._loop.time() - began > _MOST_SECONDS:
                return
        report = _REPORT.pack(taken, self._loop.time() - began)
        await self._loop.sock_sendall(stream, report)


async def send_datagrams(source: str, target: tuple[str, int], token: bytes, number: int) -> None:
    """Send `DATAGRAMS` of each kind from an address of this node, as its node's `number`. What
    cannot be sent is lost."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as checked,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unchecked,
    ):
        unchecked.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        for sock in (checked, unchecked):
            sock.setblocking(False)
            sock.bind((source, 0))
        for _ in range(DATAGRAMS):
            for sock in (checked, unchecked):
                head = _DATAGRAM.pack(token, number, sock is checked)
                with suppress(OSError):
                    sock.sendto(head.ljust(_SIZE, b"\0"), target)
            await asyncio.sleep(_PAUSE)


async def measure_rate(source: str, target: tuple[str, int], token: bytes, seconds: float) -> float:
    """Bits a second that arrive at a responder in a stream of that duration; 0 if none do."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as stream:
        try:
            async with asyncio.timeout(seconds + _MOST_SECONDS):
                stream.bind((source, 0))
                await loop.sock_connect(stream, target)
                await loop.sock_sendall(stream, token)
                zeros, until = bytes(_CHUNK), loop.time() + min(seconds, _MOST_SECONDS / 2)
                while loop.time() < until:
                    await loop.sock_sendall(stream, zeros)
                stream.shutdown(socket.SHUT_WR)
                report = b""
                while len(report) < _REPORT.size:
                    data = await loop.sock_recv(stream, _REPORT.size)
                    if not data:
                        return 0.0
                    report += data
        except (OSError, TimeoutError):
            return 0.0
    taken, lasted = _REPORT.unpack(report)
    return float(taken * 8 / lasted) if lasted > 0 else 0.0
