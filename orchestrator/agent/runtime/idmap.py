"""Mounts that are made whole before anybody sees them: with other owners, or read-only.

Source: open_tree(2), mount_setattr(2), move_mount(2), of Linux 5.12 and later. An idmapped mount
shows each file with the owner that a user namespace's mapping makes of the one on disk, so that
shared layers, with root's files in them, belong to the root of each container; what the container
writes has, on disk, the owner that the container sees.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.runtime.idranges import IdRange

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
"""The same numbers on every architecture."""
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NODEV = 0x4
_MOUNT_ATTR_IDMAP = 0x00100000
_MS_PRIVATE = 1 << 18
_PR_SET_SECUREBITS, _PR_GET_SECUREBITS = 28, 27
_SECBIT_NO_SETUID_FIXUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _clone(path: Path, attributes: _MountAttr) -> int:
    """A detached mount of the folder alone. It goes when the descriptor is closed."""
    found: int = _check(
        _libc.syscall(
            _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
        ),
        str(path),
    )
    try:
        _check(
            _libc.syscall(
                _SYS_MOUNT_SETATTR,
                found,
                b"",
                _AT_EMPTY_PATH,
                ctypes.byref(attributes),
                ctypes.sizeof(attributes),
            ),
            str(path),
        )
    except OSError:
        os.close(found)
        raise
    return found


def idmapped(path: Path, userns: int) -> int:
    """A descriptor of a detached mount of `path` in which a user namespace's ids are those on
    disk. Raises OSError; EINVAL where the file system cannot do it."""
    return _clone(path, _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, userns))


def mount_read_only(path: Path, target: Path) -> None:
    """Mount the file system at `path`, and none below it, at `target`: read-only, without devices,
    and apart from what happens to the first. Raises OSError."""
    found = _clone(path, _MountAttr(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NODEV, 0, _MS_PRIVATE, 0))
    try:
        _check(
            _libc.syscall(
                _SYS_MOVE_MOUNT,
                found,
                b"",
                _AT_FDCWD,
                os.fsencode(target),
                _MOVE_MOUNT_F_EMPTY_PATH,
            ),
            str(target),
        )
    finally:
        os.close(found)


@contextmanager
def as_root_of(ids: IdRange) -> Iterator[None]:
    """Make files as a container's root, for the calling thread, which keeps its capabilities.

    The host's root has no id in a mount that is mapped to a container's, and so can make nothing
    there. Overlay's own work is done as whoever mounted it.
    """
    bits = _check(_libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0), "securebits")
    _check(_libc.prctl(_PR_SET_SECUREBITS, bits | _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "securebits")
    try:
        user = _libc.setfsuid(ids.first)
        group = _libc.setfsgid(ids.first)
        try:
            yield
        finally:
            _libc.setfsuid(user)
            _libc.setfsgid(group)
    finally:
        _check(_libc.prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0), "securebits")
