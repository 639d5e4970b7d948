"""Bytes to and from a program, over whatever it is connected by, without blocking the loop.

Nothing is read before it is asked for, so a reader that stops makes the program wait, as at any
pipe; and what is written waits until the program takes it.
"""

from __future__ import annotations

import os
import struct
from fcntl import ioctl
from termios import TIOCSWINSZ
from typing import Protocol

from orchestrator.linux import spawn

CHUNK = 1 << 16
"""Most bytes of one read or write."""


class Program(Protocol):
    """A program with its streams, in the hands of whoever opened it."""

    tty: bool
    stdin: bool
    """Whether it can be written to."""

    async def read(self) -> tuple[bool, bytes] | None:
        """The next output: whether it is stderr, and the bytes; None when there is no more."""
        ...

    async def write(self, data: bytes) -> None:
        """Give it input, all of it; what the program has closed its ears to goes nowhere."""
        ...

    async def end_input(self) -> None:
        """There is no more input."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal the size of the user's."""
        ...

    async def signal(self, number: int) -> None:
        """Send it a signal."""
        ...

    async def wait(self) -> int:
        """Its exit status, 0 to 255, once it has ended."""
        ...

    def close(self) -> None:
        """Let go of it; it may run on."""
        ...


async def write_all(descriptor: int, data: bytes, most: int = CHUNK) -> None:
    """Write all of it, at most `most` bytes at a time. Raises OSError when nobody reads."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:most]) :]
        except BlockingIOError:
            await spawn.writable(descriptor)


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; its foreground programs get SIGWINCH if that is news."""
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", _cell(rows), _cell(columns), 0, 0))


def _cell(count: int) -> int:
    return max(0, min(count, 0xFFFF))
