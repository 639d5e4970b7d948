"""A container's own streams, over the socket of its monitor.

conmon sends to each client all that the container writes, in packets whose first byte says which
stream it is, and waits for the slowest; so the socket must be read for as long as it is open. What
a client sends is the container's input, and a client that ends its side ends the input, unless
the container has a terminal (`conmon.command`).
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
_MOST_READ = 1 << 16
_MOST_WRITTEN = 1 << 14
"""Bytes of one packet; conmon cuts at 32 KiB."""
_UNIX = Path("/proc/net/unix")
_CONNECTING = "02"
"""State of a connection that stands in its listener's queue (`SS_CONNECTING`)."""
_ACCEPTED_WITHIN, _ACCEPTED_LOOK = 2.0, 0.001
"""Seconds that a monitor has to accept, and between two looks whether it has."""
_PATIENCE = 0.02
"""Seconds between two looks for the socket of a container that is being made, or for its program
to run."""


async def attach(
    access: ContainerHandle,
    wait: Callable[[str], Awaitable[Exit]],
    ended: asyncio.Event,
    *,
    stdin: bool,
    tty: bool,
) -> AttachedProgram:
    """Connect to a container, which may not be made yet: from here on no output is missed.

    `stdin`: whether the container has an input; `tty`: whether it has a terminal; `ended` tells
    that it has ended. Raises RuntimeFailure when there is nothing to attach to.
    """
    while True:
        try:
            connection = _connect(access)
        except (FileNotFoundError, ConnectionRefusedError):
            if ended.is_set():
                raise RuntimeFailure("the container has ended; start it first") from None
            try:
                async with asyncio.timeout(_PATIENCE):
                    await ended.wait()
            except TimeoutError:
                continue
        else:
            program = AttachedProgram(access, connection, wait, stdin=stdin, tty=tty)
            try:
                await _accepted(connection)
            except BaseException:
                program.close()
                raise
            return program


async def _accepted(connection: socket.socket) -> None:
    """Until the monitor has taken the connection from its queue: to one that still stands there it
    does not send what the container writes. A monitor that does nothing is not waited for long."""
    try:
        place = connection.getpeername()
    except OSError:
        return  # the monitor is gone, as whoever reads will see
    until = asyncio.get_running_loop().time() + _ACCEPTED_WITHIN
    while asyncio.get_running_loop().time() < until:
        if not _queued(place):
            return
        await asyncio.sleep(_ACCEPTED_LOOK)


def _queued(place: str) -> bool:
    """Whether a connection to a listener of that name waits to be accepted."""
    with _UNIX.open() as lines:
        return any(
            fields[5] == _CONNECTING and fields[7:] == [place] for fields in map(str.split, lines)
        )


def _connect(access: ContainerHandle) -> socket.socket:
    # By the folder's descriptor, since a socket's path must be short.
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
    """A container's first program, as a `streams.Program`. Closing it leaves the container be."""

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
        """Whether input is still taken."""

    async def read(self) -> tuple[bool, bytes] | None:
        """See `Program.read`."""
        while True:
            try:
                packet = self._connection.recv(_MOST_READ)
            except BlockingIOError:
                await spawn.readable(self._connection.fileno())
            except ConnectionResetError:
                # The monitor went without taking all input; its last output is still to come.
                continue
            else:
                return (packet[0] == _STDERR, packet[1:]) if packet else None

    async def write(self, data: bytes) -> None:
        """See `Program.write`."""
        rest = memoryview(data)
        while rest and self._open:
            try:
                rest = rest[self._connection.send(rest[:_MOST_WRITTEN]) :]
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
        """See `Program.signal`. One that comes before the program runs, or before that is on
        record, is kept until then; it is nothing when that has ended."""
        while (process := self._access.process()) is not None:
            if self._access.bundle.started() is not None:
                process.send(number)
                return
            await asyncio.sleep(_PATIENCE)

    async def wait(self) -> int:
        """See `Program.wait`."""
        ended = await self._wait(self._access.container_id)
        return ended.code if ended.code >= 0 else 255

    def close(self) -> None:
        """See `Program.close`."""
        self._open = False
        self._connection.close()
