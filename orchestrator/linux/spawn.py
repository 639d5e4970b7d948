# SPDX-License-Identifier: Apache-2.0
"""Starting short-lived commands from an event loop, faster than asyncio's subprocesses.

`asyncio.create_subprocess_exec` makes pipes, transports and a watcher for each process. A command
here writes to a file in memory, and its end is seen through a pidfd.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_MOST_READ = 8192
_KILLED = 1.0
"""Seconds to wait for a killed process to end."""


def spawn(
    argv: Sequence[str],
    *,
    stderr: int,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    process_group: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command; `process_group` 0 puts it into a new group. The caller reaps it. Raises
    OSError."""
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        process_group=process_group,
    )


async def reap(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a process started here (negative: the signal that ended it).

    When cancelled the process is killed; see `kill`.
    """
    status = process.poll()
    if status is not None:
        return status
    fd = os.pidfd_open(process.pid)
    try:
        await readable(fd)
    except asyncio.CancelledError:
        await kill(process)
        raise
    finally:
        os.close(fd)
    return process.wait()


async def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started here, and reap it. One that hangs in the kernel, for example
    on a file system that does not respond, is reaped in the background when it ends."""
    process.kill()
    if process.poll() is not None:
        return
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(process.pid)
    try:
        async with asyncio.timeout(_KILLED):
            await readable(fd)
    except TimeoutError:
        pass
    finally:
        if process.poll() is None:
            loop.add_reader(fd, _reap_late, loop, process, fd)
        else:
            os.close(fd)


def _reap_late(loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes], fd: int) -> None:
    loop.remove_reader(fd)
    os.close(fd)
    process.poll()


async def readable(*fds: int) -> None:
    """Wait until one of the descriptors is readable; a pidfd is when its process has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    for fd in fds:
        loop.add_reader(fd, _settle, ready)
    try:
        await ready
    finally:
        for fd in fds:
            loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Wait until a descriptor is writable, or its reader has closed it."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def run(argv: Sequence[str], *, pass_fds: Sequence[int] = ()) -> tuple[int, str]:
    """Run a command to its end: exit status and the beginning of its stderr."""
    with descriptors() as owned:
        stderr = owned.memory_file()
        status = await reap(spawn(argv, stderr=stderr, pass_fds=pass_fds))
        return status, read_text(stderr)


async def output(argv: Sequence[str]) -> str:
    """Run a command to its end: the beginning of its stdout."""
    with descriptors() as owned:
        stdout = owned.memory_file()
        await reap(spawn(argv, stderr=subprocess.DEVNULL, stdout=stdout))
        return read_text(stdout)


async def read_some(fd: int) -> bytes:
    """The first bytes from a pipe; empty when its writers have closed it."""
    await readable(fd)
    return os.read(fd, _MOST_READ)


async def read_line(fd: int) -> bytes:
    """The first line from a pipe, or what was written before its writers closed it."""
    os.set_blocking(fd, False)
    received = b""
    while b"\n" not in received:
        await readable(fd)
        if not (part := os.read(fd, _MOST_READ)):
            break
        received += part
    return received


def read_text(fd: int) -> str:
    """The beginning of a file made by `Descriptors.memory_file`."""
    return os.pread(fd, _MOST_READ, 0).decode(errors="replace").strip()


class Descriptors:
    """File descriptors that are closed together, each at most once."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def pipe(self) -> tuple[int, int]:
        """A pipe: read end, write end."""
        ends = os.pipe2(os.O_CLOEXEC)
        self._open.update(ends)
        return ends

    def memory_file(self) -> int:
        """An anonymous file for a command's output."""
        fd = os.memfd_create("output", os.MFD_CLOEXEC)
        self._open.add(fd)
        return fd

    def keep(self, fd: int) -> int:
        """Take ownership of an open descriptor."""
        self._open.add(fd)
        return fd

    def release(self, fd: int) -> int:
        """Give up ownership: it is not closed here."""
        self._open.remove(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close one before the others."""
        self._open.remove(fd)
        os.close(fd)

    def close_all(self) -> None:
        """Close the remaining ones."""
        while self._open:
            os.close(self._open.pop())


@contextmanager
def descriptors() -> Iterator[Descriptors]:
    """Descriptors that are closed at the end of a block."""
    owned = Descriptors()
    try:
        yield owned
    finally:
        owned.close_all()
