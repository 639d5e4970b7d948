"""Mounts by path: mount(2), umount2(2), and the mount table."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_SLAVE = 1 << 19
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    """mount(2). Raises OSError."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data)
    )
    _check(result, str(target))


def unmount(target: Path) -> None:
    """Detach a mount, though it be in use. Raises OSError; EINVAL when nothing is mounted there."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), str(target))


def is_mounted(target: Path) -> bool:
    """Whether anything is mounted just there, in the agent's mount namespace."""
    return _escaped(os.path.realpath(target)) in _mount_points()


def _mount_points() -> set[str]:
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return {line.split(" ", 5)[4] for line in table}


def _escaped(path: str) -> str:
    """As mountinfo writes it (proc_pid_mountinfo(5))."""
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\" else each for each in path)


def unshare_mounts() -> None:
    """Give the calling thread, and what it starts, a mount namespace of its own.

    Mounts that the host makes later still arrive (a volume, a network namespace); what is mounted
    or unmounted here stays here. Raises OSError.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "/")


def enter_mounts(namespace: int) -> None:
    """Move the calling thread to a mount namespace, given by its descriptor. Raises OSError."""
    _check(_libc.setns(namespace, CLONE_NEWNS), "setns")
