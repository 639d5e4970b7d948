# SPDX-License-Identifier: Apache-2.0
"""Ports for the daemons that tests start.

A port of the ephemeral range, as the kernel gives for port 0, may be taken by an outgoing
connection before the daemon listens on it. Ports of this module are outside of that range, and each
process that runs tests has a block of its own: its guard is a socket in the abstract namespace,
which is one per network namespace, as ports are, and which the kernel closes with the process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ALL = range(10_000, 20_000)
"""The manager chooses ports for its etcd above."""
_SIZE = 100
"""Ports of a block, which is also how many are given before one is given again."""


class _Block:
    """The block of this process, and the next port in it."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._ports, self._guard = _claim(_ALL)
        self._next = self._ports.start

    @property
    def own(self) -> bool:
        """False in a forked child, where the block is the parent's."""
        return self._owner == os.getpid()

    def take(self, count: int) -> int:
        """The first of `count` consecutive free ports."""
        for _ in self._ports:
            if self._next + count > self._ports.stop:
                self._next = self._ports.start
            first = self._next
            self._next += count
            if all(map(_is_free, range(first, first + count))):
                return first
        raise OSError(f"no {count} consecutive ports of {self._ports} are free: end what has them")


_block: _Block | None = None


def free_ports(count: int = 1) -> int:
    """The first of `count` consecutive ports that are free on all addresses, and that neither
    another test process nor an outgoing connection takes."""
    global _block
    if _block is None or not _block.own:
        _block = _Block()
    return _block.take(count)


def ephemeral_ports() -> tuple[int, int]:
    """The first and the last port that the kernel gives to outgoing connections."""
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(low), int(high)


def _claim(ports: range) -> tuple[range, socket.socket]:
    for block in _blocks(ports):
        guard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with suppress(OSError):
            guard.bind(f"\0orc-test-ports-{block.start}")
            return block, guard
        guard.close()
    raise OSError(f"all blocks of {ports} are in use by test processes: end some of them")


def _blocks(ports: range) -> Iterator[range]:
    """The blocks that no outgoing connection has ports of; if there are none, all."""
    low, high = ephemeral_ports()
    blocks = [range(first, first + _SIZE) for first in ports[::_SIZE]]
    outside = [each for each in blocks if each[-1] < low or each.start > high]
    yield from outside or blocks


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
