# SPDX-License-Identifier: Apache-2.0
"""Attaching to a container's own streams, over the socket of its monitor.

conmon sends each client all output of the container, in packets whose first byte is the stream, and
waits for the slowest client; so the socket must be read as long as it is open. What a client sends
is the container's input, and a client that shuts down its side ends the input, unless the container
has a terminal (`conmon.command`).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from orchestrator.agent.runtime.engine import conmon
from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import Exit, RuntimeFailure
from orchestrator.linux import spawn

_STDERR = 3
_MAX_READ = 1 << 16
_MAX_WRITE = 1 << 14
"""Bytes of one packet; conmon truncates at 32 KiB."""
_UNIX = Path("/proc/net/unix")
_CONNECTING = "02"
"""State of a connection in its listener's queue (`SS_CONNECTING`)."""
_ACCEPT_TIMEOUT, _ACCEPT_POLL = 2.0, 0.001
"""Seconds until a monitor must accept a connection, and between checks."""
_POLL = 0.02
"""Seconds between checks for the socket of a container that is being created, or for its program to
run."""


async def attach(
    access: ContainerHandle,
    wait: Callable[[str], Awaitable[Exit]],
    ended: asyncio.Event,
    *,
    stdin: bool,
    tty: bool,
    size: tuple[int, int] | None = None,
) -> AttachedProgram:
    """Connect to a container, which may not be created yet: from then on no output is missed.

    `stdin`: whether the container has an input; `tty`: whether it has a terminal, which gets
    `size`, (rows, columns), before the connection is accepted, so that a program started afterwards
    finds it; `ended` is set when it has ended. Raises RuntimeFailure when the container has ended.
    """
    sized = size is None or not tty
    while True:
        try:
            if size is not None and not sized:
                sized = conmon.resize(access.bundle.run, *size)
            connection = _connect(access)
        except (FileNotFoundError, ConnectionRefusedError):
            if ended.is_set():
                raise RuntimeFailure("the container has ended; start it first") from None
            try:
                async with asyncio.timeout(_POLL):
                    await ended.wait()
            except TimeoutError:
                continue
        else:
            program = AttachedProgram(access, connection, wait, stdin=stdin, tty=tty)
            try:
                await _accepted(connection)
                if size is not None and not sized:
                    # A monitor listens for connections a moment before it does for sizes.
                    conmon.resize(access.bundle.run, *size)
            except BaseException:
                program.close()
                raise
            return program


async def _accepted(connection: socket.socket) -> None:
    """Wait until the monitor has accepted the connection: to a queued one it does not send the
    container's output. Give up waiting for a monitor that does not respond."""
    try:
        place = connection.getpeername()
    except OSError:
        return  # the monitor has ended, as the reader will see
    until = asyncio.get_running_loop().time() + _ACCEPT_TIMEOUT
    while asyncio.get_running_loop().time() < until:
        if not _queued(place):
            return
        await asyncio.sleep(_ACCEPT_POLL)


def _queued(place: str) -> bool:
    """Whether a connection to a listener of this name waits to be accepted."""
    with _UNIX.open() as lines:
        return any(
            fields[5] == _CONNECTING and fields[7:] == [place] for fields in map(str.split, lines)
        )


def _connect(access: ContainerHandle) -> socket.socket:
    # By the folder's descriptor, since the length of a socket's path is limited.
    folder = os.open(access.bundle.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        connection.connect(f"/proc/self/fd/{folder}/{conmon.ATTACH}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


class AttachedProgram:
    """A container's first program, as a `Program`. Closing it does not affect the container."""

    def __init__(
        self,
        access: ContainerHandle,
        connection: socket.socket,
        wait: Callable[[str], Awaitable[Exit]],
        *,
        stdin: bool,
        tty: bool,
    ) -> None:
        self._access = access
        self._connection = connection
        self._wait = wait
        self.stdin = stdin
        self.tty = tty
        self._open = stdin
        """Whether the input is open."""

    async def read(self) -> tuple[bool, bytes] | None:
        """See `Program.read`."""
        while True:
            try:
                packet = self._connection.recv(_MAX_READ)
            except BlockingIOError:
                await spawn.readable(self._connection.fileno())
            except ConnectionResetError:
                # The monitor ended without reading all input; its last output can still be read.
                continue
            else:
                return (packet[0] == _STDERR, packet[1:]) if packet else None

    async def write(self, data: bytes) -> None:
        """See `Program.write`."""
        rest = memoryview(data)
        while rest and self._open:
            try:
                rest = rest[self._connection.send(rest[:_MAX_WRITE]) :]
            except BlockingIOError:
                await spawn.writable(self._connection.fileno())
            except OSError:
                self._open = False

    async def end_input(self) -> None:
        """See `Program.end_input`."""
        if self.tty:
            await self.write(b"\x04")
        elif self._open:
            self._open = False
            try:
                self._connection.shutdown(socket.SHUT_WR)
            except OSError:
                return

    def resize(self, rows: int, columns: int) -> None:
        """See `Program.resize`."""
        if self.tty:
            conmon.resize(self._access.bundle.run, rows, columns)

    async def signal(self, number: int) -> None:
        """See `Program.signal`. Waits until the program's start is recorded; no-op when it has
        ended."""
        while (process := self._access.process()) is not None:
            if self._access.bundle.started() is not None:
                process.send(number)
                return
            await asyncio.sleep(_POLL)

    async def wait(self) -> int:
        """See `Program.wait`."""
        ended = await self._wait(self._access.container_id)
        return ended.code if ended.code >= 0 else 255

    def close(self) -> None:
        """See `Program.close`."""
        self._open = False
        self._connection.close()
