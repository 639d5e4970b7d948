"""What a packet's way costs: the processor's time for one datagram between two hosts.

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
