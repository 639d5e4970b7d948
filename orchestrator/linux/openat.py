"""Reading files inside a container's root: links in an image must never lead out of it."""

from __future__ import annotations

import ctypes
import errno
import os
import stat

_SYS_OPENAT2 = 437
"""The same number on every architecture since Linux 5.6."""
_RESOLVE_IN_ROOT = 0x10
_ATTEMPTS = 8
_LARGEST = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_in_root(root_fd: int, path: str) -> int:
    """Open a file for reading as if `root_fd` were `/` (openat2(2)). Raises OSError."""
    how = _OpenHow(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE_IN_ROOT)
    for _ in range(_ATTEMPTS):
        fd: int = _libc.syscall(
            _SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # Something was renamed on the host meanwhile, and the kernel is not sure.
        if code != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), path)


def read_in_root(
    root_fd: int, path: str, limit: int = _LARGEST, *, executable: bool = False
) -> bytes | None:
    """The first `limit` bytes of a regular file; None when it is not there, not a file, or not to
    be executed where that is asked for."""
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
