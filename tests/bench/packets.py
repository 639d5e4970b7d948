# SPDX-License-Identifier: Apache-2.0
"""What a packet's way costs: the processor's time for a datagram, or for a stream.

On a machine whose hosts are namespaces, the kernel takes a datagram all its way, over both hosts
and into the receiver's buffer, within its sender's call. So the sender's own processor time is what
the way costs, whatever else the machine does meanwhile.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

BURST = 2000
ROUNDS = 25
SIZE = 1000
PORT = 9000

STREAM, CHUNK = 32 << 20, 64 << 10
STREAM_ROUNDS = 120
"""Bytes of a round, bytes that are sent at once, and rounds."""

Opened = Callable[[], socket.socket]
"""Opens a UDP socket somewhere."""


def measure(ways: Mapping[str, tuple[Opened, Opened, str]]) -> dict[str, float]:
    """Seconds a datagram takes by each way, which is a client, a server and the address asked.

    By turns; the lower decile of the rounds. Raises TimeoutError if a way leads nowhere.
    """
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        clients = {}
        for name, (client, server, address) in ways.items():
            clients[name] = sender = stack.enter_context(client())
            receiver = stack.enter_context(server())
            receiver.bind(("", PORT + len(clients)))
            sender.connect((address, PORT + len(clients)))
            _talk(sender, receiver)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # what comes is dropped
        for _ in range(ROUNDS):
            for name, sender in clients.items():
                found.setdefault(name, []).append(_burst(sender))
    return {name: sorted(rounds)[len(rounds) // 10] for name, rounds in found.items()}


def stream(ways: Mapping[str, tuple[Opened, Opened, str]]) -> dict[str, float]:
    """Seconds of a processor that a GiB of TCP takes by each way.

    One thread sends and receives, so its time is that of both ends and all between. By turns; the
    lower decile of the rounds. Raises TimeoutError if a way leads nowhere.
    """
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ends = {}
        for number, (name, (client, server, address)) in enumerate(ways.items()):
            listener = stack.enter_context(server())
            listener.bind(("", PORT + number))
            listener.listen()
            sender = stack.enter_context(client())
            sender.settimeout(5)
            sender.connect((address, PORT + number))
            receiver = stack.enter_context(listener.accept()[0])
            receiver.settimeout(5)
            ends[name] = sender, receiver
        for number in range(-1, STREAM_ROUNDS):
            # None is always the first.
            for name, (sender, receiver) in sorted(ends.items(), reverse=bool(number % 2)):
                took = _chunks(sender, receiver)
                if number >= 0:
                    found.setdefault(name, []).append(took * ((1 << 30) / STREAM))
    return {name: sorted(rounds)[len(rounds) // 10] for name, rounds in found.items()}


def _chunks(sender: socket.socket, receiver: socket.socket) -> float:
    data, into = bytes(CHUNK), bytearray(CHUNK)
    began = time.thread_time()
    for _ in range(STREAM // CHUNK):
        sender.sendall(data)
        left = CHUNK
        while left:
            left -= receiver.recv_into(into, left)
    return time.thread_time() - began


def _talk(client: socket.socket, server: socket.socket) -> None:
    """So that the connection is established, as most packets' are."""
    for sock in (client, server):
        sock.settimeout(5)
    client.send(b"question")
    _, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    client.recv(100)


def _burst(sock: socket.socket) -> float:
    data, send = bytes(SIZE), sock.send
    began = time.thread_time()
    for _ in range(BURST):
        send(data)
    return (time.thread_time() - began) / BURST
