# SPDX-License-Identifier: Apache-2.0
"""The interface of a program with streams, and helpers to write to one without blocking the loop.

Output is read only on request, so a slow reader makes the program wait, as with any pipe; a write
waits until the program reads it.
"""

from __future__ import annotations

import os
import struct
from fcntl import ioctl
from termios import TIOCSWINSZ
from typing import Protocol

from orchestrator.linux import spawn

CHUNK = 1 << 16
"""Maximum bytes of one read or write."""


class Program(Protocol):
    """A program with its streams, owned by its opener."""

    tty: bool
    stdin: bool
    """Whether it has an input."""

    async def read(self) -> tuple[bool, bytes] | None:
        """The next output: whether it is stderr, and the bytes; None at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of `data` to its input; discarded if the program has closed it."""
        ...

    async def end_input(self) -> None:
        """End its input."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        ...

    async def signal(self, number: int) -> None:
        """Send it a signal."""
        ...

    async def wait(self) -> int:
        """Its exit status, 0 to 255, once it has ended."""
        ...

    def close(self) -> None:
        """Release its streams; the program may continue."""
        ...


async def write_all(descriptor: int, data: bytes, most: int = CHUNK) -> None:
    """Write all of `data`, at most `most` bytes at a time. Raises OSError without a reader."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:most]) :]
        except BlockingIOError:
            await spawn.writable(descriptor)


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Set a terminal's size; its foreground programs get SIGWINCH if it changed."""
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", _cell(rows), _cell(columns), 0, 0))


def _cell(count: int) -> int:
    return max(0, min(count, 0xFFFF))
