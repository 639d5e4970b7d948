# SPDX-License-Identifier: Apache-2.0
"""Opening files and folders in a tree whose content is not trusted (openat2(2)).

A writer to the tree may replace a folder by a symbolic link at any moment, so a path is
resolved once, by a call that never leaves the tree.
"""

from __future__ import annotations

import ctypes
import os
import stat

from orchestrator.linux import libc

_SYS_OPENAT2 = 437
"""The same number on every architecture since Linux 5.6."""
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_ATTEMPTS = 128
"""Attempts while renames on this node disturb the lookup (EAGAIN, see openat2(2))."""
_LARGEST = 4 << 20


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _openat2(folder: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    arguments = folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
    for _ in range(_ATTEMPTS - 1):
        try:
            return libc.syscall(_SYS_OPENAT2, *arguments, what=path)
        except BlockingIOError:
            continue
    return libc.syscall(_SYS_OPENAT2, *arguments, what=path)


def open_in_root(root_fd: int, path: str) -> int:
    """Open a file for reading as if `root_fd` were `/`. Raises OSError."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    return _openat2(root_fd, path, flags, _RESOLVE_IN_ROOT)


def open_beneath(root_fd: int, path: str) -> int:
    """A descriptor (O_PATH) of the folder at `path` below the folder `root_fd`.

    Links are followed as long as they stay below it. Raises OSError; EXDEV for a path that leads
    out, ENOENT or ENOTDIR when there is no such folder.
    """
    flags = os.O_PATH | os.O_DIRECTORY
    return _openat2(root_fd, path, flags, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)


def read_in_root(
    root_fd: int, path: str, limit: int = _LARGEST, *, executable: bool = False
) -> bytes | None:
    """The first `limit` bytes of a regular file below `root_fd`; None when it is missing, not a
    regular file, or, with `executable`, not executable."""
    try:
        fd = open_in_root(root_fd, path)
    except OSError:
        return None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) or (executable and not mode & 0o111):
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)
