# SPDX-License-Identifier: Apache-2.0
"""Free TCP ports for daemons that must find theirs free again after each restart."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from pathlib import Path

_CHOICE = range(20_000, 30_000)
"""Below Linux's default ephemeral range, from which published ports are assigned, too."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(address: str, port: int) -> bool:
    """Whether a daemon can listen on a port of an address of this host."""
    try:
        with _probe(address) as probe:
            probe.bind((address, port))
    except OSError:
        return False
    return True


def choose_port(address: str, taken: Collection[int] = ()) -> int:
    """A free port of an address of this host that is not in `taken`. Outgoing connections take none
    of these, unless the kernel's settings give them the whole range. Raises OSError if `address` is
    not of this host."""
    low, high = map(int, _EPHEMERAL.read_text().split())
    candidates = [port for port in _CHOICE if not low <= port <= high and port not in taken]
    with _probe(address) as probe:
        probe.bind((address, 0))
        last = int(probe.getsockname()[1])
    random.shuffle(candidates)
    return next((port for port in candidates if is_free(address, port)), last)


def _probe(address: str) -> socket.socket:
    """A socket that binds as daemons do: connections that have ended do not occupy a port."""
    probe = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe
