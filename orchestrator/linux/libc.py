# SPDX-License-Identifier: Apache-2.0
"""System calls that Python's `os` module has no function for, called through the C library.

Each function raises OSError with the kernel's error number, and with `what`, where it is given, as
its file name. `os.unshare` and `os.setns` exist from Python 3.12 on; Orc runs on 3.11.

Source: the manual page of each call (section 2).
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_BIND, MS_MOVE, MS_REC = 1 << 12, 1 << 13, 1 << 14
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2

PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28
SECBIT_NO_SETUID_FIXUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def syscall(number: int, *arguments: object, what: str = "") -> int:
    """syscall(2), for calls without a wrapper in the C library. Arguments are numbers, bytes, and
    `ctypes.byref` of structures."""
    return _check(_libc.syscall(number, *arguments), what)


def unshare(namespaces: int) -> None:
    """Move the calling thread to new namespaces (`CLONE_NEW…`)."""
    _check(_libc.unshare(ctypes.c_int(namespaces)), "unshare")


def setns(descriptor: int, namespaces: int, what: str = "setns") -> None:
    """Move the calling thread to the namespace of a descriptor, or with a pidfd to those of the
    kinds `namespaces` (`CLONE_NEW…`) of its process."""
    _check(_libc.setns(descriptor, ctypes.c_int(namespaces)), what)


def mount(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: str = "",
    flags: int = 0,
    data: str = "",
) -> None:
    """mount(2); `kind` is the file system's type, `flags` are `MS_…`, `data` its options."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data)
        ),
        os.fspath(target),
    )


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2); EINVAL when nothing is mounted there."""
    _check(_libc.umount2(os.fsencode(target), flags), os.fspath(target))


def prctl(option: int, value: int = 0) -> int:
    """prctl(2) with one argument; returns the call's result."""
    return _check(_libc.prctl(option, value, 0, 0, 0), "prctl")


def setfsuid(uid: int) -> int:
    """The user that the calling thread makes files as; returns the one before. Never fails."""
    return int(_libc.setfsuid(uid))


def setfsgid(gid: int) -> int:
    """The group that the calling thread makes files as; returns the one before. Never fails."""
    return int(_libc.setfsgid(gid))


def syncfs(descriptor: int) -> None:
    """Write all of a file system's data to the disk. Blocks."""
    _check(_libc.syncfs(descriptor), "syncfs")


def inotify_init1(flags: int) -> int:
    """A descriptor of a new inotify instance."""
    return _check(_libc.inotify_init1(flags), "inotify")


def inotify_add_watch(descriptor: int, path: str | os.PathLike[str], events: int) -> int:
    """Watch a path; returns the watch's number."""
    return _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), events), "inotify")
