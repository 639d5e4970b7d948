"""Which process a pid means: pid and start time, so that a reused pid is noticed."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PF_EXITING = 0x4
"""A kernel's flag of a process, field 9 of `/proc/PID/stat`: it is being shut down
(`include/linux/sched.h`)."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, for as long as this boot lasts."""

    pid: int
    start: int
    """Clock ticks from the boot to its start: field 22 of `/proc/PID/stat`, proc(5)."""

    def alive(self) -> bool:
        """Whether this very process runs (a zombie does not)."""
        return identify(self.pid) == self

    def exiting(self) -> bool:
        """Whether this very process has begun to exit, or has ended."""
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
            # Checked after the pidfd is there: from now on it cannot mean another process.
            if self.alive():
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def send(self, signal_number: int) -> None:
        """Send a signal to this very process; nothing when it has ended."""
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
    """A random name of this boot of the kernel; processes and mounts do not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
