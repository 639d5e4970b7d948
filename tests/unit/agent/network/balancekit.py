# SPDX-License-Identifier: Apache-2.0
"""Servers and clients in network namespaces, to see where connections go and whom they show."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from nshosts import within

from orchestrator.agent.network.network_types import Attachment
from orchestrator.cni.balancing.endpointtable import Endpoint

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
SECONDS = 3.0


def family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def open_socket(netns: Path | str, kind: int, address: str = "0.0.0.0") -> socket.socket:
    """A socket of another namespace, of the address' family, with a timeout."""
    sock = within(netns, lambda: socket.socket(family(address), kind))
    sock.settimeout(SECONDS)
    if kind == TCP:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


@dataclass(frozen=True, slots=True)
class Answer:
    """Which server it was, and the client's address as that one saw it."""

    server: str
    client: str


class Servers:
    """Listeners in containers, each known by a name."""

    def __init__(self, kind: int, sockets: Mapping[str, socket.socket]) -> None:
        self.kind = kind
        self.sockets = dict(sockets)

    def ask(self, client: Path | str, address: str, port: int, source: str = "") -> Answer:
        """Ask once, from a new socket; the answer has come back to who asked."""
        with open_socket(client, self.kind, address) as sock:
            if source:
                sock.bind((source, 0))
            return self.ask_by(sock, address, port)

    def ask_by(self, sock: socket.socket, address: str, port: int) -> Answer:
        if self.kind == TCP:
            sock.connect((address, port))
            accepted, answer = self._accept()
            with accepted:
                sock.sendall(b"question")
                assert accepted.recv(100) == b"question"
                accepted.sendall(b"answer")
                assert sock.recv(100) == b"answer"
            return answer
        sock.sendto(b"question", (address, port))
        name, server = self._ready()
        assert server.recv(100, socket.MSG_PEEK) == b"question"
        _, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        answered, whom = sock.recvfrom(100)
        assert answered == b"answer"
        assert ip_address(whom[0]) == ip_address(address), "the answer is from whom was asked"
        return Answer(name, str(peer[0]))

    @contextmanager
    def connection(
        self, client: Path | str, address: str, port: int
    ) -> Iterator[tuple[socket.socket, socket.socket, Answer]]:
        """A TCP connection that stays: the client's end, the server's, and who it was."""
        with open_socket(client, TCP, address) as sock:
            sock.connect((address, port))
            accepted, answer = self._accept()
            with accepted:
                yield sock, accepted, answer

    def spread(self, client: Path | str, address: str, port: int, rounds: int) -> dict[str, int]:
        """How often each server was chosen."""
        found: dict[str, int] = {}
        for _ in range(rounds):
            name = self.ask(client, address, port).server
            found[name] = found.get(name, 0) + 1
        return found

    def _accept(self) -> tuple[socket.socket, Answer]:
        name, server = self._ready()
        accepted, peer = server.accept()
        accepted.settimeout(SECONDS)
        return accepted, Answer(name, str(peer[0]))

    def _ready(self) -> tuple[str, socket.socket]:
        readable, _, _ = select.select(list(self.sockets.values()), [], [], SECONDS)
        assert readable, "nothing reached a server"
        (server,) = readable
        return next(name for name, sock in self.sockets.items() if sock is server), server


@contextmanager
def serving(
    netns: Mapping[str, Path | str], port: int, kind: int = TCP, address: str = "0.0.0.0"
) -> Iterator[Servers]:
    """Listeners at a port in each of these namespaces."""
    with ExitStack() as stack:
        sockets = {}
        for name, where in netns.items():
            sock = stack.enter_context(open_socket(where, kind, address))
            sock.bind((address, port))
            if kind == TCP:
                sock.listen(64)
            sockets[name] = sock
        yield Servers(kind, sockets)


def echoes(client: socket.socket, server: socket.socket) -> bool:
    """Whether a connection still carries bytes both ways."""
    client.sendall(b"ping")
    if server.recv(100) != b"ping":
        return False
    server.sendall(b"pong")
    return client.recv(100) == b"pong"


def endpoints(attachments: Iterable[Attachment], *, ready: bool = True) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(IPv4Address(one.address), IPv6Address(one.address6), ready) for one in attachments
    )
