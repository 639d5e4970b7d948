# SPDX-License-Identifier: Apache-2.0
"""Ports for daemons of tests: not ephemeral, and of one test process only."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.freeports import ephemeral_ports, free_ports

ROOT = Path(__file__).parents[2]


def test_ports_are_consecutive_free_and_not_ephemeral() -> None:
    low, high = ephemeral_ports()
    first = free_ports(3)
    for port in range(first, first + 3):
        assert not low <= port <= high
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_in_use_is_not_given() -> None:
    with socket.create_server(("127.0.0.1", free_ports())) as server:
        taken = server.getsockname()[1]
        assert taken not in [free_ports() for _ in range(150)]


def test_another_process_has_other_ports() -> None:
    program = "from tests.freeports import free_ports; print(*(free_ports() for _ in range(150)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    others = set(map(int, done.stdout.split()))
    assert others.isdisjoint(free_ports() for _ in range(150))
