# SPDX-License-Identifier: Apache-2.0
"""A stream of numbered datagrams to an echo, and what of it does not come back.

    python tests/vm/echo.py serve PORT
    python tests/vm/echo.py ask ADDRESS PORT EVERY FILE    until FILE is there: {"sent", "lost"}

Started in a container's network namespace, by `nsenter`.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

SO_RCVBUFFORCE, BUFFER = 33, 16 << 20
"""What waits while a process gets no time is not lost."""
PATIENCE = 20.0
"""Seconds for which the last answers are waited for: a processor that is emulated is slow."""


def serve(port: int) -> None:
    """Send back whatever comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.bind(("", port))
        while True:
            data, asker = sock.recvfrom(2048)
            sock.sendto(data, asker)


def ask(address: str, port: int, every: float, end: Path) -> tuple[int, list[int]]:
    """Send a number each so many seconds: how many were sent, and which have not come back."""
    sent, waiting = 0, set[int]()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.connect((address, port))
        beat, last = time.monotonic(), 0.0
        while not last or (waiting and time.monotonic() < last):
            if not last and time.monotonic() >= beat:
                sock.send(b"%d" % sent)
                waiting.add(sent)
                sent, beat = sent + 1, beat + every
                if end.exists():
                    last = time.monotonic() + PATIENCE
            sock.settimeout(max(0.001, min(every, beat - time.monotonic())))
            with suppress(TimeoutError, ConnectionRefusedError):
                waiting.discard(int(sock.recv(64)))
    return sent, sorted(waiting)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    sent, lost = ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
    print(json.dumps({"sent": sent, "lost": lost}))
