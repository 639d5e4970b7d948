# SPDX-License-Identifier: Apache-2.0
"""Loss of UDP datagrams and TCP throughput from one node to another, measured on request.

An agent has no permanent port. During a test it listens on its address in the tested network, which
only that network's nodes and containers can reach, and accepts only peers that know the token which
the manager generates for each test. A stream lasts a second or two, and its data is discarded.

Half of the datagrams have a checksum, which the network card computes if it offers to, as for
containers' packets; the others have none (RFC 768). If only those without a checksum arrive, the
card's checksum offload is broken.
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
"""Datagrams of each kind (with and without a checksum) to each node."""
TOKEN_BYTES = 16

_DATAGRAM = struct.Struct(f"!{TOKEN_BYTES}sIB")
_SIZE = 200
"""Bytes of a datagram."""
_PAUSE = 0.002
_SO_NO_CHECK = 11
_BUFFER = 1 << 21
_CHUNK = 1 << 18
_MOST_SECONDS = 2.0
"""Maximum seconds of a stream, and of the handshakes around it."""
_REPORT = struct.Struct("!Qd")
_RESERVED = 53


class Responder:
    """Receives datagrams and streams; an async context manager. Entering raises OSError if the
    address is not one of this node or the port is in use."""

    def __init__(
        self, group: asyncio.TaskGroup, address: str, token: bytes, *, reserved: bool
    ) -> None:
        """`reserved`: use the name servers' port, which policies leave open. Its task runs in
        `group`."""
        self._group = group
        self._address = address
        self._token = token
        self._wanted = _RESERVED if reserved else 0
        self._received: Counter[tuple[int, bool]] = Counter()

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
        self._loop.add_reader(self._udp.fileno(), self._receive)
        self._server = self._group.create_task(self._serve(), name="rate test")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.cancel()
        self._loop.remove_reader(self._udp.fileno())
        self._udp.close()
        try:
            await asyncio.wait([self._server])  # it still uses the socket
        finally:
            self._tcp.close()

    @property
    def received(self) -> Mapping[int, tuple[int, int]]:
        """Sender's number → its datagrams that arrived: with a checksum, without one."""
        numbers = {number for number, _ in self._received}
        return {n: (self._received[n, True], self._received[n, False]) for n in sorted(numbers)}

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data = self._udp.recv(_SIZE)
                if len(data) != _SIZE:
                    continue
                token, number, checked = _DATAGRAM.unpack_from(data)
                if hmac.compare_digest(token, self._token):
                    self._received[number, bool(checked)] += 1

    async def _serve(self) -> None:
        """Accept streams, one at a time."""
        while True:
            stream, _ = await self._loop.sock_accept(self._tcp)
            with stream, suppress(OSError, TimeoutError):
                async with asyncio.timeout(2 * _MOST_SECONDS):
                    await self._measure(stream)

    async def _measure(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        token = b""
        while len(token) < TOKEN_BYTES:
            data = await self._loop.sock_recv(stream, TOKEN_BYTES - len(token))
            if not data:
                return
            token += data
        if not hmac.compare_digest(token, self._token):
            return
        buffer, taken, began = memoryview(bytearray(_CHUNK)), 0, self._loop.time()
        while (size := await self._loop.sock_recv_into(stream, buffer)) > 0:
            taken += size
            if self._loop.time() - began > _MOST_SECONDS:
                return
        report = _REPORT.pack(taken, self._loop.time() - began)
        await self._loop.sock_sendall(stream, report)


async def send_datagrams(source: str, target: tuple[str, int], token: bytes, number: int) -> None:
    """Send `DATAGRAMS` of each kind from an address of this node; `number` identifies the sender.
    Send errors count as loss."""
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
    """Throughput to a responder in bits per second, measured for `seconds`; 0: it failed."""
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
