"""Mounts by path and by descriptor.

A mount by descriptor is complete before any process sees it, and is attached in one step.
Sources: mount(2), umount2(2), proc_pid_mountinfo(5); open_tree(2), mount_setattr(2) and
move_mount(2) of Linux 5.12 and later.
"""

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


RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
IDMAP = 0x00100000
"""Attributes of a mount."""

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
"""The same numbers on every architecture."""
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_F_EMPTY_PATH, _T_SYMLINKS, _BENEATH = 0x4, 0x10, 0x200
_MS_PRIVATE = 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def check(result: int, what: str) -> int:
    """What a call of libc returned. Raises OSError, with `what` as its file, for less than 0."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def detached(
    place: str | os.PathLike[str] | int,
    attributes: int = 0,
    *,
    userns: int = 0,
    private: bool = True,
    recursive: bool = False,
) -> int:
    """A descriptor of a new mount of what is at `place`, a path or a descriptor. It goes when that
    is closed, unless it was attached.

    `userns`: the namespace of IDMAP; `private`: apart from what is mounted below the first later;
    `recursive`: with what is mounted below it now. Raises OSError.
    """
    folder, path = (place, b"") if isinstance(place, int) else (_AT_FDCWD, os.fsencode(place))
    below = _AT_RECURSIVE if recursive else 0
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | below | (0 if path else _AT_EMPTY_PATH)
    found = check(libc.syscall(_SYS_OPEN_TREE, folder, path, flags), os.fsdecode(path))
    wanted = _MountAttr(attributes, 0, _MS_PRIVATE if private else 0, userns)
    reference, size = ctypes.byref(wanted), ctypes.sizeof(wanted)
    flags = _AT_EMPTY_PATH | below
    try:
        check(
            libc.syscall(_SYS_MOUNT_SETATTR, found, b"", flags, reference, size),
            os.fsdecode(path),
        )
    except OSError:
        os.close(found)
        raise
    return found


def attach(
    mount: int, target: str | os.PathLike[str], *, follow: bool = False, beneath: bool = False
) -> None:
    """Put a detached mount at `target`, which may be a link if that is to be followed: on top of
    what is mounted there or, from Linux 6.5 on, `beneath` it. Raises OSError."""
    flags = _F_EMPTY_PATH | (_T_SYMLINKS if follow else 0) | (_BENEATH if beneath else 0)
    path = os.fsencode(target)
    check(libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, path, flags), os.fsdecode(path))
