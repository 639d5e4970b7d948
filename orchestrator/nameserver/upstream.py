# SPDX-License-Identifier: Apache-2.0
"""The host's own name servers, to which other queries are forwarded."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from orchestrator.nameserver.dnswire import HEADER, RESPONSE

RESOLV_CONF = Path("/etc/resolv.conf")
PORT = 53
_UDP_TIMEOUT = 2.0
"""Seconds after which the next server is tried."""
_TCP_TIMEOUT = 5.0
_LARGEST = 65535


def servers(text: str) -> tuple[str, ...]:
    """The name servers of a resolv.conf(5)."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return tuple(dict.fromkeys(found))


class HostServers:
    """The name servers of the host's resolv.conf."""

    def __init__(self, path: Path = RESOLV_CONF) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._servers: tuple[str, ...] = ()

    def current(self) -> tuple[str, ...]:
        """The current servers, in order; the file is read again when it has changed."""
        try:
            state = self._path.stat()
            stamp = state.st_mtime_ns, state.st_ino
            if stamp != self._read_at:
                self._servers = servers(self._path.read_text(errors="replace"))
                self._read_at = stamp
        except OSError:
            self._servers, self._read_at = (), None
        return self._servers


async def forward(query: bytes, among: Sequence[str]) -> bytes | None:
    """Forward a query over UDP to each server in turn; return the first reply, or None."""
    for server in among:
        try:
            async with asyncio.timeout(_UDP_TIMEOUT):
                return await _exchange(query, server)
        except (OSError, TimeoutError):
            continue
    return None


async def _exchange(query: bytes, server: str) -> bytes:
    """One query over UDP, with an unpredictable port and id."""
    loop = asyncio.get_running_loop()
    number = secrets.token_bytes(2)
    question = query[HEADER.size :]
    with _socket(server, socket.SOCK_DGRAM) as sock:
        await loop.sock_connect(sock, (server, PORT))
        await loop.sock_sendall(sock, number + query[2:])
        while True:
            reply = await loop.sock_recv(sock, _LARGEST)
            if reply[:2] == number and _answers(reply, question):
                return query[:2] + reply[2:]


async def forward_stream(query: bytes, among: Sequence[str]) -> bytes | None:
    """As `forward`, over TCP."""
    for server in among:
        try:
            async with asyncio.timeout(_TCP_TIMEOUT):
                reader, writer = await asyncio.open_connection(server, PORT)
                try:
                    writer.write(len(query).to_bytes(2, "big") + query)
                    await writer.drain()
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    reply = await reader.readexactly(length)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            continue
        if reply[:2] == query[:2] and _answers(reply, query[HEADER.size :]):
            return reply
    return None


def _socket(server: str, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    return sock


def _answers(reply: bytes, question: bytes) -> bool:
    """Whether a message replies to a query whose part after the header is `question`."""
    if len(reply) < HEADER.size:
        return False
    _, flags, questions, *_ = HEADER.unpack_from(reply)
    if not flags & RESPONSE:
        return False
    if not questions:
        return True  # an error response of a header only
    end = question.find(b"\0") + 5
    return reply[HEADER.size : HEADER.size + end].lower() == question[:end].lower()
