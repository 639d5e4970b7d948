# SPDX-License-Identifier: Apache-2.0
"""Identity of a process: pid and start time, so that a reused pid is detected."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PF_EXITING = 0x4
"""Kernel flag of an exiting process, field 9 of `/proc/PID/stat` (`include/linux/sched.h`)."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, valid until the next boot."""

    pid: int
    start: int
    """Start time in clock ticks after boot: field 22 of `/proc/PID/stat`, proc(5)."""

    def alive(self) -> bool:
        """Whether this process, and not a later one with its pid, runs (a zombie does not)."""
        return identify(self.pid) == self

    def exiting(self) -> bool:
        """Whether this process has begun to exit, or has ended."""
        fields = stat_fields(self.pid)
        if not fields or int(fields[19]) != self.start:
            return True
        return bool(int(fields[6]) & _PF_EXITING)

    def open(self) -> int | None:
        """A pidfd of this process, None when it has ended. The caller closes it."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        try:
            # Checked once the pidfd is open: from then on it cannot refer to another process.
            if self.alive():
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def send(self, signal_number: int) -> None:
        """Send a signal to this process; no-op when it has ended."""
        if (fd := self.open()) is None:
            return
        try:
            signal.pidfd_send_signal(fd, signal_number)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this pid now; None when there is none, or only its zombie."""
    fields = stat_fields(pid)
    return ProcessIdentity(pid, int(fields[19])) if fields else None


def stat_fields(pid: int) -> list[bytes]:
    """The fields of `/proc/PID/stat` from the third on, proc(5); none when there is no such
    process, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The second field is the program's name in parentheses, and may itself hold any character.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return [] if fields[0] in (b"Z", b"X") else fields


def boot_id() -> str:
    """A random id of this boot of the kernel; processes and mounts do not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
