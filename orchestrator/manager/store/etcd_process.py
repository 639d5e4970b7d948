# SPDX-License-Identifier: Apache-2.0
"""An etcd process that outlives its manager, and is found again by the next one.

There is no pid file, which could be missing or stale after a kill between two statements. An orphan
is found in /proc, by its command line and working directory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT = 5.0
"""Seconds between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class EtcdProcess:
    """An etcd, started or adopted, held by a pidfd, which no other process can come to mean."""

    pid: int
    pidfd: int
    command: tuple[str, ...]
    child: subprocess.Popen[bytes] | None

    @property
    def ended(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            return True
        return False

    async def wait(self) -> None:
        """Wait until it has ended (and, if a child, is reaped)."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self.pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self.pidfd)
        if self.child is not None:
            self.child.wait()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after `STOP_TIMEOUT`; closes the pidfd."""
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                await self.wait()
        finally:
            os.close(self.pidfd)


def start(command: tuple[str, ...], folder: Path) -> EtcdProcess:
    """Start etcd in a session of its own, so that neither Ctrl-C nor the manager's death reaches
    it."""
    # Variables such as ETCD_NAME would be settings; only the command line counts.
    environment = {name: text for name, text in os.environ.items() if name[:5] != "ETCD_"}
    with (folder / "etcd.err").open("wb") as errors:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    return EtcdProcess(child.pid, os.pidfd_open(child.pid), command, child)


def find_orphan(folder: Path) -> EtcdProcess | None:
    """The etcd that an earlier manager left running on this data folder."""
    for pid in _pids():
        if not _is_ours(pid, folder):
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if _is_ours(
            pid, folder
        ):  # again, so that the pidfd certainly means the process that was checked
            return EtcdProcess(pid, pidfd, _command_of(pid), None)
        os.close(pidfd)
    return None


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _is_ours(pid: int, folder: Path) -> bool:
    """Checks the argument and the folder itself: the same path may be another folder elsewhere."""
    if f"--data-dir={folder / 'data'}" not in _command_of(pid):
        return False
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:
        return False


def _command_of(pid: int) -> tuple[str, ...]:
    """Its arguments; empty for one that is gone or a zombie."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in line.split(b"\0")[:-1])
